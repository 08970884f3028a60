"""Photographs decoded once into an array of bytes on disk, memory-mapped by every run.

There is one store per set of files and deterministic transform prefix, in `.spurcor` next to the
folder of the files, or under $SPURCOR_STORE if that is set. It is written atomically.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import stat
import statistics
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from spurcor.data.decoding import Decoded, decode, is_as_before, size_of
from spurcor.data.images import Images, RaggedImages, shaped
from spurcor.data.listing import nearest
from spurcor.data.transforms import Prefix
from spurcor.errors import UserError
from spurcor.system.files import decoding, replacing_folder, write_json

Facts = NDArray[np.int64]  # (M, 2): size and modification time of each file

log = logging.getLogger(__name__)
DECODER = "2"  # version, raised when the same files would be stored as other bytes
FORMER = "1"  # clipped 16-bit greyscale and ignored the EXIF orientation
CHUNK = 32  # photographs that a thread decodes at a time
SAMPLED = 100  # photographs sampled to estimate the size of a store
MAX_NAMED = 3  # files listed in a message


def open_store(root: Path, names: Sequence[str], prefix: Prefix) -> Images:
    """Return the images of the files `names` under `root`, in that order.

    They are decoded on first use. A `UserError` is raised for files that are missing or cannot be
    decoded, and if the store does not fit on the disk or cannot be written.
    """
    facts = _look_at(root, names)
    listed = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
    folder, former = (
        place_of(root) / f"{prefix.name}-{listed}-{_state(facts, decoder)}"
        for decoder in (DECODER, FORMER)
    )
    if not (folder / "store.json").exists():
        _build(folder, former, root, names, facts, prefix)
    return _open(folder)


def _state(facts: Facts, decoder: str) -> str:
    return hashlib.sha256(facts.tobytes() + decoder.encode() + _pillow().encode()).hexdigest()[:8]


def place_of(root: Path) -> Path:
    """Return the folder for data derived from `root`: next to it, as subfolders may be classes."""
    elsewhere = os.environ.get("SPURCOR_STORE")
    if elsewhere is None:
        return root.parent / ".spurcor" / root.name
    return Path(elsewhere).expanduser() / hashlib.sha256(str(root).encode()).hexdigest()[:8]


def _pillow() -> str:
    from PIL import __version__

    return str(__version__)


def _look_at(root: Path, names: Sequence[str]) -> Facts:
    """Return size and modification time (M, 2) of each file, which reveal changed sources."""
    missing: list[str] = []
    odd: list[str] = []
    facts = np.zeros((len(names), 2), np.int64)
    for i, name in enumerate(names):
        try:
            found = os.stat(os.path.join(root, name))
        except (OSError, ValueError):  # a name with a null byte
            missing.append(name)
            continue
        if not stat.S_ISREG(found.st_mode):
            odd.append(name)
        facts[i] = found.st_size, found.st_mtime_ns
    if missing:
        raise UserError(
            f"{root} lacks {len(missing):,} of {len(names):,} listed image files:"
            f" {_some(missing, root)}; add them or correct the list"
        )
    if odd:  # reading a pipe would block forever
        raise UserError(
            f"{root} has {len(odd):,} listed images that are folders, pipes or devices:"
            f" {_some(odd)}; replace them with image files"
        )
    return facts


def _some(names: Sequence[str], lacking: Path | None = None) -> str:
    """List the first few names, each with a similarly named file in the folder `lacking` it."""
    shown = list(names[:MAX_NAMED])
    if lacking is not None:
        near = [nearest(lacking, name) for name in shown]
        shown = [
            name if found is None else f"'{name}' (there is '{found}')"
            for name, found in zip(shown, near, strict=True)
        ]
    more = f" and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else ""
    return ", ".join(shown) + more


# --- building -------------------------------------------------------------------------------------


def _build(
    folder: Path,
    former: Path,
    root: Path,
    names: Sequence[str],
    facts: Facts,
    prefix: Prefix,
) -> None:
    """Decode all files into `folder` in one process while any others wait."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f"{folder.name}.lock"):
            if (folder / "store.json").exists():
                return
            _remove_leftovers(folder)
            if (former / "store.json").exists() and _all_as_before(root, names):
                os.rename(former, folder)
                return
            needed = _estimate(root, names, prefix)
            free = shutil.disk_usage(folder.parent).free
            if needed > free:
                raise UserError(
                    f"decoding {len(names):,} images takes {_gigabytes(needed)} in {folder.parent},"
                    f" which has {_gigabytes(free)} free; set SPURCOR_STORE to a folder on another"
                    " disk, or lower dataset.subset_size"
                )
            log.info("decoding %d images into %s", len(names), folder)
            with replacing_folder(folder) as beside:
                _decode_all(root, names, facts, prefix, beside, needed)
            _remove_outdated(folder)
    except OSError as error:
        raise UserError(
            f"decoded images cannot be written to {folder.parent} ({error.strerror or error}); set"
            " SPURCOR_STORE to a folder with enough space"
        ) from error


def _all_as_before(root: Path, names: Sequence[str]) -> bool:
    """Return whether a store of the first decoder holds the bytes that would be stored now."""
    return all(is_as_before(root / name) for name in names)


