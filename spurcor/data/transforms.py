"""Transforms of whole uint8 batches on their device, with random parameters per sample."""

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from spurcor.data import images
from spurcor.data.images import Images
from spurcor.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Prefix:
    """The deterministic part of a transform, applied once before an image is stored.

    It uses Pillow, as torchvision does. Either both sides are resized to `resize` (height, width),
    or the aspect ratio is kept and the shorter side resized to `shorter`, or only reduced to
    `short` if it is longer. Then a centred square of side `crop` is cut out.
    """

    resize: tuple[int, int] | None = None
    short: int | None = None
    crop: int | None = None
    shorter: int | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    @property
    def name(self) -> str:
        """Name of the prefix, used as part of a folder's name."""
        parts = []
        if self.resize is not None:
            height, width = self.resize
            parts.append(f"resize{height}" if height == width else f"resize{height}x{width}")
        parts += [f"short{self.short}"] * (self.short is not None)
        parts += [f"shorter{self.shorter}"] * (self.shorter is not None)
        parts += [self.interpolation] * (self.interpolation != "bilinear")
        parts += [f"crop{self.crop}"] * (self.crop is not None)
        return "-".join(parts) or "original"

    @property
    def interleaved(self) -> bool:
        """Whether the channels of a pixel are stored together, the fast layout for random crops.

        Otherwise they are stored as planes, which are converted to floats five times as fast.
        """
        return self.short is not None

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the stored height and width of an image."""
        if self.resize is not None:
            height, width = self.resize
        short = self.shorter
        if self.short is not None and min(height, width) > self.short:
            short = self.short
        if short is not None:
            long = int(short * max(height, width) / min(height, width))
            height, width = (short, long) if height <= width else (long, short)
        return (height, width) if self.crop is None else (self.crop, self.crop)

    def __call__(self, image: "Image") -> "Image":
        """Return the image as stored; a crop larger than the image is padded with black."""
        from PIL.Image import Resampling

        width, height = image.size
        height, width = replace(self, crop=None).size(height, width)
        if (width, height) != image.size:
            image = image.resize((width, height), Resampling[self.interpolation.upper()])
        if self.crop is None:
            return image
        top, left = round((height - self.crop) / 2), round((width - self.crop) / 2)
        return image.crop((left, top, left + self.crop, top + self.crop))


class Transform(Protocol):
    """Map from photographs to stored bytes, and from a batch of these to the network's input."""

    stored: Prefix  # how evaluation images are stored
    stored_train: Prefix  # how training images are stored

    def draw(self, sizes: Tensor, generator: torch.Generator) -> Tensor | None:
        """Draw parameters (N, P) for stored images of `sizes` (N, 2); None if nothing is random."""

    def gather(self, stored: Images, rows: Tensor, parameters: Tensor) -> Tensor:
        """Return training images (B, C, H, W) uint8, randomly cropped, on the images' device."""

    def window(self, sizes: Tensor) -> Tensor:
        """Return the window of training images of `sizes` (N, 2) that evaluation sees.

        (N, 4) float64 in their pixels: top, left, height, width. It is the whole image where images
        are stored alike for training and evaluation.
        """
        return torch.cat([torch.zeros_like(sizes), sizes], dim=1).double()

    def __call__(self, x: Tensor, parameters: Tensor | None = None) -> Tensor:
        """Return the float input for a uint8 batch on its device; no `parameters` in evaluation."""


class Fixed(Transform):
    """Features as they are, or each sample's scaled to unit length; nothing is random."""

    stored = stored_train = Prefix()

    def __init__(self, normalize: bool = False) -> None:
        self.normalize = normalize

    def draw(self, sizes: Tensor, generator: torch.Generator) -> Tensor | None:
        """Return None: nothing is random."""
        return None

    def gather(self, stored: Images, rows: Tensor, parameters: Tensor) -> Tensor:
        """Return the stored features at `rows` unchanged."""
        return stored.take(rows)

    def __call__(self, x: Tensor, parameters: Tensor | None = None) -> Tensor:
        """Return features (B, D, 1, 1), scaled to unit length with `normalize`."""
        return torch.nn.functional.normalize(x, dim=1) if self.normalize else x


