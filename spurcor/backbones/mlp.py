"""Multi-layer perceptrons on flattened inputs, with parametrisations that depend on the width."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from spurcor.data.groups import DataInfo
from spurcor.models.backbone import Backbone, follow

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "tanh": F.tanh,
    "identity": lambda z: z,
    "silu": F.silu,
    "softplus": F.softplus,
}


class Scaled(nn.Linear):
    """Linear map (B, num_in) to (B, num_out): scale * W x, no bias, W's entries ~ N(0, std^2)."""

    def __init__(self, num_in: int, num_out: int, std: float, scale: float) -> None:
        super().__init__(num_in, num_out, bias=False)
        self.scale = scale
        nn.init.normal_(self.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        """Return scale * W x; scaling the product also scales the gradient of W."""
        return self.scale * F.linear(x, self.weight)


class Mlp(Backbone):
    """`depth` hidden layers `layer_1` ... `layer_<depth>` with m = `width` units each.

    z^l = phi(u^l), or with `skip` phi(u^l + z^(l-1)) from the second layer on. f is the network's
    output. `standard`: u^l = W^l z^(l-1) + b^l with torch's default initialisation. Without biases:

    `ntp`: W ~ N(0, 1); u^1 = W^1 x; u^l = 1/sqrt(m) W^l z^(l-1); f = 1/sqrt(m) w z (Jacot et al.,
    NeurIPS 2018). `mup`: W ~ N(0, 1/m); u^1 = sqrt(m) W^1 x; u^l = W^l z^(l-1); f = 1/sqrt(m) w z
    (Yang and Hu, ICML 2021): under SGD, features are learned at any width.

    `fix_final_layer` freezes w at its initial value. With depth 0 the only layer is the `input`
    itself.
    """

    def __init__(
        self,
        info: DataInfo,
        width: int = 256,
        depth: int = 2,
        activation: Literal["relu", "gelu", "tanh", "identity", "silu", "softplus"] = "relu",
        parametrization: Literal["standard", "mup", "ntp"] = "standard",
        skip: bool = False,
        fix_final_layer: bool = False,
        trainable: str = "all",
    ) -> None:
        super().__init__()
        self.trainable = trainable
        if width < 1 or depth < 0:
            raise ValueError(f"width={width} must be at least 1 and depth={depth} at least 0")
        if depth == 0 and (parametrization != "standard" or fix_final_layer):
            raise ValueError(
                f"parametrization={parametrization} and fix_final_layer={fix_final_layer} need a"
                " hidden layer; depth=0 has none"
            )
        num_in = math.prod(info.shape)
        self.layers = tuple(f"layer_{i + 1}" for i in range(depth)) or ("input",)
        self.dims = dict.fromkeys(self.layers, width if depth else num_in)
        self.kinds = dict.fromkeys(self.layers, "vector")
        self.phi, self.skip = ACTIVATIONS[activation], skip
        self.parametrization, self.fix_final_layer = parametrization, fix_final_layer
        sizes = [num_in, *[width] * (depth - 1)] if depth else []
        self.hidden = nn.ModuleList(self._linear(i, n, width) for i, n in enumerate(sizes))

    def _linear(self, index: int, num_in: int, width: int) -> nn.Module:
        if self.parametrization == "standard":
            return nn.Linear(num_in, width)
        if self.parametrization == "ntp":
            return Scaled(num_in, width, 1.0, 1.0 if index == 0 else width**-0.5)
        return Scaled(num_in, width, width**-0.5, width**0.5 if index == 0 else 1.0)

    def head(self, num_outputs: int) -> nn.Module:
        """Return a new last layer in the chosen parametrisation, frozen with `fix_final_layer`."""
        if self.parametrization == "standard":
            last = super().head(num_outputs)
        else:
            std = 1.0 if self.parametrization == "ntp" else self.dim**-0.5
            last = Scaled(self.dim, num_outputs, std, self.dim**-0.5)
        return last.requires_grad_(not self.fix_final_layer)

    def activations(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return (B, width) after the activation function of each layer."""
        if not self.hidden:
            return dict.fromkeys(layers, x.flatten(1))
        stages = [
            (name, functools.partial(self._layer, linear, self.skip and i > 0))
            for i, (name, linear) in enumerate(zip(self.layers, self.hidden, strict=True))
        ]
        return follow(x.flatten(1), stages, layers)

    def _layer(self, linear: nn.Module, skip: bool, z: Tensor) -> Tensor:
        u = linear(z)
        return self.phi(u + z if skip else u)
