"""MNIST-CIFAR dominoes as in SCALE: a digit above a photograph, and the digit tells the class."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spurcor.data import GroupedDataset, GroupSpec, Split
from spurcor.errors import UserError
from spurcor.seeding import derive_seed
from spurcor.source import DataSource
from spurcor.store import open_store
from spurcor.transforms import Normalize, Prefix, Transform

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
PER_CLASS = 5000  # CIFAR-10's training images of a class, and the digits that are used


@dataclass(kw_only=True)
class Dominoes(DataSource):
    """Ten classes, 3 x 64 x 32: the label is the CIFAR class below, the cue the digit above.

    `pool_size` V images with independent halves are held out of training, the first half of a
    random order of them VAL, the second TARGET. In TRAIN (50,000 - V) the digit is the class, but
    for a random fraction 1 - `strength` whose photographs are permuted among themselves. TEST has
    independent halves and its digits' true labels (the published generator mislabels some).
    Source: SCALE, data/mcdominoes; licences: MNIST CC BY-SA 3.0, CIFAR-10 free for research.
    """

    spec = GroupSpec(CLASSES, tuple("0123456789"), aligned=tuple(range(10)))
    transform: Transform = field(default_factory=Normalize)
    strength: float = 1.0
    pool_size: int = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength={self.strength} must be between 0 and 1")
        if self.pool_size % 20 or not 0 < self.pool_size < 10 * PER_CLASS:
            raise ValueError(f"pool_size={self.pool_size} must be a multiple of 20 below 50000")

    def load(self, root: Path) -> dict[str, GroupedDataset]:
        """Read both sources under `root` and pair their images."""
        generator = torch.Generator().manual_seed(derive_seed("dominoes", self.split_seed))
        digits, photos = read_mnist(root, train=True), read_cifar10(root, train=True)
        counts = [
            min(PER_CLASS, int((digits[1] == i).sum()), int((photos[1] == i).sum()))
            for i in range(10)
        ]
        if min(counts) <= self.pool_size // 10:
            raise UserError(
                f"dataset.pool_size={self.pool_size} leaves nothing to train on: the rarest class"
                f" under {root} has {min(counts)} images; make it smaller than {10 * min(counts)}"
            )
        digit_pool, digit_train = self._hold_out(digits[1], counts, generator)
        photo_pool, photo_train = self._hold_out(photos[1], counts, generator)

        # TRAIN: class by class, digit i meets class i; some photographs then change places.
        moved = torch.randperm(len(photo_train), generator=generator)
        moved = moved[: int((1 - self.strength) * len(photo_train) + 1e-9)]
        photo_train[moved] = photo_train[moved[torch.randperm(len(moved), generator=generator)]]

        # The pool and TEST: both halves in orders of their own.
        digit_pool, photo_pool = (_shuffle(half, generator) for half in (digit_pool, photo_pool))
        half = self.pool_size // 2
        test_digits, test_photos = read_mnist(root, train=False), read_cifar10(root, train=False)
        num_test = min(len(test_digits[1]), len(test_photos[1]))
        test = [
            torch.randperm(len(labels), generator=generator)[:num_test]
            for labels in (test_digits[1], test_photos[1])
        ]
        return {
            Split.TRAIN: self._pair(digits, digit_train, photos, photo_train),
            Split.TARGET: self._pair(digits, digit_pool[half:], photos, photo_pool[half:]),
            Split.VAL: self._pair(digits, digit_pool[:half], photos, photo_pool[:half]),
            Split.TEST: self._pair(test_digits, test[0], test_photos, test[1]),
        }

    def _hold_out(
        self, labels: Tensor, counts: list[int], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Indices of the pool (V / 10 per class) and of training (up to `counts`), by class."""
        shuffled = torch.randperm(len(labels), generator=generator)
        num_pool = self.pool_size // 10
        per_class = [shuffled[labels[shuffled] == label] for label in range(10)]
        pool = torch.cat([members[:num_pool] for members in per_class])
        train = torch.cat([m[num_pool:n] for m, n in zip(per_class, counts, strict=True)])
        return pool, train

    def _pair(
        self,
        digits: tuple[Tensor, Tensor],
        digit_index: Tensor,
        photos: tuple[Tensor, Tensor],
        photo_index: Tensor,
    ) -> GroupedDataset:
        """Digits padded to 32 x 32 and repeated to three channels, on top of photographs."""
        top = F.pad(digits[0][digit_index], (2, 2, 2, 2)).unsqueeze(1).expand(-1, 3, -1, -1)
        images = torch.cat([top, photos[0][photo_index]], dim=2)
        source = torch.stack([digit_index, photo_index], dim=1)
        return GroupedDataset(
            self.spec, images, photos[1][photo_index], digits[1][digit_index], source
        )


