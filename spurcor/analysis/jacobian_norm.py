"""The geometry of the groups' mean Jacobians."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from spurcor.analysis.contract import FinishedRun
from spurcor.analysis.groups import GroupAnalysis, is_square, signs
from spurcor.analysis.statistics import GroupStatistics
from spurcor.data.groups import GroupSpec
from spurcor.presentation.curves import Panel


@dataclass(kw_only=True)
class JacobianNorm(GroupAnalysis):
    """m_g = E_g[d f / d theta], the mean feature of the neural tangent kernel over a group.

    Squared norms; for pairs <m_g, m_h>, cosine and |m_g - m_h|^2. With two attributes, also the
    directions of attribute and label, Delta_S = 1/2 sum_ya a m_ya and Delta_L = 1/2 sum_ya y m_ya:
    their norms, the ratio S / L, inner product and cosine; m_A = 1/4 sum_g a m_g and m_Y are half
    as long.
    """

    jacobians = True
    scalar = True

    def quantities(self, s: GroupStatistics) -> dict[str, Tensor]:
        """Return the values by name, per group and pair, and for the two directions.

        `norm2/<g>`, `dot/<g>-<h>`, `cos/<g>-<h>`, `distance2/<g>-<h>`; with two attributes also
        values for Delta_S, Delta_L, m_A and m_Y.
        """
        units = torch.eye(len(s.share))
        m = {name: s.jacobian(units[g]) for g, name in enumerate(s.spec.names)}
        values = {f"norm2/{name}": s.dot(vector, vector) for name, vector in m.items()}
        for one, other in combinations(s.spec.names, 2):
            u, v = m[one], m[other]
            values[f"dot/{one}-{other}"] = s.dot(u, v)
            values[f"cos/{one}-{other}"] = s.cosine(u, v)
            values[f"distance2/{one}-{other}"] = s.dot(u - v, u - v)
        if is_square(s.spec):
            y, a = signs(s.spec)
            delta_s, delta_l = s.jacobian(a / 2), s.jacobian(y / 2)
            values["norm_S"], values["norm_L"] = s.norm(delta_s), s.norm(delta_l)
            values["ratio_S_L"] = values["norm_S"] / values["norm_L"]
            values["dot_S_L"] = s.dot(delta_s, delta_l)
            values["cos_S_L"] = s.cosine(delta_s, delta_l)
            values["norm2_m_A"], values["norm2_m_Y"] = (
                values[key].square() / 4 for key in ("norm_S", "norm_L")
            )
            values["dot_m_A_m_Y"] = values["dot_S_L"] / 4
        return values

    def panels(
        self, of: Callable[[str], Tensor], spec: GroupSpec, ended: FinishedRun
    ) -> list[Panel]:
        """Return panels of the groups' norms, the pairs' cosines, and the two directions."""
        norms = {name: of(f"norm2/{name}").sqrt() for name in spec.names}
        pairs = [f"{one}-{other}" for one, other in combinations(spec.names, 2)]
        found = [Panel("", "norm of m_g", norms)]
        cosines = {pair: of(f"cos/{pair}") for pair in pairs}
        found.append(Panel("", "cosine of m_g, m_h", cosines))
        if is_square(spec):
            directions = {"Delta_S (attribute)": of("norm_S"), "Delta_L (label)": of("norm_L")}
            found.append(Panel("", "norm", directions))
            relations = {"|Delta_S| / |Delta_L|": of("ratio_S_L"), "their cosine": of("cos_S_L")}
            found.append(Panel("", "ratio, cosine", relations))
        return found
