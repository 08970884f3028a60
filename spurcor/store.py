"""Photographs decoded once: an array of bytes on disk, memory-mapped by every run that reads it.

One store per set of files and deterministic prefix of a transform, in `.spurcor` beside the folder
of the files, or under $SPURCOR_STORE where that is set. It is there whole or not at all.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import statistics
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from spurcor.errors import UserError
from spurcor.files import replacing_folder, write_json
from spurcor.images import Images, RaggedImages, shaped
from spurcor.transforms import Prefix

Facts = NDArray[np.int64]  # (M, 2): size and time of every file
Pixels = NDArray[np.uint8]  # (H, W, 3)

log = logging.getLogger(__name__)
DECODER = "1"  # changed when the same files would be stored as other bytes
CHUNK = 32  # photographs decoded by a thread at a time
SAMPLED = 100  # photographs whose size is looked at to say how large a store will be
UNREADABLE = (OSError, SyntaxError, ValueError)  # what Pillow raises on what is no whole image
MAX_NAMED = 100  # unreadable files that a sentence lists


def open_store(root: Path, names: Sequence[str], prefix: Prefix) -> Images:
    """The images of files `names` under `root`, in their order; decoded now if nobody has yet."""
    facts = _look_at(root, names)
    listed = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
    state = hashlib.sha256(facts.tobytes() + DECODER.encode() + _pillow().encode()).hexdigest()[:8]
    base = place_of(root)
    folder = base / f"{prefix.name}-{listed}-{state}"
    if not (folder / "store.json").exists():
        _build(folder, root, names, facts, prefix)
    return _open(folder)


def place_of(root: Path) -> Path:
    """Where what is made of a folder is: beside it, since others take what is in it for classes."""
    elsewhere = os.environ.get("SPURCOR_STORE")
    if elsewhere is None:
        return root.parent / ".spurcor" / root.name
    return Path(elsewhere).expanduser() / hashlib.sha256(str(root).encode()).hexdigest()[:8]


def _pillow() -> str:
    from PIL import __version__

    return str(__version__)


def _look_at(root: Path, names: Sequence[str]) -> Facts:
    """Size and time (M, 2) of every file: what tells that a source has changed."""
    missing: list[str] = []
    facts = np.zeros((len(names), 2), np.int64)
    prefix = f"{root}/"
    for i, name in enumerate(names):
        try:
            found = os.stat(prefix + name)
        except OSError:
            missing.append(name)
            continue
        facts[i] = found.st_size, found.st_mtime_ns
    if missing:
        raise UserError(f"{root} lacks {len(missing)} listed image files: {_some(missing)}")
    return facts


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


# --- building -------------------------------------------------------------------------------------


def _build(
    folder: Path,
    root: Path,
    names: Sequence[str],
    facts: Facts,
    prefix: Prefix,
) -> None:
    """Decode all files into `folder`; of several processes one does it and the others wait."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f"{folder.name}.lock"):
            if (folder / "store.json").exists():
                return
            _remove_leftovers(folder)
            needed = _estimate(root, names, prefix)
            free = shutil.disk_usage(folder.parent).free
            if needed > free:
                raise UserError(
                    f"decoding {len(names):,} images takes {_gigabytes(needed)} in {folder.parent},"
                    f" which has {_gigabytes(free)} free; set SPURCOR_STORE to a folder on another"
                    " disk, or dataset.subset_size to fewer images"
                )
            log.info("decoding %d images into %s", len(names), folder)
            with replacing_folder(folder) as beside:
                _decode_all(root, names, facts, prefix, beside, needed)
            _remove_outdated(folder)
    except OSError as error:
        raise UserError(
            f"decoded images cannot be written to {folder.parent} ({error.strerror or error}); set"
            " SPURCOR_STORE to a folder that has room"
        ) from error


