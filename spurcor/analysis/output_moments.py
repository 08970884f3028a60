"""The distribution of the scalar output f within each group, and the groups' losses."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from spurcor.analysis.contract import FinishedRun
from spurcor.analysis.groups import GroupAnalysis
from spurcor.analysis.statistics import GroupStatistics
from spurcor.data.groups import GroupSpec
from spurcor.presentation.curves import Panel
from spurcor.training.metrics import class_gaps


@dataclass(kw_only=True)
class OutputMoments(GroupAnalysis):
    """Mean and sample standard deviation (N - 1) of f and mean loss per group, and loss gaps."""

    revision = 2  # standard deviation with N - 1, as published
    scalar = True

    def quantities(self, s: GroupStatistics) -> dict[str, Tensor]:
        """Return `mean/<g>`, `std/<g>`, `loss/<g>`, and `gap/<class>` as in evaluation rows."""
        found = {"mean": s.mean, "std": s.std, "loss": s.loss}
        of_groups = {
            f"{what}/{name}": values[g]
            for what, values in found.items()
            for g, name in enumerate(s.spec.names)
        }
        return of_groups | {f"gap/{name}": gap for name, gap in class_gaps(s.loss, s.spec).items()}

    def panels(
        self, of: Callable[[str], Tensor], spec: GroupSpec, ended: FinishedRun
    ) -> list[Panel]:
        """Return panels of f with a band of one standard deviation, of losses, and of gaps."""
        means = {name: of(f"mean/{name}") for name in spec.names}
        bands = {name: of(f"std/{name}") for name in spec.names}
        losses = {name: of(f"loss/{name}") for name in spec.names}
        found = [Panel("", "f, one deviation", means, bands=bands), Panel("", "loss", losses)]
        if spec.aligned:
            gaps = {name: of(f"gap/{name}") for name in spec.classes}
            found.append(Panel("", "gap of the loss", gaps))
        return found
