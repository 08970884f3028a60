"""Accuracy per group, and the evaluation of a method on every evaluated split."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spurcor.config.schema import Loss
from spurcor.data.groups import GroupedDataset, GroupSpec, Split, evaluation_chunks
from spurcor.data.splits import Splits
from spurcor.data.transforms import Transform
from spurcor.training.losses import sample_losses


@dataclass(frozen=True)
class GroupMetrics:
    """Correct predictions and samples per group, (G,) int64; merged with +.

    Undefined fractions are NaN. Empty groups keep their index and are excluded from every minimum
    and mean.
    """

    spec: GroupSpec
    correct: Tensor
    count: Tensor

    def __add__(self, other: GroupMetrics) -> GroupMetrics:
        return GroupMetrics(self.spec, self.correct + other.correct, self.count + other.count)

    @property
    def accuracy(self) -> Tensor:
        """Accuracy per group (G,), float64; NaN where a group is empty."""
        return self.correct.double() / self.count  # 0 / 0 is NaN

    @property
    def worst(self) -> float:
        """Lowest accuracy of any non-empty group."""
        accuracy = self.accuracy[self.count > 0]
        return float(accuracy.min()) if len(accuracy) else math.nan

    @property
    def average(self) -> float:
        """Accuracy over all samples."""
        return self._pooled(torch.ones_like(self.count, dtype=torch.bool))

    @property
    def balanced(self) -> float:
        """Unweighted mean of the groups' accuracies."""
        return float(self.accuracy.nanmean())

    @property
    def aligned(self) -> float:
        """Accuracy on samples whose attribute is the one usually seen with their class."""
        return self._pooled(self.spec.is_aligned()) if self.spec.aligned else math.nan

    @property
    def conflicting(self) -> float:
        """Accuracy on samples whose attribute is not the one usually seen with their class."""
        return self._pooled(~self.spec.is_aligned()) if self.spec.aligned else math.nan

    @property
    def per_class(self) -> Tensor:
        """Accuracy per class (K,), float64."""
        shape = (self.spec.num_classes, -1)
        return self.correct.view(shape).sum(1).double() / self.count.view(shape).sum(1)

    @property
    def worst_class(self) -> float:
        """Lowest accuracy of any non-empty class; needs no attribute labels."""
        known = self.per_class[~self.per_class.isnan()]
        return float(known.min()) if len(known) else math.nan

    def adjusted(self, train_counts: Tensor) -> float:
        """Return the mean accuracy weighted by group frequency in TRAIN (group_DRO's convention).

        Groups without a sample here are excluded and the other weights renormalised.
        """
        weights = torch.where(self.count > 0, train_counts, 0).double()
        return float((weights * self.accuracy.nan_to_num()).sum() / weights.sum())

    def summary(self, train_counts: Tensor) -> dict[str, Any]:
        """Return the record written to result.json, with None for undefined values."""
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
    """Return the value, or None for NaN and infinity, which JSON lacks."""
    return value if math.isfinite(value) else None


def group_metrics(logits: Tensor, y: Tensor, g: Tensor, spec: GroupSpec) -> GroupMetrics:
    """Count correct predictions per group from logits (N, K), y and g (N,).

    For `multilabel` with y (N, K), count correct decisions per label; a positive logit predicts the
    label.
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
    """Return precision, recall and F1 per label from logits and y (N, L); None where undefined."""
    from sklearn.metrics import precision_recall_fscore_support

    predicted, true = ((logits > 0).cpu().numpy(), y.bool().cpu().numpy())
    names = ("precision", "recall", "f1")
    found = {}
    for i, label in enumerate(spec.classes):
        scores = precision_recall_fscore_support(
            true[:, i], predicted[:, i], average="binary", zero_division=math.nan
        )
        pairs = zip(names, scores, strict=False)  # drops the fourth value, the support
        found[label] = {name: none_if_undefined(float(score)) for name, score in pairs}
    return found


@torch.no_grad()
def apply(
    function: Callable[[Tensor], Tensor], dataset: GroupedDataset, transform: Transform
) -> Tensor:
    """Return `function` applied to every un-augmented image of a split, in order."""
    chunks = evaluation_chunks(dataset, transform)
    return torch.cat([function(transform(dataset.fetch(indices).x)) for indices in chunks])


def evaluate(
    predict: Callable[[Tensor], Tensor], splits: Splits, loss: Loss = "cross_entropy"
) -> dict[str, float | None]:
    """Return the row entries of every evaluated split: loss and accuracy, overall and per group.

    `worst_inferred`: the accuracy of the worst of the groups that the run trains by, on a split on
    which these were inferred. `gap/<class>`: the mean over the class's conflicting groups of their
    mean loss, minus the mean loss of its aligned group.
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
        inferred = splits.trained(name)
        if inferred is not split:
            found = group_metrics(logits, inferred.y, inferred.g, inferred.spec)
            entries[f"{name}/worst_inferred"] = none_if_undefined(found.worst)
    return entries


def group_means(values: Tensor, g: Tensor, num_groups: int) -> Tensor:
    """Return the mean (G,) float64 of values (N,) per group g (N,); NaN for empty groups."""
    sums = values.new_zeros(num_groups, dtype=torch.float64).index_add_(0, g, values.double())
    return (sums / torch.bincount(g, minlength=num_groups)).cpu()


def gaps(losses: Tensor, spec: GroupSpec) -> dict[str, float]:
    """Return the gaps of `class_gaps` as floats, without undefined ones."""
    found = {name: float(gap) for name, gap in class_gaps(losses, spec).items()}
    return {name: gap for name, gap in found.items() if math.isfinite(gap)}


def class_gaps(losses: Tensor, spec: GroupSpec) -> dict[str, Tensor]:
    """Return per class the mean of its conflicting groups' losses minus its aligned group's loss.

    `losses` (G,) holds mean losses, NaN for empty groups: empty conflicting groups are skipped, and
    the gap is NaN if all are empty or if the aligned group is.
    """
    found = {}
    by_class = losses.view(spec.num_classes, -1)
    for y, usual in enumerate(spec.aligned):
        others = torch.arange(by_class.shape[1], device=losses.device) != usual
        found[spec.classes[y]] = by_class[y, others].nanmean() - by_class[y, usual]
    return found
