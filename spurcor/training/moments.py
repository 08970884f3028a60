"""Measurement points during training, and the interface of whatever measures at them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from spurcor.data.splits import Splits
from spurcor.training.method import Method


class Pruned(Exception):  # noqa: N818 - a decision, not an error
    """A search has no more use for a run; its checkpoint is kept."""


@dataclass(frozen=True)
class Moment:
    """A point in training: the phase, its finished epochs, and the updates since the run began."""

    phase: str
    epoch: int
    step: int


Enough = Callable[[Sequence[Mapping[str, Any]]], bool]


def never(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return False: a run outside a search is trained to its end."""
    return False


class Measures(Protocol):
    """Measurements of a method besides its evaluation, such as the analyses of a run.

    They must not affect training; their state is part of every checkpoint.
    """

    def due(self, epoch: int) -> bool:
        """Return whether to measure after this many finished epochs of a phase."""

    def measure(self, method: Method, splits: Splits, moment: Moment) -> Mapping[str, Any]:
        """Measure the method; return entries for the row of the moment."""

    def state_dict(self) -> dict[str, Any]:
        """Return the measurements so far."""

    def load_state_dict(self, state: Mapping[str, Any], coming: Sequence[tuple[str, int]]) -> None:
        """Continue from `state_dict`; `coming` lists the (phase, epoch) pairs still ahead."""
