"""Search spaces: distributions of settings, written in Hydra's sweep syntax."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from spurcor.config.composition import refuse_impossible_sweep
from spurcor.errors import UserError

COMMON = "common"
KEY = "hydra.sweeper.search"
Section = Mapping[str, BaseDistribution]
Values = dict[str, Any]


@dataclass(frozen=True)
class Space:
    """Distributions by key: common ones, and those of a choice such as method=scale."""

    common: Section
    conditional: Mapping[str, Section]

    def sections(self, values: Mapping[str, Any], choices: Mapping[str, Any]) -> list[Section]:
        """Return the sections of the choices made by the drawn `values` or else by `choices`."""
        found = []
        for condition, section in self.conditional.items():
            group, _, option = condition.partition("=")
            if str(values.get(group, choices.get(group))).strip("'\"") == option:
                found.append(section)
        return found

    def is_log(self, key: str) -> bool:
        """Return whether a key is searched on a logarithmic scale."""
        sections = (self.common, *self.conditional.values())
        return any(getattr(section.get(key), "log", False) for section in sections)

    def described(self) -> dict[str, Any]:
        """Return the space as plain data, to compare it with another."""
        parts = {COMMON: self.common, **self.conditional}
        return {
            name: {key: json.loads(distribution_to_json(one)) for key, one in part.items()}
            for name, part in parts.items()
        }

    def grid(self, choices: Mapping[str, Any]) -> Iterator[Values]:
        """Yield every combination of values; raises UserError for an interval of real numbers."""
        for drawn in _product(self.common):
            for rest in _product(_merged(self.sections(drawn, choices))):
                yield {**drawn, **rest}

    def probes(self, choices: Mapping[str, Any]) -> Iterator[tuple[str, Values, list[Values]]]:
        """Yield each key with a point, and the points that differ from it in this key alone.

        These have the other end of an interval, or each of the other choices. There is also a point
        without a key for each choice that a condition is on.
        """
        chosen = {condition.partition("=")[0] for condition in self.conditional}
        for condition in self.conditional:
            self._refuse_never(condition, choices)
        for drawn in _options(self.common, self.conditional):
            section = _merged([self.common, *self.sections(drawn, choices)])
            base = {key: ends(one)[0] for key, one in section.items()} | drawn
            yield "", base, []  # an option without keys of its own, too, must exist
            for key, one in section.items():
                if key not in chosen:
                    others = [value for value in _tried(one) if value != base[key]]
                    yield key, base, [{**base, key: value} for value in others]

    def _refuse_never(self, condition: str, choices: Mapping[str, Any]) -> None:
        """Refuse a section whose condition no point can meet."""
        group, _, option = condition.partition("=")
        if group in self.common:
            known = [str(value).strip("'\"") for value in _tried(self.common[group])]
            if option not in known:
                raise UserError(
                    f"{KEY}.{condition}: {option} is not among the values of {group}, which are"
                    f" {', '.join(known)}; correct one of them"
                )
        elif group not in choices:
            raise UserError(
                f"{KEY}.{condition}: {group} is neither searched nor a config group such as method;"
                " choose one"
            )


def parse_space(
    search: Mapping[str, Any], typed: Sequence[Override], parser: OverridesParser
) -> Space:
    """Read the sections of `search`; swept keys of the command line are common ones.

    A typed key takes precedence over its entries in `search`. Raises UserError.
    """
    keys = {_bare(override.get_key_element()) for override in typed}
    parts: dict[str, dict[str, BaseDistribution]] = {COMMON: {}}
    for name, entries in ((str(name), entries) for name, entries in search.items()):
        if name != COMMON and "=" not in name:
            raise UserError(
                f"{KEY}.{name} is not a section; put keys under {COMMON}, or under a choice such as"
                " method=scale"
            )
        if not isinstance(entries, Mapping):
            raise UserError(f"{KEY}.{name}={entries} is not a mapping of keys to values")
        if nested := [key for key, value in entries.items() if isinstance(value, Mapping)]:
            raise UserError(
                f"{KEY}.{name}.{nested[0]} is a mapping; write its keys with dots, as in"
                " optimizer.lr"
            )
        lines = [f"{key}={value}" for key, value in entries.items() if _bare(str(key)) not in keys]
        parts.setdefault(name, {}).update(
            {one.get_key_element(): _distribution(one) for one in parser.parse_overrides(lines)}
        )
    swept = [override for override in typed if override.is_sweep_override()]
    parts[COMMON] |= {one.get_key_element(): _distribution(one) for one in swept}
    for name, section in parts.items():
        both = {_bare(key) for key in section} & {_bare(key) for key in parts[COMMON]}
        if name != COMMON and both:
            raise UserError(
                f"{KEY}: {sorted(both)[0]} stands under both {COMMON} and {name}; keep one"
            )
    if not any(parts.values()):
        raise UserError(
            f"{KEY} is empty: sweep over a key, as in 'optimizer.lr=tag(log,interval(1e-4,1e-1))',"
            " or name a file of sweeps/spaces, as in +sweeps=spaces/scale"
        )
    return Space(parts.pop(COMMON), parts)


def _bare(key: str) -> str:
    """Return a key without the signs that add or remove it."""
    return key.lstrip("+~")


def ends(one: BaseDistribution) -> tuple[Any, Any]:
    """Return the first and the last value of a distribution."""
    if isinstance(one, CategoricalDistribution):
        return one.choices[0], one.choices[-1]
    assert isinstance(one, IntDistribution | FloatDistribution)
    return one.low, one.high


def described(one: BaseDistribution) -> str:
    """Return a distribution in words."""
    if isinstance(one, CategoricalDistribution):
        return ", ".join(map(str, one.choices))
    low, high = ends(one)
    step = getattr(one, "step", None) or 1
    how = ", logarithmic" if getattr(one, "log", False) else ""
    whole = ", whole numbers" if isinstance(one, IntDistribution) else ""
    return f"{low} to {high}{how}{whole}" + (f", steps of {step}" if step != 1 else "")


def _tried(one: BaseDistribution) -> tuple[Any, ...]:
    return one.choices if isinstance(one, CategoricalDistribution) else ends(one)


def _distribution(override: Override) -> BaseDistribution:
    line, value = override.input_line, override.value()
    if unknown := sorted(set(getattr(value, "tags", None) or ()) - {"log"}):
        raise UserError(f"{line}: there is no tag {unknown[0]}; the only one is log")
    if isinstance(value, IntervalSweep):
        return _interval(str(line), value)
    if not override.is_discrete_sweep():
        raise UserError(
            f"{line} is a single value; search an interval(...), a range(...) or a choice(...)"
        )
    refuse_impossible_sweep([override])
    if "log" in getattr(value, "tags", ()):
        raise UserError(f"{line}: only an interval can be logarithmic")
    texts = [str(text) for text in override.sweep_string_iterator()]
    if isinstance(value, RangeSweep) and all(text.lstrip("-").isdigit() for text in texts):
        numbers = sorted(map(int, texts))
        return IntDistribution(numbers[0], numbers[-1], step=abs(int(value.step or 1)))
    return CategoricalDistribution(tuple(dict.fromkeys(texts)))


def _interval(line: str, value: IntervalSweep) -> BaseDistribution:
    low, high, log = value.start, value.end, "log" in value.tags
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(f"{line}: an interval needs two finite ends")
    if not low < high:
        raise UserError(f"{line}: the interval must end above its beginning; swap its ends")
    if log and low <= 0:
        raise UserError(f"{line}: a logarithmic interval must begin above 0")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _product(section: Section) -> Iterator[Values]:
    axes = []
    for key, one in section.items():
        if isinstance(one, CategoricalDistribution):
            axes.append(one.choices)
        elif isinstance(one, IntDistribution):
            axes.append(tuple(range(one.low, one.high + 1, one.step)))
        else:
            raise UserError(
                f"hydra.sweeper.sampler=grid needs a list of values for {key}, not an interval of"
                " real numbers; write choice(...), or choose another sampler"
            )
    for point in itertools.product(*axes):
        yield dict(zip(section, point, strict=True))


def _merged(sections: Sequence[Section]) -> dict[str, BaseDistribution]:
    return {key: one for section in sections for key, one in section.items()}


def _options(common: Section, conditional: Mapping[str, Section]) -> list[Values]:
    """Return values of the searched keys that conditions are on, each of their choices once."""
    found: list[Values] = [{}]
    for group in dict.fromkeys(condition.partition("=")[0] for condition in conditional):
        if group in common:
            found += [{group: value} for value in _tried(common[group])]
    return found
