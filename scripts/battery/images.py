"""Mutated photographs and special files: decoded, or refused in one sentence.

python -m scripts.battery.images [--seconds 60] [--seed 0] [--cases 1000]

One of a few photographs is written in another format and mode (PNG, JPEG, GIF, TIFF, BMP, WebP and
others that Pillow knows, PostScript among them), with bytes changed, inserted and cut off, with
sizes that are a lie, or is a folder, a pipe, a socket or a link. The others must stay what they
are. See fuzz.py for what must hold.
"""

import io
import os
import random
import socket
import struct
import sys
import zlib
from pathlib import Path

import generators_photos as made
import numpy as np
import torch
from PIL import Image

from scripts.battery.fuzz import Case, fuzz
from spurcor.datasets.folder import Folder

ROWS = made.make_rows({0: (1, 1, 1, 1), 1: (1, 1, 1, 1), 2: (1, 1, 1, 1)})
SIZE = (24, 20)
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F", "LAB", "HSV")
FORMATS = {
    "png": ({}, {"compress_level": 0}, {"interlace": 1}),
    "jpeg": ({}, {"progressive": True}, {"quality": 1}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}),
    "gif": ({}, {"save_all": True, "append_images": [Image.new("L", (30, 30))]}),
    "tiff": ({}, *({"compression": c} for c in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"))),
    "bmp": ({},),
    "webp": ({}, {"lossless": True}),
    "ico": ({},),
    "ppm": ({},),
    "tga": ({}, {"compression": "tga_rle"}),
    "pcx": ({},),
    "im": ({},),
    "sgi": ({},),
    "dds": ({},),
    "jpeg2000": ({},),
    "eps": ({},),
    "pdf": ({},),
}  # fmt: skip
FILES = {f"folder/{row.index}.jpg": made.jpeg(row.index, SIZE) for row in ROWS}
TABLE = made.csv(
    "filename,split,y,a", [(f"{r.index}.jpg", made.NAMES[r.split], r.y, r.a) for r in ROWS]
)


# --- bytes of an image ----------------------------------------------------------------------------


def encoded(rng: random.Random) -> tuple[str, bytes]:
    """A picture of noise in some format and mode, where that format knows the mode."""
    width, height = rng.choice((SIZE, (1, 1), (300, 1), (1, 300), (64, 64)))
    pixels = np.frombuffer(rng.randbytes(width * height * 3), np.uint8)
    picture = Image.fromarray(pixels.reshape(height, width, 3))
    while True:
        name, mode = rng.choice(list(FORMATS)), rng.choice(MODES)
        options = rng.choice(FORMATS[name])
        file = io.BytesIO()
        try:
            converted = picture.convert("L") if mode == "I;16" else picture
            converted.convert(mode).save(file, name, **options)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return f"{name} {mode}", file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG, its checksum right."""
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def crafted(rng: random.Random) -> tuple[str, bytes]:
    """A PNG with chunks as nobody would write them, or a program in PostScript."""
    width, height = rng.choice(((9000, 9000), (60000, 60000), (2**31 - 1, 2), (0, 5), (8, 8)))
    depth, colours = rng.choice(((1, 0), (8, 2), (16, 6), (8, 3), (3, 7)))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))
    rows = zlib.compress(bytes(rng.choice((0, 10, 9000 * 1126))))
    extra = rng.choice(
        (
            b"",
            chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80_000_000))),
            chunk(b"iCCP", b"x\0\0" + rng.randbytes(50)),
            chunk(b"eXIf", rng.randbytes(50)),
            chunk(b"tRNS", b"") * 3,
            chunk(b"acTL", struct.pack(">II", 2**31, 0)),
            chunk(b"PLTE", rng.randbytes(7)),
        )
    )
    image = b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", rows)
    dos = b"\xc5\xd0\xd3\xc6" + struct.pack("<6I", 32, 99, 0, 0, 0, 0)
    box = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    return rng.choice(
        (
            ("png with odd chunks", image),
            *[("png with odd chunks", image + chunk(b"IEND", b""))] * 3,
            ("PostScript", box + b"(../outside/evil) (w) file closefile showpage\n"),
            ("PostScript in DOS", dos + box),
            ("svg", b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>'),
            ("xpm", b'/* XPM */\nstatic char *x[] = {"1 1 1 1", "a c red", "a"};'),
            ("nothing", b""),
            ("a web page", b"<!DOCTYPE html><html>Quota exceeded</html>"),
            ("noise", rng.randbytes(300)),
        )
    )  # fmt: skip


def spoilt(rng: random.Random, image: bytes) -> bytes:
    """Bytes changed, removed, inserted, cut off; sizes of four bytes made enormous."""
    found = bytearray(image)
    for _ in range(rng.choice((1, 1, 3, 20))):
        at = rng.randrange(len(found)) if found else 0
        if rng.random() < 0.5:  # headers are at the beginning
            at = min(at, rng.randrange(64))
        what = rng.randrange(5)
        if what == 0 and found:
            found[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            del found[at : at + rng.choice((1, 4, 40))]
        elif what == 2:
            found[at:at] = rng.randbytes(rng.choice((1, 4, 40)))
        elif what == 3:
            found[at : at + 4] = rng.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4)))
        elif rng.random() < 0.5:
            del found[at:]
    return bytes(found)


# --- cases ----------------------------------------------------------------------------------------


def special(rng: random.Random, path: Path) -> str:
    """Something that is no regular file; returns what."""
    kind = rng.choice(("folder", "pipe", "socket", "loop", "dangling", "null", "endless", "same"))
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        made_socket = socket.socket(socket.AF_UNIX)
        here = os.open(path.parent, os.O_RDONLY)  # a socket's path may have a hundred letters only
        made_socket.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)
        made_socket.close()
    else:
        targets = {"loop": path.name, "dangling": "nowhere", "null": "/dev/null", "same": "0.jpg"}
        path.symlink_to(targets.get(kind, "/dev/zero"))
    return kind


def make(rng: random.Random, root: Path) -> Case:
    """A folder of photographs one of which is not as the others."""
    made.put(root, FILES)
    made.put(root, {"folder/metadata.csv": TABLE})
    path = root / "folder" / f"{rng.randrange(1, len(ROWS))}.jpg"
    path.unlink()
    if rng.random() < 0.05:
        what = special(rng, path)
    else:
        what, content = crafted(rng) if rng.random() < 0.2 else encoded(rng)
        if rng.random() < 0.75:
            what, content = f"{what}, spoilt", spoilt(rng, content)
        path.write_bytes(content)
    return Case(f"{path.name}: {what}", lambda: _load(root, int(path.stem)), ("dataset=folder",))


def _load(root: Path, odd: int) -> None:
    """Every split; the images that nobody touched have the colour that they were made with."""
    source = Folder(transform=made.SMALL, csv="folder/metadata.csv", store="disk")
    for name, split in source.splits(root).items():
        split.fetch(torch.arange(len(split)))
        rows = [row for row in ROWS if made.NAMES[row.split] == name]
        for row, seen in zip(rows, made.seen(split), strict=True):
            assert row.index == odd or seen == (row.index, row.y, row.a), (row, seen)


if __name__ == "__main__":
    sys.exit(fuzz("images", __doc__, make))
