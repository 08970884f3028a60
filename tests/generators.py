"""Small copies of MNIST, Fashion-MNIST and CIFAR-10 in the formats of the real ones."""

import gzip
import struct

import numpy as np
from PIL import Image

from spurcor.datasets.sources import CIFAR10_CLASSES

# As in the real MNIST no digit is there equally often, and test has more of them than photographs.
TRAIN_COUNTS, TEST_COUNTS = 44 + np.arange(10), 8 + np.arange(10) % 7
TRAIN, TEST = 40, 10  # photographs per class


def idx(array):
    """A file as MNIST has it: magic number, sizes and bytes, big endian."""
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    return header + array.tobytes()


def write_mnist(root, rng, name="MNIST", ink=1.0, compressed=False):
    """All four files; `ink` is the share of the pixels that are not 0."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for part, counts in (("train", TRAIN_COUNTS), ("t10k", TEST_COUNTS)):
        labels = rng.permutation(np.repeat(np.arange(10, dtype=np.uint8), counts))
        images = rng.integers(1, 256, (len(labels), 28, 28), dtype=np.uint8)
        if ink < 1:
            images[rng.random(images.shape) > ink] = 0
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            path = raw / f"{part}-{kind}-ubyte"
            if compressed:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                path.write_bytes(idx(array))


def write_photo(path, rng):
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)


def write_folders(root, rng):
    """CIFAR-10 as class folders of images."""
    for part, count in (("train", TRAIN), ("test", TEST)):
        for name in CIFAR10_CLASSES:
            folder = root / "cifar10" / part / name
            folder.mkdir(parents=True)
            suffix = "jpg" if name == "bird" else "png"
            for i in range(count):
                write_photo(folder / f"{i:04}.{suffix}", rng)


def assert_drawn_by_its_seed_alone(load):
    """`load(**options)` gives the same splits whatever the global generator, and leaves it."""
    import torch

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = load()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, other = load(), load(split_seed=1)
    for name, split in first.items():
        assert again[name].fingerprint == split.fingerprint, name
    assert other["train"].fingerprint != first["train"].fingerprint