class Normalize(Transform):
    """Scale to [0, 1], then subtract the mean and divide by the standard deviation per channel.

    `unit_length` then divides every image by its Euclidean norm.
    """

    stored = stored_train = Prefix()

    def __init__(
        self,
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
        unit_length: bool = False,
    ) -> None:
        if not std or min(std) <= 0 or len(mean) != len(std):
            raise ValueError(
                f"std={list(std)} must be positive and have as many values as mean={list(mean)}"
            )
        self.mean, self.std, self.unit_length = mean, std, unit_length
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def draw(self, sizes: Tensor, generator: torch.Generator) -> Tensor | None:
        """Return None: nothing is random."""
        return None

    def gather(self, stored: Images, rows: Tensor, parameters: Tensor) -> Tensor:
        """Return the stored images at `rows` unchanged."""
        return stored.take(rows)

    def __call__(self, x: Tensor, parameters: Tensor | None = None) -> Tensor:
        """Convert (B, C, H, W) uint8 to normalised float."""
        if x.device not in self._constants:
            std = torch.tensor(self.std, device=x.device).view(-1, 1, 1)
            mean = torch.tensor(self.mean, device=x.device).view(-1, 1, 1)
            self._constants[x.device] = (1 / (255 * std), -mean / std)
        scale, shift = self._constants[x.device]
        # Copying turns interleaved bytes into planes; two in-place passes beat one of mixed types.
        z = torch.empty(x.shape, device=x.device).copy_(x)
        z.mul_(scale).add_(shift)
        return torch.nn.functional.normalize(z.flatten(1)).view_as(z) if self.unit_length else z


class Moved(Transform):
    """An augmentation that moves the pixels of a stored image, followed by normalisation."""

    stored = stored_train = Prefix()
    normalize: Normalize

    def gather(self, stored: Images, rows: Tensor, parameters: Tensor) -> Tensor:
        """Return the stored images at `rows` unchanged."""
        return stored.take(rows)

    def __call__(self, x: Tensor, parameters: Tensor | None = None) -> Tensor:
        """Convert (B, C, H, W) uint8 to float, augmented if `parameters` are given."""
        if parameters is not None:
            x = self._augment(x, parameters)
        return self.normalize(x)

    @abstractmethod
    def _augment(self, x: Tensor, parameters: Tensor) -> Tensor:
        """Move the pixels of each image according to its parameters."""


