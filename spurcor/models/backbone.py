"""The contract of a backbone: named layers, how each is pooled, and how its output is read."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spurcor.errors import UserError

Kind = Literal["map", "tokens", "vector"]
# How the positions of a layer become one vector; the first of each kind is the default.
POOLINGS: dict[Kind, tuple[str, ...]] = {
    "map": ("avg", "grid<k>"),
    "tokens": ("cls_token", "mean_pool_patch", "mean_pool_all"),
    "vector": (),
}
Name = TypeVar("Name", bound=str | int)


class Backbone(nn.Module, ABC):
    """A network without head: named layers in depth order, the last of which is its output.

    A layer is a feature map (B, D, H, W), tokens (B, T, D) of which the first is the class token,
    or a vector (B, D). `avg` is the mean over a map's positions, `grid<k>` adaptive averages on a
    k x k grid, flattened.
    """

    layers: tuple[str, ...]
    kinds: dict[str, Kind]
    dims: dict[str, int]  # D of each layer, which is also its size by the default pooling
    name: str = "this backbone"  # in sentences
    autocast: torch.dtype | None = None  # these two are set from train.precision
    channels_last: bool = False  # and train.channels_last
    fresh: tuple[str, ...] = ()  # beginnings of weights that a run without them need not have had

    @abstractmethod
    def activations(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Unpooled outputs of the layers named: (B, D, H, W), (B, T, D) or (B, D)."""

    @classmethod
    def published(cls, **arguments: Any) -> tuple[str, str] | None:
        """What `pretrained` calls the published weights, and their address, if there are any."""
        return None

    @property
    def dim(self) -> int:
        """D of the last layer."""
        return self.dims[self.layers[-1]]

    def head(self, num_outputs: int) -> nn.Module:
        """A fresh last layer on what `forward` returns, (B, D) to (B, num_outputs)."""
        return nn.Linear(self.dim, num_outputs)

    def layer(self, name: str | int) -> str:
        """A layer's name from a name or an index; -1 and `last_hidden` are the last."""
        if isinstance(name, int):
            if -len(self.layers) <= name < len(self.layers):
                return self.layers[name]
        elif name in self.layers:
            return name
        elif name == "last_hidden":
            return self.layers[-1]
        raise UserError(f"layer={name} does not exist; choose one of {', '.join(self.layers)}")

    def size(self, layer: str | int, pooling: str | None = None) -> int:
        """Length of a layer's vector of features, without running the network."""
        layer = self.layer(layer)
        return self.dims[layer] * self._grid(layer, pooling) ** 2

    def features(
        self, x: Tensor, layers: Sequence[Name], pooling: str | None = None
    ) -> dict[Name, Tensor]:
        """(B, size) float32 outputs of layers by name or index, by their default or one pooling."""
        names = {asked: self.layer(asked) for asked in layers}
        for name in names.values():
            self._grid(name, pooling)  # refuses before anything is computed
        outputs = self._computed(self.activations, x, list(dict.fromkeys(names.values())))
        return {
            asked: self.pooled(name, outputs[name], pooling).float()
            for asked, name in names.items()
        }

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) features of the last layer."""
        last = self.layers[-1]
        return self.features(x, [last])[last]

    def through(self, x: Tensor, layer: str) -> tuple[Tensor, Tensor]:
        """A layer's unpooled output, and what `forward` makes of it, (B, D): both of one graph."""
        outputs = self._computed(self.path, x, [layer, self.layers[-1]])
        return outputs[layer], self.pooled(self.layers[-1], outputs[self.layers[-1]]).float()

    def path(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """`activations` as the next layers see them."""
        return self.activations(x, layers)

    def maps(self, layer: str, output: Tensor, height: int, width: int) -> Tensor:
        """(B, D, h, w) of a layer's unpooled output, for images of `height` x `width`.

        Of tokens the class token is left out; the others lie row by row.
        """
        if self.kinds[layer] == "map":
            return output
        patches = output[:, 1:]
        rows = round((patches.shape[1] * height / width) ** 0.5)
        return patches.mT.reshape(*patches.mT.shape[:2], rows, -1)

    def spatial(self, layer: str | int | None = None) -> str:
        """The layer named, which must have positions, or the deepest that explains the output.

        That is not the last of tokens: of those only the class token goes on.
        """
        have = [
            name
            for name in self.layers
            if self.kinds[name] == "map"
            or (self.kinds[name] == "tokens" and name != self.layers[-1])
        ]
        if not have:
            raise UserError(
                f"{self.name}: no layer ({', '.join(self.layers)}) has spatial positions to map;"
                " choose a convolutional backbone or a vision transformer"
            )
        name = have[-1] if layer is None else self.layer(layer)
        if name not in have:
            raise UserError(
                f"layer={layer} has no spatial positions to map; choose one of {', '.join(have)}"
            )
        return name

    def _computed(
        self, function: Callable[..., dict[str, Tensor]], x: Tensor, layers: Sequence[str]
    ) -> dict[str, Tensor]:
        """Outputs in the precision and the memory format of the run."""
        enabled = self.autocast is not None
        if self.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, self.autocast or torch.bfloat16, enabled=enabled):
            return function(x, layers)

    def pooled(self, layer: str, output: Tensor, pooling: str | None = None) -> Tensor:
        """(B, size) from a layer's unpooled output."""
        grid = self._grid(layer, pooling)
        kind = self.kinds[layer]
        if kind == "map":
            if grid == 1:
                return output.mean(dim=(2, 3))
            return F.adaptive_avg_pool2d(output, grid).flatten(1)
        if kind == "tokens":
            if pooling in (None, "cls_token"):
                return output[:, 0]
            return output[:, 1:].mean(dim=1) if pooling == "mean_pool_patch" else output.mean(dim=1)
        return output

    def _grid(self, layer: str, pooling: str | None) -> int:
        """k of `grid<k>`, 1 of any other pooling that the layer has."""
        known = POOLINGS[self.kinds[layer]]
        if pooling is None or pooling in known:
            return 1
        found = re.fullmatch(r"grid([1-9]\d*)", pooling)
        if found and "grid<k>" in known:
            return int(found[1])
        have = f"use one of {', '.join(known)}" if known else "its output is a vector; use null"
        raise UserError(f"pooling={pooling} does not fit layer={layer}; {have}")


def follow(
    z: Tensor, stages: Iterable[tuple[str, Callable[[Tensor], Tensor]]], layers: Sequence[str]
) -> dict[str, Tensor]:
    """Outputs by name of stages applied in sequence, up to the last one requested."""
    outputs: dict[str, Tensor] = {}
    wanted = set(layers)
    for name, stage in stages:
        if not wanted:
            break
        z = stage(z)
        if name in wanted:
            outputs[name] = z
            wanted.remove(name)
    return {name: outputs[name] for name in layers}
