"""Entries of conf/tuned: the best setting of each method of a sweep, as its defaults."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import DictConfig, OmegaConf

from spurcor.config.nodes import flat, plain
from spurcor.errors import UserError
from spurcor.presentation.tables import counted
from spurcor.reports.selection import Candidate
from spurcor.reports.tables import Judged
from spurcor.reports.trials import differing, show_value
from spurcor.sweeps.manifest import manifest
from spurcor.system.places import CONF

# Groups whose options an entry may set. Other data, or another backbone, is chosen by whoever
# trains; an entry must not do so silently.
SECTIONS = ("method.", "groups.", "optimizer.", "schedule.", "train.")


def tuned_entries(
    outputs: Path, sweeps: Sequence[str], judged: Judged, how: Literal["write", "replace"]
) -> dict[Path, str]:
    """Return the text of an entry for each data set and method, by the path of its file.

    Raises UserError if nothing could choose a setting, if a data set occurs with several versions
    of its splits, or, if an entry is not to be replaced, if there is one.
    """
    typed = _typed(outputs, sweeps)
    texts: dict[Path, str] = {}
    for candidates in judged.values():
        if candidates[0].trial.repair is not None:
            continue
        method = candidates[0].trial.config["method"]
        (best, *others) = [one for one in candidates if one.chosen]
        path = CONF / "tuned" / best.trial.config["dataset"] / f"{method}.yaml"
        if others or best.column is None:
            raise UserError(f"tuned=write: no setting of {method} has a {best.criterion}")
        if path in texts:
            raise UserError(
                f"tuned=write: {best.trial.config['dataset']} occurs with several versions of its"
                " splits; choose one with keep"
            )
        if path.exists() and how == "write":
            raise UserError(f"tuned=write: {path} exists; pass tuned=replace to replace it")
        words = typed[best.trial.run.directory]
        if "groups" in {*words, *differing([one.trial.config for one in candidates])}:
            raise UserError(
                f"tuned=write: {method} was chosen with groups={best.trial.config.get('groups')},"
                f" which an entry of {method} cannot choose; leave it out with keep"
            )
        kept = _keys_of(path) if path.exists() else []
        texts[path] = _entry(best, candidates, sweeps, [*kept, *words])
    return texts


def _entry(
    best: Candidate, candidates: Sequence[Candidate], sweeps: Sequence[str], typed: Iterable[str]
) -> str:
    """Return the text: the best setting's values of what was tried and of what was typed."""
    config = best.trial.config
    searched = differing([one.trial.config for one in candidates])
    keys: dict[str, None] = {}
    for name in (*searched, *typed):  # early_stopping={patience: 2} is typed whole
        whole = (key for key in config if key.startswith(f"{name}."))
        keys |= dict.fromkeys([name] if name in config else whole)
    own, beside = OmegaConf.create({}), []
    for key in keys:
        if key.startswith(SECTIONS) and key not in ("method.init", "groups.run"):
            OmegaConf.update(own, key, plain(config[key]))
        elif key not in ("dataset", "method"):
            beside.append(f"{key}={show_value(config[key])}")
    loss = (best.column or "").endswith("/loss")
    score = f"{-(best.score or 0):.4g}" if loss else f"{100 * (best.score or 0):.1f}"
    seeds = max(len(one.picks) for one in candidates)
    notes = [
        f"Best by {best.criterion} ({score}) of {counted(len(candidates), 'setting')} with"
        f" {counted(seeds, 'seed')} in the sweep {' and '.join(sweeps)}.",
        *([f"Tried there: {', '.join(searched)}."] if searched else []),
        *([f"Chosen with {' '.join(beside)}."] if beside else []),
    ]
    lines = [f"# {line}" for note in notes for line in textwrap.wrap(note, 98)]
    lines += [f"{name}: {_flow(options)}" for name, options in _sections(own).items()]
    return "\n".join(["# @package _global_", *lines, ""])


def _typed(outputs: Path, sweeps: Sequence[str]) -> dict[Path, list[str]]:
    """Return the keys of the overrides of each run's points."""
    keys: dict[Path, list[str]] = {}
    for sweep in sweeps:
        for entry in manifest(outputs, sweep):
            words = (word.partition("=")[0].lstrip("+~") for word in entry["overrides"])
            keys.setdefault(Path(entry["directory"]), []).extend(words)
    return keys


def _keys_of(path: Path) -> list[str]:
    """Return the dotted keys of an entry."""
    tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return [key for section, options in tree.items() for key in flat(section, options)]


def _sections(own: DictConfig) -> dict[str, Any]:
    tree = OmegaConf.to_container(own)
    assert isinstance(tree, dict)
    return {str(name): tree[name] for name in sorted(tree)}


def _flow(options: Mapping[str, Any]) -> str:
    """Return options in one line of YAML."""
    text: str = yaml.safe_dump(plain(options), default_flow_style=True, sort_keys=False, width=1000)
    return text.strip()
