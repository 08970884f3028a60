"""No groups: what is annotated is hidden from training and selection."""

from collections.abc import Mapping

import torch

from spurcor.data.grouping import Grouping
from spurcor.data.groups import GroupSpec
from spurcor.groups.contract import Inference, Table


class Hidden(Inference):
    """One unknown attribute value for all samples, so that the groups are the classes."""

    def __init__(self) -> None:
        self.reference, self.on = None, ("train", "val", "target")

    def infer(self, tables: Mapping[str, Table], spec: GroupSpec, seed: int) -> Grouping:
        """See `Inference`."""
        attribute = {
            name: torch.zeros(len(table.y), dtype=torch.int64) for name, table in tables.items()
        }
        return Grouping(GroupSpec(spec.classes, ("unknown",), known=False), attribute)
