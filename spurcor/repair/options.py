"""Options of a repair in three parts; each part validates itself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from spurcor.data.groups import Split
from spurcor.repair.heads import Regression
from spurcor.repair.sgd_head import SgdOptions


@dataclass(frozen=True)
class DataOptions:
    """Which samples heads are fitted on, and whose features standardise them."""

    split: Literal["val", "target", "train", "split_from_train"]
    ratio: float
    balance: Literal["groups", "classes", "none"]
    add_train: bool
    scaler: Literal["train", "reweighting", "none"]

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio={self.ratio} must be between 0 and 1")
        if self.source is Split.TRAIN and self.add_train:
            raise ValueError(
                f"add_train=true adds train to val or target; split={self.split} is train already"
            )

    @property
    def whole(self) -> bool:
        """Whether the samples are a whole split rather than a share of TRAIN."""
        return self.split != "split_from_train"

    @property
    def source(self) -> Split:
        """The split that the samples come from."""
        return Split(self.split) if self.whole else Split.TRAIN


@dataclass(frozen=True)
class TuningOptions:
    """How C is chosen: on which samples, by which score, among which values."""

    tune: Literal["half", "val"]
    criterion: Literal["worst", "worst_class", "conflicting", "average"]
    c_grid: tuple[float, ...]
    tune_scaler: Literal["half", "same"]

    def __post_init__(self) -> None:
        if not self.c_grid or not _positive(self.c_grid):
            raise ValueError(f"c_grid={list(self.c_grid)} must be a list of positive numbers")


@dataclass(frozen=True)
class HeadOptions:
    """The kind of head, how it is fitted, and how many fits are averaged."""

    head: Literal["regression", "sgd"]
    regression: Regression
    class_weights: tuple[float, ...]
    num_retrains: int
    sgd: SgdOptions

    def __post_init__(self) -> None:
        max_iter = self.regression.max_iter
        if self.num_retrains < 1 or max_iter < 1:
            raise ValueError(
                f"num_retrains={self.num_retrains} and max_iter={max_iter} must be at least 1"
            )
        if self.class_weights and not _positive(self.class_weights):
            raise ValueError(
                f"class_weights={list(self.class_weights)} must be a list of positive numbers"
            )
        cross_entropy = self.regression.loss == "logistic" and self.regression.penalty == "none"
        if self.head == "sgd" and (self.class_weights or not cross_entropy):
            raise ValueError(
                "head=sgd minimises the cross-entropy: set penalty=none (sgd.weight_decay is its"
                " penalty), loss=logistic and class_weights=[]"
            )


def refuse_together(data: DataOptions, tuning: TuningOptions, head: HeadOptions) -> None:
    """Raise ValueError for options that are valid one by one but not in combination."""
    if data.split == "val" and tuning.tune == "val":
        raise ValueError("tune=val would choose C on the data that it is fitted on; use half")
    if head.class_weights and data.balance != "none" and data.source is not Split.TRAIN:
        raise ValueError(
            f"class_weights={list(head.class_weights)} needs balance=none or split=train"
        )


def _positive(values: Sequence[float]) -> bool:
    return min(values) > 0 and all(map(math.isfinite, values))
