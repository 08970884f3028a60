"""The values logged at each step, summed until a row takes their means."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from spurcor.data.groups import Batch
from spurcor.errors import RunError
from spurcor.training.method import Phase
from spurcor.training.progress import Progress

CHECK_STEPS = 64  # losses stay on the device for this many steps before they are checked


class StepLog:
    """Counts steps and adds their logged values to the sums in `Progress`, many steps at a time."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._waiting: list[tuple[int, dict[str, Tensor]]] = []

    @property
    def full(self) -> bool:
        """Whether enough steps are pending for `flush`."""
        return len(self._waiting) >= CHECK_STEPS

    def add(self, values: dict[str, Tensor], batches: Mapping[str, Batch]) -> None:
        """Record a step that has just been made."""
        first = len(next(iter(batches.values())).y)
        self._waiting.append((first, values))
        self.progress.step += 1
        self.progress.steps += 1
        self.progress.images_seen += sum(len(batch.y) for batch in batches.values())

    def flush(self, phase: Phase) -> None:
        """Add the values of the pending steps to the sums, in order.

        Raises RunError at the first value that is not finite.
        """
        progress = self.progress
        names = list(self._waiting[0][1]) if self._waiting else []
        columns = {n: torch.stack([v[n] for _, v in self._waiting]).tolist() for n in names}
        for i, (size, _) in enumerate(self._waiting):
            progress.images += size
            for name in names:
                value = columns[name][i]
                if not math.isfinite(value):
                    step = progress.step - len(self._waiting) + i + 1
                    key = f" ({phase.lr_key})" if phase.lr_key else ""
                    raise RunError(
                        f"{phase.name}: {name} is {value} at epoch {progress.epoch + 1}, step"
                        f" {step}; a smaller learning rate{key} may help"
                    )
                progress.sums[name] = progress.sums.get(name, 0.0) + value * size
        self._waiting.clear()

    def means(self) -> dict[str, float]:
        """Return the mean of each value over the images since the last call, as row entries."""
        progress = self.progress
        found = {f"train/{k}": v / progress.images for k, v in progress.sums.items()}
        progress.sums, progress.images = {}, 0
        return found
