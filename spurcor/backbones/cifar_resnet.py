"""ResNets for small images (He et al., CVPR 2016, section 4.2)."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from spurcor.data.groups import DataInfo
from spurcor.models.backbone import Backbone, follow


class CifarResNet(Backbone):
    """Three stages of (depth - 2) / 6 basic blocks (16, 32, 64 channels), then average pooling.

    Shortcuts have no parameters (the paper's option A); weights are initialised as in He et al.,
    ICCV 2015.
    """

    layers = ("layer1", "layer2", "layer3", "pool")

    def __init__(
        self, info: DataInfo, depth: Literal[20, 32, 44, 56, 110] = 32, trainable: str = "all"
    ) -> None:
        super().__init__()
        self.trainable = trainable
        from torchvision.models.resnet import BasicBlock

        def stage(num_in: int, num_out: int) -> nn.Sequential:
            stride = num_out // num_in
            shortcut = None if stride == 1 else Subsample(stride)
            first = BasicBlock(num_in, num_out, stride, shortcut)
            others = (BasicBlock(num_out, num_out) for _ in range((depth - 2) // 6 - 1))
            return nn.Sequential(first, *others)

        self.dims = dict(zip(self.layers, (16, 32, 64, 64), strict=True))
        self.kinds = {name: "vector" if name == "pool" else "map" for name in self.layers}
        convolution = nn.Conv2d(info.shape[0], 16, 3, padding=1, bias=False)
        self.stem = nn.Sequential(convolution, nn.BatchNorm2d(16), nn.ReLU())
        self.layer1, self.layer2, self.layer3 = stage(16, 16), stage(16, 32), stage(32, 64)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def activations(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return (B, D, H, W) of the stages and (B, 64) of the pooled output."""
        return follow(self.stem(x), [(n, self.get_submodule(n)) for n in self.layers], layers)


class Subsample(nn.Module):
    """Shortcut without parameters: every stride-th pixel, zero-padded to `stride` D channels."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, D, H, W) to (B, stride D, H / stride, W / stride), zeros on both sides."""
        more = x.shape[1] * (self.stride - 1)
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, more // 2, more - more // 2))
