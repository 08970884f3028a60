"""Decoding of an image file to 8-bit RGB, or the reason why it cannot be decoded.

Images are rotated upright according to their EXIF orientation. 16-bit greyscale keeps its upper
eight bits, as Pillow does for 16-bit colour.
"""

import functools
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

    from spurcor.data.transforms import Prefix

Pixels = NDArray[np.uint8]  # (H, W, 3)

# Other formats are excluded: some, like EPS, are programs that Pillow passes to an interpreter.
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
# Raised by Pillow on damaged images; DecompressionBombError is a subclass of none of these.
UNREADABLE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError),
    *(AssertionError, struct.error, zlib.error),
    MemoryError,  # a header asks for more than there is
)
CONVERTED = ("1", "L", "P", "RGB", "LA", "PA", "RGBA", "RGBX", "CMYK", "YCbCr")
ORIENTATION = 0x0112  # EXIF tag
UPRIGHT = {  # EXIF orientation to the name of Pillow's transpose operation
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
BITS, INTERPRETATION, WHITE_IS_ZERO = 258, 262, 0  # two TIFF tags, and a value of the second

DAMAGED = "cannot be read as images, perhaps truncated while copying; copy them again"
TOO_DEEP = (
    "have 32-bit or signed pixels, whose range is unknown; save them with 8 or 16 bits, unsigned"
)
ODD_COLOURS = "have a colour mode that cannot be converted; save them as RGB"
TRANSPARENT = "have transparent parts; the colours stored underneath are used"
FRAMES = "have several frames or pages; only the first is used"
PRINTED = "are CMYK; they are converted without a colour profile"


@dataclass(frozen=True)
class Decoded:
    """The result of decoding one file."""

    name: str
    pixels: Pixels | None  # None if the file was not decoded: see `problem`
    problem: str = ""
    remarks: tuple[str, ...] = ()  # information lost in the conversion
    changed: bool = False  # whether the first decoder gave other bytes


def decode(root: Path, name: str, prefix: "Prefix") -> Decoded:
    """Decode the file `name` under `root` and apply the deterministic prefix of a transform."""
    from PIL import Image

    try:
        with Image.open(root / name, formats=_formats()) as image:
            remarks = _remarks(image)
            image.load()
            orientation = _orientation(image)
            picture, problem = _eight_bits(image)
            if picture is None:
                return Decoded(name, None, problem)
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                remarks += (TRANSPARENT,) * (picture.getchannel("A").getextrema() != (255, 255))
            picture = _upright(picture.convert("RGB"), orientation)
            changed = orientation in UPRIGHT or _is_deep(image)
            return Decoded(name, np.asarray(prefix(picture)), "", remarks, changed)
    except (*UNREADABLE, Image.DecompressionBombError):
        return Decoded(name, None, DAMAGED)


def size_of(path: Path) -> tuple[int, int] | None:
    """Return the upright height and width from the image header, or None if unreadable."""
    from PIL import Image

    try:
        with Image.open(path, formats=_formats()) as image:
            width, height = image.size
            on_its_side = image.format != "TIFF" and _orientation(image) >= 5
        return (width, height) if on_its_side else (height, width)
    except (*UNREADABLE, Image.DecompressionBombError):
        return None


def is_as_before(path: Path) -> bool:
    """Return whether the first decoder gives the same bytes for this file.

    It clipped 16-bit greyscale and ignored the EXIF orientation. False also if the file cannot be
    opened.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=_formats()) as image:
            turned = image.format != "TIFF" and _orientation(image) in UPRIGHT
            return not turned and not _is_deep(image)
    except (*UNREADABLE, Image.DecompressionBombError):
        return False


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return the entries of FORMATS that this version of Pillow supports."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _remarks(image: "Image") -> tuple[str, ...]:
    # In an MPO photograph the other frames are previews or the second view of a stereo pair.
    several = bool(getattr(image, "is_animated", False)) and image.format != "MPO"
    return (FRAMES,) * several + (PRINTED,) * (image.mode == "CMYK")


def _is_deep(image: "Image") -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _eight_bits(image: "Image") -> tuple["Image | None", str]:
    """Return the image with eight bits per channel, or None and the reason why not."""
    from PIL.Image import fromarray

    if not _is_deep(image):
        return (image, "") if image.mode in CONVERTED else (None, ODD_COLOURS)
    # For these two formats Pillow reports mode I although the values have 16 bits.
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        return None, TOO_DEEP
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(BITS, (16,))[0]
    values = np.asarray(image).astype(np.int64) >> (bits - 8)
    if tags.get(INTERPRETATION) == WHITE_IS_ZERO:
        values = 255 - values
    return fromarray(values.astype(np.uint8)), ""


def _orientation(image: "Image") -> int:
    """Return the EXIF orientation, 1 (upright) if the metadata is unreadable."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except UNREADABLE:
        return 1


def _upright(image: "Image", orientation: int) -> "Image":
    from PIL.Image import Transpose

    if orientation not in UPRIGHT:
        return image
    return image.transpose(Transpose[UPRIGHT[orientation]])