def _decode_all(
    root: Path,
    names: Sequence[str],
    facts: Facts,
    prefix: Prefix,
    beside: Path,
    needed: int,
) -> None:
    from spurcor.system.terminal import tracked

    title = f"decoding {len(names):,} images ({_gigabytes(needed)})"
    findings = Findings(root)
    sizes: list[tuple[int, int]] = []
    marks: list[str] = []
    with (beside / "pixels.bin").open("wb") as file:
        for result in tracked(_decoded(root, names, prefix), title, total=len(names)):
            findings.add(result)
            if result.pixels is not None and not findings.problems:
                pixels = result.pixels
                sizes.append(pixels.shape[:2])
                marks.append(f"\0{DECODER}" * result.changed)
                planes = pixels if prefix.interleaved else pixels.transpose(2, 0, 1)
                file.write(np.ascontiguousarray(planes).data)
        findings.tell()
        _sync(file)
    np.save(beside / "sizes.npy", np.array(sizes, np.int32))
    # An image that the first decoder stored as other bytes counts as other data.
    known = [f"{name}{mark}" for name, mark in zip(names, marks, strict=True)]
    crc = np.array([zlib.crc32(text.encode()) for text in known], np.int64)
    np.save(beside / "signature.npy", (crc << 31) ^ facts[:, 0])
    state = {"prefix": prefix.name, "images": len(names), "interleaved": prefix.interleaved}
    write_json(beside / "store.json", state)


def _decoded(root: Path, names: Sequence[str], prefix: Prefix) -> Iterator[Decoded]:
    """Decode the files in several threads and yield the results in order."""
    from joblib import Parallel, delayed

    chunks = [names[first : first + CHUNK] for first in range(0, len(names), CHUNK)]
    # Threads suffice, as Pillow releases the GIL while it decodes; the chunks keep their order.
    parts = Parallel(n_jobs=_num_threads(), backend="threading", return_as="generator")(
        delayed(_decode)(root, chunk, prefix) for chunk in chunks
    )
    for part in parts:
        yield from part


class Findings:
    """Problems and remarks about the files under `root`, collected by kind."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: dict[str, list[str]] = {}
        self.remarks: dict[str, list[str]] = {}

    def add(self, result: Decoded) -> None:
        """Record the problem and remarks of one file."""
        if result.problem:
            self.problems.setdefault(result.problem, []).append(result.name)
        for remark in result.remarks:
            self.remarks.setdefault(remark, []).append(result.name)

    def tell(self) -> None:
        """Raise a `UserError` if a file cannot be stored; else warn of what the conversion lost."""
        if self.problems:
            raise UserError("; ".join(self._sentences(self.problems)))
        for sentence in self._sentences(self.remarks):
            log.warning("%s", sentence)

    def _sentences(self, kinds: Mapping[str, list[str]]) -> list[str]:
        return [
            f"{self.root} has {len(names):,} files that {kind}: {_some(names)}"
            for kind, names in kinds.items()
        ]


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _num_threads() -> int:
    return len(os.sched_getaffinity(0))


def _decode(root: Path, names: Sequence[str], prefix: Prefix) -> list[Decoded]:
    """Decode a chunk of the files."""
    return [decode(root, name, prefix) for name in names]


def _estimate(root: Path, names: Sequence[str], prefix: Prefix) -> int:
    """Estimate the size of a store in bytes from the headers of a sample of the files."""
    some = [size_of(root / name) for name in names[:: max(1, len(names) // SAMPLED)]]
    areas = [3 * math.prod(prefix.size(*size)) for size in some if size is not None]
    return int(statistics.fmean(areas) * len(names)) if areas else 0


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed builds of any store left behind; the caller holds the lock of `folder`."""
    for leftover in folder.parent.glob(".*"):
        name = leftover.name[1:].rpartition(".")[0]
        if not name or not leftover.is_dir():  # not left by a build
            continue
        lock = FileLock(folder.parent / f"{name}.lock", timeout=0)
        try:
            with contextlib.nullcontext() if name == folder.name else lock:
                shutil.rmtree(leftover)
        except Timeout:  # that build is still running
            continue


def _remove_outdated(folder: Path) -> None:
    """Remove stores of earlier versions of the same files."""
    same = folder.name.rpartition("-")[0]
    for other in folder.parent.glob(f"{same}-*"):
        if other != folder and other.is_dir():
            shutil.rmtree(other, ignore_errors=True)


# --- reading --------------------------------------------------------------------------------------


def _open(folder: Path) -> Images:
    with decoding(folder, f"remove {folder}, and it will be rebuilt"):
        sizes = torch.from_numpy(np.load(folder / "sizes.npy", allow_pickle=False).astype(np.int64))
        signature = torch.from_numpy(np.load(folder / "signature.npy", allow_pickle=False))
        state = json.loads((folder / "store.json").read_text())
        count, interleaved = state["images"], state["interleaved"]
        pixels = _map(folder / "pixels.bin")
        whole = len(sizes) == len(signature) == count
        if not whole or len(pixels) != 3 * int(sizes.prod(1).sum()):
            raise ValueError("its parts do not match")
    if not bool((sizes == sizes[0]).all()):
        return RaggedImages(pixels, sizes, signature, interleaved, mapped=True)
    height, width = sizes[0].tolist()
    array = shaped(pixels, count, height, width, interleaved)
    return Images(array, signature, mapped=True)


def _map(path: Path) -> Tensor:
    """Memory-map a file's bytes, shared between processes."""
    array = np.memmap(path, np.uint8, mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the array being read-only, as intended
        return torch.from_numpy(array)
