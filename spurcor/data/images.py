"""Images as bytes, in memory, memory-mapped or on a device; each batch is one gather."""

import functools
import hashlib
import math
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.nn import functional as F

from spurcor.errors import UserError


class Images:
    """M images (M, C, H, W) uint8 of one size, or features (M, D, 1, 1), in any memory layout.

    `signature` (M,) int64 identifies the contents where hashing the pixels would cost too much (a
    store on disk); without it the pixels themselves are hashed.
    """

    def __init__(
        self, pixels: Tensor, signature: Tensor | None = None, mapped: bool = False
    ) -> None:
        """Wrap an array of images; `mapped` says that the pixels are memory-mapped from disk."""
        self.pixels, self.signature, self.mapped = pixels, signature, mapped

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def device(self) -> torch.device:
        """The device that holds the bytes."""
        return self.pixels.device

    @property
    def num_bytes(self) -> int:
        """Size in bytes."""
        return self.pixels.nbytes

    def view(self, row: int) -> Tensor:
        """Return one image (C, H, W) without copying it."""
        return self.pixels[row]

    def sizes(self, rows: Tensor) -> Tensor:
        """Return heights and widths (B, 2) int64 of the images at `rows` (B,)."""
        return torch.tensor(self.pixels.shape[2:]).expand(len(rows), 2)

    def take(self, rows: Tensor) -> Tensor:
        """Return the images at `rows` (B,) as (B, C, H, W), on the images' own device."""
        return self.pixels.index_select(0, rows.to(self.device))  # four times as fast as [rows]

    def crop(self, rows: Tensor, boxes: Tensor, flips: Tensor, size: int) -> Tensor:
        """Apply `crop` to the images at `rows` (B,)."""
        return crop([self.view(row) for row in rows.tolist()], boxes, flips, size)

    def to(self, device: torch.device) -> "Images":
        """Return the images on `device`; memory-mapped ones are read into memory."""
        return Images(_moved(self.pixels, self.mapped, device), self.signature)

    def digest(self, rows: Tensor) -> bytes:
        """Return a hash of the images at `rows`.

        It covers all signatures or, without signatures, the pixels of about 1,000 images spread
        over `rows`.
        """
        if self.signature is not None:
            return _hash(self.signature[rows])
        return _hash(self.pixels[rows[:: max(1, len(rows) // 1000)]])


class RaggedImages(Images):
    """M images with 3 channels and individual sizes, concatenated in one array of bytes."""

    def __init__(
        self,
        pixels: Tensor,
        sizes: Tensor,
        signature: Tensor,
        interleaved: bool = True,
        mapped: bool = False,
    ) -> None:
        """Wrap `pixels` (bytes,) uint8 in the layout of `shaped`; `sizes` (M, 2): height, width."""
        super().__init__(pixels, signature, mapped)
        self.interleaved, self._signature = interleaved, signature
        self._sizes = sizes.long()
        ends = torch.cumsum(3 * self._sizes.prod(1), 0)
        self._offsets = torch.cat([torch.zeros(1, dtype=torch.int64), ends]).tolist()

    def __len__(self) -> int:
        return len(self._sizes)

    def view(self, row: int) -> Tensor:
        """Return one image (3, H, W) without copying it."""
        height, width = self._sizes[row].tolist()
        flat = self.pixels[self._offsets[row] : self._offsets[row + 1]]
        return shaped(flat, 1, height, width, self.interleaved)[0]

    def sizes(self, rows: Tensor) -> Tensor:
        """Return heights and widths (B, 2) int64 of the images at `rows` (B,)."""
        return self._sizes[rows]

    def take(self, rows: Tensor) -> Tensor:
        """Raise a `UserError`: images of different sizes cannot be stacked into a batch."""
        raise UserError(
            "the images have different sizes; choose a dataset/transform that resizes or crops"
            " them, such as dfr"
        )

    def to(self, device: torch.device) -> "RaggedImages":
        """Return the images on `device`; memory-mapped ones are read into memory."""
        pixels = _moved(self.pixels, self.mapped, device)
        return RaggedImages(pixels, self._sizes, self._signature, self.interleaved)


def shaped(pixels: Tensor, count: int, height: int, width: int, interleaved: bool) -> Tensor:
    """Return bytes (M * H * W * 3,) as images (M, 3, H, W) without copying them.

    The channels of a pixel are adjacent if `interleaved`, otherwise each channel is a plane.
    """
    if interleaved:
        return pixels.view(count, height, width, 3).permute(0, 3, 1, 2)
    return pixels.view(count, 3, height, width)


def _moved(pixels: Tensor, mapped: bool, device: torch.device) -> Tensor:
    return pixels.clone() if mapped and device.type == "cpu" else pixels.to(device)


def _hash(values: Tensor) -> bytes:
    return hashlib.sha256(values.cpu().contiguous().numpy().tobytes()).digest()


# --- resampling -----------------------------------------------------------------------------------


def crop(images: list[Tensor], boxes: Tensor, flips: Tensor, size: int) -> Tensor:
    """Return windows of images (C, H, W), resampled to (B, C, size, size) uint8.

    `boxes` (B, 4) int64: top, left, height, width; `flips` (B,) bool: mirrored. Resampling is
    bilinear with antialiasing. On the CPU, torch resamples one image at a time in as many threads
    as it has, by far the fastest way there; elsewhere two matrix products serve the whole batch,
    and differ by at most one grey level.
    """
    tops, lefts, heights, widths = boxes.unbind(1)
    corners = zip(tops.tolist(), lefts.tolist(), heights.tolist(), widths.tolist(), strict=True)
    windows = [
        image[:, top : top + height, left : left + width]
        for image, (top, left, height, width) in zip(images, corners, strict=True)
    ]
    if windows[0].device.type != "cpu":
        x = _resample(windows, heights, widths, size)
        return torch.where(flips.to(x.device)[:, None, None, None], x.flip(3), x)
    shape = (len(windows), windows[0].shape[0], size, size)
    out = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
    mirrored = flips.tolist()

    def resample(part: range) -> None:
        for i in part:
            x = F.interpolate(
                windows[i][None], (size, size), mode="bilinear", antialias=True, align_corners=False
            )
            out[i : i + 1] = x.flip(3) if mirrored[i] else x

    num_threads = torch.get_num_threads()
    if num_threads == 1:
        resample(range(len(windows)))
    else:
        parts = [range(first, len(windows), num_threads) for first in range(num_threads)]
        list(_pool(num_threads).map(resample, parts))
    return out


@functools.cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="crop")


def _resample(windows: list[Tensor], heights: Tensor, widths: Tensor, size: int) -> Tensor:
    """Apply `crop` to a whole batch: rows, then columns, with one matrix per image each."""
    device, channels = windows[0].device, windows[0].shape[0]
    height, width = int(heights.max()), int(widths.max())
    canvas = torch.zeros(len(windows), channels, height, width, device=device)
    for i, window in enumerate(windows):
        canvas[i, :, : window.shape[1], : window.shape[2]] = window
    across = _triangle(widths.to(device), width, size)[:, None].mT  # (B, 1, W, size)
    down = _triangle(heights.to(device), height, size)[:, None]  # (B, 1, size, H)
    return _round(down @ _round(canvas @ across)).to(torch.uint8)


def _round(x: Tensor) -> Tensor:
    return (x + 0.5).floor().clamp(0, 255)


def _triangle(lengths: Tensor, longest: int, size: int) -> Tensor:
    """Return weights (B, size, longest) of the antialiased bilinear filter for `lengths` (B,)."""
    scale = lengths[:, None, None].double() / size
    reach = scale.clamp(min=1)
    out = torch.arange(size, device=lengths.device)[None, :, None] + 0.5
    position = torch.arange(longest, device=lengths.device)[None, None, :] + 0.5
    weights = (1 - ((position - out * scale) / reach).abs()).clamp(min=0)
    weights = weights * (position < lengths[:, None, None])
    return (weights / weights.sum(2, keepdim=True)).float()


PIL_BITS = 22  # fractional bits of the fixed-point weights in Pillow's resampling


def resize(x: Tensor, size: int) -> Tensor:
    """Resize (B, C, H, W) uint8 to (B, C, size, size), bit for bit as Pillow's bilinear resize.

    Like Pillow, it resamples rows, then columns, in integers, and rounds to bytes in between. It
    runs on any device, one filter tap at a time.
    """
    return _resize_last(_resize_last(x, size).mT, size).mT


def _resize_last(x: Tensor, size: int) -> Tensor:
    taps, weights = _pil_filter(x.shape[-1], size)
    total = torch.full(
        (*x.shape[:-1], size), 1 << (PIL_BITS - 1), dtype=torch.int32, device=x.device
    )
    for tap, weight in zip(taps.to(x.device), weights.to(x.device), strict=True):
        total += x.index_select(-1, tap).int() * weight
    return (total >> PIL_BITS).clamp(0, 255).to(torch.uint8)


@functools.cache
def _pil_filter(length: int, size: int) -> tuple[Tensor, Tensor]:
    """Return input positions and fixed-point weights (taps, size) of Pillow's bilinear filter."""
    scale = length / size
    reach = max(scale, 1.0)
    columns: list[tuple[list[int], list[int]]] = []
    for out in range(size):
        centre = (out + 0.5) * scale
        first = max(int(centre - reach + 0.5), 0)
        last = min(int(centre + reach + 0.5), length)
        positions = list(range(first, last))
        raw = [max(0.0, 1 - abs((p - centre + 0.5) / reach)) for p in positions]
        total = sum(raw)
        columns.append((positions, [int(w / total * (1 << PIL_BITS) + 0.5) for w in raw]))
    num_taps = max(len(positions) for positions, _ in columns)
    pad = [num_taps - len(positions) for positions, _ in columns]
    taps = [p + [p[-1]] * n for (p, _), n in zip(columns, pad, strict=True)]
    weights = [w + [0] * n for (_, w), n in zip(columns, pad, strict=True)]
    return torch.tensor(taps).T.contiguous(), torch.tensor(
        weights, dtype=torch.int32
    ).T.contiguous()


# --- random crops ---------------------------------------------------------------------------------

ATTEMPTS = 10  # as many as torchvision makes before it crops the centre


def draw_boxes(
    sizes: Tensor,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: torch.Generator,
) -> Tensor:
    """Draw crop boxes (N, 4) for `sizes` (N, 2), distributed as torchvision's RandomResizedCrop.

    The share of the area is uniform in `scale` and the aspect ratio (width / height) log-uniform in
    `ratio`. The first of ten attempts that fits is taken, otherwise the largest centred box with an
    allowed aspect ratio.
    """
    height, width = (side.double()[:, None] for side in sizes.unbind(1))
    shape = (len(sizes), ATTEMPTS)
    share, aspect, at_top, at_left = (
        torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(4)
    )
    area = height * width * (scale[0] + (scale[1] - scale[0]) * share)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = (low + (high - low) * aspect).exp()
    box_w, box_h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (box_w > 0) & (box_w <= width) & (box_h > 0) & (box_h <= height)
    top = (at_top * (height - box_h + 1)).floor()
    left = (at_left * (width - box_w + 1)).floor()
    boxes = torch.stack([top, left, box_h, box_w], dim=2).long()
    first = fits.int().argmax(dim=1)
    chosen = boxes[torch.arange(len(sizes)), first]
    return torch.where(fits.any(1)[:, None], chosen, _centred(sizes, ratio))


def _centred(sizes: Tensor, ratio: tuple[float, float]) -> Tensor:
    """Return the largest centred boxes (N, 4) with an allowed aspect ratio."""
    height, width = sizes.double().unbind(1)
    box_h = torch.where(width / height < ratio[0], (width / ratio[0]).round(), height)
    box_w = torch.where(width / height > ratio[1], (height * ratio[1]).round(), width)
    top, left = ((height - box_h) / 2).floor(), ((width - box_w) / 2).floor()
    return torch.stack([top, left, box_h, box_w], dim=1).long()
