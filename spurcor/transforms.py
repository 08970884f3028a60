"""Transforms of whole uint8 batches on their device, with random parameters per sample."""

import torch
from torch import Tensor


class Normalize:
    """Scale to [0, 1], then subtract the mean and divide by the deviation of each channel."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.mean, self.std = mean, std
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def draw(self, num_samples: int, generator: torch.Generator) -> Tensor | None:
        """Nothing is random here."""
        return None

    def __call__(self, x: Tensor, parameters: Tensor | None = None) -> Tensor:
        """(B, C, H, W) uint8 to float."""
        if x.device not in self._constants:
            std = torch.tensor(self.std, device=x.device).view(-1, 1, 1)
            mean = torch.tensor(self.mean, device=x.device).view(-1, 1, 1)
            self._constants[x.device] = (1 / (255 * std), -mean / std)
        scale, shift = self._constants[x.device]
        return torch.addcmul(shift, x, scale)


class CropFlip:
    """Random crop of the image's own size from a reflected border, and horizontal flip.

    The border is never made: reflection is done on the indices, so crop and flip are one gather.
    """

    def __init__(self, normalize: Normalize, padding: int = 4) -> None:
        self.normalize, self.padding = normalize, padding

    def draw(self, num_samples: int, generator: torch.Generator) -> Tensor | None:
        """(num_samples, 3) int64: shift down, shift right, flip."""
        reach = 2 * self.padding + 1
        shifts = torch.randint(reach, (num_samples, 2), generator=generator) - self.padding
        flips = torch.randint(2, (num_samples, 1), generator=generator)
        return torch.cat([shifts, flips], dim=1)

    def __call__(self, x: Tensor, parameters: Tensor | None = None) -> Tensor:
        """(B, C, H, W) uint8 to float."""
        if parameters is not None:
            x = self._augment(x, parameters)
        return self.normalize(x)

    def _augment(self, x: Tensor, parameters: Tensor) -> Tensor:
        down, right, flip = parameters.unbind(1)
        height, width = x.shape[2:]
        rows = _reflect(torch.arange(height, device=x.device) + down[:, None], height)
        columns = torch.arange(width, device=x.device).expand(len(x), width)
        columns = torch.where(flip[:, None] == 1, width - 1 - columns, columns)
        columns = _reflect(columns + right[:, None], width)
        flat = (rows[:, :, None] * width + columns[:, None, :]).view(len(x), 1, -1)
        flat = flat.expand(-1, x.shape[1], -1)
        return x.flatten(2).gather(2, flat).view_as(x)


def _reflect(position: Tensor, size: int) -> Tensor:
    """Positions outside [0, size) mirrored at the border pixels, which are not repeated."""
    return (size - 1) - (size - 1 - position.abs()).abs()
