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
    """d/dt (L_g1 - L_g2) = <Delta, grad_ERM> with Delta = grad_g2 - grad_g1, for pairs of groups.

    Under theta' = -grad_ERM and grad_ERM = sum_g pi_g grad_g; positive where the gap grows. Terms:
    `uniform`, <Delta, v_inv>, is that of equal groups; `marginals`, <Delta, E[y] v_Y + E[a] v_A +
    E[y] E[a] v_AY>, is added by classes and attributes that are not equally frequent, and
    `correlation`, <Delta, rho v_AY>, by their covariance rho. In groups, of any number, their
    weights are 1/G, pi_y pi_a - 1/G and pi_ya - pi_y pi_a.
    """

    pairs: Pairs | None = None

    gradients = True

    def check_spec(self, spec: GroupSpec) -> None:
        """The pairs must be groups."""
        pairs_of(spec, self.pairs, same_class=False)

    def quantities(self, s: GroupStatistics) -> dict[str, Tensor]:
        """<term>/<pair>, total/<pair>."""
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
        """Per pair the terms, their sum, and how fast the gap really changed."""
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
    """What `uniform`, `marginals` and `correlation` weigh the groups by (G,); they add up to pi."""
    by_class = share.view(spec.num_classes, -1)
    independent = torch.outer(by_class.sum(1), by_class.sum(0)).flatten()
    uniform = torch.full_like(share, 1 / len(share))
    return uniform, independent - uniform, share - independent
