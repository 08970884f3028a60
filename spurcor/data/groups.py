"""Groups, and labelled images: what every other part speaks of."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import torch
from torch import Tensor

from spurcor.config.schema import Loss
from spurcor.data.images import Images
from spurcor.errors import UserError

EVALUATION_BATCH = 512
FEW = 10  # samples of a group, below which its accuracy, or what is fitted to it, is noise


class Split(StrEnum):
    """TARGET trains (DFR, SCALE), VAL selects, TEST reports."""

    TRAIN = "train"
    TARGET = "target"
    VAL = "val"
    TEST = "test"


@dataclass(frozen=True)
class GroupSpec:
    """Names of the classes and of the values of the spurious attribute.

    For `multilabel` the classes are the labels, there is no attribute, and what is counted and
    compared per group elsewhere is counted and compared per label.
    """

    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    aligned: tuple[int, ...] = ()  # per class, the attribute value usually seen with it
    task: Literal["multiclass", "multilabel"] = "multiclass"

    def __post_init__(self) -> None:
        """Names are keys of results: equal ones would share a value."""
        for what, names in (("class", self.classes), ("attribute value", self.attributes)):
            if unfit := [name for name in names if not name.strip() or not name.isprintable()]:
                raise UserError(f"the {what} {unfit[0]!r} is empty or not printable; rename it")
            if twice := [name for i, name in enumerate(names) if name in names[:i]]:
                raise UserError(f"the {what} '{twice[0]}' is listed twice; rename one")
        if self.task == "multilabel":
            return
        known: dict[str, str] = {}
        for c, a in itertools.product(self.classes, self.attributes):
            described = f"class '{c}' with attribute value '{a}'"
            if (other := known.setdefault(f"{c}/{a}", described)) != described:
                raise UserError(
                    f"two groups are called '{c}/{a}': {other}, and {described}; rename one so"
                    " that its name has no '/'"
                )

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def num_groups(self) -> int:
        """G = K * A; groups without a sample keep their number. For `multilabel`, the labels."""
        return len(self.names)

    @property
    def names(self) -> list[str]:
        """Group names in the order of g; for `multilabel`, the labels."""
        if self.task == "multilabel":
            return list(self.classes)
        return [f"{c}/{a}" for c in self.classes for a in self.attributes]

    def group(self, y: Tensor, a: Tensor) -> Tensor:
        """Group numbers of classes and attributes, any shape; 0 where there are no groups."""
        if self.task == "multilabel":
            return torch.zeros_like(a)
        return y * len(self.attributes) + a

    def require_groups(self, what: str) -> None:
        """Refuse what makes no sense for a task without groups."""
        if self.task == "multilabel":
            raise UserError(
                f"{what} needs groups, but this data set has {self.num_classes} labels and no"
                " groups; choose a data set with one class and one attribute per image"
            )

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
    """One split: y, a and g of all of it, and its rows of an array of images.

    `train_images` are the same images as training crops them (larger, of their own aspect), where
    those differ from the ones that are evaluated.
    """

    def __init__(
        self,
        spec: GroupSpec,
        images: Images | Tensor,
        y: Tensor,
        a: Tensor,
        source: Tensor,
        rows: Tensor | None = None,
        train_images: Images | None = None,
        train_rows: Tensor | None = None,
    ) -> None:
        """`source` (N, ...) int64 says which sample of the original data each row is made of."""
        self.spec = spec
        if isinstance(images, Tensor) and images.dtype != torch.uint8:
            raise TypeError(f"images are stored as uint8, not {images.dtype}")
        self.images = Images(images) if isinstance(images, Tensor) else images
        self.y, self.a, self.g = y.long(), a.long(), spec.group(y.long(), a.long())
        self.source = source
        self.rows = torch.arange(len(y)) if rows is None else rows  # stay in memory
        self.train_images = self.images if train_images is None else train_images
        self.train_rows = self.rows if train_rows is None else train_rows

    def __len__(self) -> int:
        return len(self.y)

    @functools.cached_property
    def group_counts(self) -> Tensor:
        """(G,) int64; zero for groups without a sample."""
        if self.spec.task == "multilabel":
            return torch.full((self.spec.num_groups,), len(self), device=self.y.device)
        return torch.bincount(self.g, minlength=self.spec.num_groups)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of which samples are in the split, in which order, with which labels.

        Of images in memory 1,000 spread over the split count, of a store the files: other pixels
        under the same numbers are noticed without reading everything.
        """
        digest = hashlib.sha256()
        for array in (self.source, self.y, self.a):
            digest.update(array.cpu().contiguous().numpy().tobytes())
        digest.update(self.images.digest(self.rows))
        return digest.hexdigest()[:16]

    def fetch(self, indices: Tensor) -> Batch:
        """The samples at `indices` by one gather, in the order asked for, as they are evaluated."""
        return self.label(self.images.take(self.rows[indices.cpu()]), indices)

    def label(self, x: Tensor, indices: Tensor) -> Batch:
        """A batch of images that were gathered before, on the device of the labels."""
        device = self.y.device
        indices = indices.to(device, non_blocking=True)
        x = x.to(device, non_blocking=True)
        return Batch(x, self.y[indices], self.a[indices], self.g[indices], indices)

    def subset(self, indices: Tensor) -> GroupedDataset:
        """The samples at `indices`, in that order."""
        return GroupedDataset(
            self.spec,
            self.images,
            self.y[indices],
            self.a[indices],
            self.source[indices],
            self.rows[indices],
            self.train_images,
            self.train_rows[indices],
        )

    def moved(self, device: torch.device, images: Mapping[int, Images]) -> GroupedDataset:
        """The split with its labels on a device, and other arrays in the place of its images."""
        return GroupedDataset(
            self.spec,
            images[id(self.images)],
            self.y.to(device),
            self.a.to(device),
            self.source,
            self.rows,
            images[id(self.train_images)],
            self.train_rows,
        )


def members_by(labels: Tensor, order: Tensor | None = None) -> list[Tensor]:
    """Positions of the samples of each label that occurs, rising or in the `order` (N,) given."""
    order = torch.arange(len(labels)) if order is None else order
    sorted_, by_label = labels[order].sort(stable=True)
    counts = torch.unique_consecutive(sorted_, return_counts=True)[1]
    return list(torch.split(order[by_label], counts.tolist()))


@dataclass(frozen=True)
class DataInfo:
    """What a method or a backbone may know of the data and the task when it is built."""

    spec: GroupSpec
    shape: tuple[int, int, int]  # C, H, W of the network's input
    group_counts: Tensor  # (G,) of TRAIN
    loss: Loss = "cross_entropy"  # of a sample; `runs.build` fills in train.loss
    num_train: int = 0  # N, samples of TRAIN
