"""The built-in data set: 1,797 real handwritten digits with a colour that predicts the label."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from spurcor.data.groups import GroupedDataset, GroupSpec, Split
from spurcor.data.source import DataSource
from spurcor.data.transforms import Normalize, Transform
from spurcor.seeding import derive_seed

SIZES = {Split.TARGET: 300, Split.VAL: 300, Split.TEST: 400}  # TRAIN is the rest


@dataclass(kw_only=True)
class Digits(DataSource):
    """Small (0-4) against large (5-9) digits, 3 x 8 x 8, tinted red or green.

    In TRAIN a small digit is red and a large one green with probability `strength`, by exact
    counts; in the other splits colour and label are independent. `tint` is how much the other two
    channels are darkened; 0 leaves the digits grey. The test set `opposite` is TEST with every
    colour conflicting with its label. Digits: scikit-learn's copy of the UCI set of Alpaydin and
    Kaynak (1998), CC BY 4.0.
    """

    spec = GroupSpec(("small", "large"), ("red", "green"), aligned=(0, 1))
    transform: Transform = field(default_factory=Normalize)
    strength: float = 0.96
    tint: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("strength", "tint"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be between 0 and 1")

    def load(self, root: Path) -> dict[str, GroupedDataset]:
        """Return the splits; nothing is read from `root`, as the digits come with scikit-learn."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        grey = torch.from_numpy(digits.images)  # (1797, 8, 8) in 0 ... 16
        y = torch.from_numpy(digits.target >= 5).long()
        generator = torch.Generator().manual_seed(derive_seed("digits", self.split_seed))
        order = torch.randperm(len(y), generator=generator)
        *held_out, train = torch.split(order, [*SIZES.values(), len(y) - sum(SIZES.values())])
        members = dict(zip(SIZES, held_out, strict=True))

        def build(source: Tensor, a: Tensor) -> GroupedDataset:
            return GroupedDataset(self.spec, self._paint(grey[source], a), y[source], a, source)

        a = {name: _attribute(y[source], 0.5, generator) for name, source in members.items()}
        a_train = _attribute(y[train], self.strength, generator)
        splits: dict[str, GroupedDataset] = {Split.TRAIN: build(train, a_train)}
        splits |= {name: build(source, a[name]) for name, source in members.items()}
        splits["opposite"] = build(members[Split.TEST], 1 - y[members[Split.TEST]])
        return splits

    def _paint(self, grey: Tensor, a: Tensor) -> Tensor:
        """Colour (N, 8, 8) in 0 ... 16 red (a = 0) or green (a = 1), to (N, 3, 8, 8) uint8."""
        x = (grey / 16).unsqueeze(1).repeat(1, 3, 1, 1)
        gain = torch.full((len(a), 3), 1 - self.tint, dtype=x.dtype)
        gain[torch.arange(len(a)), a] = 1
        return (x * gain[:, :, None, None] * 255).round().to(torch.uint8)


def _attribute(y: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Return a (N,) that equals y for a fraction `strength` of each class."""
    a = y.clone()
    for label in (0, 1):
        members = (y == label).nonzero().squeeze(1)
        shuffled = members[torch.randperm(len(members), generator=generator)]
        a[shuffled[round(strength * len(members)) :]] = 1 - label
    return a
