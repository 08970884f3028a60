"""The dynamics of a gap, split into initial residuals (static) and their change (dynamic)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spurcor.analysis.contract import FinishedRun
from spurcor.analysis.groups import GroupAnalysis, Pairs, pairs_of
from spurcor.analysis.statistics import GroupStatistics
from spurcor.data.groups import GroupSpec
from spurcor.presentation.curves import Panel

TERMS = ("A", "B", "C")


@dataclass(kw_only=True)
class StaticDynamic(GroupAnalysis):
    """grad_g = grad_g^s + grad_g^d, where grad_g^s = c_0(y) m_g has the residuals at f = 0.

    c_0(y) = dl/df at f = 0: -y/2, for `mse` -2y. T_s = sum_g pi_g grad_g^s, and T_d likewise;
    Delta_s = grad_maj^s - grad_min^s, and Delta_d likewise, for a minority and the majority group
    of a class:

    A = <Delta_s, T_s>, B = <Delta_s, T_d> + <Delta_d, T_s>, C = <Delta_d, T_d>;

    A + B + C = d/dt (L_min - L_maj) under the gradient flow of ERM.
    """

    pairs: Pairs | None = None

    gradients = True
    jacobians = True
    scalar = True

    def check_spec(self, spec: GroupSpec) -> None:
        """Raise UserError unless every pair consists of two groups of one class."""
        pairs_of(spec, self.pairs, same_class=True)

    def quantities(self, s: GroupStatistics) -> dict[str, Tensor]:
        """Return A, B, C, Delta_s_T_d and Delta_d_T_s (the parts of B), and total, per pair."""
        y = torch.tensor([-1.0, 1.0]).repeat_interleave(len(s.spec.attributes))
        c_0 = -2 * y if s.kind == "mse" else -y / 2

        def static(weights: Tensor) -> Tensor:
            return s.jacobian(c_0 * weights)

        def dynamic(weights: Tensor) -> Tensor:
            return s.gradient(weights) - static(weights)

        values = {}
        t_s, t_d = static(s.share), dynamic(s.share)
        for pair, (minority, majority) in pairs_of(s.spec, self.pairs, same_class=True).items():
            weights = torch.zeros_like(s.share)
            weights[majority], weights[minority] = 1, -1
            delta_s, delta_d = static(weights), dynamic(weights)
            parts = s.dot(delta_s, t_d), s.dot(delta_d, t_s)
            values[f"A/{pair}"] = s.dot(delta_s, t_s)
            values[f"B/{pair}"] = parts[0] + parts[1]
            values[f"Delta_s_T_d/{pair}"], values[f"Delta_d_T_s/{pair}"] = parts
            values[f"C/{pair}"] = s.dot(delta_d, t_d)
            values[f"total/{pair}"] = s.dot(s.gradient(weights), s.gradient(s.share))
        return values

    def panels(
        self, of: Callable[[str], Tensor], spec: GroupSpec, ended: FinishedRun
    ) -> list[Panel]:
        """Return a panel per pair: the three terms and their sum."""
        labels = {"A": "A: static", "B": "B: mixed", "C": "C: dynamic"}
        return [
            Panel(
                pair,
                "d gap / dt",
                {**{labels[t]: of(f"{t}/{pair}") for t in TERMS}, "sum": of(f"total/{pair}")},
            )
            for pair in pairs_of(spec, self.pairs, same_class=True)
        ]
