"""Empirical risk minimisation: the baseline that learns the shortcut."""

from collections.abc import Sequence

from torch import Tensor

from spurcor.backbone import Backbone
from spurcor.data import Batch, DataInfo
from spurcor.method import Method, Phase, Supervised


class Erm(Method):
    """Mean cross-entropy over the batch."""

    def __init__(self, backbone: Backbone, info: DataInfo, epochs: int) -> None:
        super().__init__(backbone, info)
        self.epochs = epochs

    def phases(self) -> Sequence[Phase]:
        """One phase."""
        return [Supervised("erm", self, self.epochs, self.reduce)]

    def reduce(self, losses: Tensor, batch: Batch) -> Tensor:
        """L = 1/B sum_i l_i."""
        return losses.mean()
