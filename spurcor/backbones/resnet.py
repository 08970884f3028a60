"""ResNets from torchvision."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spurcor.data.groups import DataInfo
from spurcor.models.backbone import Backbone, follow
from spurcor.models.pretrained import fill
from spurcor.models.published import Published, on_the_web

WIDTHS = (64, 128, 256, 512)  # channels of the stages; ResNet-50 has four times as many


class Gate(nn.Module):
    """Spatial attention: a mask M (B, 1, H, W) computed from a map, which it then multiplies."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mask = nn.Conv2d(dim, 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        """Return F M for a map F (B, D, H, W), where M = sigmoid(w F + b)."""
        return z * torch.sigmoid(self.mask(z))


class ResNet(Backbone):
    """Stages layer1 ... layer4 and the pooled output of torchvision's ResNet.

    With `attention` the map F of layer4 is replaced by F M, where M = sigmoid(w F + b) has one
    channel: the learned gate of masktune_models' AttentionMaskingResNet50. The gate and the head
    are newly initialised if the other weights come from a run without the gate. `pretrained`:
    `imagenet`, `none`, or a file with a torchvision state dict. Unavailable weights are an error,
    never silently random.
    """

    def __init__(
        self,
        info: DataInfo,
        depth: Literal[18, 50] = 18,
        pretrained: str = "none",
        attention: bool = False,
        trainable: str = "all",
    ) -> None:
        super().__init__()
        self.trainable = trainable
        if info.shape[0] != 3:
            raise ValueError(f"ResNets need images with 3 channels, not {info.shape[0]}")
        from torchvision import models

        network = {18: models.resnet18, 50: models.resnet50}[depth](weights=None)
        network.fc = nn.Identity()  # the method provides the head
        if pretrained != "none":
            state = self.published(depth=depth).state(pretrained)
            fill(network, state, pretrained, f"ResNet-{depth}", heads=("fc",))
        self.stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        widths = {f"layer{i + 1}": w * (1 if depth == 18 else 4) for i, w in enumerate(WIDTHS)}
        last = widths["layer4"]
        if attention:
            self.attention = Gate(last)
            self.fresh = ("attention.",)
            widths["attention"] = last
        self.dims = {**widths, "pool": last}
        self.layers = tuple(self.dims)
        self.kinds = {name: "vector" if name == "pool" else "map" for name in self.layers}

    @classmethod
    def published(cls, **arguments: Any) -> Published:
        """Return the ImageNet weights of torchvision."""
        from torchvision import models

        weights = {18: models.ResNet18_Weights, 50: models.ResNet50_Weights}
        return on_the_web("imagenet", weights[arguments.get("depth", 18)].IMAGENET1K_V1.url)

    def activations(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return (B, D, H, W) of the stages and (B, D) of the pooled output."""
        return follow(self.stem(x), [(n, self.get_submodule(n)) for n in self.layers], layers)
