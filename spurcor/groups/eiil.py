"""Environment inference (EIIL; Creager et al., ICML 2021)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from spurcor.config.ranges import require_at_least, require_positive
from spurcor.data.grouping import Grouping
from spurcor.data.groups import GroupSpec
from spurcor.errors import UserError
from spurcor.groups.contract import Inference, On, Table, grouped
from spurcor.seeding import derive_seed


class Eiil(Inference):
    """Two environments that violate invariance of the reference network the most.

    Soft memberships sigma_i maximise 1/2 [(dR_1/ds)^2 + (dR_2/ds)^2] at s = 1, by Adam over all
    samples at once, with R_1 = 1/N sum_i sigma_i l_i(s), R_2 = 1/N sum_i (1 - sigma_i) l_i(s) and
    l_i(s) the cross-entropy of the logits times s. Then sigma_i > 0.5 divides the samples. Since
    the derivatives d_i = dl_i/ds do not depend on sigma, the optimum separates their signs; of two
    classes these are the mistakes, the second environment here. Those with small d_i may keep the
    side that their random initial value has.
    """

    def __init__(
        self,
        epochs: int = 1,
        env_lr: float = 0.01,
        steps: int = 10_000,
        lr: float | None = None,
        weight_decay: float | None = None,
        run: str | None = None,
        on: On = ("train",),
    ) -> None:
        super().__init__(epochs, lr, weight_decay, run, on)
        require_positive(env_lr=env_lr)
        require_at_least(1, steps=steps)
        self.env_lr, self.steps = env_lr, steps

    def infer(self, tables: Mapping[str, Table], spec: GroupSpec, seed: int) -> Grouping:
        """See `Inference`; UserError if all of TRAIN is in one environment."""
        found = {}
        for name, table in tables.items():
            generator = torch.Generator().manual_seed(derive_seed(seed, "eiil", name))
            d = scale_derivatives(table.logits.double(), table.y)
            found[name] = separate(d, self.env_lr, self.steps, generator) > 0.5
            if (found[name] * d).sum() < (~found[name] * d).sum():  # which is which is arbitrary
                found[name] = ~found[name]
            if name == "train" and len(torch.unique(found[name])) == 1:
                raise UserError(
                    "groups=eiil: all training samples are in one environment; train the reference"
                    " network for other than groups.epochs, or raise groups.steps"
                )
        return grouped(("first", "second"), found, spec)


def scale_derivatives(logits: Tensor, y: Tensor) -> Tensor:
    """Return d_i (N,) = dl_i/ds at s = 1, which is the expected logit minus the true one."""
    true = logits.gather(1, y[:, None]).squeeze(1)
    return (logits.softmax(1) * logits).sum(1) - true


def separate(d: Tensor, lr: float, steps: int, generator: torch.Generator) -> Tensor:
    """Return the memberships sigma (N,) after `steps` of Adam from w ~ N(0, 1)."""
    w = torch.randn(len(d), generator=generator, dtype=torch.float64).requires_grad_()
    adam, all_of_it = torch.optim.Adam([w], lr=lr, fused=True), d.mean()
    for _ in range(steps):
        with torch.no_grad():
            sigma = w.sigmoid()
            first = (sigma @ d) / len(d)
            # The derivative of the objective is (R_1' - R_2') d_i sigma_i (1 - sigma_i) / N, and
            # Adam descends.
            w.grad = (all_of_it - 2 * first) / len(d) * d * sigma * (1 - sigma)
        adam.step()
    return w.detach().sigmoid()
