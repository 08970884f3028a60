"""The network that Spurious-Correlations uses for MNIST with cues."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from spurcor.config.ranges import require_at_least
from spurcor.data.groups import DataInfo
from spurcor.models.backbone import Backbone, follow


class LeNet(Backbone):
    """Two 3 x 3 convolutions (32, 64 channels) with ReLU and 2 x 2 max pooling; a hidden layer.

    The hidden layer has `latent` units; on 28 x 28 images it has 3,136 inputs, as published.
    """

    layers = ("conv1", "conv2", "hidden")

    def __init__(self, info: DataInfo, latent: int = 64, trainable: str = "all") -> None:
        super().__init__()
        self.trainable = trainable
        channels, height, width = info.shape
        require_at_least(1, latent=latent)
        if min(height, width) < 4:
            raise ValueError(
                f"images of {height} x {width} pixels are too small; use at least 4 x 4"
            )
        self.dims = {"conv1": 32, "conv2": 64, "hidden": latent}
        self.kinds = {"conv1": "map", "conv2": "map", "hidden": "vector"}
        self.conv1 = nn.Sequential(nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU())
        self.conv2 = nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU())
        self.hidden = nn.Sequential(nn.Linear(64 * (height // 4) * (width // 4), latent), nn.ReLU())

    def activations(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return the maps after ReLU and before pooling, and (B, latent) of the hidden layer."""
        stages = (
            ("conv1", self.conv1),
            ("conv2", lambda z: self.conv2(F.max_pool2d(z, 2))),
            ("hidden", lambda z: self.hidden(F.max_pool2d(z, 2).flatten(1))),
        )
        return follow(x, stages, layers)
