"""Accuracies by group, and the evaluation that yields them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spurcor.config.schema import Loss
from spurcor.data.groups import EVALUATION_BATCH, GroupedDataset, GroupSpec, Split
from spurcor.data.splits import Splits
from spurcor.data.transforms import Transform
from spurcor.training.losses import sample_losses


@dataclass(frozen=True)
class GroupMetrics:
    """Correct predictions and samples per group, (G,) int64; merged with +.

    Fractions are NaN where no sample defines them. Groups without a sample keep their place and
    are left out of every minimum and mean.
    """

    spec: GroupSpec
    correct: Tensor
    count: Tensor

    def __add__(self, other: GroupMetrics) -> GroupMetrics:
        return GroupMetrics(self.spec, self.correct + other.correct, self.count + other.count)

    @property
    def accuracy(self) -> Tensor:
        """(G,) float64."""
        return self.correct.double() / self.count  # 0 / 0 is NaN

    @property
    def worst(self) -> float:
        """Lowest accuracy of a group that has samples."""
        accuracy = self.accuracy[self.count > 0]
        return float(accuracy.min()) if len(accuracy) else math.nan

    @property
    def average(self) -> float:
        """Fraction correct of all samples."""
        return self._pooled(torch.ones_like(self.count, dtype=torch.bool))

    @property
    def balanced(self) -> float:
        """Mean of the groups' accuracies."""
        return float(self.accuracy.nanmean())

    @property
    def aligned(self) -> float:
        """Fraction correct of the samples whose attribute is the usual one of their class."""
        return self._pooled(self.spec.is_aligned()) if self.spec.aligned else math.nan

    @property
    def conflicting(self) -> float:
        """Fraction correct of the others."""
        return self._pooled(~self.spec.is_aligned()) if self.spec.aligned else math.nan

    @property
    def per_class(self) -> Tensor:
        """(K,) float64."""
        shape = (self.spec.num_classes, -1)
        return self.correct.view(shape).sum(1).double() / self.count.view(shape).sum(1)

    @property
    def worst_class(self) -> float:
        """Lowest accuracy of a class that has samples: what needs no attributes to be known."""
        known = self.per_class[~self.per_class.isnan()]
        return float(known.min()) if len(known) else math.nan

    def adjusted(self, train_counts: Tensor) -> float:
        """Average weighted by the prevalence of the groups in TRAIN (group_DRO's convention).

        Groups without a sample here are left out and the weights of the others renormalised.
        """
        weights = torch.where(self.count > 0, train_counts, 0).double()
        return float((weights * self.accuracy.nan_to_num()).sum() / weights.sum())

    def summary(self, train_counts: Tensor) -> dict[str, Any]:
        """The record written to result.json; None where undefined."""
        numbers = {
            "worst": self.worst,
            "average": self.average,
            "adjusted": self.adjusted(train_counts),
            "balanced": self.balanced,
            "worst_class": self.worst_class,
            "aligned": self.aligned,
            "conflicting": self.conflicting,
        }
        groups = {
            name: {"accuracy": none_if_undefined(float(accuracy)), "count": int(count)}
            for name, accuracy, count in zip(
                self.spec.names, self.accuracy, self.count, strict=True
            )
        }
        classes = zip(self.spec.classes, self.per_class.tolist(), strict=True)
        return {
            **{key: none_if_undefined(value) for key, value in numbers.items()},
            "classes": {name: none_if_undefined(accuracy) for name, accuracy in classes},
            "groups": groups,
        }

    def _pooled(self, chosen: Tensor) -> float:
        return float(self.correct[chosen].sum().double() / self.count[chosen].sum())


