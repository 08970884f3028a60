"""Splits, groups, batches and streams.

Names and shapes used everywhere: x images (B, C, H, W), y class (B,), a spurious attribute (B,),
g group (B,), index position in the split (B,); K classes, A attributes, G groups, D features.
Group numbers are g = y * A + a.
"""

import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from spurcor.errors import UserError


class Split(StrEnum):
    """TARGET trains (DFR, SCALE), VAL selects, TEST reports."""

    TRAIN = "train"
    TARGET = "target"
    VAL = "val"
    TEST = "test"


@dataclass(frozen=True)
class GroupSpec:
    """Names of the classes and of the values of the spurious attribute."""

    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    aligned: tuple[int, ...] = ()  # per class, the attribute value usually seen with it
    task: Literal["multiclass", "multilabel"] = "multiclass"

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def num_groups(self) -> int:
        """G = K * A; groups without a sample keep their number."""
        return len(self.classes) * len(self.attributes)

    @property
    def names(self) -> list[str]:
        """Group names in the order of g."""
        return [f"{c}/{a}" for c in self.classes for a in self.attributes]

    def group(self, y: Tensor, a: Tensor) -> Tensor:
        """Group numbers of classes and attributes, any shape."""
        return y * len(self.attributes) + a

    def is_aligned(self) -> Tensor:
        """(G,) bool: groups whose attribute is the one usually seen with their class."""
        aligned = torch.zeros(self.num_groups, dtype=torch.bool)
        for y, a in enumerate(self.aligned):
            aligned[y * len(self.attributes) + a] = True
        return aligned


@dataclass(frozen=True, slots=True)
class Batch:
    """x uint8 as stored or float as transformed; y, a, g, index int64."""

    x: Tensor
    y: Tensor
    a: Tensor
    g: Tensor
    index: Tensor


class GroupedDataset:
    """One split: images as one uint8 array (N, C, H, W), and y, a, g of all of it."""

    def __init__(
        self, spec: GroupSpec, images: Tensor, y: Tensor, a: Tensor, source: Tensor
    ) -> None:
        """`source` (N, ...) int64 says which sample of the original data each row is made of."""
        if images.dtype != torch.uint8:
            raise TypeError(f"images are stored as uint8, not {images.dtype}")
        self.spec = spec
        self.images = images
        self.y, self.a, self.g = y.long(), a.long(), spec.group(y.long(), a.long())
        self.source = source

    def __len__(self) -> int:
        return len(self.y)

    @functools.cached_property
    def group_counts(self) -> Tensor:
        """(G,) int64; zero for groups without a sample."""
        return torch.bincount(self.g, minlength=self.spec.num_groups)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of which samples are in the split, in which order, with which labels.

        Of the images, 1,000 spread over the split count: other pixels under the same numbers are
        noticed without reading everything.
        """
        digest = hashlib.sha256()
        sample = self.images[:: max(1, len(self) // 1000)]
        for array in (self.source, self.y, self.a, sample):
            digest.update(array.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def fetch(self, indices: Tensor) -> Batch:
        """The samples at `indices` by one gather, in the order asked for."""
        return Batch(
            self.images[indices], self.y[indices], self.a[indices], self.g[indices], indices
        )

    def to(self, device: torch.device) -> "GroupedDataset":
        """The split with images and labels on a device; `source` stays where it is."""
        return GroupedDataset(
            self.spec,
            self.images.to(device),
            self.y.to(device),
            self.a.to(device),
            self.source,
        )


class Transform(Protocol):
    """Stored bytes to the network's input, for a whole batch on its device."""

    def draw(self, num_samples: int, generator: torch.Generator) -> Tensor | None:
        """Random parameters (num_samples, P) of the augmentation, or None without one."""

    def __call__(self, x: Tensor, parameters: Tensor | None = None) -> Tensor:
        """Float input of a uint8 batch; without parameters, as in evaluation."""


