"""The position of a run in its training, and the time spent to get there."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spurcor.training.selection import Best


@dataclass
class Selected:
    """The epoch that a criterion has selected so far."""

    criterion: str | None  # None if it was never defined: then the last epoch is selected
    phase: str
    epoch: int
    file: str = ""  # file of its weights in the run's directory; always set in a checkpoint

    @property
    def facts(self) -> dict[str, Any]:
        """The criterion, phase and epoch, as reported in results."""
        return {"criterion": self.criterion, "phase": self.phase, "epoch": self.epoch}


@dataclass
class Progress:
    """The position of a run in its training; stored in full in every checkpoint."""

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
    best: Best = field(default_factory=Best)  # in this phase, by the selection criterion
    watched: Best = field(default_factory=Best)  # in this phase, by the metric of early stopping
    environment: dict[str, Any] = field(default_factory=dict)
    moved: bool = False  # resumed under another thread count, device or precision

    def next_phase(self) -> None:
        """Move to the beginning of the next phase."""
        self.phase, self.epoch, self.step = self.phase + 1, 0, 0
        self.best, self.watched = Best(), Best()

    def load(self, values: Mapping[str, Any]) -> None:
        """Restore the position from its `asdict`."""
        own = {name: values[name] for name in vars(self)}
        selected = own["selected"]
        own["selected"] = None if selected is None else Selected(**selected)
        best = {name: Best(**own[name]) for name in ("best", "watched")}
        vars(self).update(own, **best)


class Clock:
    """Sums the seconds of a run over its processes; tracks the time since the last checkpoint."""

    def __init__(self) -> None:
        self._read = self._saved = time.monotonic()

    def add_to(self, progress: Progress) -> None:
        """Add the seconds since the previous call to `progress.seconds`."""
        now = time.monotonic()
        progress.seconds += now - self._read
        self._read = now

    def saved(self) -> None:
        """Note that a checkpoint has just been written."""
        self._saved = time.monotonic()

    def unsaved(self) -> float:
        """Return the seconds since the last checkpoint, or since this process began."""
        return time.monotonic() - self._saved
