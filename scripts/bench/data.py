"""The input path against torchvision's ImageFolder and DataLoader: python scripts/bench/data.py

2,000 JPEGs of 500 x 350, shuffled, to normalised float32 3 x 224 x 224 in batches of 64, both warm.
Ours reads a store on disk in one process; theirs decodes with PIL in two worker processes. The
transforms are those of Deep Feature Reweighting: to 256, the central 224, in evaluation; random
resized crops and flips in training. Interleaved pairs; the ratio is images per second, ours over
theirs. Beside it: building the store against one pass of PIL, how far our resampling is off, and
what opening a store as large as that of CelebA takes.
On a GPU (--gpu): what the input costs of a ResNet-50 bf16 step at batch 128.
"""

import argparse
import itertools
import json
import logging
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms

from spurcor.data import store
from spurcor.data.groups import GroupSpec
from spurcor.data.photographs import Photographs
from spurcor.data.store import open_store
from spurcor.data.streams import Stream
from spurcor.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Photo
from spurcor.datasets.celeba import CelebA

NUM_IMAGES, SIZE, BATCH, WORKERS = 2000, (500, 350), 64, 2
NUM_FACES = 202_599
SPEC = GroupSpec(("a", "b"), ("x", "y"))
NORMALIZE = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
THEIRS = {
    "evaluation": transforms.Compose(
        [transforms.Resize((256, 256)), transforms.CenterCrop(224), *NORMALIZE]
    ),
    "training": transforms.Compose(
        [
            transforms.RandomResizedCrop(224, scale=(0.7, 1.0), ratio=(0.75, 4 / 3)),
            transforms.RandomHorizontalFlip(),
            *NORMALIZE,
        ]
    ),
}


def make_photos(root: Path) -> Photographs:
    """Smooth noise, so that the files are as large and as slow to decode as photographs."""
    rng = np.random.default_rng(0)
    names = [f"{'ab'[i % 2]}/{i:05}.jpg" for i in range(NUM_IMAGES)]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (35, 50, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC), np.int16)
        noise = rng.integers(-12, 13, smooth.shape, dtype=np.int16)
        Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8)).save(
            root / name, quality=90
        )
    labels = torch.arange(NUM_IMAGES) % 2
    rows = {"train": torch.arange(NUM_IMAGES)}
    return Photographs(SPEC, root, names, labels, torch.zeros_like(labels), rows)


def ours(photos: Photographs, augment: bool, batch_size: int, device: str) -> Stream:
    """A stream over a store on disk."""
    transform = Photo(resize=256, crop=224, augment=augment)
    split = photos.open(photos.members, transform)["train"]
    arrays = {id(images): images for images in (split.images, split.train_images)}
    return Stream(split.moved(torch.device(device), arrays), transform, batch_size, seed=0)


