"""No training: a network, or stored features, on which a repair fits a last layer."""

from collections.abc import Sequence

from spurcor.training.method import Method, Phase


class Frozen(Method):
    """A method without phases; its head is untrained, so its accuracy is not reported.

    With pretrained weights and Deep Feature Reweighting this is SCALE's baseline DFR-pretrained.
    """

    def phases(self) -> Sequence[Phase]:
        """Return no phases."""
        return []
