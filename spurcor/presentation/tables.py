"""A table as data: records that every form of output shares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spurcor.presentation.statistics import Summary


@dataclass(frozen=True)
class Interval:
    """A summary of which the interval is shown."""

    of: Summary


@dataclass(frozen=True)
class Seeds:
    """How many seeds a row rests on, and how many it should."""

    count: int
    expected: int

    def __str__(self) -> str:
        missing = self.count < self.expected
        return f"{self.count} of {self.expected}" if missing else str(self.count)


Cell = str | int | float | Summary | Interval | Seeds | None
Record = Mapping[str, Cell]


@dataclass(frozen=True)
class Table:
    """Records in order, with the sentences that belong below them."""

    name: str
    title: str
    records: Sequence[Record]
    notes: Sequence[str] = ()
    falling: Sequence[str] = ()  # columns in which less is better

    @property
    def columns(self) -> list[str]:
        """Of all records, in order of appearance."""
        return list(dict.fromkeys(key for record in self.records for key in record))


def percent(fraction: float | None) -> str:
    """A fraction in per cent, as papers print it."""
    return "-" if fraction is None else f"{100 * fraction:.1f}"


LAST, ORACLE = "last", "oracle"
