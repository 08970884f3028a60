"""Trials: the runs and repairs that a report compares, and the names of their settings."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from spurcor.presentation.tables import short_names
from spurcor.reports.runs import Row, Run


@dataclass(frozen=True)
class Trial:
    """A run, judged by its epochs, or a repair, judged by its result.

    Trials with the same `identity` differ only in the seed. `dataset` is numbered if the splits of
    a data set differ among the runs. `setting` names the options that differ among trials of the
    same data set and method.
    """

    run: Run
    dataset: str
    method: str
    identity: str
    config: Mapping[str, Any]
    rows: Sequence[Row]
    repair: str | None = None
    setting: str = ""

    @property
    def measured(self) -> Row:
        """Quantities of analyses at the end of the run, as <analysis>/<quantity>/<split>.

        If two analyses have the same name, their folder names are used. Repairs have none.
        """
        parts = {} if self.repair else self.run.measured
        names = [folder.rpartition("-")[0] for folder in parts]
        return {
            f"{name if names.count(name) == 1 else folder}/{key}": value
            for name, (folder, part) in zip(names, parts.items(), strict=True)
            for key, value in part.items()
        }

    def value(self, key: str) -> Any:
        """Return the value of a configuration key or of a label; None if undefined."""
        own = {"method": self.method, "setting": self.setting, "splits": self.dataset}
        return own[key] if key in own else self.config.get(key)


def with_settings(trials: Sequence[Trial], without: Iterable[str] = ()) -> list[Trial]:
    """Name each trial's setting by the options that differ within its data set and method.

    Options in `without` are left out, as the table shows them elsewhere. If there are none,
    settings that no option distinguishes are marked with their identity.
    """
    groups: dict[tuple[str, str], dict[str, Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.dataset, trial.method), {})[trial.identity] = trial
    keys_of = {
        group: [
            key for key in _distinguishing([t.config for t in found.values()]) if key not in without
        ]
        for group, found in groups.items()
    }
    names = short_names({key for keys in keys_of.values() for key in keys})
    texts: dict[tuple[str, str], dict[str, str]] = {}
    for group, found in groups.items():
        chosen = {key: names[key] for key in keys_of[group]}
        own = {identity: described(trial.config, chosen) for identity, trial in found.items()}
        taken = list(own.values())
        texts[group] = {
            identity: text if without or taken.count(text) == 1 else f"{text} [{identity}]".strip()
            for identity, text in own.items()
        }
    return [replace(t, setting=texts[t.dataset, t.method][t.identity]) for t in trials]


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys in which configurations differ, in their order.

    A key that only some configurations have counts if its values differ, or if all configurations
    chose the same class. Otherwise the class already implies it: that only SGD has a momentum
    follows from optimizer=sgd.
    """
    values: dict[str, set[Any]] = {}
    counts: dict[str, int] = {}
    for config in configs:
        for key, value in config.items():
            values.setdefault(key, set()).add(value)
            counts[key] = counts.get(key, 0) + 1
    return [
        key
        for key, found in values.items()
        if len(found) > 1
        or (counts[key] < len(configs) and len(values.get(key.partition(".")[0], ())) <= 1)
    ]


def _distinguishing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the differing keys, except repair options that earlier ones determine."""
    kept: list[str] = []
    for key in differing(configs):
        before = [name for name in kept if name.startswith("dfr.")]
        if key.startswith("dfr.") and before:
            known = {tuple(config.get(name) for name in before) for config in configs}
            pairs = {tuple(config.get(name) for name in [*before, key]) for config in configs}
            if len(pairs) == len(known):
                continue
        kept.append(key)
    return kept


def described(config: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return the values of a configuration as text, each as name=value."""
    return " ".join(f"{name}={show_value(config[k])}" for k, name in names.items() if k in config)


def show_value(value: Any) -> str:
    """Return a configuration value as it is typed on the command line."""
    if isinstance(value, tuple):
        return f"[{','.join(map(show_value, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