def _decode_all(
    root: Path,
    names: Sequence[str],
    facts: Facts,
    prefix: Prefix,
    beside: Path,
    needed: int,
) -> None:
    from joblib import Parallel, delayed

    from spurcor.console import tracked

    chunks = [names[first : first + CHUNK] for first in range(0, len(names), CHUNK)]
    # Pillow lets go of the interpreter while it decodes; the chunks come back in their order.
    decoded = Parallel(n_jobs=_num_threads(), backend="threading", return_as="generator")(
        delayed(_decode)(root, chunk, prefix) for chunk in chunks
    )
    title = f"decoding {len(names):,} images ({_gigabytes(needed)})"
    unreadable: list[str] = []
    sizes: list[tuple[int, int]] = []
    with (beside / "pixels.bin").open("wb") as file:
        for results in tracked(decoded, title, total=len(chunks)):
            for name, pixels in results:
                if pixels is None:
                    unreadable.append(name)
                elif not unreadable:
                    sizes.append(pixels.shape[:2])
                    planes = pixels if prefix.interleaved else pixels.transpose(2, 0, 1)
                    file.write(np.ascontiguousarray(planes).data)
        if unreadable:
            raise UserError(
                f"{root} has {len(unreadable)} files that cannot be read as images, perhaps cut off"
                f" in a copy; put them anew: {_some(unreadable)}"
            )
        _sync(file)
    np.save(beside / "sizes.npy", np.array(sizes, np.int32))
    crc = np.array([zlib.crc32(name.encode()) for name in names], np.int64)
    np.save(beside / "signature.npy", (crc << 31) ^ facts[:, 0])
    state = {"prefix": prefix.name, "images": len(names), "interleaved": prefix.interleaved}
    write_json(beside / "store.json", state)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _num_threads() -> int:
    return len(os.sched_getaffinity(0))


def _decode(root: Path, names: Sequence[str], prefix: Prefix) -> list[tuple[str, Pixels | None]]:
    """Bytes (H, W, 3) of each file, or None where it is no whole image."""
    from PIL import Image

    results: list[tuple[str, Pixels | None]] = []
    for name in names:
        try:
            with Image.open(root / name) as image:
                pixels = np.asarray(prefix(image.convert("RGB")))
            results.append((name, pixels))
        except (*UNREADABLE, Image.DecompressionBombError):
            results.append((name, None))  # told together with the others
    return results


def _estimate(root: Path, names: Sequence[str], prefix: Prefix) -> int:
    """Bytes that a store will take, from the sizes of some of the files."""
    from PIL import Image

    areas = []
    for name in names[:: max(1, len(names) // SAMPLED)]:
        try:
            with Image.open(root / name) as image:
                height, width = prefix.size(image.height, image.width)
            areas.append(3 * height * width)
        except (*UNREADABLE, Image.DecompressionBombError):
            continue  # told when it is decoded
    return int(statistics.fmean(areas) * len(names)) if areas else 0


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _remove_leftovers(folder: Path) -> None:
    """What builds that were killed have left, here and of other stores; the caller has the lock."""
    for leftover in folder.parent.glob(".*"):
        name = leftover.name[1:].rpartition(".")[0]
        if not name or not leftover.is_dir():  # somebody else's
            continue
        lock = FileLock(folder.parent / f"{name}.lock", timeout=0)
        try:
            with contextlib.nullcontext() if name == folder.name else lock:
                shutil.rmtree(leftover)
        except Timeout:  # somebody is at it
            continue


def _remove_outdated(folder: Path) -> None:
    """Stores of the same files in an earlier state."""
    same = folder.name.rpartition("-")[0]
    for other in folder.parent.glob(f"{same}-*"):
        if other != folder and other.is_dir():
            shutil.rmtree(other, ignore_errors=True)


# --- reading --------------------------------------------------------------------------------------


def _open(folder: Path) -> Images:
    try:
        sizes = torch.from_numpy(np.load(folder / "sizes.npy", allow_pickle=False).astype(np.int64))
        signature = torch.from_numpy(np.load(folder / "signature.npy", allow_pickle=False))
        state = json.loads((folder / "store.json").read_text())
        count, interleaved = state["images"], state["interleaved"]
        pixels = _map(folder / "pixels.bin")
        whole = len(sizes) == len(signature) == count
        if not whole or len(pixels) != 3 * int(sizes.prod(1).sum()):
            raise ValueError("its parts do not belong together")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"the store {folder} is damaged ({error}); remove it, and it is made anew"
        ) from error
    if not bool((sizes == sizes[0]).all()):
        return RaggedImages(pixels, sizes, signature, interleaved, mapped=True)
    height, width = sizes[0].tolist()
    array = shaped(pixels, count, height, width, interleaved)
    return Images(array, signature, mapped=True)


def _map(path: Path) -> Tensor:
    """A file's bytes, read when they are asked for and shared between processes."""
    array = np.memmap(path, np.uint8, mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nobody may write to it is as it should be
        return torch.from_numpy(array)
