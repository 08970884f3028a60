"""ResNets of torchvision."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from spurcor.backbone import Backbone
from spurcor.checkpoint import UNREADABLE
from spurcor.data import DataInfo
from spurcor.errors import UserError


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
        import torchvision

        build = {18: torchvision.models.resnet18, 50: torchvision.models.resnet50}[depth]
        network = build(weights=None)
        if pretrained != "none":
            _load(network, depth, pretrained)
        self.stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        widths = [w * (1 if depth == 18 else 4) for w in (64, 128, 256, 512)]
        self.dims = dict(zip(self.layers, [*widths, widths[-1]], strict=True))

    def activations(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """(B, D, H, W) of the stages; (B, D) of the pooled output."""
        z = self.stem(x)
        outputs = {}
        for name in self.layers[:-1]:
            z = self.get_submodule(name)(z)
            outputs[name] = z
        outputs["pool"] = z.mean(dim=(2, 3))
        return {name: outputs[name] for name in layers}


def _load(network: nn.Module, depth: int, pretrained: str) -> None:
    """Fill a torchvision network; its classifier is not used, so the file's may have any shape."""
    state = _imagenet(depth) if pretrained == "imagenet" else load_state(Path(pretrained))
    own = network.state_dict()
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    state |= {name: value for name, value in own.items() if name.startswith("fc.")}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"backbone.pretrained={pretrained} does not hold a ResNet-{depth} ({reason} ...)"
        ) from error


def load_state(path: Path) -> dict[str, Tensor]:
    """A state dict from a file of the user's; nothing in it is executed."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise UserError(f"backbone.pretrained={path} cannot be read as a state dict") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"backbone.pretrained={path} is not a state dict of tensors")
    return state


def _imagenet(depth: int) -> dict[str, Tensor]:
    import torchvision

    models = torchvision.models
    known = {18: models.ResNet18_Weights.IMAGENET1K_V1, 50: models.ResNet50_Weights.IMAGENET1K_V1}
    weights = known[depth]
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        name = weights.url.rpartition("/")[2]
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"backbone.pretrained=imagenet needs {name}, which cannot be downloaded here; put it in"
            f" {folder} or name a file in backbone.pretrained"
        ) from error
    return state
