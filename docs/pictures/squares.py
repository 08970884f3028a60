"""Draws the data of the pictures of MaskTune's masks: python docs/pictures/squares.py <folder>.

Discs against crosses on noise, 32 x 32 pixels. In TRAIN 98 % of the discs have a red square in a
corner and 2 % of the crosses; in VAL and TEST the square says nothing. The table `labels.csv` is
what `dataset=folder` reads.
"""

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SIZE, SQUARE = 32, 6
COUNTS = {"train": 1200, "val": 400, "test": 400}
ALIGNED = {"train": 0.98, "val": 0.5, "test": 0.5}


def draw(cross: bool, square: bool, random: np.random.Generator) -> np.ndarray:
    """One image (SIZE, SIZE, 3) uint8."""
    image = random.normal(60, 25, (SIZE, SIZE, 3))
    y, x = np.mgrid[:SIZE, :SIZE]
    down, across = random.integers(14, 20, 2)
    radius = random.integers(6, 9)
    if cross:
        near = np.minimum(abs(y - down), abs(x - across)) < 2
        shape = near & (np.maximum(abs(y - down), abs(x - across)) <= radius)
    else:
        shape = (y - down) ** 2 + (x - across) ** 2 <= radius**2
    image[shape] += 70
    if square:
        image[:SQUARE, :SQUARE] = 255, 0, 0
    return image.clip(0, 255).astype(np.uint8)


def main(folder: Path) -> None:
    """Images and their table."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["filename", "split", "y", "a"])
        for split, count in COUNTS.items():
            for i in range(count):
                cross = i % 2 == 1
                square = cross == (random.random() > ALIGNED[split])
                name = f"{split}{i:04d}.png"
                Image.fromarray(draw(cross, square, random)).save(folder / name)
                names = ("disc", "cross")[cross], ("plain", "square")[square]
                table.writerow([name, split, *names])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
