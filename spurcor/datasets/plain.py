"""Data sets without a spurious attribute, for selective classification."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from spurcor.data.groups import GroupedDataset, GroupSpec, Split
from spurcor.data.images import Images
from spurcor.data.source import DataSource
from spurcor.data.transforms import Normalize, Transform
from spurcor.datasets.sources import (
    CIFAR10_CLASSES,
    FASHION_CLASSES,
    read_cifar10,
    read_fashion_mnist,
)
from spurcor.errors import UserError

SETS = {
    "cifar10": (CIFAR10_CLASSES, read_cifar10),
    "fashion_mnist": (FASHION_CLASSES, read_fashion_mnist),
}


@dataclass(kw_only=True)
class Plain(DataSource):
    """CIFAR-10 (3 x 32 x 32) or Fashion-MNIST (1 x 28 x 28); the groups are the classes.

    VAL is `val_size` training images drawn at random; TEST is the official test set.
    """

    name: Literal["cifar10", "fashion_mnist"]
    transform: Transform = field(default_factory=Normalize)
    val_size: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.val_size < 1:
            raise ValueError(f"val_size={self.val_size} must be at least 1")

    @property
    def spec(self) -> GroupSpec:
        """The classes, with a single attribute value and no aligned groups."""
        return GroupSpec(SETS[self.name][0], ("any",))

    def load(self, root: Path) -> dict[str, GroupedDataset]:
        """Read the data set under `root`."""
        whole, test = self._read(root, train=True), self._read(root, train=False)
        if len(whole) <= self.val_size:
            raise UserError(
                f"dataset.val_size={self.val_size} leaves nothing to train on: {self.name} in"
                f" {root} has only {len(whole)} training images"
            )
        order = torch.randperm(len(whole), generator=self._generator(self.name))
        val, train = order[: self.val_size].sort()[0], order[self.val_size :].sort()[0]
        return {
            Split.TRAIN: whole.subset(train),
            Split.VAL: whole.subset(val),
            Split.TEST: test,
        }

    def _read(self, root: Path, train: bool) -> GroupedDataset:
        images, y = SETS[self.name][1](root, train)
        if images.ndim == 3:
            images = images.unsqueeze(1)
        return GroupedDataset(
            self.spec, Images(images), y, torch.zeros_like(y), torch.arange(len(y))
        )