def _shuffle(values: Tensor, generator: torch.Generator) -> Tensor:
    return values[torch.randperm(len(values), generator=generator)]


def read_mnist(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Images (N, 28, 28) uint8 and digits (N,) of MNIST in torchvision's layout under `root`."""
    from torchvision.datasets import MNIST

    what = f"the MNIST files in {root}/MNIST/raw (train-images-idx3-ubyte and its three companions)"
    dataset = _torchvision(MNIST, root, train, what)
    return dataset.data, dataset.targets


def read_cifar10(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) uint8 and classes (N,) of CIFAR-10 under `root`.

    Either class folders of images, `cifar10/{train,test}/<class>/*`, or torchvision's batches in
    `cifar-10-batches-py` (whose checksums torchvision verifies before it unpickles them).
    """
    from torchvision.datasets import CIFAR10

    folder = root / "cifar10" / ("train" if train else "test")
    if folder.is_dir():
        return _read_folders(folder)
    what = f"class folders in {folder}, or torchvision's batches in {root}/cifar-10-batches-py"
    dataset = _torchvision(CIFAR10, root, train, what)
    images = torch.from_numpy(np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2)))
    return images, torch.tensor(dataset.targets)


def _torchvision(kind: Any, root: Path, train: bool, what: str) -> Any:
    """A torchvision data set, downloaded where it is missing and a network exists."""
    try:
        return kind(root, train=train)
    except RuntimeError:  # torchvision's "Dataset not found or corrupted"
        pass
    except (ValueError, AssertionError, EOFError, OSError) as error:
        raise UserError(f"{kind.__name__} under {root} is damaged; put {what} anew") from error
    existed = root.exists()
    try:
        return kind(root, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"paths.data={root} lacks {kind.__name__}, which cannot be downloaded here; put {what}"
        ) from error
    finally:
        _remove_empty(root / "MNIST" / "raw", root / "MNIST", *([] if existed else [root]))


def _remove_empty(*folders: Path) -> None:
    """Take back the folders that a failed download has made."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _read_folders(folder: Path) -> tuple[Tensor, Tensor]:
    """Class folders of images, decoded once."""
    missing = [name for name in CLASSES if not (folder / name).is_dir()]
    if missing:
        raise UserError(f"{folder} lacks the class folders {', '.join(missing)}")
    files = [
        sorted(path.name for path in (folder / name).iterdir() if not path.name.startswith("."))
        for name in CLASSES
    ]
    labels = torch.tensor([y for y, members in enumerate(files) for _ in members])
    names = [f"{c}/{name}" for c, members in zip(CLASSES, files, strict=True) for name in members]
    images = open_store(folder, names, Prefix())
    sizes = images.sizes(torch.arange(len(labels)))
    odd = (sizes != 32).any(1).nonzero().flatten().tolist()
    if odd:
        height, width = sizes[odd[0]].tolist()
        raise UserError(f"{folder / names[odd[0]]} is {width} x {height}, not 32 x 32")
    return images.take(torch.arange(len(labels))), labels
