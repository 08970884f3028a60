"""Multi-layer perceptron on flattened inputs."""

from collections.abc import Sequence

from torch import Tensor, nn

from spurcor.backbone import Backbone
from spurcor.data import DataInfo


class Mlp(Backbone):
    """`depth` hidden layers of `width` units with ReLU, named layer_1 ... layer_<depth>."""

    def __init__(self, info: DataInfo, width: int = 256, depth: int = 2) -> None:
        super().__init__()
        if width < 1 or depth < 1:
            raise ValueError(f"width={width} and depth={depth} must be at least 1")
        channels, height, width_in = info.shape
        sizes = [channels * height * width_in, *[width] * depth]
        self.layers = tuple(f"layer_{i + 1}" for i in range(depth))
        self.dims = dict.fromkeys(self.layers, width)
        self.hidden = nn.ModuleList(nn.Linear(num_in, width) for num_in in sizes[:-1])

    def activations(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """(B, width) after the ReLU of each layer."""
        z = x.flatten(1)
        outputs = {}
        for name, linear in zip(self.layers, self.hidden, strict=True):
            z = linear(z).relu()
            outputs[name] = z
        return {name: outputs[name] for name in layers}
