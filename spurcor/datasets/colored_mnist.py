"""MNIST in red and green, with exact group sizes."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from spurcor.data.groups import GroupedDataset, GroupSpec, Split
from spurcor.data.source import DataSource
from spurcor.data.transforms import Normalize, Transform
from spurcor.datasets.sources import read_mnist
from spurcor.errors import UserError

DARKENED = 0.25  # factor for the channels other than the colour
BACKGROUND = 0.01  # pixels up to this intensity are background and stay unchanged
SIGNS = ((-1, -1), (-1, 1), (1, -1), (1, 1))  # (y, a) by group number


@dataclass(kw_only=True)
class ColoredMnist(DataSource):
    """Small (y = -1) against large (y = +1, from 5 on) digits, 3 x 28 x 28, green (-1) or red (+1).

    The groups of TRAIN and TEST have exactly round(N pi) images of MNIST-train and MNIST-test,
    where 4 pi(y, a) = 1 + y E[y] + a E[a] + y a E[ya] and E[ya] = correlation + E[y] E[a]: the
    correlation is a covariance, E[y] and E[a] are the marginals. The rounding error is added to the
    largest group (ties go to the first of small green, small red, large green, large red; upstream
    to the last). There is no official validation split: VAL and TARGET are balanced and held out of
    MNIST-train first, so that no option of TRAIN changes them; with a `target_size` of 0 there is
    no TARGET. Source: kodai-utsunomiya-mdl/spurious-feature-analysis_v2, data_loader.py.
    """

    transform: Transform = field(default_factory=Normalize)
    train_size: int = 10000
    test_size: int = 8000
    val_size: int = 2000
    target_size: int = 800
    train_correlation: float = 0.8
    train_label_marginal: float = 0.0
    train_attribute_marginal: float = 0.0
    test_correlation: float = 0.0
    test_label_marginal: float = 0.0
    test_attribute_marginal: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("train_size", "test_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name, least in (("val_size", 4), ("target_size", 0)):
            if getattr(self, name) < least or getattr(self, name) % 4:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be a multiple of 4, the number of groups,"
                    f" and at least {least}"
                )
        for part in ("train", "test"):
            self._counts(part)

    @property
    def spec(self) -> GroupSpec:
        """Classes and colours; red goes with large, or with small if TRAIN's correlation is < 0."""
        aligned = (0, 1) if self.train_correlation >= 0 else (1, 0)
        return GroupSpec(("small", "large"), ("green", "red"), aligned)

    def _counts(self, part: str) -> list[int]:
        """Return the group sizes of `train` or `test`; refuse impossible correlations."""
        size = int(getattr(self, f"{part}_size"))
        correlation, label, attribute = (
            float(getattr(self, f"{part}_{name}"))
            for name in ("correlation", "label_marginal", "attribute_marginal")
        )
        both = correlation + label * attribute
        shares = [(1 + y * label + a * attribute + y * a * both) / 4 for y, a in SIGNS]
        if min(shares) < -1e-9:
            raise ValueError(
                f"{part}_correlation={correlation} is impossible with"
                f" {part}_label_marginal={label} and {part}_attribute_marginal={attribute}:"
                f" {self.spec.names[shares.index(min(shares))]} would have the probability"
                f" {min(shares):.4g}"
            )
        counts = [round(size * max(share, 0.0)) for share in shares]
        counts[counts.index(max(counts))] += size - sum(counts)
        return counts

    def load(self, root: Path) -> dict[str, GroupedDataset]:
        """Read MNIST under `root` and draw the groups."""
        generator = self._generator("colored_mnist")
        splits: dict[str, GroupedDataset] = {}
        grey, digits = read_mnist(root, train=True)
        left = _members(digits, generator)
        for name in (Split.VAL, *[Split.TARGET] * (self.target_size > 0)):
            counts = [int(getattr(self, f"{name}_size")) // 4] * 4
            splits[name], left = self._take(name, grey, left, counts)
        train, _ = self._take(Split.TRAIN, grey, left, self._counts("train"))
        grey, digits = read_mnist(root, train=False)
        test, _ = self._take(Split.TEST, grey, _members(digits, generator), self._counts("test"))
        return {Split.TRAIN: train, **splits, Split.TEST: test}

    def _take(
        self, name: str, grey: Tensor, members: list[Tensor], counts: list[int]
    ) -> tuple[GroupedDataset, list[Tensor]]:
        """Return a split of the first members (N_y,) of each class, and the remaining members."""
        groups: list[Tensor] = []
        left: list[Tensor] = []
        for label, indices in enumerate(members):
            needed = counts[2 * label] + counts[2 * label + 1]
            if needed > len(indices):
                raise UserError(
                    f"dataset.{name}_size={getattr(self, f'{name}_size')} needs {needed}"
                    f" {self.spec.classes[label]} digits, but MNIST has only {len(indices)} left"
                )
            groups += torch.split(indices[:needed], counts[2 * label : 2 * label + 2])
            left.append(indices[needed:])
        g = torch.arange(4).repeat_interleave(torch.tensor(counts))
        source, order = torch.cat(groups).sort()
        y, a = g[order] // 2, g[order] % 2
        return GroupedDataset(self.spec, _tint(grey[source], a), y, a, source), left


def _members(digits: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Return the indices of the small and of the large digits, each in random order."""
    order = torch.randperm(len(digits), generator=generator)
    large = digits[order] >= 5
    return [order[~large], order[large]]


def _tint(grey: Tensor, a: Tensor) -> Tensor:
    """Colour images (N, 28, 28) green (a = 0) or red (a = 1), to (N, 3, 28, 28)."""
    x = grey.unsqueeze(1)
    darkened = torch.ones(len(a), 3, 1, 1, dtype=torch.bool)
    darkened[torch.arange(len(a)), 1 - a] = False  # red is channel 0, green channel 1
    dark = (x * DARKENED).round().to(torch.uint8)
    return torch.where(darkened & (x > 255 * BACKGROUND), dark, x)
