"""Empirical risk minimisation on TARGET alone: SCALE's baseline that never sees the shortcut."""

from collections.abc import Sequence

from torch import Tensor

from spurcor.data.groups import Batch, DataInfo, Split
from spurcor.models.backbone import Backbone
from spurcor.training.method import Method, Phase, Supervised


class ErmTarget(Method):
    """Minimise the mean loss of batches of TARGET; an epoch is one pass over TARGET."""

    additive = True

    def __init__(self, backbone: Backbone, info: DataInfo, epochs: int) -> None:
        super().__init__(backbone, info)
        self.epochs = epochs

    def phases(self) -> Sequence[Phase]:
        """Return the single phase `erm_target`."""
        return [Supervised("erm_target", self, self.epochs, self.reduce, split=Split.TARGET)]

    def reduce(self, losses: Tensor, batch: Batch) -> Tensor:
        """Return L = 1/B sum_i l_i."""
        return losses.mean()
