"""MNIST digits with squares in the corners or lines in the background that predict the class."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from spurcor.data.groups import GroupedDataset, GroupSpec, Split
from spurcor.data.source import DataSource
from spurcor.data.transforms import Normalize, Transform
from spurcor.datasets.sources import read_mnist
from spurcor.errors import UserError

Cue = Literal["left_top", "left_bottom", "right_top", "right_bottom", "horizontal", "vertical"]
SIZE = 28


@dataclass(kw_only=True)
class MnistCues(DataSource):
    """Some digits, one class each, 1 x 28 x 28: cue k in `main` goes with class k.

    In TRAIN int(p n) of the n images of a class, chosen at random, show its main cue; p is one
    `probability`, or one per class. The others show the class's cue in `minority`, or none if that
    is `none` or `minority` is empty. A square has sides of `square_size`; lines are drawn every
    `distance` pixels, on the background only.

    In TARGET, VAL and TEST every class shows each of the named cues equally often. Two classes
    whose minority cues are each other's main cues thus have half of each, as the source's DFR
    requires of TARGET. VAL is unbiased too: in a biased one the worst group would have a handful of
    images. The test sets `non_spurious` (no cue), `spurious` (the main cue) and `opposite` (the
    main cue of the next class) contain all test digits; `only_spurious` is the main cue of each
    class on a blank image (source -1).

    Source: turquenite/Spurious-Correlations, dataset.py and spurious_features.py.
    """

    transform: Transform = field(default_factory=Normalize)
    digits: tuple[int, ...] = (9, 7)
    main: tuple[Cue, ...] = ("left_top", "right_bottom")
    minority: tuple[Cue | Literal["none"], ...] = ()
    probability: tuple[float, ...] = (0.95,)
    square_size: int = 3
    distance: int = 7
    target_per_class: int = 500
    val_per_class: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_digits()
        self._check_cues()
        num_classes = len(self.digits)
        if len(self.probability) not in (1, num_classes):
            raise ValueError(
                f"probability={list(self.probability)} must be one number or one for each of the"
                f" {num_classes} digits"
            )
        if unfit := [p for p in self.probability if not 0 <= p <= 1]:
            raise ValueError(f"probability={unfit[0]} must be between 0 and 1")
        for name, low, high in (("square_size", 1, SIZE // 2), ("distance", 2, SIZE)):
            if not low <= getattr(self, name) <= high:
                value = getattr(self, name)
                raise ValueError(f"{name}={value} must be between {low} and {high}")
        num_cues = len(self.spec.attributes) - 1
        for name, none in (("target_per_class", " or 0"), ("val_per_class", "")):
            size = getattr(self, name)
            if size < num_cues and not (none and size == 0):
                raise ValueError(
                    f"{name}={size} must be at least {num_cues}, the number of cues{none}"
                )

    def _check_digits(self) -> None:
        if unfit := [digit for digit in self.digits if not 0 <= digit <= 9]:
            raise ValueError(f"digits={unfit[0]} must be between 0 and 9")
        if len({*self.digits}) < max(2, len(self.digits)):
            raise ValueError(f"digits={list(self.digits)} must be at least two different digits")

    def _check_cues(self) -> None:
        num_classes = len(self.digits)
        if len(self.main) != num_classes or len({*self.main}) != num_classes:
            raise ValueError(
                f"main=[{', '.join(self.main)}] must be {num_classes} different cues,"
                " one for each digit"
            )
        if len(self.minority) not in (0, num_classes):
            raise ValueError(
                f"minority=[{', '.join(self.minority)}] must be empty, or {num_classes} cues (or"
                " none), one for each digit"
            )
        for main, minority in zip(self.main, self.minority, strict=False):
            if main == minority:
                raise ValueError(f"minority={minority} must differ from the main cue of its digit")

    @property
    def spec(self) -> GroupSpec:
        """One class per digit; attribute values: none, then the cues in order of appearance."""
        cues = dict.fromkeys(["none", *self.main, *self.minority])
        aligned = tuple(range(1, len(self.main) + 1))
        return GroupSpec(tuple(map(str, self.digits)), tuple(cues), aligned)

    def load(self, root: Path) -> dict[str, GroupedDataset]:
        """Read MNIST under `root` and draw which image shows which cue."""
        generator = self._generator("mnist_cues")
        grey, labels = read_mnist(root, train=True)
        members = self._members(labels, generator)
        num_target, num_held = self.target_per_class, self.target_per_class + self.val_per_class
        for digit, indices in zip(self.digits, members, strict=True):
            if len(indices) <= num_held:
                raise UserError(
                    f"dataset.target_per_class={num_target} and"
                    f" dataset.val_per_class={self.val_per_class} leave nothing to train on: MNIST"
                    f" in {root} has only {len(indices)} training images of the digit {digit}"
                )
        train = [indices[num_held:] for indices in members]
        splits: dict[str, GroupedDataset] = {
            Split.TRAIN: self._build(grey, train, self._biased([len(m) for m in train]))
        }
        for held_out, place in (
            (Split.TARGET, slice(num_target)),
            (Split.VAL, slice(num_target, num_held)),
        ):
            part = [indices[place] for indices in members]
            if len(part[0]):  # target_per_class may be 0
                splits[held_out] = self._build(grey, part, self._unbiased([len(m) for m in part]))

        grey, labels = read_mnist(root, train=False)
        test = self._members(labels, generator)
        sizes = [len(indices) for indices in test]
        splits[Split.TEST] = self._build(grey, test, self._unbiased(sizes))
        main = self.spec.aligned
        for name, shown in (
            ("non_spurious", [0] * len(main)),
            ("spurious", [*main]),
            ("opposite", [*main[1:], main[0]]),
        ):
            a = [torch.full((n,), cue) for n, cue in zip(sizes, shown, strict=True)]
            splits[name] = self._build(grey, test, a)
        splits["only_spurious"] = self._only_cues()
        return splits

    def _members(self, labels: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Return the images of each class in random order: any prefix is a random choice."""
        order = torch.randperm(len(labels), generator=generator)
        return [order[labels[order] == digit] for digit in self.digits]

    def _biased(self, sizes: list[int]) -> list[Tensor]:
        """Return the attributes (n,) of each class in TRAIN: first main, then minority cues."""
        names, num_classes = self.spec.attributes, len(sizes)
        minority = self.minority or ("none",) * num_classes
        probability = self.probability * (num_classes if len(self.probability) == 1 else 1)
        attributes = []
        for size, main, rest, p in zip(sizes, self.main, minority, probability, strict=True):
            a = torch.full((size,), names.index(rest))
            a[: int(p * size + 1e-9)] = names.index(main)  # 0.29 * 100 is 28.999...
            attributes.append(a)
        return attributes

    def _unbiased(self, sizes: list[int]) -> list[Tensor]:
        """Return the attributes (n,) of each class: all cues equally often, up to rounding."""
        num_cues = len(self.spec.attributes) - 1
        return [torch.arange(size) % num_cues + 1 for size in sizes]

    def _build(self, grey: Tensor, members: list[Tensor], a: list[Tensor]) -> GroupedDataset:
        """Return a split in the order of MNIST's files."""
        y = torch.cat([torch.full_like(indices, k) for k, indices in enumerate(members)])
        source, order = torch.cat(members).sort()
        attributes = torch.cat(a)[order]
        images = self._mark(grey[source], attributes)
        return GroupedDataset(self.spec, images, y[order], attributes, source)

    def _only_cues(self) -> GroupedDataset:
        """Return one blank image with the main cue of each class; more would be copies."""
        y, a = torch.arange(len(self.digits)), torch.tensor(self.spec.aligned)
        images = self._mark(torch.zeros(len(y), SIZE, SIZE, dtype=torch.uint8), a)
        return GroupedDataset(self.spec, images, y, a, torch.full_like(y, -1))

    def _mark(self, grey: Tensor, a: Tensor) -> Tensor:
        """Draw white cues on (N, 28, 28), to (N, 1, 28, 28); lines pass behind the digit."""
        names = self.spec.attributes
        covered = torch.stack([self._covered(name) for name in names])[a]
        behind = torch.tensor([name in ("horizontal", "vertical") for name in names])[a]
        shown = covered & ~(behind[:, None, None] & (grey > 0))
        return grey.masked_fill(shown, 255).unsqueeze(1)

    def _covered(self, cue: str) -> Tensor:
        """Return (28, 28) bool: the pixels of a cue."""
        covered = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        if cue == "horizontal":
            covered[:: self.distance] = True
        elif cue == "vertical":
            covered[:, :: self.distance] = True
        elif cue != "none":
            side, height = cue.split("_")
            near, far = slice(self.square_size), slice(SIZE - self.square_size, SIZE)
            covered[near if height == "top" else far, near if side == "left" else far] = True
        return covered
