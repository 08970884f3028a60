"""Gradients of networks that have only linear layers, by one backward pass.

For u = z W^T + b, the gradient of any sum over samples is a product of z and the gradient with
respect to u. For two classes, the loss depends on f alone, so its gradient is the gradient of f
scaled per sample: one backward pass of f, down to the outputs u, yields both group gradients and
mean Jacobians as products with z. The layers are found by tracing a forward pass.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from spurcor.training.method import Method


def uncompiled(method: Method) -> AbstractContextManager[Any]:
    """Return a context in which the method runs uncompiled.

    Compiled layers cannot be traced, and they allow only one backward pass.
    """
    # torch has no public name for whether `Module.compile` was called.
    compiled = any(module._compiled_call_impl is not None for module in method.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


@dataclass(frozen=True)
class LinearLayer:
    """A product u = z W^T + b in the forward pass: z (B, n), u (B, m)."""

    z: Tensor
    weight: Tensor
    bias: Tensor | None
    u: Tensor


class LinearLayers(TorchFunctionMode):
    """Records the linear layers of a forward pass, and the weights used by any other operation."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[LinearLayer] = []
        self.elsewhere: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and record it."""
        result = func(*args, **(kwargs or {}))
        if func is F.linear and not kwargs:
            z, weight, bias = (*args, None)[:3]
            self.found.append(LinearLayer(z, weight, bias, result))
        elif isinstance(result, Tensor) and result.requires_grad:
            given = [*args, *(kwargs or {}).values()]
            inner = [item for value in given if isinstance(value, list | tuple) for item in value]
            self.elsewhere |= {id(value) for value in (*given, *inner)}
        return result

    def of(self, weights: Sequence[Tensor]) -> list[LinearLayer]:
        """Return the layers of these weights, or [] unless they use every weight exactly once.

        It is also [] under autocast, where layers see more than one vector per sample, and where
        another operation uses one of the weights.
        """
        own = {id(weight) for weight in weights}
        layers = [x for x in self.found if id(x.weight) in own or id(x.bias) in own]
        used = [id(w) for x in layers for w in (x.weight, x.bias) if id(w) in own]
        plain = all(x.z.dim() == 2 and x.z.dtype == x.u.dtype == x.weight.dtype for x in layers)
        return layers if plain and sorted(used) == sorted(own) and not own & self.elsewhere else []


def slope_of(method: Method, logits: Tensor, y: Tensor) -> Tensor:
    """Return dl/df (B,) per sample; with two logits the loss depends only on their difference f."""
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        (found,) = torch.autograd.grad(method.losses(leaf, y).sum(), leaf)
    return found[:, 1]


def add_products(
    parts: Mapping[int, Tensor],
    rows: tuple[int, int],
    f: Tensor,
    slope: Tensor,
    layers: Sequence[LinearLayer],
    num: int,
) -> None:
    """Add the gradients of mean loss and mean f to two rows of each weight's part (V, n).

    With s = dl/df (B,) and delta = df/du of each layer: (s delta)^T z and delta^T z. `parts` are
    keyed by the weights' id(); `num` is the number of samples that the means are over.
    """
    with torch.enable_grad():
        total = f.sum()
    deltas = torch.autograd.grad(total, [layer.u for layer in layers])
    for layer, delta in zip(layers, deltas, strict=True):
        delta = delta / num
        for row, scaled in zip(rows, (delta * slope[:, None], delta), strict=True):
            if (part := parts.get(id(layer.weight))) is not None:
                part[row].view_as(layer.weight).addmm_(scaled.T, layer.z.detach())
            if (part := parts.get(id(layer.bias))) is not None:
                part[row] += scaled.sum(0)
