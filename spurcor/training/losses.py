"""Per-sample losses, by the task of the data set."""

from torch import Tensor
from torch.nn import functional as F

from spurcor.config.schema import Loss
from spurcor.data.groups import GroupSpec


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
