"""Groups, and splits of labelled images: the vocabulary shared by all other modules."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import torch
from torch import Tensor

from spurcor.config.schema import Loss
from spurcor.data.images import Images
from spurcor.errors import UserError

EVALUATION_BATCH = 512  # most images that are evaluated at a time
CPU_VALUES = 1 << 22  # most values of these images on a CPU, where larger batches miss the caches
FEW = 10  # with fewer samples, a group's accuracy or a fit to it is noise


class Split(StrEnum):
    """The usual splits: TRAIN trains, TARGET repairs (DFR, SCALE), VAL selects, TEST reports."""

    TRAIN = "train"
    TARGET = "target"
    VAL = "val"
    TEST = "test"


@dataclass(frozen=True)
class GroupSpec:
    """Names of the classes and of the values of the spurious attribute.

    For `multilabel` the classes are the labels and there is no spurious attribute; per-group counts
    and metrics are then per label. Where the attribute is not `known`, it has a single value, so
    that the groups are the classes.
    """

    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    aligned: tuple[int, ...] = ()  # the usual attribute value of each class
    task: Literal["multiclass", "multilabel"] = "multiclass"
    known: bool = True  # whether the samples' attribute values are

    def __post_init__(self) -> None:
        """Refuse names that are empty or ambiguous: they are keys of the results."""
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
        """Number of classes K."""
        return len(self.classes)

    @property
    def num_groups(self) -> int:
        """Number of groups G = K * A, empty groups included; for `multilabel`, number of labels."""
        return len(self.names)

    @property
    def names(self) -> list[str]:
        """Group names (class/attribute) by group number; for `multilabel`, the label names."""
        if self.task == "multilabel":
            return list(self.classes)
        return [f"{c}/{a}" for c in self.classes for a in self.attributes]

    def group(self, y: Tensor, a: Tensor) -> Tensor:
        """Return group numbers g = y A + a, shaped like `a`; all 0 for `multilabel`."""
        if self.task == "multilabel":
            return torch.zeros_like(a)
        return y * len(self.attributes) + a

    def require_groups(self, what: str) -> None:
        """Raise a `UserError` if `what` is undefined, because nothing tells the groups apart."""
        self.require_classes(what)
        if not self.known:
            raise UserError(
                f"{what} needs groups, but the attribute values of this data set are unknown; give"
                " it an attribute, or choose what needs only classes"
            )

    def require_classes(self, what: str) -> None:
        """Raise a `UserError` for `multilabel`, where `what` is undefined for lack of classes."""
        if self.task == "multilabel":
            raise UserError(
                f"{what} needs one class per image, but this data set has {self.num_classes} labels"
                " per image; choose another data set"
            )

    def is_aligned(self) -> Tensor:
        """Return (G,) bool: whether the group has the attribute value usual for its class."""
        aligned = torch.zeros(self.num_groups, dtype=torch.bool)
        for y, a in enumerate(self.aligned):
            aligned[y * len(self.attributes) + a] = True
        return aligned


def usual_values(counts: Tensor) -> tuple[int, ...]:
    """Return the attribute value over-represented in each class, from group counts (K, A).

    It has the largest Pearson residual, (n - e) / sqrt(e) with e expected under independence: of a
    rare value a share alone says little. Two classes get different ones of two values.
    """
    n = counts.double()
    expected = n.sum(1, keepdim=True) * n.sum(0, keepdim=True) / n.sum().clamp(min=1)
    residuals = (n - expected) / expected.clamp(min=1e-9).sqrt()
    # Under exact independence, classes and values are paired by number.
    ties = 1e-6 * torch.eye(*counts.shape, dtype=torch.float64)
    return tuple((residuals.round(decimals=5) + ties).argmax(1).tolist())


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch: x uint8 as stored or float as transformed; y, a, g and index (B,) int64."""

    x: Tensor
    y: Tensor
    a: Tensor
    g: Tensor
    index: Tensor

    def parts(self, count: int) -> list[Batch]:
        """Return the batch as at most `count` parts of nearly the same size."""
        if count == 1:
            return [self]
        columns = (self.x, self.y, self.a, self.g, self.index)
        return [
            Batch(*part)
            for part in zip(*(c.tensor_split(count) for c in columns), strict=True)
            if len(part[1])
        ]


