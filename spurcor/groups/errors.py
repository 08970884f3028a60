"""Mistakes of a reference network (JTT; Liu et al., ICML 2021)."""

from collections.abc import Mapping

from spurcor.data.grouping import Grouping
from spurcor.data.groups import GroupSpec
from spurcor.errors import UserError
from spurcor.groups.contract import Inference, Table, grouped

RIGHT, WRONG = 0, 1


class Errors(Inference):
    """Attribute 1 for the samples that the reference network misclassifies, 0 for the others.

    Predictions are those of a pass over the images as they are, without augmentation, after
    `epochs`. (JTT's code takes the predictions made while that epoch was trained.)
    """

    def infer(self, tables: Mapping[str, Table], spec: GroupSpec, seed: int) -> Grouping:
        """See `Inference`; UserError if the reference is right on all of TRAIN, or on none."""
        wrong = {name: table.logits.argmax(1) != table.y for name, table in tables.items()}
        mistakes, samples = int(wrong["train"].sum()), len(wrong["train"])
        if mistakes in (0, samples):
            said, fix = ("all", "more") if mistakes else ("none", "fewer")
            raise UserError(
                f"groups=errors: the reference network misclassifies {said} of the {samples}"
                f" training samples, so there is nothing to tell apart; train it for {fix} epochs"
                " (groups.epochs)"
            )
        return grouped(("right", "wrong"), wrong, spec)
