"""Tables as data, which all output formats share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spurcor.presentation.statistics import Summary


@dataclass(frozen=True)
class Interval:
    """A summary shown as its interval."""

    summary: Summary


@dataclass(frozen=True)
class Seeds:
    """How many seeds a row is based on, and how many it should be."""

    count: int
    expected: int

    def __str__(self) -> str:
        missing = self.count < self.expected
        return f"{self.count} of {self.expected}" if missing else str(self.count)


Cell = str | int | float | Summary | Interval | Seeds | None
Record = Mapping[str, Cell]


@dataclass(frozen=True)
class Table:
    """Records in order, with the notes below them."""

    name: str
    title: str
    records: Sequence[Record]
    notes: Sequence[str] = ()
    lower_is_better: Sequence[str] = ()  # names of columns

    @property
    def columns(self) -> list[str]:
        """The columns of all records, in order of appearance."""
        return list(dict.fromkeys(key for record in self.records for key in record))


def percent(fraction: float | None) -> str:
    """A fraction in per cent with one decimal, as in papers."""
    return "-" if fraction is None else f"{100 * fraction:.1f}"


LAST, ORACLE = "last", "oracle"
