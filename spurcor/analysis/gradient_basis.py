"""Group gradients in the basis of label, attribute and their product."""

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

NAMES = ("inv", "Y", "A", "AY")


@dataclass(kw_only=True)
class GradientBasis(GroupAnalysis):
    """v_inv = 1/4 sum_g grad_g, v_Y = 1/4 sum_g y grad_g; v_A and v_AY likewise with a and y a.

    Reports their norms and the cosines of the six pairs. The gradient of ERM is v_inv + E[y] v_Y +
    E[a] v_A + E[ya] v_AY. With more classes or attributes, the group gradients are decomposed into
    a component common to all groups and components due to class, to attribute and to their
    interaction, and only the norms are reported: |v_Y|^2 is the mean over groups of the squared
    distance between the mean gradient of their class and v_inv.
    """

    gradients = True

    def quantities(self, s: GroupStatistics) -> dict[str, Tensor]:
        """Return `norm_<v>` and, for two classes and two attributes, `cos_<v>_<w>`."""
        values = {
            f"norm_{name}": _root_mean_square(s, part)
            for name, part in zip(NAMES, parts(s.spec), strict=True)
        }
        if is_square(s.spec):
            y, a = signs(s.spec)
            basis = zip(NAMES, (torch.ones_like(y), y, a, y * a), strict=True)
            vectors = {name: s.gradient(sign / 4) for name, sign in basis}
            for one, other in combinations(NAMES, 2):
                values[f"cos_{one}_{other}"] = s.cosine(vectors[one], vectors[other])
        return values

    def panels(
        self, of: Callable[[str], Tensor], spec: GroupSpec, ended: FinishedRun
    ) -> list[Panel]:
        """Return a panel of the norms and one of the cosines."""
        norms = {f"v_{name}": of(f"norm_{name}") for name in NAMES}
        found = [Panel("", "norm", norms, log=True)]
        if is_square(spec):
            pairs = combinations(NAMES, 2)
            cosines = {f"v_{one}, v_{other}": of(f"cos_{one}_{other}") for one, other in pairs}
            found.append(Panel("", "cosine", cosines, limits=(-1.05, 1.05)))
        return found


def parts(spec: GroupSpec) -> list[Tensor]:
    """Return projections (G, G) onto what is common to all groups, due to y, to a, and to both."""
    sizes = (spec.num_classes, len(spec.attributes))
    mean = [torch.full((n, n), 1 / n, dtype=torch.float64) for n in sizes]
    rest = [torch.eye(n, dtype=torch.float64) - m for n, m in zip(sizes, mean, strict=True)]
    factors = [(mean[0], mean[1]), (rest[0], mean[1]), (mean[0], rest[1]), (rest[0], rest[1])]
    return [torch.kron(one, other) for one, other in factors]


def _root_mean_square(s: GroupStatistics, part: Tensor) -> Tensor:
    """Return the root mean square over groups of the norms of their projected gradients (G, G)."""
    squares = [s.norm(s.gradient(row)) ** 2 for row in part]
    return torch.stack(squares).mean().sqrt()
