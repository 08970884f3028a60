"""Where a run stands, and how long it has taken to get there."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spurcor.training.selection import Best


@dataclass
class Selected:
    """The epoch that a criterion has chosen so far."""

    criterion: str | None  # None where it was never defined: the epoch is the last one then
    phase: str
    epoch: int
    file: str = ""  # of its weights, in the run's directory; a checkpoint always names it

    @property
    def facts(self) -> dict[str, Any]:
        """What readers of a run are told."""
        return {"criterion": self.criterion, "phase": self.phase, "epoch": self.epoch}


@dataclass
class Progress:
    """Where a run stands; all of it is in the checkpoint."""

    phase: int = 0
    epoch: int = 0  # finished epochs of the phase
    step: int = 0  # finished steps of the epoch
    rows: int = 0
    steps: int = 0  # updates since the run began
    images_seen: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)  # per logged value, over images
    images: int = 0  # images in `sums`
    selected: Selected | None = None
    best: Best = field(default_factory=Best)  # in this phase, by what selects
    watched: Best = field(default_factory=Best)  # and by what stops early
    environment: dict[str, Any] = field(default_factory=dict)
    moved: bool = False  # resumed under another thread count, device or precision

    def next_phase(self) -> None:
        """Stand at the beginning of the phase after this one."""
        self.phase, self.epoch, self.step = self.phase + 1, 0, 0
        self.best, self.watched = Best(), Best()

    def load(self, values: Mapping[str, Any]) -> None:
        """Stand where another did, from its `asdict`."""
        own = {name: values[name] for name in vars(self)}
        selected = own["selected"]
        own["selected"] = None if selected is None else Selected(**selected)
        best = {name: Best(**own[name]) for name in ("best", "watched")}
        vars(self).update(own, **best)


class Clock:
    """Adds up the seconds of a run over its processes, and knows when it was last saved."""

    def __init__(self) -> None:
        self._read = self._saved = time.monotonic()

    def add_to(self, progress: Progress) -> None:
        """Count the seconds since they were last counted."""
        now = time.monotonic()
        progress.seconds += now - self._read
        self._read = now

    def saved(self) -> None:
        """A checkpoint has just been written."""
        self._saved = time.monotonic()

    def unsaved(self) -> float:
        """Seconds since the last checkpoint, or since this process began."""
        return time.monotonic() - self._saved
