"""Groups of kernels: the numbers of a weight, cut into parts that are treated as one."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spurcor.errors import UserError
from spurcor.models.backbone import Backbone

log = logging.getLogger(__name__)
Combining = Callable[[Tensor, Tensor], Tensor]  # of parts (G, _) of two gradients, to (G,)


class Groups:
    """How one tensor is cut: `count` groups of `length` numbers, and what is left over another.

    `group_size` kernels of a convolution, consecutive in (out, in), are a group; each filter of the
    first layer, which sees the `channels` of the image, is one, and so is each tensor of one or two
    dimensions.
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
        """Views of a contiguous tensor, group by row: (count, length), and the rest as (1, _)."""
        flat = g.view(-1)
        whole = flat[: self.cut].view(self.count, self.length)
        return [whole, flat[None, self.cut :]] if self.total > self.count else [whole]


class GroupedWeights:
    """The weights of a backbone that are trained, and how each is cut."""

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
        """Tell of layers that have fewer kernels than a group should have."""
        if few := [name for name, groups in self.groups.items() if groups.too_large]:
            log.warning(
                "method.group_size=%d is more kernels than %s has; each is one group",
                self.group_size,
                ", ".join(few),
            )

    def take_gradients(self) -> list[Tensor | None]:
        """The gradient of every weight, which then has none."""
        taken = [weight.grad for weight in self.weights]
        for weight in self.weights:
            weight.grad = None
        return taken

    @torch.no_grad()
    def pair(self, taken: Sequence[Tensor | None], function: Combining) -> list[Tensor]:
        """For every weight what `function` says of its groups (total,).

        It is given parts of a gradient taken and of the weight's own, which it may write to. What
        has neither takes no part: it is given zeros, and is left without.
        """
        found = []
        for groups, weight, g in zip(self.groups.values(), self.weights, taken, strict=True):
            # Kernels are told apart in the order (out, in), whatever the memory format.
            first, second = (
                torch.zeros_like(weight).contiguous() if x is None else x.contiguous()
                for x in (g, weight.grad)
            )
            if g is not None or weight.grad is not None:
                weight.grad = second
            pairs = zip(groups.parts(first), groups.parts(second), strict=True)
            found.append(torch.cat([function(*pair) for pair in pairs]))
        return found
