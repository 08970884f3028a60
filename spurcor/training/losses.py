"""Per-sample losses, by the task of the data set."""

import torch
from torch import Tensor
from torch.nn import functional as F

from spurcor.config.schema import Loss
from spurcor.data.groups import DataInfo, GroupSpec
from spurcor.errors import UserError


def sample_losses(logits: Tensor, y: Tensor, spec: GroupSpec, loss: Loss) -> Tensor:
    """Return per-sample losses (B,) of logits (B, K).

    `cross_entropy`: for `multilabel`, the mean over labels of the binary cross-entropies. For two
    classes with y = +-1 and f the difference of the logits: `logistic` log(1 + exp(-y f)), which is
    the cross-entropy of the logits (-f/2, f/2); `mse` (f - y)^2.
    """
    if spec.task == "multilabel":
        each = F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype), reduction="none")
        return each.mean(dim=1)
    if loss == "mse":
        return (logits[:, 1] - logits[:, 0] - (2 * y - 1)).square()
    return F.cross_entropy(logits, y, reduction="none")


def class_weight(info: DataInfo) -> Tensor | None:
    """Return weights (K,) of the losses: those given, or N / (K n_k), `balanced`; None without."""
    given, spec = info.class_weights, info.spec
    if given is None:
        return None
    if spec.task == "multilabel":
        raise UserError(
            f"train.class_weights={given} needs one class per image, but this data set has labels;"
            " set train.class_weights=null"
        )
    if given == "balanced":
        counts = info.group_counts.double().view(spec.num_classes, -1).sum(dim=1)
        weights = counts.sum() / (spec.num_classes * counts)
        return torch.where(counts > 0, weights, 0.0).float()
    if len(given) != spec.num_classes:
        raise UserError(
            f"train.class_weights={list(given)} has {len(given)} numbers; give one for each of the"
            f" {spec.num_classes} classes: {', '.join(spec.classes)}"
        )
    return torch.tensor(given)
