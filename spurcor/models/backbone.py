"""The interface of a backbone: named layers, their pooling, and the features it returns."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spurcor.errors import UserError
from spurcor.models.published import Published

Kind = Literal["map", "tokens", "vector"]
# Poolings of a layer's positions to one vector; the first for each kind is the default.
POOLINGS: dict[Kind, tuple[str, ...]] = {
    "map": ("avg", "grid<k>"),
    "tokens": ("cls_token", "mean_pool_patch", "mean_pool_all"),
    "vector": (),
}
Name = TypeVar("Name", bound=str | int)


class Backbone(nn.Module, ABC):
    """A network without its head: named layers in depth order, the last of which is the output.

    A layer is a feature map (B, D, H, W), tokens (B, T, D) with the class token first, or a vector
    (B, D). Pooling `avg` averages a map over its positions; `grid<k>` averages it over the cells of
    a k x k grid (adaptive average pooling) and flattens the result.
    """

    layers: tuple[str, ...]
    kinds: dict[str, Kind]
    dims: dict[str, int]  # D of each layer, also its size after default pooling
    name: str = "this backbone"  # for messages
    autocast: torch.dtype | None = None  # set from train.precision
    channels_last: bool = False  # set from train.channels_last
    lr_factor: float = 1.0  # set from train.backbone_lr_factor
    trainable: str = "all"  # or last_block, none, or the first layer to train; see `freeze`
    fresh: tuple[str, ...] = ()  # prefixes of weights that may be missing in another run's file

    @abstractmethod
    def activations(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return unpooled outputs of the layers named: (B, D, H, W), (B, T, D) or (B, D)."""

    @classmethod
    def published(cls, **arguments: Any) -> Published | None:
        """Return the weights that are published for this network, or None."""
        return None

    @classmethod
    def made_for(cls, **arguments: Any) -> dict[str, Any]:
        """Return the input of the published weights, as arguments of `Photo`; else its defaults."""
        return {}

    def freeze(self, shape: Sequence[int]) -> None:
        """Leave out of training what `trainable` says, for images (C, H, W) of this shape.

        `last_block` is the last layer with positions (the last one without any), and what follows.
        Frozen modules stay in eval mode: batch norm keeps the statistics that it has.
        """
        if self.trainable == "all":
            return
        for weight in self._below(shape):
            weight.requires_grad_(False)

    def _below(self, shape: Sequence[int]) -> list[nn.Parameter]:
        """Return the weights that do not depend on the first layer to train or later ones."""
        weights = list(self.parameters())
        if self.trainable == "none":
            return weights
        last = [name for name in self.layers if self.kinds[name] != "vector"] or [self.layers[-1]]
        first = last[-1] if self.trainable == "last_block" else self.layer(self.trainable)
        if not (number := self.layers.index(first)):
            return []
        before = self.layers[number - 1]
        training = self.training
        with torch.enable_grad():
            output = self.eval().activations(torch.zeros(1, *shape), [before])[before]
        self.train(training)
        used = torch.autograd.grad(output.sum(), weights, allow_unused=True)
        return [weight for weight, one in zip(weights, used, strict=True) if one is not None]

    def train(self, mode: bool = True) -> Self:
        """Set the training mode of everything but modules whose weights are all frozen."""
        super().train(mode)
        for module in self.modules() if mode and self.trainable != "all" else ():
            weights = list(module.parameters())
            if weights and not any(weight.requires_grad for weight in weights):
                module.eval()
        return self

    @property
    def dim(self) -> int:
        """D of the last layer."""
        return self.dims[self.layers[-1]]

    def head(self, num_outputs: int) -> nn.Module:
        """Return a new last layer on the output of `forward`, (B, D) to (B, num_outputs)."""
        return nn.Linear(self.dim, num_outputs)

    def layer(self, name: str | int) -> str:
        """Return the name of a layer given by name or index; -1 and `last_hidden` are the last.

        Raises a `UserError` if there is no such layer.
        """
        if isinstance(name, int):
            if -len(self.layers) <= name < len(self.layers):
                return self.layers[name]
        elif name in self.layers:
            return name
        elif name == "last_hidden":
            return self.layers[-1]
        raise UserError(f"layer={name} does not exist; choose one of {', '.join(self.layers)}")

    def size(self, layer: str | int, pooling: str | None = None) -> int:
        """Return the length of a layer's pooled feature vector, without running the network."""
        layer = self.layer(layer)
        return self.dims[layer] * self._grid(layer, pooling) ** 2

    def features(
        self, x: Tensor, layers: Sequence[Name], pooling: str | None = None
    ) -> dict[Name, Tensor]:
        """Return pooled float32 outputs (B, size) of layers given by name or index.

        `pooling` None is each layer's default. Raises a `UserError` if a layer does not exist or
        the pooling does not fit it.
        """
        names = {asked: self.layer(asked) for asked in layers}
        for name in names.values():
            self._grid(name, pooling)  # refuse before anything is computed
        outputs = self._computed(self.activations, x, list(dict.fromkeys(names.values())))
        return {
            asked: self.pooled(name, outputs[name], pooling).float()
            for asked, name in names.items()
        }

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (B, D) of the last layer."""
        last = self.layers[-1]
        return self.features(x, [last])[last]

    def through(self, x: Tensor, layer: str) -> tuple[Tensor, Tensor]:
        """Return a layer's unpooled output and the output of `forward` (B, D), from one graph.

        Gradients of the second with respect to the first can thus be computed.
        """
        outputs = self._computed(self.path, x, [layer, self.layers[-1]])
        return outputs[layer], self.pooled(self.layers[-1], outputs[self.layers[-1]]).float()

    def path(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return `activations` as the next layer receives them, where these differ."""
        return self.activations(x, layers)

    def maps(self, layer: str, output: Tensor, height: int, width: int) -> Tensor:
        """Return a layer's unpooled output as maps (B, D, h, w), for images of `height` x `width`.

        For tokens, the class token is dropped and the others are arranged row by row.
        """
        if self.kinds[layer] == "map":
            return output
        patches = output[:, 1:]
        rows = round((patches.shape[1] * height / width) ** 0.5)
        return patches.mT.reshape(*patches.mT.shape[:2], rows, -1)

    def spatial(self, layer: str | int | None = None) -> str:
        """Return the name of the layer given, or of the deepest whose maps explain the output.

        The last layer of a transformer does not: only its class token reaches the output. Raises a
        `UserError` if the layer has no such maps.
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
        """Run `function` in the precision and memory format of the run."""
        enabled = self.autocast is not None
        if self.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, self.autocast or torch.bfloat16, enabled=enabled):
            return function(x, layers)

    def pooled(self, layer: str, output: Tensor, pooling: str | None = None) -> Tensor:
        """Pool a layer's unpooled output to (B, size)."""
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
        """Return k of `grid<k>`, or 1 for any other pooling of the layer; refuse unknown ones."""
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
    """Apply `stages` in sequence up to the last one requested; return outputs by layer name."""
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