def theirs(root: Path, name: str, batch_size: int, workers: int) -> Callable[[], Iterator[object]]:
    """ImageFolder, shuffled, with workers that stay."""
    loader = DataLoader(
        datasets.ImageFolder(str(root), THEIRS[name]),
        batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return lambda: iter(loader)


def seconds(batches: Iterator[object], count: int) -> float:
    """Wall time of `count` batches after the first."""
    next(batches)
    begin = time.perf_counter()
    for _ in range(count):
        next(batches)
    return time.perf_counter() - begin


def compare(photos: Photographs, name: str, num_pairs: int) -> None:
    """Images per second of both, in turn."""
    stream = ours(photos, name == "training", BATCH, "cpu")
    start = theirs(photos.root, name, BATCH, WORKERS)
    count = NUM_IMAGES // BATCH - 1
    rates: list[tuple[float, float]] = []
    for pair in range(num_pairs + 1):  # the first pair warms up
        mine = count * BATCH / seconds(stream.start(pair * len(stream)), count)
        other = count * BATCH / seconds(start(), count)
        if pair:
            rates.append((mine, other))
    ratios = [mine / other for mine, other in rates]
    mine, other = (statistics.median(side) for side in zip(*rates, strict=True))
    print(
        f"{name}: {mine:,.0f} images/s, ImageFolder with {WORKERS} workers {other:,.0f}: ratio"
        f" {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) of {num_pairs}",
        flush=True,
    )


def building(photos: Photographs, augment: bool, num_pairs: int) -> None:
    """Decoding into a store against one pass over the same files by PIL in two workers."""
    name = "training" if augment else "evaluation"
    transform = Photo(resize=256, crop=224, augment=augment)
    start = theirs(photos.root, name, BATCH, WORKERS)
    seconds(start(), 1)
    ratios = []
    for _ in range(num_pairs):
        shutil.rmtree(photos.root.parent / ".spurcor", ignore_errors=True)
        begin = time.perf_counter()
        open_store(photos.root, photos.names, transform.stored_train)
        mine = time.perf_counter() - begin
        begin = time.perf_counter()
        for _ in start():
            pass
        ratios.append((time.perf_counter() - begin) / mine)
    print(
        f"building the store for {name}: {statistics.median(ratios):.2f} times as fast as a pass of"
        f" PIL ({min(ratios):.2f} to {max(ratios):.2f}) of {num_pairs}",
        flush=True,
    )


def resampling(photos: Photographs) -> None:
    """Levels between our evaluation image and torchvision's, and between crops of the same box."""
    transform = Photo(resize=256, crop=224, augment=True)
    split = photos.open(photos.members, transform)["train"]
    crops = transforms.Compose([transforms.Resize((256, 256)), transforms.CenterCrop(224)])
    rows = torch.arange(0, NUM_IMAGES, 40)
    originals = [Image.open(photos.root / photos.names[row]).convert("RGB") for row in rows]
    found = split.images.take(rows).permute(0, 2, 3, 1).numpy().astype(int)
    expected = np.stack([np.asarray(crops(image)) for image in originals])
    print(f"evaluation: at most {np.abs(found - expected).max()} of 255 levels off PIL")
    boxes = transform.draw(split.train_images.sizes(rows), torch.Generator().manual_seed(0))
    assert boxes is not None
    boxes[:, 4] = 0  # not mirrored
    found = transform.gather(split.train_images, rows, boxes).permute(0, 2, 3, 1).numpy()
    scale = SIZE[1] / 256  # the same boxes on the originals, resampled once by PIL
    difference = []
    for image, (top, left, height, width, _), crop in zip(
        originals, boxes.tolist(), found, strict=True
    ):
        box = (left * scale, top * scale, (left + width) * scale, (top + height) * scale)
        direct = image.resize((224, 224), Image.Resampling.BILINEAR, box=box)
        difference.append(np.abs(crop.astype(int) - np.asarray(direct)))
    print(
        f"training: a crop of the stored image is off the same crop of the original by"
        f" {np.mean(difference):.1f} levels on average, {np.percentile(difference, 99):.0f} at most"
        f" for 99 % of the pixels"
    )


def opening(folder: Path) -> None:
    """All of CelebA by name, with holes in the place of its 19 GB: from its tables to a batch."""
    root = folder / "celeba"
    (root / "img_align_celeba").mkdir(parents=True)
    rng, names = np.random.default_rng(0), [f"{i + 1:06}.jpg" for i in range(NUM_FACES)]
    for name in names:
        (root / "img_align_celeba" / name).touch()
    columns = [f"Attribute_{i}" for i in range(40)]
    columns[9], columns[20] = "Blond_Hair", "Male"
    values = rng.choice([-1, 1], (NUM_FACES, 40))
    rows = [f"{n},{','.join(map(str, v))}" for n, v in zip(names, values.tolist(), strict=True)]
    header = ",".join(["image_id", *columns])
    (root / "list_attr_celeba.csv").write_text("\n".join([header, *rows]) + "\n")
    of_split = np.repeat([0, 1, 2], [162_770, 19_867, 19_962])
    rows = [f"{name},{split}" for name, split in zip(names, of_split.tolist(), strict=True)]
    (root / "list_eval_partition.csv").write_text("\n".join(["image_id,partition", *rows]) + "\n")
    source = CelebA(transform=Photo(crop=178), store="disk")
    logging.disable()  # its groups are not CelebA's
    store._build = _holes
    resident = psutil.Process().memory_info().rss
    begin = time.perf_counter()
    source.splits(folder)
    making = time.perf_counter() - begin
    walls = []
    for _ in range(3):
        begin = time.perf_counter()
        splits = source.splits(folder)
        splits["train"].fetch(torch.randint(162_770, (64,)))
        walls.append(time.perf_counter() - begin)
    taken = max(0, psutil.Process().memory_info().rss - resident)
    print(
        f"opening a store of {NUM_FACES:,} images of 178 x 178, tables read, files looked at, one"
        f" batch: {statistics.median(walls):.2f} s ({min(walls):.2f} to {max(walls):.2f}; the first"
        f" time {making:.2f}), {taken / 1e6:.0f} MB more resident",
        flush=True,
    )


def _holes(folder: Path, root: Path, names: Sequence[str], *_: object) -> None:
    """A store of that many images, all of them black."""
    folder.mkdir(parents=True)
    np.save(folder / "sizes.npy", np.full((len(names), 2), 178, np.int32))
    np.save(folder / "signature.npy", np.arange(len(names)))
    (folder / "store.json").write_text(json.dumps({"images": len(names), "interleaved": False}))
    with (folder / "pixels.bin").open("wb") as file:
        file.truncate(len(names) * 178 * 178 * 3)


def on_gpu(photos: Photographs, num_pairs: int) -> None:
    """Steps of ResNet-50 fed by a store on disk, against steps on one batch that stays."""
    network = models.resnet50().cuda().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 1e-3)

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(
                network(x.contiguous(memory_format=torch.channels_last)), y
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def timed(batches: Iterator[object], count: int = 40) -> float:
        for batch in itertools.islice(batches, 5):
            step(batch.x, batch.y)  # type: ignore[attr-defined]
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for batch in itertools.islice(batches, count):
            step(batch.x, batch.y)  # type: ignore[attr-defined]
        torch.cuda.synchronize()
        return (time.perf_counter() - begin) / count

    stream = ours(photos, True, 128, "cuda")
    for workers in (0, 2, 4):
        stream.workers = workers
        pairs = []
        for pair in range(num_pairs):
            batches = stream.start(pair * 20)
            fixed = next(batches)
            pairs.append((timed(batches), timed(itertools.repeat(fixed))))
        cost = statistics.median(fed / alone - 1 for fed, alone in pairs)
        alone = statistics.median(alone for _, alone in pairs)
        print(f"gpu: {workers} workers: input costs {cost:.1%} of a step of {1e3 * alone:.1f} ms")
    start = theirs(photos.root, "training", 128, 16)
    rate = 128 * 10 / seconds(start(), 10)
    print(f"gpu: ImageFolder with 16 workers: {rate:,.0f} images/s", flush=True)


def main() -> None:
    """Everything on the CPU, or the part for a GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--gpu", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photos = make_photos(Path(folder) / "photos")
        if arguments.gpu:
            on_gpu(photos, arguments.pairs)
            return
        building(photos, False, 3)
        building(photos, True, 3)
        resampling(photos)
        compare(photos, "evaluation", arguments.pairs)
        compare(photos, "training", arguments.pairs)
        opening(Path(folder))


if __name__ == "__main__":
    main()
