"""What drives the gap between the losses of two groups under the gradient flow of ERM."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spurcor.analysis.contract import FinishedRun
from spurcor.analysis.groups import GroupAnalysis, Pairs, flow_rate, pairs_of
from spurcor.analysis.statistics import GroupStatistics
from spurcor.data.groups import GroupSpec
from spurcor.presentation.curves import Panel

TERMS = ("uniform", "marginals", "correlation")


@dataclass(kw_only=True)
class GapDynamics(GroupAnalysis):
    """Terms of d/dt (L_g1 - L_g2) = <Delta, grad_ERM>, Delta = grad_g2 - grad_g1, for group pairs.

    Under theta' = -grad_ERM and grad_ERM = sum_g pi_g grad_g; a positive term widens the gap.
    `uniform`, <Delta, v_inv>, is the rate for groups of equal size; `marginals`, <Delta, E[y] v_Y +
    E[a] v_A + E[y] E[a] v_AY>, is due to unequal frequencies of classes and of attributes;
    `correlation`, <Delta, rho v_AY>, to their covariance rho. For any number of groups G, the terms
    weight the group gradients by 1/G, pi_y pi_a - 1/G and pi_ya - pi_y pi_a.
    """

    pairs: Pairs | None = None

    gradients = True

    def check_spec(self, spec: GroupSpec) -> None:
        """Raise UserError if a pair names something other than a group."""
        pairs_of(spec, self.pairs, same_class=False)

    def quantities(self, s: GroupStatistics) -> dict[str, Tensor]:
        """Return `<term>/<pair>` and `total/<pair>`."""
        terms = dict(zip(TERMS, term_weights(s.spec, s.share), strict=True))
        values = {}
        for pair, (g1, g2) in pairs_of(s.spec, self.pairs, same_class=False).items():
            delta = torch.zeros_like(s.share)
            delta[g2], delta[g1] = 1, -1
            for name, weights in {**terms, "total": s.share}.items():
                values[f"{name}/{pair}"] = s.dot(s.gradient(delta), s.gradient(weights))
        return values

    def panels(
        self, of: Callable[[str], Tensor], spec: GroupSpec, ended: FinishedRun
    ) -> list[Panel]:
        """Return a panel per pair: the terms, their sum, and the measured change of the gap."""
        found = []
        for pair, (g1, g2) in pairs_of(spec, self.pairs, same_class=False).items():
            stacked = {name: of(f"{name}/{pair}") for name in TERMS}
            gap = of("loss")[:, g1] - of("loss")[:, g2]
            found.append(
                Panel(
                    pair,
                    "d gap / dt",
                    {"sum: flow of ERM": of(f"total/{pair}")},
                    stacked=stacked,
                    points={} if (rate := flow_rate(ended, gap)) is None else {"measured": rate},
                )
            )
        return found


def term_weights(spec: GroupSpec, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the group weights (G,) of `uniform`, `marginals` and `correlation`; they sum to pi."""
    by_class = share.view(spec.num_classes, -1)
    independent = torch.outer(by_class.sum(1), by_class.sum(0)).flatten()
    uniform = torch.full_like(share, 1 / len(share))
    return uniform, independent - uniform, share - independent
