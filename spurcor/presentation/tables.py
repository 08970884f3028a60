"""Tables as data, shared by all output formats."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from spurcor.presentation.statistics import Summary


@dataclass(frozen=True)
class Interval:
    """A summary displayed as its confidence interval."""

    summary: Summary


@dataclass(frozen=True)
class Seeds:
    """The number of seeds behind a row, and the number expected."""

    count: int
    expected: int

    def __str__(self) -> str:
        missing = self.count < self.expected
        return f"{self.count} of {self.expected}" if missing else str(self.count)


Cell = str | int | float | Summary | Interval | Seeds | None
Record = Mapping[str, Cell]


@dataclass(frozen=True)
class Table:
    """A table: its records in order, and the notes below it."""

    name: str
    title: str
    records: Sequence[Record]
    notes: Sequence[str] = ()
    lower_is_better: Sequence[str] = ()  # column names

    @property
    def columns(self) -> list[str]:
        """The columns of all records, in order of appearance."""
        return list(dict.fromkeys(key for record in self.records for key in record))


def percent(fraction: float | None) -> str:
    """Return a fraction in per cent with one decimal, or a dash for None."""
    return "-" if fraction is None else f"{100 * fraction:.1f}"


LAST, ORACLE = "last", "oracle"


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Map each key to its last part if that is unambiguous, else to the whole key."""
    keys = sorted(set(keys))
    last = [key.rpartition(".")[2] for key in keys]
    return {key: end if last.count(end) == 1 else key for key, end in zip(keys, last, strict=True)}


def counted(count: int, what: str) -> str:
    """Return a number with its noun, such as 1 run or 2 runs."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
