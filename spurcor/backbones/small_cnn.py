"""MaskTune's small network for 28 x 28 images, usable at any size."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from spurcor.data.groups import DataInfo
from spurcor.models.backbone import Backbone, follow


class SmallCnn(Backbone):
    """Two blocks of two 3 x 3 convolutions (16, 32 channels), each max-pooled; 256 hidden units.

    The hidden layer has 512 inputs. With `padding` 0, `hidden_norm` and 28 x 28 inputs it is
    MaskTune's network (the pooling to 4 x 4 then does nothing); padding keeps smaller images from
    shrinking to nothing, and `hidden_norm` is a batch norm between the linear layer and its ReLU.
    """

    layers = ("block1", "block2", "hidden")

    def __init__(
        self, info: DataInfo, padding: int = 1, hidden_norm: bool = False, trainable: str = "all"
    ) -> None:
        super().__init__()
        self.trainable = trainable
        height, width = info.shape[1:]
        least = 4 if padding else 16
        if min(height, width) < least:
            raise ValueError(
                f"padding={padding} needs images of at least {least} x {least} pixels, not"
                f" {height} x {width}; use padding=1 or backbone=mlp"
            )
        self.dims = {"block1": 16, "block2": 32, "hidden": 256}
        self.kinds = {"block1": "map", "block2": "map", "hidden": "vector"}
        self.block1 = conv_block(info.shape[0], 16, padding)
        self.block2 = conv_block(16, 32, padding)
        self.pool = nn.Sequential(nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        norm = [nn.BatchNorm1d(256)] if hidden_norm else []
        self.hidden = nn.Sequential(nn.Linear(512, 256), *norm, nn.ReLU())

    def activations(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return the blocks' outputs before pooling, and (B, 256) of the hidden layer."""
        stages = (
            ("block1", self.block1),
            ("block2", lambda z: self.block2(F.max_pool2d(z, 2))),
            ("hidden", lambda z: self.hidden(self.pool(z))),
        )
        return follow(x, stages, layers)


def conv_block(num_in: int, num_out: int, padding: int) -> nn.Sequential:
    """Build two 3 x 3 convolutions, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for channels in (num_in, num_out):
        layers += [
            nn.Conv2d(channels, num_out, 3, padding=padding),
            nn.BatchNorm2d(num_out),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)
