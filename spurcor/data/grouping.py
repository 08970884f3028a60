"""A second labelling beside the annotated one: the groups that a run trains by."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from spurcor.data.groups import GroupedDataset, GroupSpec


@dataclass(frozen=True)
class Grouping:
    """Attribute values that stand in for the annotated ones in training and, where asked, on VAL.

    `attribute` holds one value (N,) int64 per sample of each split that has them. Results are still
    reported by the annotated groups.
    """

    spec: GroupSpec
    attribute: Mapping[str, Tensor]

    def of(self, name: str, split: GroupedDataset) -> GroupedDataset:
        """Return the split with these attribute values; unchanged if it has none here."""
        if name not in self.attribute:
            return split
        return split.relabelled(self.spec, self.attribute[name])