class CropFlip(Moved):
    """Random crop at the original size after reflection padding, and random horizontal flip.

    The padding is never materialised: indices are reflected instead, so crop and flip are one
    gather.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], padding: int = 4) -> None:
        if padding < 0:
            raise ValueError(f"padding={padding} must not be negative")
        self.normalize, self.padding = Normalize(mean, std), padding

    def draw(self, sizes: Tensor, generator: torch.Generator) -> Tensor | None:
        """Draw (N, 3) int64: shift down, shift right, flip."""
        if int(sizes.min()) <= self.padding:
            raise UserError(
                f"dataset.transform.padding={self.padding} is too large to reflect images of"
                f" {int(sizes[:, 0].min())} x {int(sizes[:, 1].min())} pixels; use at most"
                f" {int(sizes.min()) - 1}"
            )
        reach = 2 * self.padding + 1
        shifts = torch.randint(reach, (len(sizes), 2), generator=generator) - self.padding
        flips = torch.randint(2, (len(sizes), 1), generator=generator)
        return torch.cat([shifts, flips], dim=1)

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


FIXED = 16  # fractional bits of the fixed-point coordinates in Pillow's affine transform


class AffineFlip(Moved):
    """Horizontal flip with probability 1/2, then a random rotation and translation.

    The angle is uniform in +-`degrees`, the shift uniform in +-`translate` of each side, rounded to
    whole pixels. Nearest-neighbour resampling with black outside the image, bit for bit as
    torchvision's RandomAffine on Pillow images.
    """

    def __init__(
        self,
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
        degrees: float = 15.0,
        translate: float = 0.1,
    ) -> None:
        if not 0 <= degrees <= 180 or not 0 <= translate <= 1:
            raise ValueError(
                f"degrees={degrees} must be between 0 and 180, and translate={translate} between 0"
                " and 1"
            )
        self.normalize, self.degrees, self.translate = Normalize(mean, std), degrees, translate

    def draw(self, sizes: Tensor, generator: torch.Generator) -> Tensor | None:
        """Draw (N, 7) int64: the six coefficients of `affine`, and flip."""
        angle, down, right = (
            2 * torch.rand(len(sizes), generator=generator, dtype=torch.float64) - 1
            for _ in range(3)
        )
        flips = torch.randint(2, (len(sizes), 1), generator=generator)
        down, right = (
            (self.translate * side * share).round()
            for side, share in zip(sizes.unbind(1), (down, right), strict=True)
        )
        return torch.cat([affine(sizes, self.degrees * angle, down, right), flips], dim=1)

    def _augment(self, x: Tensor, parameters: Tensor) -> Tensor:
        height, width = x.shape[2:]
        i = torch.arange(height, device=x.device)[:, None]
        j = torch.arange(width, device=x.device)
        # (B, H, W): the source of each pixel before the flip
        of = parameters[:, :, None, None]
        column = (of[:, 0] * j + of[:, 1] * i + of[:, 2]) >> FIXED
        row = (of[:, 3] * j + of[:, 4] * i + of[:, 5]) >> FIXED
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        column = torch.where(of[:, 6] == 1, width - 1 - column, column)
        flat = torch.where(inside, row * width + column, 0).view(len(x), 1, -1)
        found = x.flatten(2).gather(2, flat.expand(-1, x.shape[1], -1)).view_as(x)
        return found * inside[:, None]


def affine(sizes: Tensor, angle: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return (N, 6) int64 coefficients of a rotation about the centre followed by a shift.

    `angle` (N,) is clockwise in degrees, `down` and `right` (N,) are in pixels. The new pixel (i,
    j) comes from row (c3 j + c4 i + c5) / 2^16 and column (c0 j + c1 i + c2) / 2^16, rounded down:
    Pillow's fixed-point arithmetic, evaluated at pixel centres.
    """
    height, width = sizes.double().unbind(1)
    radians = angle.double() * (math.pi / 180)
    cos, sin = radians.cos(), radians.sin()
    x, y = -width / 2 - right, -height / 2 - down
    c2 = cos * x + sin * y + width / 2
    c5 = cos * y - sin * x + height / 2
    columns = [cos, sin, c2 + 0.5 * (cos + sin), -sin, cos, c5 + 0.5 * (cos - sin)]
    fixed: Tensor = (torch.stack(columns, dim=1) * 2**FIXED + 0.5).floor().long()
    return fixed


def _reflect(position: Tensor, size: int) -> Tensor:
    """Reflect positions outside [0, size) at the border pixels, which are not repeated."""
    return (size - 1) - (size - 1 - position.abs()).abs()


