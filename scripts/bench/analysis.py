"""The gradient analyses against a plain loop and training: python scripts/bench/analysis.py

An MLP of 4 x 1,024 hidden units on 768 features, 4 groups, 5,000 samples. The plain loop does as
the study's own code: a group at a time and whole, each parameter's gradient copied to the host,
gradients and Jacobians by passes of their own. A training pass is forward and backward of the mean
loss, in chunks of the same size. Interleaved; medians. Then peak memory and time against the
numbers of samples and of weights, each peak in a process of its own.
"""

import argparse
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial

import psutil
import torch
from timing import timed
from torch import Tensor

from spurcor.analysis.statistics import Request, collect_one
from spurcor.backbones.mlp import Mlp
from spurcor.data.groups import DataInfo, GroupedDataset, GroupSpec
from spurcor.data.images import Images
from spurcor.data.splits import Splits
from spurcor.methods.erm import Erm
from spurcor.models.features import Fixed

SPEC = GroupSpec(("small", "large"), ("green", "red"), aligned=(0, 1))
SHARES = (0.45, 0.05, 0.05, 0.45)
SAMPLES, WIDTH, FEATURES, CHUNK = 5000, 1024, 768, 512
REQUEST = Request("train", None, CHUNK, gradients=True, jacobians=True)


def make(samples: int, width: int, device: torch.device) -> tuple[Splits, Erm]:
    """Random features of unit length, and a network for them."""
    torch.manual_seed(0)
    counts = torch.tensor(SHARES).mul(samples).round().long()
    g = torch.arange(4).repeat_interleave(counts)[torch.randperm(int(counts.sum()))]
    x = torch.randn(len(g), FEATURES, 1, 1) + (g % 2)[:, None, None, None]
    images = Images((x / x.flatten(1).norm(dim=1)[:, None, None, None]).to(device))
    place = torch.arange(len(g))
    data = GroupedDataset(SPEC, images, (g // 2).to(device), (g % 2).to(device), place)
    info = DataInfo(SPEC, (FEATURES, 1, 1), data.group_counts.cpu(), "logistic")
    method = Erm(Mlp(info, width, 4, "softplus", "mup"), info, epochs=1).to(device)
    return Splits({"train": data}, Fixed(), device), method


def ours(splits: Splits, method: Erm) -> Tensor:
    """(8, 8) products of group gradients and mean Jacobians."""
    return collect_one(REQUEST, method, splits).gram


def plain_loop(splits: Splits, method: Erm) -> Tensor:
    """The same, a group at a time, by vectors on the host."""
    data, weights = splits["train"], method.weights()
    vectors = []
    for jacobians in (False, True):
        for group in range(4):
            members = (data.g == group).nonzero().squeeze(1)
            batch = data.fetch(members)
            logits = method.predict(splits.transform(batch.x))
            f = logits[:, 1] - logits[:, 0]
            value = f.mean() if jacobians else method.losses(logits, batch.y).mean()
            gradients = torch.autograd.grad(value, weights)
            vectors.append(torch.cat([gradient.detach().cpu().flatten() for gradient in gradients]))
    rows = [torch.stack([torch.dot(u.double(), v.double()) for v in vectors]) for u in vectors]
    return torch.stack(rows)


def training_pass(splits: Splits, method: Erm) -> None:
    """Forward and backward over all samples."""
    data = splits["train"]
    method.zero_grad(set_to_none=True)
    for chunk in torch.arange(len(data)).split(CHUNK):
        batch = data.fetch(chunk)
        losses = method.losses(method.predict(splits.transform(batch.x)), batch.y)
        torch.autograd.backward(losses.sum() / len(data))


SIDES: dict[str, Callable[[Splits, Erm], object]] = {
    "ours": ours,
    "loop": plain_loop,
    "training": training_pass,
}


def peak(side: str, samples: int, width: int, device: torch.device) -> float:
    """MB that a call adds at its most to what is there without it."""
    splits, method = make(samples, width, device)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        SIDES[side](splits, method)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    process, most, ended = psutil.Process(), [0], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not ended.wait(0.002):
            most[0] = max(most[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    SIDES[side](splits, method)
    ended.set()
    watcher.join()
    return (most[0] - before) / 1e6


def main() -> None:
    """Ratios, memory, scaling."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--peak", nargs=3, metavar=("SIDE", "SAMPLES", "WIDTH"))
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(1)
    if arguments.peak:
        side, samples, width = arguments.peak
        print(peak(side, int(samples), int(width), device))
        return
    splits, method = make(SAMPLES, WIDTH, device)
    found, expected = ours(splits, method), plain_loop(splits, method)
    sizes = expected.diagonal().sqrt()
    error = float(((found - expected).abs() / torch.outer(sizes, sizes)).max())
    print(f"largest difference of a product, of its vectors' lengths: {error:.1e}", flush=True)
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for pair in range(arguments.pairs + 1):  # the first warms up
        for side in SIDES:
            wall = timed(partial(SIDES[side], splits, method), splits.device)
            if pair:
                seconds[side].append(wall)
    for other in ("loop", "training"):
        ratios = [a / b for a, b in zip(seconds["ours"], seconds[other], strict=True)]
        print(
            f"ours / {other}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to"
            f" {max(ratios):.2f}) of {len(ratios)} pairs; {statistics.median(seconds['ours']):.2f}"
            f" s against {statistics.median(seconds[other]):.2f} s",
            flush=True,
        )
    print("samples, width, weights: seconds of ours, ns per sample and weight; peak MB ours, loop")
    sizes_to_try = [(SAMPLES // 2, WIDTH), (SAMPLES, WIDTH), (2 * SAMPLES, WIDTH)]
    sizes_to_try += [(SAMPLES, WIDTH // 2), (SAMPLES, 2 * WIDTH)]
    for samples, width in sizes_to_try:
        splits, method = make(samples, width, device)
        num_weights = sum(weight.numel() for weight in method.weights())
        wall = statistics.median(timed(partial(ours, splits, method), device) for _ in range(3))
        peaks = []
        for side in ("ours", "loop"):
            command = [sys.executable, __file__, "--device", arguments.device]
            command += ["--peak", side, str(samples), str(width)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            peaks.append(float(said))
        print(
            f"{samples}, {width}, {num_weights:,}: {wall:.2f} s,"
            f" {1e9 * wall / samples / num_weights:.2f} ns; {peaks[0]:.0f} MB, {peaks[1]:.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
