"""The VGG of masktune_models, whose last convolution provides the attention map."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from spurcor.backbones.small_cnn import conv_block
from spurcor.data.groups import DataInfo
from spurcor.models.backbone import Backbone, follow


class VggAttention(Backbone):
    """Three blocks of two 3 x 3 convolutions with 2 x 2 max pooling; 512 and 256 hidden units.

    The blocks have 32, 64 and 128 channels; the hidden layers use dropout. `attention` is the
    output of the third block before pooling, 128 x 8 x 8 on CIFAR-10, where the first hidden layer
    has 2,048 inputs.
    """

    layers = ("block1", "block2", "attention", "hidden1", "hidden2")

    def __init__(self, info: DataInfo, dropout: float = 0.5, trainable: str = "all") -> None:
        super().__init__()
        self.trainable = trainable
        channels, height, width = info.shape
        if min(height, width) < 8 or not 0 <= dropout < 1:
            raise ValueError(
                f"images must be at least 8 x 8, and dropout={dropout} at least 0 and below 1"
            )
        self.dims = dict(zip(self.layers, (32, 64, 128, 512, 256), strict=True))
        self.kinds = {name: "vector" if "hidden" in name else "map" for name in self.layers}
        self.block1 = conv_block(channels, 32, 1)
        self.block2 = conv_block(32, 64, 1)
        self.attention = conv_block(64, 128, 1)
        num_in = 128 * (height // 8) * (width // 8)
        self.hidden1 = nn.Sequential(nn.Linear(num_in, 512), nn.ReLU(), nn.Dropout(dropout))
        self.hidden2 = nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Dropout(dropout))

    def activations(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return the blocks' maps before pooling, and the hidden layers after dropout."""
        stages = (
            ("block1", self.block1),
            ("block2", lambda z: self.block2(F.max_pool2d(z, 2))),
            ("attention", lambda z: self.attention(F.max_pool2d(z, 2))),
            ("hidden1", lambda z: self.hidden1(F.max_pool2d(z, 2).flatten(1))),
            ("hidden2", self.hidden2),
        )
        return follow(x, stages, layers)
