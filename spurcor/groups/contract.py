"""The interface of an inference of groups, and the tables that it reads."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from spurcor.config.ranges import require_at_least
from spurcor.data.grouping import Grouping
from spurcor.data.groups import GroupSpec

On = tuple[Literal["train", "val"], ...]  # as typed


@dataclass(frozen=True)
class Reference:
    """The network whose outputs tell groups apart: ERM, as an ordinary run of its own.

    `run` is a finished run instead; null options are those of the run itself.
    """

    epochs: int
    lr: float | None = None
    weight_decay: float | None = None
    run: str | None = None

    def __post_init__(self) -> None:
        require_at_least(1, epochs=self.epochs)
        require_at_least(0, lr=self.lr or 0.0, weight_decay=self.weight_decay or 0.0)


@dataclass(frozen=True)
class Table:
    """A split as a reference network sees it: logits (N, K), features (N, D) if they are needed."""

    y: Tensor
    logits: Tensor
    features: Tensor | None = None


class Inference(ABC):
    """A way to find an attribute value for each sample, on TRAIN and, where asked, on VAL.

    Most read the outputs of a reference network; `reference` is None for the others.
    """

    reference: Reference | None
    needs_features: bool = False
    on: tuple[str, ...]

    def __init__(
        self,
        epochs: int = 1,
        lr: float | None = None,
        weight_decay: float | None = None,
        run: str | None = None,
        on: On = ("train",),
    ) -> None:
        self.reference = Reference(epochs, lr, weight_decay, run)
        self.on = check_splits(on)

    @abstractmethod
    def infer(self, tables: Mapping[str, Table], spec: GroupSpec, seed: int) -> Grouping:
        """Return the attribute values of the splits in `tables`, which has those of `on`.

        `spec` holds the annotated groups, of which only the classes may be read.
        """


def check_splits(on: On) -> On:
    """Return the splits to infer groups on; ValueError unless TRAIN, which is trained, is one."""
    if "train" not in on:
        raise ValueError(f"on={list(on)} must contain train, whose groups are trained by")
    return on


def grouped(values: tuple[str, ...], found: Mapping[str, Tensor], spec: GroupSpec) -> Grouping:
    """Return a grouping with named attribute values."""
    attribute = {name: a.to(torch.int64) for name, a in found.items()}
    return Grouping(GroupSpec(spec.classes, values), attribute)
