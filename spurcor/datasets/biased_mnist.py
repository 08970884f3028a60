"""MaskTune's biased MNIST: a red square that correlates with small digits."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from spurcor.data.groups import GroupedDataset, GroupSpec, Split, members_by
from spurcor.data.source import DataSource
from spurcor.data.transforms import Normalize, Transform
from spurcor.datasets.sources import read_mnist
from spurcor.errors import UserError

SQUARE = 4  # pixels
RED = (255, 0, 0)


@dataclass(kw_only=True)
class BiasedMnist(DataSource):
    """Small (0-4) against large (5-9) digits, 3 x 28 x 28, with a red square at the top left.

    With `conflict_ratio` r, the first round((1 - r) n) of the n small training digits have the
    square, and the first round(r n) of the n large ones. VAL is `val_size` of these images, drawn
    at random as published and hence as biased as TRAIN, which is the rest. TEST gives the square to
    a random half of each class: four groups of about 2,500 images, large enough for a precise
    worst-group accuracy. Published test sets: `biased` (r = 1: every square on the wrong class) and
    `raw` (no square). Source: MaskTune (Asgari Taghanaki et al., NeurIPS 2022), mnist_rgb.py.
    """

    spec = GroupSpec(("small", "large"), ("none", "square"), aligned=(1, 0))
    transform: Transform = field(default_factory=Normalize)
    conflict_ratio: float = 0.01
    val_size: int = 12000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.conflict_ratio <= 1:
            raise ValueError(f"conflict_ratio={self.conflict_ratio} must be between 0 and 1")
        if self.val_size < 1:
            raise ValueError(f"val_size={self.val_size} must be at least 1")

    def load(self, root: Path) -> dict[str, GroupedDataset]:
        """Read MNIST under `root` and draw the squares."""
        generator = self._generator("biased_mnist")
        grey, y = _read(root, train=True)
        if len(y) <= self.val_size:
            raise UserError(
                f"dataset.val_size={self.val_size} leaves nothing to train on: MNIST in {root}"
                f" has only {len(y)} training images"
            )
        order = torch.randperm(len(y), generator=generator)
        val, train = order[: self.val_size].sort()[0], order[self.val_size :].sort()[0]
        whole = self._build(grey, y, _with_square(y, self.conflict_ratio))
        splits: dict[str, GroupedDataset] = {
            Split.TRAIN: whole.subset(train),
            Split.VAL: whole.subset(val),
        }
        grey, y = _read(root, train=False)
        order, half = torch.randperm(len(y), generator=generator), torch.zeros_like(y)
        for members in members_by(y, order):
            half[members[: len(members) // 2]] = 1
        splits[Split.TEST] = self._build(grey, y, half)
        splits["biased"] = self._build(grey, y, _with_square(y, 1.0))
        splits["raw"] = self._build(grey, y, torch.zeros_like(y))
        return splits

    def _build(self, grey: Tensor, y: Tensor, a: Tensor) -> GroupedDataset:
        """Return a split of greyscale (N, 28, 28) as RGB, with a square where a = 1."""
        x = grey.unsqueeze(1).repeat(1, 3, 1, 1)
        painted = x[:, :, :SQUARE, :SQUARE]
        red = torch.tensor(RED, dtype=torch.uint8)[:, None, None]
        painted.copy_(torch.where(a[:, None, None, None] == 1, red, painted))
        return GroupedDataset(self.spec, x, y, a, torch.arange(len(y)))


def _read(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    grey, digits = read_mnist(root, train)
    return grey, (digits >= 5).long()


def _with_square(y: Tensor, conflict_ratio: float) -> Tensor:
    """Return a (N,): 1 for the first round((1 - r) n) of class 0 and round(r n) of class 1."""
    a = torch.zeros_like(y)
    for label, share in ((0, 1 - conflict_ratio), (1, conflict_ratio)):
        members = (y == label).nonzero().squeeze(1)
        a[members[: round(share * len(members))]] = 1
    return a
