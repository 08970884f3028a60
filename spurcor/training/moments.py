"""When an analysis looks at a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Moment:
    """A phase, its finished epochs, and the updates since the run began."""

    phase: str
    epoch: int
    step: int
