"""Binary gates on single weights, learnt through their logits.

Gates are torch parametrizations: `module.weight` reads as the gated weight everywhere, so features,
maps and gradients are computed on the masked network. W: a weight, pi: its logit, m: its mask;
sigma: the logistic function.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spurcor.models.weights import plain_name

MaskLogit = Literal["sigmoid", "raw"]
INITIAL_LOGIT = 1.5  # initial pi, as in PruSC
EPSILON = 1e-7  # keeps uniform numbers away from 0 and 1


class Gate(nn.Module):
    """Parametrization of W as W * m, with one logit per weight.

    While its logits are trained, every read draws a new m = 1[s > 1/2], where s = sigma(l + xi)
    with logistic noise xi, and back-propagates the gradient of s (straight-through Gumbel-sigmoid;
    Csordas et al., ICLR 2021). l = pi (`raw`) or sigma(pi) (`sigmoid`, as in DCWP and PruSC, so
    that P(m = 1) stays between 0.5 and 0.73). Otherwise m = 1[pi >= 0].
    """

    def __init__(self, weight: Tensor, mask_logit: MaskLogit) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.full_like(weight, INITIAL_LOGIT))
        self.mask_logit = mask_logit

    def forward(self, weight: Tensor) -> Tensor:
        """Return the gated weight, of the weight's shape."""
        if not (self.training and self.logit.requires_grad):
            return weight * self.kept
        location = self.logit.sigmoid() if self.mask_logit == "sigmoid" else self.logit
        # For uniform u, log(u / (1 - u)) is logistic.
        s = (location + torch.rand_like(weight).logit_(EPSILON)).sigmoid()
        return weight * ((s > 0.5).to(s.dtype) + (s - s.detach()))

    @property
    def kept(self) -> Tensor:
        """The mask m = 1[pi >= 0] (bool) that is used once the logits are fixed."""
        return self.logit.detach() >= 0


def attach(module: nn.Module, mask_logit: MaskLogit) -> None:
    """Put a gate on every weight of two or more dimensions, in any kind of layer."""
    named = [
        (part, name, weight)
        for part in module.modules()
        for name, weight in part.named_parameters(recurse=False)
        if name.endswith("weight") and weight.dim() > 1
    ]
    for part, name, weight in named:
        # unsafe=True skips a check that would draw a mask; shapes and types do not change.
        parametrize.register_parametrization(part, name, Gate(weight, mask_logit), unsafe=True)


def gates_of(module: nn.Module) -> dict[str, Gate]:
    """Return every gate by the plain name of its weight."""
    return {
        plain_name(path.rpartition(".")[0]): gate
        for path, gate in module.named_modules()
        if isinstance(gate, Gate)
    }
