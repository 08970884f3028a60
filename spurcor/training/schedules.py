"""Learning-rate schedules that torch does not have in one piece."""

import functools
import math
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from spurcor.config.ranges import require_at_least


class Warmup(LambdaLR):
    """Linear warm-up over the first epochs of a phase, then a constant rate or a cosine to 0."""

    def __init__(
        self,
        optimizer: Optimizer,
        T_max: int,  # noqa: N803 - torch's name for the number of epochs
        warmup_epochs: int = 1,
        then: Literal["constant", "cosine"] = "cosine",
    ) -> None:
        require_at_least(0, warmup_epochs=warmup_epochs)
        factor = functools.partial(_factor, total=T_max, warmup=warmup_epochs, then=then)
        super().__init__(optimizer, factor)


def _factor(epoch: int, *, total: int, warmup: int, then: str) -> float:
    """Return the factor on the learning rate in an epoch, counted from 0."""
    if epoch < warmup:
        return (epoch + 1) / (warmup + 1)
    if then == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / max(1, total - warmup)))
