"""Low and high confidence of a reference network in the true class (as LfF and EVaLS use it)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from spurcor.config.ranges import require_share
from spurcor.data.grouping import Grouping
from spurcor.data.groups import GroupSpec
from spurcor.errors import UserError
from spurcor.groups.contract import Inference, On, Table, grouped


class Confidence(Inference):
    """Attribute 1 for the `share` of each class in whose class the reference trusts least.

    The order is that of p_y, the softmax of the true class, or, which is the same, that of the
    cross-entropy. VAL is divided at the quantiles of TRAIN.
    """

    def __init__(
        self,
        epochs: int = 1,
        share: float = 0.2,
        lr: float | None = None,
        weight_decay: float | None = None,
        run: str | None = None,
        on: On = ("train",),
    ) -> None:
        super().__init__(epochs, lr, weight_decay, run, on)
        require_share(share=share)
        self.share = share

    def infer(self, tables: Mapping[str, Table], spec: GroupSpec, seed: int) -> Grouping:
        """See `Inference`; UserError if no sample stands out."""
        losses = {name: true_losses(table) for name, table in tables.items()}
        y, found = tables["train"].y, {}
        bounds = torch.zeros(spec.num_classes, dtype=torch.float64)
        for c in torch.unique(y).tolist():
            bounds[c] = losses["train"][y == c].quantile(1 - self.share)
        for name, table in tables.items():
            found[name] = losses[name] > bounds[table.y]
        if not found["train"].any():
            raise UserError(
                "groups=confidence: the reference network trusts all training samples of a class"
                " alike; train it for fewer epochs (groups.epochs)"
            )
        return grouped(("trusted", "doubted"), found, spec)


def true_losses(table: Table) -> Tensor:
    """Return the cross-entropy (N,) float64 of the true class."""
    logits = table.logits.double()
    return torch.nn.functional.cross_entropy(logits, table.y, reduction="none")
