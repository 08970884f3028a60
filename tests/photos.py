"""Small photographs on disk, each of its own size and recognisable."""

import numpy as np
from PIL import Image


def write_photo(path, number, size=(50, 40), quality=95):
    """A smooth picture whose colours follow from a number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    picture.save(path, quality=quality)


def write_photos(root, count, size=lambda i: (50 + 3 * i, 40 + 2 * (i % 5))):
    """`count` JPEGs under two folders; their names in order."""
    names = [f"{'ab'[i % 2]}/{i:04}.jpg" for i in range(count)]
    for i, name in enumerate(names):
        write_photo(root / name, i, size(i))
    return names


def opened(root, name):
    """What Pillow says is in a file."""
    with Image.open(root / name) as image:
        return image.convert("RGB")
