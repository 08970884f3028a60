"""Importance weighting: every group contributes equally."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from spurcor.data.groups import Batch, DataInfo
from spurcor.data.streams import Sampling
from spurcor.models.backbone import Backbone
from spurcor.training.method import Method, Phase, Supervised


class ImportanceWeighting(Method):
    """Weight losses by N / (G n_g), or draw samples with probability proportional to 1 / n_g.

    N samples in G groups, n_g of them in group g; empty groups count in G. At full batch the
    weighted loss has the gradient v_inv, the mean of the group gradients. Sampling is group_DRO's
    `reweight_groups`.
    """

    additive = True

    weight: Tensor

    def __init__(
        self,
        backbone: Backbone,
        info: DataInfo,
        epochs: int,
        by: Literal["weights", "sampling"] = "weights",
    ) -> None:
        super().__init__(backbone, info)
        info.spec.require_groups("method=iw")
        self.epochs, self.by = epochs, by
        n_g = info.group_counts.double()
        weight = torch.where(n_g > 0, n_g.sum() / (len(n_g) * n_g), 0.0)
        self.register_buffer("weight", weight.float())

    def phases(self) -> Sequence[Phase]:
        """Return the single phase `iw`."""
        sampling: Sampling = "group_weighted" if self.by == "sampling" else "shuffled"
        return [Supervised("iw", self, self.epochs, self.reduce, sampling)]

    def reduce(self, losses: Tensor, batch: Batch) -> Tensor:
        """Return L = 1/B sum_i w_{g_i} l_i, or the plain mean for sampled batches."""
        return losses.mean() if self.by == "sampling" else (self.weight[batch.g] * losses).mean()
