"""When a run is measured as it trains, and what the loop wants of whoever measures it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from spurcor.data.splits import Splits
from spurcor.training.method import Method


@dataclass(frozen=True)
class Moment:
    """A phase, its finished epochs, and the updates since the run began."""

    phase: str
    epoch: int
    step: int


class Measures(Protocol):
    """What is measured of a method besides its evaluation, such as the analyses of a run.

    It leaves no trace on training; its own state is part of a checkpoint.
    """

    def due(self, epoch: int) -> bool:
        """Whether to measure after this many finished epochs of a phase."""

    def measure(self, method: Method, splits: Splits, moment: Moment) -> Mapping[str, Any]:
        """Entries of the moment's row."""

    def state_dict(self) -> dict[str, Any]:
        """What was measured so far."""

    def load_state_dict(self, state: Mapping[str, Any], coming: Sequence[tuple[str, int]]) -> None:
        """Continue from `state_dict`; `coming` are the phases and epochs that are still ahead."""
