"""Kernel groups: weight tensors partitioned into parts that are each treated as one vector."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spurcor.errors import UserError
from spurcor.models.backbone import Backbone

log = logging.getLogger(__name__)
Combining = Callable[[Tensor, Tensor], Tensor]  # parts (G, length) of two gradients to (G,)


class Groups:
    """Partition of one tensor into `count` groups of `length` values and a smaller remainder.

    A group is `group_size` kernels of a convolution, consecutive in (out, in). In the first layer,
    whose input channels are the `channels` of the image, each filter is a group; so is each tensor
    of one or two dimensions.
    """

    def __init__(self, weight: Tensor, group_size: int, channels: int) -> None:
        self.convolution = weight.dim() > 2
        kernels = weight.shape[:2].numel() if self.convolution else 1
        if self.convolution and weight.shape[1] == channels:
            group_size = channels
        self.too_large = 1 < kernels < group_size
        size = min(group_size, kernels)
        self.length = size * (weight.numel() // kernels)
        self.count, rest = divmod(kernels, size)
        self.cut = self.count * self.length
        self.total = self.count + (rest > 0)

    def parts(self, g: Tensor) -> list[Tensor]:
        """Return views of a contiguous tensor: (count, length), then any remainder as (1, _)."""
        flat = g.view(-1)
        whole = flat[: self.cut].view(self.count, self.length)
        return [whole, flat[None, self.cut :]] if self.total > self.count else [whole]


class GroupedWeights:
    """The trainable weights of a backbone and the partition of each into groups."""

    def __init__(self, backbone: Backbone, group_size: int, channels: int) -> None:
        named = {n: p for n, p in backbone.named_parameters() if p.requires_grad}
        if not named:
            raise UserError(
                "method=scale gates the gradients of a backbone, and this one has no weights;"
                " choose another backbone"
            )
        self.weights, self.group_size = list(named.values()), group_size
        self.groups = {
            name.removesuffix(".weight"): Groups(weight, group_size, channels)
            for name, weight in named.items()
        }

    def warn_of_few_kernels(self) -> None:
        """Warn of layers with fewer kernels than `group_size`."""
        if few := [name for name, groups in self.groups.items() if groups.too_large]:
            log.warning(
                "method.group_size=%d is more kernels than %s has; each is one group",
                self.group_size,
                ", ".join(few),
            )

    def take_gradients(self) -> list[Tensor | None]:
        """Return the gradient of each weight, None where it has none, and clear it."""
        taken = [weight.grad for weight in self.weights]
        for weight in self.weights:
            weight.grad = None
        return taken

    @torch.no_grad()
    def pair(self, taken: Sequence[Tensor | None], function: Combining) -> list[Tensor]:
        """Return for each weight the values (total,) of `function` on its groups.

        `function` is called with matching parts of a taken gradient and of the weight's current
        gradient; both may be modified in place. If one gradient is missing, zeros are passed for
        it; a weight without either keeps no gradient.
        """
        found = []
        for groups, weight, g in zip(self.groups.values(), self.weights, taken, strict=True):
            # Kernels are grouped in the order (out, in), whatever the memory format.
            first, second = (
                torch.zeros_like(weight).contiguous() if x is None else x.contiguous()
                for x in (g, weight.grad)
            )
            if g is not None or weight.grad is not None:
                weight.grad = second
            pairs = zip(groups.parts(first), groups.parts(second), strict=True)
            found.append(torch.cat([function(*pair) for pair in pairs]))
        return found
