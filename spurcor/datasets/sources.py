"""Readers of MNIST, Fashion-MNIST and CIFAR-10, which several data sets use.

Each returns images (N, ...) uint8 and labels (N,) int64 in the order of the files. Missing files
are downloaded if there is a network; otherwise a `UserError` says where to put them.
"""

import gzip
import logging
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spurcor.data.archives import folders_in
from spurcor.data.store import open_store
from spurcor.data.transforms import Prefix
from spurcor.errors import UserError
from spurcor.system.files import is_clutter

log = logging.getLogger(__name__)
CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
FASHION_CLASSES = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle-boot"),
)
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")  # the package dataset-fashion-mnist
SHOWN = 5  # names listed in a message
MAX_IDX = 1 << 29  # bytes in an IDX file; MNIST's largest has 47 million
DAMAGE = (OSError, EOFError, ValueError, zlib.error)  # raised by truncated files


def read_mnist(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Return images (N, 28, 28) and digits of MNIST, in torchvision's layout under `root`."""
    from torchvision.datasets import MNIST

    folder = root / "MNIST" / "raw"
    what = f"the four MNIST files (train-images-idx3-ubyte etc.) in {folder}"
    return _read_idx_set(MNIST, [folder, folder.parent], root, train, what)


def read_fashion_mnist(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Return images (N, 28, 28) and classes of Fashion-MNIST.

    They are read in torchvision's layout under `root`, or from Debian's package if that is
    installed.
    """
    from torchvision.datasets import FashionMNIST

    folder = root / "FashionMNIST" / "raw"
    what = (
        f"the four Fashion-MNIST files (train-images-idx3-ubyte etc.) in {folder}, or install"
        " Debian's package dataset-fashion-mnist"
    )
    return _read_idx_set(FashionMNIST, [folder, folder.parent, DEBIAN_FASHION], root, train, what)


def read_cifar10(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Return images (N, 3, 32, 32) and classes of CIFAR-10.

    They are read from class folders of images, `cifar10/{train,test}/<class>/*`, or from
    torchvision's batches in `cifar-10-batches-py` (whose checksums torchvision verifies before it
    unpickles them).
    """
    from torchvision.datasets import CIFAR10

    top, part = root / "cifar10", "train" if train else "test"
    for folder in (top, *folders_in(top)):
        if (folder / part).is_dir():
            return _read_folders(folder / part)
    what = f"class folders in {top / part} or torchvision's batches in {root}/cifar-10-batches-py"
    try:
        dataset = CIFAR10(root, train=train)
    except RuntimeError:  # torchvision's "Dataset not found or corrupted"
        dataset = _download(CIFAR10, root, train, what, [top, root / "cifar-10-batches-py"])
    except DAMAGE as error:
        raise _damaged(root, "CIFAR10", what) from error
    images = torch.from_numpy(np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2)))
    return images, torch.tensor(dataset.targets)


# --- the format of MNIST --------------------------------------------------------------------------


def _read_idx_set(
    kind: Any, places: list[Path], root: Path, train: bool, what: str
) -> tuple[Tensor, Tensor]:
    """Read images and labels from the first place with both; else download them first."""
    part = "train" if train else "t10k"
    names = [f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"]
    place = next((p for p in places if all(_find(p, name) for name in names)), None)
    if place is None:
        _download(kind, root, train, what, places)
        place = places[0]
    try:
        images, labels = (_read_idx(_find(place, name) or place / name) for name in names)
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
            raise ValueError(f"images {tuple(images.shape)} and labels {tuple(labels.shape)}")
    except DAMAGE as error:
        raise _damaged(place, kind.__name__, what) from error
    return images, labels.long()


def _find(folder: Path, name: str) -> Path | None:
    """Return the file under its authors' or Kaggle's name, or its compressed copy, or None."""
    dotted = name.replace("-idx", ".idx")
    names = (name, f"{name}.gz", dotted, f"{dotted}.gz", f"{name}/{name}", f"{dotted}/{dotted}")
    return next((folder / n for n in names if (folder / n).is_file()), None)


def _read_idx(path: Path) -> Tensor:
    """Read a uint8 array in the IDX format.

    The file has the bytes 0, 0, 8, the number of dimensions, each size as a big-endian 4-byte
    integer, then the data.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        start = file.read(4)
        if len(start) < 4 or start[:3] != b"\0\0\x08":
            raise ValueError(f"{path} is not a file in MNIST's format")
        sizes = np.frombuffer(file.read(4 * start[3]), ">i4", count=start[3]).tolist()
        size = math.prod(sizes)
        if min(sizes, default=0) < 0 or size > MAX_IDX:
            raise ValueError(f"{path} has impossible sizes {sizes}")
        content = file.read(size + 1)  # bounded: a small compressed file can expand without limit
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(sizes).copy())


# --- the format of CIFAR-10 -----------------------------------------------------------------------


def _read_folders(folder: Path) -> tuple[Tensor, Tensor]:
    """Read class folders of images, decoded once into a store."""
    missing = [name for name in CIFAR10_CLASSES if not (folder / name).is_dir()]
    if missing:
        raise UserError(f"{folder} lacks the class folders {', '.join(missing)}; add them")
    files = [
        sorted(path.name for path in (folder / name).iterdir() if not is_clutter(path.name))
        for name in CIFAR10_CLASSES
    ]
    labels = torch.tensor([y for y, members in enumerate(files) for _ in members])
    names = [
        f"{c}/{name}" for c, members in zip(CIFAR10_CLASSES, files, strict=True) for name in members
    ]
    images = open_store(folder, names, Prefix())
    sizes = images.sizes(torch.arange(len(labels)))
    odd = (sizes != 32).any(1).nonzero().flatten().tolist()
    if odd:
        height, width = sizes[odd[0]].tolist()
        raise UserError(f"{folder / names[odd[0]]} is {width} x {height}, not 32 x 32")
    return images.take(torch.arange(len(labels))), labels


# --- downloads ------------------------------------------------------------------------------------


def _download(kind: Any, root: Path, train: bool, what: str, places: Sequence[Path]) -> Any:
    """Download a torchvision data set into `root`, after the files in `places` proved unusable."""
    existed = root.exists()
    found = "; ".join(f"{place} has {_contents(place)}" for place in places if place.is_dir())
    if found:
        log.warning("%s: %s is incomplete; trying to download it", found, kind.__name__)
    try:
        return kind(root, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"paths.data={root} lacks {kind.__name__}, which cannot be downloaded here; put {what}"
            + (f" ({found})" if found else "")
        ) from error
    finally:
        folder = root / kind.__name__
        _remove_empty(folder / "raw", folder, *([] if existed else [root]))


def _contents(folder: Path) -> str:
    """List the first few entries of a folder."""
    names = sorted(path.name for path in folder.iterdir() if not is_clutter(path.name))
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "nothing") + more


def _damaged(place: Path, name: str, what: str) -> UserError:
    return UserError(f"{name} in {place} is damaged; replace {what}")


def _remove_empty(*folders: Path) -> None:
    """Remove the empty folders that a failed download has created."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
