"""Hostile and mutated archives and files of MNIST and CIFAR-10: read, or refused in one sentence.

python -m scripts.battery.archives [--seconds 60] [--seed 0] [--cases 1000]

Archives of Waterbirds (zip, and tar as it is or compressed) with members that lead out by name or
by link, devices, bombs, clashing and odd names, headers that lie, bytes changed and cut off; idx
files, compressed or not, with other dimensions; batches of CIFAR-10 with a pickle that would run a
program. See fuzz.py for what must hold: above all that nothing is written outside the data root.
"""

import bz2
import gzip
import io
import lzma
import pickle
import random
import stat
import struct
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import generators
import generators_photos as made
import numpy as np
import torchvision.datasets  # noqa: F401 - the readers import it late, in every process anew

from scripts.battery.fuzz import Case, fuzz
from spurcor.data.archives import extracted
from spurcor.datasets import waterbirds
from spurcor.datasets.sources import read_cifar10, read_fashion_mnist, read_mnist

MAX_BYTES, MAX_MEMBERS = 20_000_000, 300  # in the place of 60 GB and two million
ROWS = made.make_rows({0: (2, 1, 1, 2), 1: (1, 1, 1, 1), 2: (1, 1, 1, 1)})
FILES = made.below("waterbirds_v1.0", made.waterbirds(ROWS))
TARS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
NAMES = (
    *("../evil", "../../evil", "waterbirds_v1.0/../../evil", "./x", "a//b", "a/./b", "x/", ".", ""),
    *("..", "../outside/file", "{outside}/evil", "{outside}/file", "/tmp/spurcor-evil", "~/evil"),
    *("C:\\evil", "..\\evil", "a\\..\\..\\evil", "\\\\host\\share", "a\0b", "a\nb", "\x1b[31m"),
    *("\u202egpj", "é", "\ud800", "x" * 300, "x/" * 300, ".archive.json", ".extracted", "a:b"),
    *("metadata.csv", "waterbirds_v1.0", "waterbirds_v1.0/metadata.csv", "METADATA.CSV", "CON"),
    *("waterbirds_v1.0/metadata.csv/x", "link/evil", "waterbirds_v1.0/link/evil", " ", "-rf", "*"),
)
TARGETS = (
    *("../evil", "..", "/", "{outside}", "{outside}/file", "/etc/passwd", "/dev/zero", ".", ""),
    *("waterbirds_v1.0", "waterbirds_v1.0/metadata.csv", "metadata.csv", "nowhere", "link", "./.."),
    *("a/../..", "link/..", "/proc/self/cwd", "waterbirds_v1.0/metadata.csv\0x", "x" * 300),
)
TAR_TYPES = (
    *(tarfile.SYMTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.REGTYPE, tarfile.REGTYPE),
    *(tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.CONTTYPE),
    *(tarfile.AREGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE, b"Z"),
)


# --- archives -------------------------------------------------------------------------------------


def _filled(text: str, root: Path) -> str:
    return text.replace("{outside}", str(root.parent / "outside"))


def tar(rng: random.Random, root: Path) -> bytes:
    """Waterbirds with some members that nobody would pack."""
    file = io.BytesIO()
    form = rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
    members = [(name, content) for name, content in FILES.items()]
    with tarfile.open(fileobj=file, mode="w", format=form, errors="surrogateescape") as archive:
        odd = rng.choice((0, 1, 1, 2, 4))
        places = sorted(rng.choices(range(len(members) + 1), k=odd))
        for at in range(len(members) + 1):
            for _ in range(places.count(at)):
                _add_odd(rng, archive, root)
            if at < len(members):
                info = tarfile.TarInfo(members[at][0])
                info.size = len(members[at][1])
                archive.addfile(info, io.BytesIO(members[at][1]))
    return file.getvalue()


def _add_odd(rng: random.Random, archive: tarfile.TarFile, root: Path) -> None:
    info = tarfile.TarInfo(_filled(rng.choice(NAMES), root))
    info.type = rng.choice(TAR_TYPES)
    info.linkname = _filled(rng.choice(TARGETS), root)
    info.mode = rng.choice((0o644, 0o000, 0o7777, 0o755))
    info.mtime = rng.choice((0, -1, 2**40))
    content = rng.choice((b"", b"evil", bytes(10**6), bytes(25 * 10**6)))
    info.size = len(content) if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) else 0
    if rng.random() < 0.05:
        info.pax_headers = {"path": "../evil", "size": rng.choice(("-1", "9" * 30, "x", "4"))}
    try:
        archive.addfile(info, io.BytesIO(content))
        if rng.random() < 0.2:  # many, or the same once more
            for _ in range(rng.choice((1, 400))):
                archive.addfile(info, io.BytesIO(content[:0]) if info.size == 0 else None)
    except (ValueError, UnicodeError, OSError):  # what cannot be packed
        pass


