"""Binary gates on single weights, learnt by their logits; the network reads the gated weights.

Gates are parametrizations of torch: `module.weight` is the gated weight wherever it is read, so
features, maps and gradients are those of the masked network. W a weight, pi its logit, m its mask;
sigma the logistic function.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spurcor.models.weights import plain_name

MaskLogit = Literal["sigmoid", "raw"]
INITIAL_LOGIT = 1.5  # pi at first, as in PruSC
EPSILON = 1e-7  # by which uniform numbers stay away from 0 and 1


class Gate(nn.Module):
    """W to W * m with one logit per weight.

    While its logits are trained, m is drawn anew at every reading, m = 1[s > 1/2] with
    s = sigma(l + xi) and logistic noise xi, and passes the gradient of s (straight-through
    Gumbel-sigmoid; Csordas et al., ICLR 2021). l = pi (`raw`) or sigma(pi) (`sigmoid`, as DCWP and
    PruSC have it, so that P(m = 1) stays between 0.5 and 0.73). Otherwise m = 1[pi >= 0].
    """

    def __init__(self, weight: Tensor, mask_logit: MaskLogit) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.full_like(weight, INITIAL_LOGIT))
        self.mask_logit = mask_logit

    def forward(self, weight: Tensor) -> Tensor:
        """The gated weight, of the shape of the weight."""
        if not (self.training and self.logit.requires_grad):
            return weight * self.kept
        location = self.logit.sigmoid() if self.mask_logit == "sigmoid" else self.logit
        # One uniform number u gives the noise: log(u / (1 - u)) is logistic.
        s = (location + torch.rand_like(weight).logit_(EPSILON)).sigmoid()
        return weight * ((s > 0.5).to(s.dtype) + (s - s.detach()))

    @property
    def kept(self) -> Tensor:
        """The mask that is deployed, bool."""
        return self.logit.detach() >= 0


def attach(module: nn.Module, mask_logit: MaskLogit) -> None:
    """Put a gate on every weight of two or more dimensions, in whatever kind of layer it is."""
    named = [
        (part, name, weight)
        for part in module.modules()
        for name, weight in part.named_parameters(recurse=False)
        if name.endswith("weight") and weight.dim() > 1
    ]
    for part, name, weight in named:
        # Unsafe: the check that it leaves out would draw a mask; shapes and types are kept.
        parametrize.register_parametrization(part, name, Gate(weight, mask_logit), unsafe=True)


def gates_of(module: nn.Module) -> dict[str, Gate]:
    """Every gate, by the plain name of its weight."""
    return {
        plain_name(path.rpartition(".")[0]): gate
        for path, gate in module.named_modules()
        if isinstance(gate, Gate)
    }
