"""Losses of single samples, by the task of the data set, and the head that each is of."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spurcor.backbone import Backbone
from spurcor.config import Loss
from spurcor.data import DataInfo, GroupSpec
from spurcor.errors import UserError


def sample_losses(logits: Tensor, y: Tensor, spec: GroupSpec, loss: Loss) -> Tensor:
    """Losses (B,) of logits (B, K).

    `cross_entropy`, for `multilabel` the mean over labels of the binary ones. For two classes with
    y = +-1 and f the difference of the logits: `logistic` log(1 + exp(-y f)), which is the
    cross-entropy of the logits (-f/2, f/2); `mse` (f - y)^2.
    """
    if spec.task == "multilabel":
        each = F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype), reduction="none")
        return each.mean(dim=1)
    if loss == "mse":
        return (logits[:, 1] - logits[:, 0] - (2 * y - 1)).square()
    return F.cross_entropy(logits, y, reduction="none")


def make_head(backbone: Backbone, info: DataInfo) -> nn.Module:
    """The last layer that a loss is of: K outputs for `cross_entropy`, one for the others."""
    spec = info.spec
    if info.loss == "cross_entropy":
        return backbone.head(spec.num_classes)
    if spec.task == "multilabel" or spec.num_classes != 2:
        kind = "labels" if spec.task == "multilabel" else "classes"
        raise UserError(
            f"train.loss={info.loss} is for two classes, and this data set has {spec.num_classes}"
            f" {kind}; say train.loss=cross_entropy"
        )
    return ScalarHead(backbone.head(1))


class ScalarHead(nn.Module):
    """One scalar f for two classes: features (B, D) to the logits (-f/2, f/2), (B, 2)."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.last = last

    def forward(self, z: Tensor) -> Tensor:
        """Their difference is f, and their softmax the logistic function of f."""
        f = self.last(z) / 2
        return torch.cat([-f, f], dim=1)