class Photo(Transform):
    """The published transforms for photographs.

    Evaluation: resize both sides to `resize` (or the shorter side to `resize_short`), cut out a
    centred square of side `crop`, then resize to `size`. Null skips a step; `resize` or `crop` must
    be given. Training with `augment`: RandomResizedCrop to `size` with area shares in `scale` and
    aspect ratios in `ratio`, from the photograph reduced to a shorter side of at most `short`, then
    a horizontal flip with probability 1/2 if `flip`. Training without `augment` is the same as
    evaluation.
    """

    def __init__(
        self,
        size: int | None = 224,
        resize: int | None = None,
        crop: int | None = None,
        augment: bool = False,
        scale: tuple[float, float] = (0.7, 1.0),
        ratio: tuple[float, float] = (0.75, 4 / 3),
        flip: bool = True,
        short: int = 256,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        resize_short: int | None = None,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    ) -> None:
        if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise ValueError(
                f"scale={list(scale)} and ratio={list(ratio)} must be increasing ranges"
            )
        sides = {"resize": resize, "resize_short": resize_short, "crop": crop}
        for name, value in (sides | {"size": size, "short": short}).items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        left = resize if crop is None else crop
        if left is None:
            raise ValueError("resize=null and crop=null leave images of different sizes; set one")
        if resize is not None and resize_short is not None:
            raise ValueError(
                f"resize={resize} (both sides) and resize_short={resize_short} (the shorter side)"
                " exclude each other; set only one"
            )
        for name, side in (("resize", resize), ("resize_short", resize_short)):
            if side is not None and left > side:
                raise ValueError(
                    f"crop={crop} is larger than {name}={side} and would be padded with black; set"
                    f" crop={side} or less, or null"
                )
        self.size, self.augment = left if size is None else size, augment
        self.scale, self.ratio, self.flip = scale, ratio, flip
        both = None if resize is None else (resize, resize)
        self.stored = Prefix(both, None, crop, resize_short, interpolation)
        self.stored_train = Prefix(short=short) if augment else self.stored
        self.normalize = Normalize(mean, std)

    def draw(self, sizes: Tensor, generator: torch.Generator) -> Tensor | None:
        """Draw (N, 5) int64: box (top, left, height, width) and flip; None without `augment`."""
        if not self.augment:
            return None
        boxes = images.draw_boxes(sizes, self.scale, self.ratio, generator)
        flips = torch.randint(2, (len(sizes), 1), generator=generator)
        return torch.cat([boxes, flips if self.flip else torch.zeros_like(flips)], dim=1)

    def gather(self, stored: Images, rows: Tensor, parameters: Tensor) -> Tensor:
        """Return the boxes, resampled to (B, 3, size, size) uint8 and flipped."""
        return stored.crop(rows, parameters[:, :4], parameters[:, 4].bool(), self.size)

    def window(self, sizes: Tensor) -> Tensor:
        """Return the evaluation crop (N, 4) float64 in pixels of images of training `sizes` (N, 2).

        It is the whole image without `augment` or `crop`. A `UserError` is raised if the crop
        cannot be located because the photograph was reduced to `short`.
        """
        resize, crop, shorter = self.stored.resize, self.stored.crop, self.stored.shorter
        if not self.augment or crop is None:
            return super().window(sizes)
        short = self.stored_train.short
        cut = resize is None and shorter is None  # cropped from the original photograph
        if cut and short is not None and int(sizes.min(1).values.max()) >= short:
            raise UserError(
                f"dataset.transform.crop={crop} cannot be located on photographs that are stored"
                f" for training with a shorter side of {short}; set dataset.transform.resize, or a"
                " larger dataset.transform.short"
            )
        seen = sizes if resize is None else torch.tensor(resize).expand_as(sizes)
        if shorter is not None:
            seen = (shorter * sizes / sizes.min(1, keepdim=True).values).floor()
        corner = ((seen - crop) / 2).round()
        pixels = torch.cat([corner, torch.full_like(corner, crop)], dim=1).double()
        return pixels * (sizes / seen).repeat(1, 2)

    def __call__(self, x: Tensor, parameters: Tensor | None = None) -> Tensor:
        """Convert (B, 3, H, W) uint8 to float (B, 3, size, size)."""
        if x.shape[2:] != (self.size, self.size):
            x = images.resize(x, self.size)
        return self.normalize(x)
