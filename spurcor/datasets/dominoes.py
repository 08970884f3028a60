"""Dominoes: a digit above a harder image, where the digit predicts the class of the image."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from spurcor.data.groups import GroupedDataset, GroupSpec, Split
from spurcor.data.source import DataSource
from spurcor.data.transforms import Normalize, Transform
from spurcor.datasets.sources import (
    CIFAR10_CLASSES,
    FASHION_CLASSES,
    read_cifar10,
    read_fashion_mnist,
    read_mnist,
)
from spurcor.errors import UserError

CLASSES = CIFAR10_CLASSES
BELOW = {
    "cifar10": (CIFAR10_CLASSES, read_cifar10),
    "fashion_mnist": (FASHION_CLASSES, read_fashion_mnist),
}
PER_CLASS = 5000  # maximum images and digits per class for training and pool together

Labelled = tuple[Tensor, Tensor]  # images, and the position of their label among the chosen ones


@dataclass(kw_only=True)
class Dominoes(DataSource):
    """3 x 64 x 32: the label is the class of the image `below`, the cue the MNIST digit above.

    `digits[k]` goes with `classes[k]`; K of each, by default the ten of CIFAR-10. `pool_size` V
    images with independent halves are held out of training; after shuffling, the first half of them
    is VAL and the second TARGET. In TRAIN (5,000 K - V) the digit matches the class, except for a
    random fraction 1 - `strength` whose lower halves are permuted among themselves, so that about 1
    in K of them still matches. TEST has independent halves and the true labels of its digits (the
    published generator mislabels some). Greyscale halves are padded to 32 x 32 and repeated to
    three channels. `source` (N, 2): digit, image below. Source: SCALE, data/mcdominoes.
    """

    transform: Transform = field(default_factory=Normalize)
    below: Literal["cifar10", "fashion_mnist"] = "cifar10"
    digits: tuple[int, ...] = tuple(range(10))
    classes: tuple[str, ...] = CIFAR10_CLASSES
    strength: float = 1.0
    pool_size: int = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        names = BELOW[self.below][0]
        if unknown := [name for name in self.classes if name not in names]:
            raise ValueError(
                f"classes={unknown[0]} is not a class of {self.below}; choose from"
                f" {', '.join(names)}"
            )
        if unfit := [digit for digit in self.digits if not 0 <= digit <= 9]:
            raise ValueError(f"digits={unfit[0]} must be between 0 and 9")
        sizes = len(self.digits), len(self.classes), len({*self.digits}), len({*self.classes})
        if len(set(sizes)) > 1 or sizes[0] < 2:
            raise ValueError(
                f"digits={list(self.digits)} and classes={list(self.classes)} must have the same"
                " length, at least two, and no repeats"
            )
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength={self.strength} must be between 0 and 1")
        step, limit = 2 * sizes[0], sizes[0] * PER_CLASS
        if self.pool_size % step or not 0 < self.pool_size < limit:
            raise ValueError(
                f"pool_size={self.pool_size} must be a multiple of {step} and below {limit}"
            )

    @property
    def spec(self) -> GroupSpec:
        """The classes of the images below, and the digits in the order of their classes."""
        names = tuple(str(digit) for digit in self.digits)
        return GroupSpec(self.classes, names, aligned=tuple(range(len(names))))

    def load(self, root: Path) -> dict[str, GroupedDataset]:
        """Read both sources under `root` and pair their images."""
        generator = self._generator("dominoes")
        digits, photos = self._read(root, train=True)
        num_classes = len(self.classes)
        counts = [
            min(PER_CLASS, int((digits[1] == i).sum()), int((photos[1] == i).sum()))
            for i in range(num_classes)
        ]
        if min(counts) <= self.pool_size // num_classes:
            raise UserError(
                f"dataset.pool_size={self.pool_size} leaves nothing to train on: the rarest class"
                f" under {root} has {min(counts)} images; use a multiple of {2 * num_classes} below"
                f" {num_classes * min(counts)}"
            )
        digit_pool, digit_train = self._hold_out(digits[1], counts, generator)
        photo_pool, photo_train = self._hold_out(photos[1], counts, generator)

        # TRAIN: digit i is paired with class i; then a random part of the images is permuted.
        moved = torch.randperm(len(photo_train), generator=generator)
        moved = moved[: int((1 - self.strength) * len(photo_train) + 1e-9)]
        photo_train[moved] = photo_train[moved[torch.randperm(len(moved), generator=generator)]]

        # Pool and TEST: each half in its own random order.
        digit_pool, photo_pool = (_shuffle(half, generator) for half in (digit_pool, photo_pool))
        half = self.pool_size // 2
        test_digits, test_photos = self._read(root, train=False)
        usable = [(labels >= 0).nonzero().squeeze(1) for _, labels in (test_digits, test_photos)]
        num_test = min(map(len, usable))
        test = [_shuffle(members, generator)[:num_test] for members in usable]
        return {
            Split.TRAIN: self._pair(digits, digit_train, photos, photo_train),
            Split.TARGET: self._pair(digits, digit_pool[half:], photos, photo_pool[half:]),
            Split.VAL: self._pair(digits, digit_pool[:half], photos, photo_pool[:half]),
            Split.TEST: self._pair(test_digits, test[0], test_photos, test[1]),
        }

    def _read(self, root: Path, train: bool) -> tuple[Labelled, Labelled]:
        """Return digits and images below; labels are positions among those chosen, or -1."""
        names, read_below = BELOW[self.below]
        upper, lower = read_mnist(root, train), read_below(root, train)
        positions = torch.tensor([names.index(name) for name in self.classes])
        return (
            (upper[0], _position(upper[1], torch.tensor(self.digits))),
            (lower[0], _position(lower[1], positions)),
        )

    def _hold_out(
        self, labels: Tensor, counts: list[int], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return indices of the pool (V / K per class) and of training (the rest of `counts`)."""
        shuffled = torch.randperm(len(labels), generator=generator)
        num_pool = self.pool_size // len(counts)
        per_class = [shuffled[labels[shuffled] == label] for label in range(len(counts))]
        pool = torch.cat([members[:num_pool] for members in per_class])
        train = torch.cat([m[num_pool:n] for m, n in zip(per_class, counts, strict=True)])
        return pool, train

    def _pair(
        self, digits: Labelled, digit_index: Tensor, photos: Labelled, photo_index: Tensor
    ) -> GroupedDataset:
        """Return a split of digits on top of images, each half (N, 3, 32, 32)."""
        halves = [_squared(digits[0][digit_index]), _squared(photos[0][photo_index])]
        source = torch.stack([digit_index, photo_index], dim=1)
        return GroupedDataset(
            self.spec,
            torch.cat(halves, dim=2),
            photos[1][photo_index],
            digits[1][digit_index],
            source,
        )


def _position(labels: Tensor, chosen: Tensor) -> Tensor:
    """Return the position of each label (N,) in `chosen` (K,), -1 if absent."""
    matches = labels[:, None] == chosen
    return torch.where(matches.any(1), matches.int().argmax(1), -1)


def _squared(images: Tensor) -> Tensor:
    """Return images (N, 3, 32, 32) unchanged, or (N, 28, 28) padded and repeated to that shape."""
    if images.ndim == 4:
        return images
    return F.pad(images, (2, 2, 2, 2)).unsqueeze(1).expand(-1, 3, -1, -1)


def _shuffle(values: Tensor, generator: torch.Generator) -> Tensor:
    return values[torch.randperm(len(values), generator=generator)]