class GroupedDataset:
    """One split: y, a and g of its samples, and their rows in an array of images.

    `train_images` are the same images as stored for training (larger, with their own aspect ratio),
    where these differ from the evaluation images.
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
        """Create a split; `source` (N, ...) int64 is each sample's index in the original data."""
        self.spec = spec
        if isinstance(images, Tensor) and images.dtype != torch.uint8:
            raise TypeError(f"images are stored as uint8, not {images.dtype}")
        self.images = Images(images) if isinstance(images, Tensor) else images
        self.y, self.a, self.g = y.long(), a.long(), spec.group(y.long(), a.long())
        self.source = source
        self.rows = torch.arange(len(y)) if rows is None else rows  # kept on the CPU
        self.train_images = self.images if train_images is None else train_images
        self.train_rows = self.rows if train_rows is None else train_rows

    def __len__(self) -> int:
        return len(self.y)

    @functools.cached_property
    def group_counts(self) -> Tensor:
        """Samples per group (G,) int64, 0 for empty groups; for `multilabel`, N for every label."""
        if self.spec.task == "multilabel":
            return torch.full((self.spec.num_groups,), len(self), device=self.y.device)
        return torch.bincount(self.g, minlength=self.spec.num_groups)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the samples in the split, their order and their labels.

        It covers the pixels of 1,000 images spread over the split, or for a store on disk the file
        signatures of all of them: changed pixels are detected without reading everything.
        """
        digest = hashlib.sha256()
        for array in (self.source, self.y, self.a):
            digest.update(array.cpu().contiguous().numpy().tobytes())
        digest.update(self.images.digest(self.rows))
        return digest.hexdigest()[:16]

    def fetch(self, indices: Tensor) -> Batch:
        """Return the samples at `indices` (B,) in that order, as stored for evaluation."""
        return self.label(self.images.take(self.rows[indices.cpu()]), indices)

    def label(self, x: Tensor, indices: Tensor) -> Batch:
        """Return a batch of already gathered images `x`, on the device of the labels."""
        device = self.y.device
        indices = indices.to(device, non_blocking=True)
        x = x.to(device, non_blocking=True)
        return Batch(x, self.y[indices], self.a[indices], self.g[indices], indices)

    def subset(self, indices: Tensor) -> GroupedDataset:
        """Return the split restricted to the samples at `indices`, in that order."""
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

    def relabelled(self, spec: GroupSpec, a: Tensor) -> GroupedDataset:
        """Return the same samples with other attribute values (N,)."""
        a = a.to(self.y.device)
        images, of_train = self.images, self.train_images
        return GroupedDataset(
            spec, images, self.y, a, self.source, self.rows, of_train, self.train_rows
        )

    def moved(self, device: torch.device, images: Mapping[int, Images]) -> GroupedDataset:
        """Return the split with its labels on `device` and its image arrays replaced.

        `images` maps the `id` of each present array to its replacement.
        """
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


def evaluation_chunks(
    data: GroupedDataset, transform: Callable[[Tensor], Tensor]
) -> tuple[Tensor, ...]:
    """Return the sample positions of a split in order, in chunks to be evaluated at a time."""
    device = data.y.device
    positions = torch.arange(len(data), device=device)
    size = EVALUATION_BATCH
    if device.type == "cpu" and len(data):
        size = min(size, max(1, CPU_VALUES // transform(data.fetch(positions[:1]).x).numel()))
    return torch.split(positions, size)


def members_by(labels: Tensor, order: Tensor | None = None) -> list[Tensor]:
    """Return the sample positions of each label present, ascending or following `order` (N,)."""
    order = torch.arange(len(labels)) if order is None else order
    sorted_, by_label = labels[order].sort(stable=True)
    counts = torch.unique_consecutive(sorted_, return_counts=True)[1]
    return list(torch.split(order[by_label], counts.tolist()))


@dataclass(frozen=True)
class DataInfo:
    """The facts about data and task that a method or backbone may use in its constructor.

    `spec` and `group_counts` are of the groups that the run trains by; results are reported by the
    groups of `reported`, where those are others.
    """

    spec: GroupSpec
    shape: tuple[int, int, int]  # C, H, W of the network's input
    group_counts: Tensor  # (G,) samples per group in TRAIN
    loss: Loss = "cross_entropy"  # per sample; `runs.build` fills in train.loss
    num_train: int = 0  # N, number of samples in TRAIN
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None  # from train.class_weights
    reported: GroupSpec | None = None

    def require_pixels(self, what: str) -> None:
        """Raise a `UserError` if the network is fed features (D, 1, 1) instead of images."""
        if self.shape[1:] == (1, 1):
            raise UserError(
                f"{what} needs pixels, but this run trains on features; choose a data set of"
                " images, with features=none"
            )
