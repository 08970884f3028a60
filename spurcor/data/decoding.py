"""An image file as three channels of eight bits, or the reason why it cannot be read.

The image is turned upright by its EXIF orientation. Of 16-bit greys the upper eight bits are kept,
which is what Pillow does with 16-bit colours.
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

# Others are left out: some of them, like EPS, are programs that Pillow hands to an interpreter.
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
# What Pillow raises on damaged images; DecompressionBombError derives from none of these.
UNREADABLE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError),
    *(AssertionError, struct.error, zlib.error),
    MemoryError,  # a header asks for more than there is
)
CONVERTED = ("1", "L", "P", "RGB", "LA", "PA", "RGBA", "RGBX", "CMYK", "YCbCr")
ORIENTATION = 0x0112  # the tag of EXIF
UPRIGHT = {  # from its values to Pillow's names
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
BITS, INTERPRETATION, WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF, and a value of the second

DAMAGED = "cannot be read as images, perhaps truncated while copying; copy them again"
TOO_DEEP = (
    "have 32-bit or signed values, whose range is unknown; save them with 8 or 16 unsigned bits"
)
ODD_COLOURS = "have a colour mode that cannot be converted; save them as RGB"
TRANSPARENT = "have transparent parts; the colours stored underneath are used"
FRAMES = "have several frames or pages; only the first is used"
PRINTED = "are CMYK; they are converted without a colour profile"


@dataclass(frozen=True)
class Decoded:
    """What became of a file."""

    name: str
    pixels: Pixels | None  # None: see `problem`
    problem: str = ""
    remarks: tuple[str, ...] = ()  # what was lost
    changed: bool = False  # stores of the first decoder hold other bytes


def decode(root: Path, name: str, prefix: "Prefix") -> Decoded:
    """One file under `root`, after the deterministic part of a transform."""
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
    """Height and width of a picture, or None where that is told when it is decoded."""
    from PIL import Image

    try:
        with Image.open(path, formats=_formats()) as image:
            width, height = image.size
            on_its_side = image.format != "TIFF" and _orientation(image) >= 5
        return (width, height) if on_its_side else (height, width)
    except (*UNREADABLE, Image.DecompressionBombError):
        return None


def is_as_before(path: Path) -> bool:
    """Whether the first decoder, which knew neither depth nor orientation, made the same of it."""
    from PIL import Image

    try:
        with Image.open(path, formats=_formats()) as image:
            turned = image.format != "TIFF" and _orientation(image) in UPRIGHT
            return not turned and not _is_deep(image)
    except (*UNREADABLE, Image.DecompressionBombError):
        return False


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow knows."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _remarks(image: "Image") -> tuple[str, ...]:
    # Of a photograph in the format MPO all but the first are previews or the other eye's.
    several = bool(getattr(image, "is_animated", False)) and image.format != "MPO"
    return (FRAMES,) * several + (PRINTED,) * (image.mode == "CMYK")


def _is_deep(image: "Image") -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _eight_bits(image: "Image") -> tuple["Image | None", str]:
    """The picture with eight bits for each colour, or what is wrong."""
    from PIL.Image import fromarray

    if not _is_deep(image):
        return (image, "") if image.mode in CONVERTED else (None, ODD_COLOURS)
    # Pillow calls what is read from these formats I, though its values are of 16 bits.
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        return None, TOO_DEEP
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(BITS, (16,))[0]
    values = np.asarray(image).astype(np.int64) >> (bits - 8)
    if tags.get(INTERPRETATION) == WHITE_IS_ZERO:
        values = 255 - values
    return fromarray(values.astype(np.uint8)), ""


def _orientation(image: "Image") -> int:
    """How the camera was held; what is wrong in the notes about a picture is no fault of its."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except UNREADABLE:
        return 1


def _upright(image: "Image", orientation: int) -> "Image":
    from PIL.Image import Transpose

    if orientation not in UPRIGHT:
        return image
    return image.transpose(Transpose[UPRIGHT[orientation]])
