"""Predictions of a reference network as the attribute (CnC; Zhang et al., ICML 2022)."""

from collections.abc import Mapping

import torch

from spurcor.data.grouping import Grouping
from spurcor.data.groups import GroupSpec
from spurcor.errors import UserError
from spurcor.groups.contract import Inference, Table, grouped


class Predictions(Inference):
    """The class that the reference network predicts stands in for the attribute."""

    def infer(self, tables: Mapping[str, Table], spec: GroupSpec, seed: int) -> Grouping:
        """See `Inference`; UserError if all of TRAIN is predicted as one class."""
        found = {name: table.logits.argmax(1) for name, table in tables.items()}
        if len(torch.unique(found["train"])) == 1:
            raise UserError(
                "groups=predictions: the reference network predicts one class for all training"
                " samples; train it for more epochs (groups.epochs)"
            )
        return grouped(spec.classes, found, spec)
