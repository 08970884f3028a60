"""ResNets of torchvision."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from spurcor.backbone import Backbone, follow
from spurcor.data import DataInfo
from spurcor.pretrained import fill, state_of


class ResNet(Backbone):
    """Stages layer1 ... layer4 and the pooled output of torchvision's ResNet.

    `pretrained`: `imagenet`, `none`, or a file with a torchvision state dict. Weights that cannot
    be had are an error, never silently random.
    """

    layers = ("layer1", "layer2", "layer3", "layer4", "pool")

    def __init__(
        self,
        info: DataInfo,
        depth: Literal[18, 50] = 18,
        pretrained: str = "none",
    ) -> None:
        super().__init__()
        if info.shape[0] != 3:
            raise ValueError(f"a ResNet takes images of 3 channels, not {info.shape[0]}")
        from torchvision import models

        build, weights = {
            18: (models.resnet18, models.ResNet18_Weights.IMAGENET1K_V1),
            50: (models.resnet50, models.ResNet50_Weights.IMAGENET1K_V1),
        }[depth]
        network = build(weights=None)
        network.fc = nn.Identity()  # the head is the method's
        if pretrained != "none":
            state = state_of(pretrained, "imagenet", weights.url)
            state = {name: value for name, value in state.items() if not name.startswith("fc.")}
            fill(network, state, pretrained, f"ResNet-{depth}")
        self.stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        widths = [w * (1 if depth == 18 else 4) for w in (64, 128, 256, 512)]
        self.dims = dict(zip(self.layers, [*widths, widths[-1]], strict=True))
        self.kinds = {name: "vector" if name == "pool" else "map" for name in self.layers}

    def activations(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """(B, D, H, W) of the stages; (B, D) of the pooled output."""
        return follow(self.stem(x), [(n, self.get_submodule(n)) for n in self.layers], layers)
