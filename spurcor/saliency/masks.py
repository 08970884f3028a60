"""Masks for the images of a split: one array of bits, applied when images are read."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spurcor.data.groups import GroupedDataset
from spurcor.data.images import Images
from spurcor.data.transforms import Transform
from spurcor.system.files import decoding, replacing

BITS = 2 ** torch.arange(8)


def outliers(heat: Tensor, deviations: float) -> Tensor:
    """Return (B, H, W) bool: pixels hotter than mean + `deviations` std of the positive pixels.

    Mean and population std are taken per image; an image without positive pixels is not masked.
    """
    positive = heat > 0
    count = positive.sum((1, 2), keepdim=True)
    mean = heat.sum((1, 2), keepdim=True) / count
    apart = torch.where(positive, heat - mean, 0.0)
    std = (apart.square().sum((1, 2), keepdim=True) / count).sqrt()
    return heat > mean + deviations * std  # comparison with NaN (no positive pixel) is false


def holes(area: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Return one hole (B, H, W) bool per image, as square as its `area` (B,) in pixels allows.

    As in Cutout (DeVries and Taylor 2017), but never cut off: positions are uniform among those
    where the hole fits.
    """
    draws = torch.rand(2, len(area), generator=generator, dtype=torch.float64).to(area.device)
    side = area.double().sqrt().ceil().clamp(max=width)
    across = torch.maximum(side, (area / height).ceil()).clamp(min=1)
    down = (area / across).ceil()
    top = (draws[0] * (height - down + 1)).floor()[:, None, None]
    left = (draws[1] * (width - across + 1)).floor()[:, None, None]
    i = torch.arange(height, device=area.device)[None, :, None] - top
    j = torch.arange(width, device=area.device)[None, None, :] - left
    across = across[:, None, None]
    inside = (i >= 0) & (j >= 0) & (j < across)
    return inside & (i * across + j < area[:, None, None])


class Masks:
    """A mask (H, W) for each image of a split, by sample index, eight pixels per byte."""

    def __init__(self, packed: Tensor, height: int, width: int) -> None:
        """Wrap `packed` (N, ceil(H * W / 8)) uint8, pixels in row-major order."""
        self.packed, self.height, self.width = packed, height, width

    @classmethod
    def empty(cls, count: int, height: int, width: int) -> "Masks":
        """Return masks that hide nothing."""
        return cls(torch.zeros(count, -(-height * width // 8), dtype=torch.uint8), height, width)

    def put(self, indices: Tensor, masked: Tensor) -> None:
        """Set the masks (B, H, W) bool at `indices` (B,)."""
        bits = F.pad(masked.flatten(1), (0, -self.height * self.width % 8))
        weights = BITS.to(masked.device, torch.uint8)
        packed = (bits.view(len(bits), -1, 8) * weights).sum(2, dtype=torch.uint8)
        self.packed[indices.to(self.packed.device)] = packed.to(self.packed.device)

    def take(self, indices: Tensor) -> Tensor:
        """Return the masks (B, H, W) bool at `indices` (B,), on the array's device."""
        packed = self.packed[indices.to(self.packed.device)]
        bits = (packed[:, :, None] & BITS.to(packed.device, torch.uint8)) > 0
        bits = bits.flatten(1)[:, : self.height * self.width]
        return bits.reshape(-1, self.height, self.width)

    def add(self, others: "Masks") -> None:
        """Take the union with the masks `others`, in place."""
        self.packed |= others.packed

    def to(self, device: torch.device) -> "Masks":
        """Return the masks on a device."""
        return Masks(self.packed.to(device), self.height, self.width)

    def save(self, path: Path) -> None:
        """Write the array atomically."""
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as beside, beside.open("wb") as file:
            np.save(file, self.packed.numpy(), allow_pickle=False)

    @classmethod
    def load(cls, path: Path, height: int, width: int) -> "Masks":
        """Load the masks that `save` wrote, memory-mapped."""
        with decoding(path):
            packed = np.load(path, allow_pickle=False, mmap_mode="c")
        return cls(torch.from_numpy(packed), height, width)


class MaskedImages(Images):
    """The images of a split, by sample index, with masked pixels set to zero.

    Each mask covers the `window` (N, 4) of its image: top, left, height, width in pixels. An image
    pixel is masked if it falls on a masked pixel; outside the window nothing is masked.
    """

    def __init__(self, images: Images, rows: Tensor, masks: Masks, window: Tensor) -> None:
        super().__init__(images.pixels, images.signature, images.mapped)
        self.images, self.rows, self.masks, self.window = images, rows, masks, window

    def __len__(self) -> int:
        return len(self.rows)

    def view(self, row: int) -> Tensor:
        """Return one masked image (C, H, W)."""
        image = self.images.view(int(self.rows[row]))
        return image.masked_fill(self._masked(torch.tensor([row]), image.shape[1:])[0], 0)

    def sizes(self, rows: Tensor) -> Tensor:
        """Return heights and widths (B, 2) int64 of the images at `rows` (B,)."""
        return self.images.sizes(self.rows[rows])

    def take(self, rows: Tensor) -> Tensor:
        """Return the masked images at `rows` (B,) as (B, C, H, W)."""
        x = self.images.take(self.rows[rows])
        return x.masked_fill_(self._masked(rows, x.shape[2:])[:, None], 0)

    def to(self, device: torch.device) -> "MaskedImages":
        """Return the images and masks on a device."""
        return MaskedImages(self.images.to(device), self.rows, self.masks.to(device), self.window)

    def _masked(self, rows: Tensor, size: torch.Size) -> Tensor:
        """Return masks (B, H, W) bool, resampled to images of one size."""
        masks, (top, left, height, width) = self.masks, self.window[rows[0]].tolist()
        masked = masks.take(rows)
        places = []
        for length, begin, extent, count in (
            (size[0], top, height, masks.height),
            (size[1], left, width, masks.width),
        ):
            place = ((torch.arange(length) + 0.5 - begin) / extent * count).floor().long()
            places.append(place.to(masked.device))
        for dim, (place, count) in enumerate(zip(places, masked.shape[1:], strict=True), start=1):
            inside = (place >= 0) & (place < count)
            shape = [1, 1, 1]
            shape[dim] = -1
            masked = masked.index_select(dim, place.clamp(0, count - 1)) & inside.view(shape)
        return masked.to(self.device)


def masked(split: GroupedDataset, masks: Masks, transform: Transform) -> GroupedDataset:
    """Return the split with its training images masked within the window that evaluation sees."""
    sizes = split.train_images.sizes(split.train_rows)
    return _with(split, split.train_images, split.train_rows, masks, transform.window(sizes))


def masked_view(split: GroupedDataset, masks: Masks) -> GroupedDataset:
    """Return the split with its evaluation images masked."""
    sizes = split.images.sizes(split.rows)
    window = torch.cat([torch.zeros_like(sizes), sizes], dim=1).double()
    return _with(split, split.images, split.rows, masks, window)


def _with(
    split: GroupedDataset, images: Images, rows: Tensor, masks: Masks, window: Tensor
) -> GroupedDataset:
    stored = MaskedImages(images, rows, masks.to(images.device), window)
    return GroupedDataset(split.spec, stored, split.y, split.a, split.source)
