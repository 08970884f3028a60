"""The weights of the best epoch so far, kept from the moment a criterion selects them."""

from pathlib import Path

from torch import Tensor, nn

from spurcor.models import weights
from spurcor.training.progress import Progress, Selected


class BestWeights:
    """Selected weights: in memory until the next checkpoint writes them to a file.

    Every checkpoint names its own file (`progress.selected.file`), so a process killed while saving
    leaves the previous checkpoint together with its weights.
    """

    def __init__(self, directory: Path, progress: Progress) -> None:
        self.directory, self.progress = directory, progress
        self._unsaved: dict[str, Tensor] | None = None

    def choose(self, method: nn.Module, selected: Selected) -> None:
        """Take the method's current weights as the best so far."""
        self._unsaved = weights.snapshot(method)
        self.progress.selected = selected

    def load(self) -> dict[str, Tensor]:
        """Return the selected weights, from memory or from their file."""
        assert self.progress.selected is not None
        if self._unsaved is not None:
            return self._unsaved
        return weights.load_state(self.directory / self.progress.selected.file)

    def clear(self) -> None:
        """Discard the selection at the end of a phase."""
        self._unsaved = self.progress.selected = None

    def save(self) -> None:
        """Write unsaved weights to a new file that only the upcoming checkpoint refers to."""
        selected = self.progress.selected
        if self._unsaved is not None and selected is not None:
            selected.file = f"selected-{self.progress.rows}.safetensors"
            weights.save_weights(self.directory / selected.file, self._unsaved)
            self._unsaved = None

    def remove_earlier(self) -> None:
        """Remove the weight files of earlier checkpoints once the new checkpoint is complete."""
        selected = self.progress.selected
        for path in self.directory.glob("selected-*.safetensors"):
            if selected is None or path.name != selected.file:
                path.unlink()
