"""The contract of a backbone, and the linear head that methods put on it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spurcor.errors import UserError


class Backbone(nn.Module, ABC):
    """A network without head: named layers in depth order, the last of which is its output."""

    layers: tuple[str, ...]
    dims: dict[str, int]  # features per layer, after pooling
    autocast: torch.dtype | None = None  # these two are set from train.precision
    channels_last: bool = False  # and train.channels_last

    @abstractmethod
    def activations(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Unpooled outputs of the layers named: (B, D, H, W) or (B, D)."""

    @property
    def dim(self) -> int:
        """D of the last layer."""
        return self.dims[self.layers[-1]]

    def layer(self, name: str | int) -> str:
        """A layer's name from a name or an index (-1 is the last)."""
        if isinstance(name, int):
            if -len(self.layers) <= name < len(self.layers):
                return self.layers[name]
        elif name in self.layers:
            return name
        raise UserError(f"layer={name} does not exist; this backbone has {', '.join(self.layers)}")

    def features(
        self, x: Tensor, layers: Sequence[str], pooling: str | None = None
    ) -> dict[str, Tensor]:
        """(B, D) float32 outputs of the layers named, feature maps averaged over positions."""
        enabled = self.autocast is not None
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, self.autocast or torch.bfloat16, enabled=enabled):
            outputs = self.activations(x, layers)
        return {name: _pool(output).float() for name, output in outputs.items()}

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) features of the last layer."""
        last = self.layers[-1]
        return self.features(x, [last])[last]


def _pool(output: Tensor) -> Tensor:
    return output.mean(dim=(2, 3)) if output.dim() == 4 else output
