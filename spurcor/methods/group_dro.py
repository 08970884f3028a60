"""Group DRO (Sagawa et al., ICLR 2020): minimise the loss of the worst group."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from spurcor.data.groups import Batch, DataInfo
from spurcor.data.streams import Sampling
from spurcor.models.backbone import Backbone
from spurcor.training.method import Method, Phase, Supervised


class GroupDro(Method):
    """Online exponentiated-gradient ascent on the group weights q, descent on sum_g q_g L_g.

    As in the authors' code, q is updated first and then weights the losses of the same batch.
    """

    q: Tensor
    adjustment: Tensor

    def __init__(
        self,
        backbone: Backbone,
        info: DataInfo,
        epochs: int,
        eta: float = 0.01,
        adjustments: tuple[float, ...] = (0.0,),
        normalize: bool = False,
        sampling: bool = False,
    ) -> None:
        """Create the method; `adjustments` C: one for all groups or one per group.

        They are used only if all are positive. `sampling`: the authors' `reweight_groups`.
        """
        super().__init__(backbone, info)
        info.spec.require_groups("method=group_dro")
        num_groups = info.spec.num_groups
        if eta < 0:
            raise ValueError(f"eta={eta} must not be negative")
        if len(adjustments) not in (1, num_groups):
            raise ValueError(
                f"adjustments has {len(adjustments)} values; give one, or one for each of the"
                f" {num_groups} groups"
            )
        self.epochs, self.eta, self.normalize, self.sampling = epochs, eta, normalize, sampling
        self.register_buffer("q", torch.full((num_groups,), 1 / num_groups))
        c = torch.tensor(adjustments).expand(num_groups)
        n_g = info.group_counts
        used = (n_g > 0) & bool((c > 0).all())  # an empty group must not attract q
        self.register_buffer("adjustment", torch.where(used, c / n_g.clamp(min=1).sqrt(), 0.0))

    def phases(self) -> Sequence[Phase]:
        """Return the single phase `group_dro`."""
        sampling: Sampling = "group_weighted" if self.sampling else "shuffled"
        return [Supervised("group_dro", self, self.epochs, self.reduce, sampling)]

    def reduce(self, losses: Tensor, batch: Batch) -> Tensor:
        """Update q_g <- q_g exp(eta A_g), normalised, with A_g = L_g + C_g / sqrt(n_g).

        Returns L = sum_g q_g L_g, where L_g is the mean loss of the group in the batch, 0 if it is
        absent. With `normalize`, the A_g are first divided by their sum.
        """
        member = F.one_hot(batch.g, len(self.q)).to(losses.dtype)  # (B, G)
        group_losses = losses @ member / member.sum(0).clamp(min=1)  # (G,)
        with torch.no_grad():
            adjusted = group_losses + self.adjustment
            if self.normalize:
                adjusted = adjusted / adjusted.sum().clamp(min=torch.finfo(adjusted.dtype).tiny)
            q = self.q * (self.eta * adjusted).exp()
            self.q.copy_(q / q.sum())
        # Copied: autograd saves it for backward, but the next batch changes the buffer in place.
        return self.q.clone() @ group_losses
