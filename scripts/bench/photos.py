"""Photographs against a plain timm loop: python scripts/bench/photos.py --data <root>

EfficientNet-Lite0 with random weights on HAM10000. Features of 224 x 224 pixels, decoding included:
spurcor decodes once into a store, then extracts; the plain loop decodes with PIL in two workers of
a DataLoader. An epoch of fine-tuning at 128 pixels, batches of 32: spurcor's step on its stream
against forward, backward and a step of SGD on the DataLoader's batches. Both with the same threads,
interleaved; the median of --pairs pairs.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import timm
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from spurcor.config import resolvers
from spurcor.config.schema import TrainConfig
from spurcor.data.groups import Split
from spurcor.data.photographs import Photographs
from spurcor.models.features import fixed_network, freeze
from spurcor.runs import build
from spurcor.sweeps import read as sweeps
from spurcor.system import places

MODEL, SIDE, SMALL, BATCH, WORKERS = "tf_efficientnet_lite0", 224, 128, 32, 2
DATA = ("dataset=ham10000", "dataset.balance=false", "backbone=efficientnet_lite0")
NETWORK = ("backbone.pretrained=none", "optimizer=sgd", "train.num_threads=2")


def read(*overrides: str) -> TrainConfig:
    """The configuration of a command line."""
    resolvers.register()
    with initialize_config_dir(str(places.CONF), version_base="1.3"):
        cfg = compose("train", list(overrides), return_hydra_config=True)
    return sweeps.read(cfg, cfg.hydra.runtime.choices)


class Files(Dataset[tuple[Tensor, int]]):
    """Image files and their classes, decoded and transformed one by one."""

    def __init__(self, photographs: Photographs, rows: Tensor, side: int, train: bool) -> None:
        self.photographs, self.rows = photographs, rows.tolist()
        crop: list[object] = [v2.Resize((side * 8 // 7,) * 2), v2.CenterCrop(side)]
        if train:
            crop = [v2.RandomResizedCrop(side, (0.7, 1.0)), v2.RandomHorizontalFlip()]
        end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        self.transform = v2.Compose([*crop, *end, v2.Normalize((0.5,) * 3, (0.5,) * 3)])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        row = self.rows[i]
        with Image.open(self.photographs.root / self.photographs.names[row]) as image:
            return self.transform(image.convert("RGB")), int(self.photographs.y[row])


def extraction(data: Path) -> dict[str, Callable[[], object]]:
    """Features of all splits, from files to arrays."""
    fixed = ("features=frozen", "features/backbone=efficientnet_lite0")
    weights = "features.backbone.pretrained=none"
    cfg = read(*DATA, *NETWORK, *fixed, weights, "dataset.sources=[]", f"paths.data={data}")
    source = cfg.dataset.build()
    photographs = source.load(data)
    rows = torch.cat(list(photographs.members.values()))
    loader = DataLoader(Files(photographs, rows, SIDE, train=False), 128, num_workers=WORKERS)
    network = timm.create_model(MODEL, num_classes=0).eval()

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["SPURCOR_STORE"] = folder
            splits = build.Splits.load(source, data, torch.device("cpu"), augmented=False)
            assert cfg.features is not None
            backbone, _ = fixed_network(cfg.features, splits.info, 0)
            freeze(splits, backbone, cfg.features, cfg.dataset, data)

    @torch.no_grad()
    def plain() -> None:
        torch.cat([network(x) for x, _ in loader])

    return {"ours": ours, "plain": plain}


def tuning(data: Path, count: int) -> dict[str, Callable[[], object]]:
    """An epoch over `count` images, the store of spurcor being there."""
    size = [f"dataset.transform.{key}={SMALL}" for key in ("crop", "size")]
    size += [f"dataset.transform.resize={SMALL * 8 // 7}", f"dataset.num_train={count}"]
    cfg = read(*DATA, *NETWORK, *size, f"train.batch_size={BATCH}", f"paths.data={data}")
    splits, method = build.build(cfg)
    (phase,) = method.phases()
    with tempfile.TemporaryDirectory() as folder:
        context = build.context_of(cfg, splits, Path(folder))
    phase.setup(context)
    method.train()
    stream = phase.streams(context)["train"]
    batches: Iterator[object] = stream.start(0)
    photographs = cfg.dataset.build().load(data)
    rows = splits[Split.TRAIN].source
    files = Files(photographs, rows, SMALL, train=True)
    loader = DataLoader(files, BATCH, shuffle=True, num_workers=WORKERS)
    network = timm.create_model(MODEL, num_classes=2).train()
    optimizer = cfg.optimizer.build(params=list(network.parameters()))

    def ours() -> None:
        for _ in range(len(stream)):
            phase.step({"train": next(batches)})  # type: ignore[dict-item]

    def plain() -> None:
        for x, y in loader:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(network(x), y).backward()
            optimizer.step()

    return {"ours": ours, "plain": plain}


def report(what: str, sides: dict[str, Callable[[], object]], pairs: int) -> None:
    """Print the ratio of interleaved pairs, after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(pairs + 1):
        for name, run in sides.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    ratios = [a / b for a, b in zip(seconds["ours"][1:], seconds["plain"][1:], strict=True)]
    ours, plain = (statistics.median(seconds[name][1:]) for name in ("ours", "plain"))
    print(
        f"{what}: {statistics.median(ratios):.3f} of the plain loop"
        f" ({min(ratios):.3f} to {max(ratios):.3f}) of {pairs} pairs; {ours:.1f} s against"
        f" {plain:.1f} s",
        flush=True,
    )


def main() -> None:
    """Extraction, then fine-tuning."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a data root with ham10000")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--images", type=int, default=512, help="images of a fine-tuning epoch")
    options = parser.parse_args()
    torch.set_num_threads(2)
    os.environ["OMP_NUM_THREADS"] = "2"
    report("an epoch of fine-tuning", tuning(options.data, options.images), options.pairs)
    report("features, decoding included", extraction(options.data), options.pairs)


if __name__ == "__main__":
    main()
