"""The heads that the losses need."""

import torch
from torch import Tensor, nn

from spurcor.data.groups import DataInfo
from spurcor.errors import UserError
from spurcor.models.backbone import Backbone


def make_head(backbone: Backbone, info: DataInfo) -> nn.Module:
    """Build the last layer that the loss needs: K outputs for `cross_entropy`, one for the others.

    Raises a `UserError` if a loss with one output meets other than two classes.
    """
    spec = info.spec
    if info.loss == "cross_entropy":
        return backbone.head(spec.num_classes)
    if spec.task == "multilabel" or spec.num_classes != 2:
        kind = "labels" if spec.task == "multilabel" else "classes"
        raise UserError(
            f"train.loss={info.loss} needs two classes, but this data set has {spec.num_classes}"
            f" {kind}; set train.loss=cross_entropy"
        )
    return ScalarHead(backbone.head(1))


class ScalarHead(nn.Module):
    """Binary head with one scalar f: features (B, D) to the logits (-f/2, f/2), (B, 2)."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.last = last

    def forward(self, z: Tensor) -> Tensor:
        """Return logits (B, 2) whose difference is f and whose softmax is the sigmoid of f."""
        f = self.last(z) / 2
        return torch.cat([-f, f], dim=1)
