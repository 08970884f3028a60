"""The interface of a repair: a new last layer, from tables of features."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from spurcor.data.groups import GroupSpec, Split
from spurcor.repair.fitting import Fit
from spurcor.repair.heads import FeatureTable, Linear

Tables = Mapping[str, FeatureTable]


class LastLayer(ABC):
    """Refits the last layer of a finished run on the features of `layer`.

    `weights` says of which epoch, and `pooling` how its positions are pooled.
    """

    title: str  # in tables
    by_groups: bool = False  # whether the groups of the samples that are fitted on are read
    layer: int | str
    pooling: str | None
    weights: Literal["last", "selected"]

    @property
    @abstractmethod
    def split(self) -> Split:
        """The split that heads are fitted on."""

    @property
    @abstractmethod
    def reads(self) -> list[str]:
        """The splits whose features a fit needs, sorted."""

    @abstractmethod
    def require(self, spec: GroupSpec) -> None:
        """Raise UserError if the data lack the classes or groups that an option needs."""

    @abstractmethod
    def check(self, counts: Mapping[str, Tensor], spec: GroupSpec) -> None:
        """Raise UserError if no fit is possible, given the group counts (G,) of each split."""

    @abstractmethod
    def fit(
        self,
        tables: Tables,
        spec: GroupSpec,
        seed: int,
        device: torch.device | str = "cpu",
        own: Linear | None = None,
    ) -> Fit:
        """Return the new layer; `own` is the run's own one, if it is linear in these features.

        Raises RunError for features that no layer can be fitted on.
        """
