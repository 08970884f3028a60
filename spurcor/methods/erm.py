"""Empirical risk minimisation: the baseline that learns the shortcut."""

from collections.abc import Sequence

from torch import Tensor

from spurcor.data.groups import Batch, DataInfo
from spurcor.data.streams import Sampling
from spurcor.models.backbone import Backbone
from spurcor.training.method import Method, Phase, Supervised

CLASSWISE = ("class_weighted", "class_subsampled")  # samplings that need no attribute


class Erm(Method):
    """Minimise the mean loss of batches drawn by `sampling`.

    `subsampled` and `group_weighted` are the baselines SUBG and RWG of Idrissi et al. (CLeaR 2022),
    `class_subsampled` and `class_weighted` their SUBY and RWY.
    """

    additive = True

    def __init__(
        self, backbone: Backbone, info: DataInfo, epochs: int, sampling: Sampling = "shuffled"
    ) -> None:
        super().__init__(backbone, info)
        if sampling in CLASSWISE:
            info.spec.require_classes(f"method.sampling={sampling}")
        elif sampling != "shuffled":
            info.spec.require_groups(f"method.sampling={sampling}")
        self.epochs, self.sampling = epochs, sampling

    def phases(self) -> Sequence[Phase]:
        """Return the single phase `erm`."""
        return [Supervised("erm", self, self.epochs, self.reduce, self.sampling)]

    def reduce(self, losses: Tensor, batch: Batch) -> Tensor:
        """Return L = 1/B sum_i l_i."""
        return losses.mean()
