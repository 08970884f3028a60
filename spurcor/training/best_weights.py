"""The weights of the epoch that a criterion has chosen, from the moment that it does."""

from pathlib import Path

from torch import Tensor, nn

from spurcor.models import weights
from spurcor.training.progress import Progress, Selected


class BestWeights:
    """Holds the chosen weights: in memory until the next checkpoint, which has them in a file.

    Each checkpoint names a file of its own (`progress.selected.file`), so that a process killed
    while it saves leaves the earlier checkpoint with the weights that belong to it.
    """

    def __init__(self, directory: Path, progress: Progress) -> None:
        self.directory, self.progress = directory, progress
        self._unsaved: dict[str, Tensor] | None = None

    def choose(self, method: nn.Module, selected: Selected) -> None:
        """Take the method's present weights as the best so far."""
        self._unsaved = weights.snapshot(method)
        self.progress.selected = selected

    def load(self) -> dict[str, Tensor]:
        """The chosen weights, wherever they are."""
        assert self.progress.selected is not None
        if self._unsaved is not None:
            return self._unsaved
        return weights.load_state(self.directory / self.progress.selected.file)

    def clear(self) -> None:
        """Choose anew: the phase that chose has ended."""
        self._unsaved = self.progress.selected = None

    def save(self) -> None:
        """Write what is not on disk yet, under a name that only the coming checkpoint knows."""
        selected = self.progress.selected
        if self._unsaved is not None and selected is not None:
            selected.file = f"selected-{self.progress.rows}.safetensors"
            weights.save_weights(self.directory / selected.file, self._unsaved)
            self._unsaved = None

    def remove_earlier(self) -> None:
        """Remove the files of earlier checkpoints, once the new one is whole."""
        selected = self.progress.selected
        for path in self.directory.glob("selected-*.safetensors"):
            if selected is None or path.name != selected.file:
                path.unlink()