def none_if_undefined(value: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return value if math.isfinite(value) else None


def group_metrics(logits: Tensor, y: Tensor, g: Tensor, spec: GroupSpec) -> GroupMetrics:
    """Count correct predictions per group; logits (N, K), y and g (N,).

    For `multilabel`, y (N, K): correct decisions per label, taken where a logit is positive.
    """
    if spec.task == "multilabel":
        hits = ((logits > 0) == y.bool()).sum(dim=0).cpu()
        return GroupMetrics(spec, hits, torch.full_like(hits, len(y)))
    correct = logits.argmax(dim=1) == y
    return GroupMetrics(
        spec,
        torch.bincount(g[correct], minlength=spec.num_groups).cpu(),
        torch.bincount(g, minlength=spec.num_groups).cpu(),
    )


def label_scores(logits: Tensor, y: Tensor, spec: GroupSpec) -> dict[str, dict[str, float | None]]:
    """Precision, recall and F1 of each label of logits (N, L), y (N, L); None where undefined."""
    from sklearn.metrics import precision_recall_fscore_support

    predicted, true = ((logits > 0).cpu().numpy(), y.bool().cpu().numpy())
    names = ("precision", "recall", "f1")
    found = {}
    for i, label in enumerate(spec.classes):
        scores = precision_recall_fscore_support(
            true[:, i], predicted[:, i], average="binary", zero_division=math.nan
        )
        pairs = zip(names, scores, strict=False)  # the last is a count of samples
        found[label] = {name: none_if_undefined(float(score)) for name, score in pairs}
    return found


@torch.no_grad()
def apply(
    function: Callable[[Tensor], Tensor],
    dataset: GroupedDataset,
    transform: Transform,
    batch_size: int = EVALUATION_BATCH,
) -> Tensor:
    """`function` of every un-augmented image of a split, in its order."""
    device = dataset.y.device
    chunks = torch.split(torch.arange(len(dataset), device=device), batch_size)
    return torch.cat([function(transform(dataset.fetch(indices).x)) for indices in chunks])


def evaluate(
    predict: Callable[[Tensor], Tensor], splits: Splits, loss: Loss = "cross_entropy"
) -> dict[str, float | None]:
    """Row entries of every evaluated split: loss, accuracies, and both of each group.

    `gap/<class>` is the mean loss of the class's groups without its usual attribute minus that of
    the group with it.
    """
    entries: dict[str, float | None] = {}
    train_counts = splits[Split.TRAIN].group_counts.cpu()
    for name, split in splits.evaluated.items():
        logits = apply(predict, split, splits.transform)
        summary = group_metrics(logits, split.y, split.g, split.spec).summary(train_counts)
        groups = summary.pop("groups")
        del summary["classes"]
        losses = sample_losses(logits, split.y, split.spec, loss)
        entries[f"{name}/loss"] = none_if_undefined(float(losses.mean()))
        entries |= {f"{name}/{key}": value for key, value in summary.items()}
        entries |= {
            f"{name}/group/{group}": value["accuracy"]
            for group, value in groups.items()
            if value["count"]
        }
        if split.spec.task == "multiclass":
            by_group = group_means(losses, split.g, split.spec.num_groups)
            entries |= {
                f"{name}/group_loss/{group}": value
                for group, value in zip(split.spec.names, by_group.tolist(), strict=True)
                if math.isfinite(value)
            }
            entries |= {f"{name}/gap/{c}": gap for c, gap in gaps(by_group, split.spec).items()}
    return entries


def group_means(values: Tensor, g: Tensor, num_groups: int) -> Tensor:
    """(G,) float64 means of values (N,) by group (N,); NaN where a group is empty."""
    sums = values.new_zeros(num_groups, dtype=torch.float64).index_add_(0, g, values.double())
    return (sums / torch.bincount(g, minlength=num_groups)).cpu()


def gaps(losses: Tensor, spec: GroupSpec) -> dict[str, float]:
    """`class_gaps` as numbers, without those that are not defined."""
    found = {name: float(gap) for name, gap in class_gaps(losses, spec).items()}
    return {name: gap for name, gap in found.items() if math.isfinite(gap)}


def class_gaps(losses: Tensor, spec: GroupSpec) -> dict[str, Tensor]:
    """By class, the mean loss (G,) of its groups without the usual attribute minus that with it.

    Groups without a sample have NaN and are left out; where none is left the gap is NaN.
    """
    found = {}
    by_class = losses.view(spec.num_classes, -1)
    for y, usual in enumerate(spec.aligned):
        others = torch.arange(by_class.shape[1], device=losses.device) != usual
        found[spec.classes[y]] = by_class[y, others].nanmean() - by_class[y, usual]
    return found
