"""No training: the network, or the features, as they come, for a repair to fit a layer on."""

from collections.abc import Sequence

from spurcor.training.method import Method, Phase


class Frozen(Method):
    """Has no phase; its head is nobody's, and no accuracy is reported of it.

    With pretrained weights and Deep Feature Reweighting this is SCALE's baseline DFR-pretrained.
    """

    def phases(self) -> Sequence[Phase]:
        """None."""
        return []