class DataSource(Protocol):
    """What a file in conf/dataset builds."""

    spec: GroupSpec
    transform: Transform

    def load(self, root: Path) -> dict[str, GroupedDataset]:
        """Every split by name: those of `Split` that exist, and any number of named test sets."""


@dataclass(frozen=True)
class DataInfo:
    """What a method or a backbone may know of the data when it is built."""

    spec: GroupSpec
    shape: tuple[int, int, int]  # C, H, W
    group_counts: Tensor  # (G,) of TRAIN


@dataclass(frozen=True)
class Splits:
    """All the data of a run."""

    data: Mapping[str, GroupedDataset]
    transform: Transform
    device: torch.device

    @classmethod
    def load(cls, source: DataSource, root: Path, device: torch.device) -> "Splits":
        """Read a data set and put it where it is trained on."""
        data = {str(name): split.to(device) for name, split in source.load(root).items()}
        return cls(data, source.transform, device)

    def __getitem__(self, name: str) -> GroupedDataset:
        if name not in self.data:
            raise UserError(f"this data set has no {name} split; it has {', '.join(self.data)}")
        return self.data[name]

    @property
    def info(self) -> DataInfo:
        """The facts that constructors need."""
        train = self[Split.TRAIN]
        channels, height, width = train.images.shape[1:]
        return DataInfo(train.spec, (channels, height, width), train.group_counts.cpu())

    @property
    def evaluated(self) -> dict[str, GroupedDataset]:
        """VAL, TEST and the named test sets."""
        trained = (Split.TRAIN, Split.TARGET)
        return {name: split for name, split in self.data.items() if name not in trained}

    @property
    def fingerprints(self) -> dict[str, str]:
        """Which samples are in which split."""
        return {name: split.fingerprint for name, split in self.data.items()}


class Stream:
    """Training batches of one split as a function of (seed, role, position).

    Permutation and augmentation of an epoch are drawn at once from a generator of their own, so a
    stream starts at any position and nothing else moves it.
    """

    def __init__(
        self,
        dataset: GroupedDataset,
        transform: Transform,
        batch_size: int | None,
        *,
        seed: int,
        role: str = "train",
        weights: Tensor | None = None,
    ) -> None:
        """`batch_size` None is the full batch; `weights` (N,) sample with replacement instead."""
        self.dataset, self.transform = dataset, transform
        self.batch_size = batch_size or len(dataset)
        self.full = batch_size is None
        self.seed, self.role, self.weights = seed, role, weights

    def __len__(self) -> int:
        """Batches in one pass; the last one may be smaller."""
        return -(-len(self.dataset) // self.batch_size)

    def start(self, position: int) -> Iterator[Batch]:
        """Batches without end, from the `position`-th since the first epoch."""
        epoch, step = divmod(position, len(self))
        device = self.dataset.y.device
        while True:
            order, parameters = self._draw(epoch)
            order = order.to(device)
            if parameters is not None:
                parameters = parameters.to(device)
            for first in range(step * self.batch_size, len(order), self.batch_size):
                window = slice(first, first + self.batch_size)
                batch = self.dataset.fetch(order[window])
                x = self.transform(batch.x, None if parameters is None else parameters[window])
                yield Batch(x, batch.y, batch.a, batch.g, batch.index)
            epoch, step = epoch + 1, 0

    def _draw(self, epoch: int) -> tuple[Tensor, Tensor | None]:
        """Order (N,) and augmentation parameters (N, P) of an epoch."""
        generator = torch.Generator()
        generator.manual_seed(derive_seed(self.seed, self.role, epoch))
        num_samples = len(self.dataset)
        if self.weights is not None:
            order = torch.multinomial(
                self.weights, num_samples, replacement=True, generator=generator
            )
        elif self.full:
            order = torch.arange(num_samples)
        else:
            order = torch.randperm(num_samples, generator=generator)
        return order, self.transform.draw(num_samples, generator)


def derive_seed(*parts: object) -> int:
    """A seed of 63 bits from any parts; the same on every machine."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
