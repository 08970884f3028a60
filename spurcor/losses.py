"""Losses of single samples, by the task of the data set."""

from torch import Tensor
from torch.nn import functional as F

from spurcor.data import GroupSpec


def sample_losses(logits: Tensor, y: Tensor, spec: GroupSpec) -> Tensor:
    """Losses (B,) of logits (B, K): cross-entropy, or the mean over labels of the binary ones."""
    if spec.task == "multilabel":
        each = F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype), reduction="none")
        return each.mean(dim=1)
    return F.cross_entropy(logits, y, reduction="none")