def zipped(rng: random.Random, root: Path) -> bytes:
    """The same as a zip."""
    file = io.BytesIO()
    kinds = (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", rng.choice(kinds)) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, content in FILES.items():
            archive.writestr(name, content)
        for _ in range(rng.choice((0, 1, 1, 2, 4))):
            info = zipfile.ZipInfo("x")
            info.filename = _filled(rng.choice(NAMES), root).encode("utf-8", "replace").decode()
            kind = rng.choice((stat.S_IFREG, 0, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFDIR))
            info.external_attr = (kind | 0o777) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            content = rng.choice((b"", b"evil", b"../../outside/file", bytes(25 * 10**6)))
            archive.writestr(info, content)
    return file.getvalue()


def lied(rng: random.Random, content: bytes) -> bytes:
    """Headers that say something else: sizes, flags, methods of compression."""
    found = bytearray(content)
    places = [at for magic in (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"ustar")
              for at in _all(content, magic)]  # fmt: skip
    for _ in range(rng.choice((1, 2, 6))):
        at = rng.choice(places) if places else 0
        begin = at + rng.randrange(46) - (257 if content[at : at + 5] == b"ustar" else 0)
        size = rng.choice((1, 2, 4))
        if begin >= 0:
            value = rng.choice((b"\xff", b"\0", b"\x7f", b"\x80", b"1")) * size
            found[begin : begin + size] = value
    return bytes(found)


def _all(content: bytes, magic: bytes) -> list[int]:
    places, at = [], content.find(magic)
    while at >= 0:
        places.append(at)
        at = content.find(magic, at + 1)
    return places


def spoilt(rng: random.Random, content: bytes) -> bytes:
    """Bytes changed, cut off, inserted, doubled."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 5, 50))):
        at = rng.randrange(len(found)) if found else 0
        what = rng.randrange(6)
        if what < 2 and found:
            found[at] = rng.randrange(256)
        elif what == 2:
            found[at:at] = rng.randbytes(rng.choice((1, 512)))
        elif what == 3:
            del found[at : at + rng.choice((1, 512))]
        elif what == 4 and rng.random() < 0.2:
            del found[at:]
        elif what == 5 and rng.random() < 0.2:
            found += found[:1024]
    return bytes(found)


def archive(rng: random.Random, root: Path) -> Case:
    """One of the archives that Waterbirds is looked for in."""
    if rng.random() < 0.5:
        what, content = "zip", zipped(rng, root)
    else:
        ending = rng.choice(list(TARS))
        what, content = f"tar{ending}", tar(rng, root)
        if rng.random() < 0.3:
            content, what = lied(rng, content), f"{what}, headers lie"
        content = TARS[ending](content)
    if rng.random() < 0.3:
        content, what = lied(rng, content), f"{what}, headers lie"
    if rng.random() < 0.3:
        content, what = spoilt(rng, content), f"{what}, spoilt"
    name = rng.choice((f"{waterbirds.NAME}.tar.gz", "blob", "waterbirds_v1.0/archive.zip"))
    made.put(root, {name: content})
    words = () if len(content) > 10**6 else ("dataset=waterbirds",)
    return Case(f"{name}: {what}", partial(_read_archive, root), words)


def _read_archive(root: Path) -> None:
    bounded = partial(extracted, max_bytes=MAX_BYTES, max_members=MAX_MEMBERS)
    with mock.patch.object(waterbirds, "extracted", bounded):
        source = waterbirds.Waterbirds(transform=made.SMALL, store="disk")
        for split in source.splits(root).values():
            split.fetch(split.g.argsort()[:2])


# --- idx files and batches ------------------------------------------------------------------------


def idx(rng: random.Random, root: Path) -> Case:
    """MNIST or Fashion-MNIST, one of whose files has another header, or was spoilt."""
    name, read = rng.choice((("MNIST", read_mnist), ("FashionMNIST", read_fashion_mnist)))
    compressed = rng.random() < 0.5
    generators.write_mnist(root, np.random.default_rng(0), name, compressed=compressed)
    path = rng.choice(sorted((root / name / "raw").glob("train-*")))
    content = path.read_bytes()
    content = gzip.decompress(content) if compressed else content
    what = rng.choice(("header", "spoilt", "bomb", "pieces", "whole"))
    if what == "header":
        number = rng.choice((0, 1, 3, 4, 255))
        sizes = rng.choices((0, 1, 28, 485, -1, 2**31 - 1, -(2**31), 65536), k=min(number, 9))
        magic = bytes((0, rng.choice((0, 0, 1)), rng.choice((8, 8, 9, 13)), number))
        content = magic + struct.pack(f">{len(sizes)}i", *sizes) + content[16:]
    elif what == "spoilt":
        content = spoilt(rng, content)
    if what == "pieces" and compressed:
        path.write_bytes(gzip.compress(content[:50]) + gzip.compress(content[50:]) + b"\0" * 20)
    elif what == "bomb" and compressed:  # 4 GB of zeros
        path.write_bytes(gzip.compress(content) + gzip.compress(bytes(10**7)) * 400)
    else:
        path.write_bytes(gzip.compress(content, 1) if compressed else content)
        if compressed and rng.random() < 0.3:
            path.write_bytes(spoilt(rng, path.read_bytes()))
    return Case(f"{name} {path.name}: {what}", lambda: read(root, True))


class Program:
    """Unpickled, it would make a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        """What unpickling calls."""
        return Path.mkdir, (self.place,)


def batches(rng: random.Random, root: Path) -> Case:
    """CIFAR-10's pickles by a stranger."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    evil = pickle.dumps({b"data": Program(root.parent / "evil"), b"labels": []})
    for number in range(1, 6):
        (folder / f"data_batch_{number}").write_bytes(spoilt(rng, evil) if number > 1 else evil)
    for name in ("test_batch", "batches.meta"):
        (folder / name).write_bytes(evil)
    return Case("batches of CIFAR-10", lambda: read_cifar10(root, rng.random() < 0.5))


def make(rng: random.Random, root: Path) -> Case:
    """One of these."""
    return rng.choices((archive, idx, batches), weights=(16, 5, 1))[0](rng, root)


if __name__ == "__main__":
    sys.exit(fuzz("archives", __doc__, make))
