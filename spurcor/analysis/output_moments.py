"""Where the groups lie on the scalar output, and their losses."""

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
    """Mean and standard deviation (of N - 1) of f over each group, its mean loss, and the gaps."""

    revision = 2  # the deviation, as published, is that of N - 1
    scalar = True

    def quantities(self, s: GroupStatistics) -> dict[str, Tensor]:
        """mean/<g>, std/<g>, loss/<g>, and gap/<class> as the rows have it of VAL and TEST."""
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
        """f with its deviation as a band, and the losses."""
        means = {name: of(f"mean/{name}") for name in spec.names}
        bands = {name: of(f"std/{name}") for name in spec.names}
        losses = {name: of(f"loss/{name}") for name in spec.names}
        found = [Panel("", "f, one deviation", means, bands=bands), Panel("", "loss", losses)]
        if spec.aligned:
            gaps = {name: of(f"gap/{name}") for name in spec.classes}
            found.append(Panel("", "gap of the loss", gaps))
        return found
