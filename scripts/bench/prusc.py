"""A step of pruning against one of ERM, and clustering: python scripts/bench/prusc.py

ResNet-18 on 64 images of 224 x 224: forward, backward and one step of Adam on the logits of the
gates, against forward, backward and one step of SGD on the weights. Interleaved; the median of
--pairs pairs. Then spherical k-means of 160,000 x 2,048 features into 16 clusters, with the memory
that it takes beyond them.
"""

import argparse
import resource
import statistics
from collections.abc import Callable
from types import SimpleNamespace

import torch
from timing import timed
from torch.nn import functional as F

from spurcor.backbones.resnet import ResNet
from spurcor.data.groups import Batch, DataInfo, GroupSpec
from spurcor.methods.prusc import Prusc
from spurcor.pruning.kmeans import spherical_kmeans
from spurcor.pruning.phases import Prune

BATCH, SIDE, CLUSTERS = 64, 224, 16
SAMPLES, FEATURES = 160_000, 2048
SPEC = GroupSpec(("a", "b"), ("x", "y"))


def make(device: torch.device) -> tuple[Prusc, Batch]:
    """A method on its device, and a batch."""
    torch.manual_seed(0)
    info = DataInfo(SPEC, (3, SIDE, SIDE), torch.ones(4))
    method = Prusc(ResNet(info, depth=18, pretrained="none"), info, epochs=1).to(device).train()
    x = torch.randn(BATCH, 3, SIDE, SIDE, device=device)
    y = torch.arange(BATCH, device=device)
    return method, Batch(x, y % 2, y % 2, y % 2, y)


def pruning(device: torch.device) -> Callable[[], object]:
    """The phase's own step."""
    method, batch = make(device)
    phase = next(one for one in method.phases() if isinstance(one, Prune))
    phase.setup(SimpleNamespace())  # type: ignore[arg-type]
    phase.clusters = torch.arange(BATCH, device=device) // 4
    return lambda: phase.step({"prune": batch})


def erm(device: torch.device) -> Callable[[], object]:
    """Forward, backward and step."""
    method, batch = make(device)
    optimizer = torch.optim.SGD(method.weights(), 1e-3, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(method.predict(batch.x), batch.y).backward()
        optimizer.step()

    return step


def cluster(device: torch.device) -> None:
    """Features around 40 directions, made in place so that nothing else is in memory."""
    generator = torch.Generator(device).manual_seed(0)
    centres = torch.randn(40, FEATURES, device=device, generator=generator)
    x = torch.empty(SAMPLES, FEATURES, device=device)
    for part in torch.split(x, 2000):
        of = torch.randint(40, (len(part),), device=device, generator=generator)
        part.normal_(std=2.0, generator=generator).add_(centres[of]).relu_()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = timed(lambda: spherical_kmeans(x, CLUSTERS, 0), device)
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(
        f"{SAMPLES:,} x {FEATURES:,} features, {CLUSTERS} clusters: {seconds:.1f} s,"
        f" {more:.0f} MB beyond the features' {x.numel() * 4 / 2**20:.0f} MB in memory"
    )


def main() -> None:
    """The ratio of the steps, then clustering."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pairs", type=int, default=10)
    options = parser.parse_args()
    device = torch.device(options.device)
    cluster(device)  # first, so that the peak of the memory is its own
    sides = {"prune": pruning(device), "erm": erm(device)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for pair in range(options.pairs + 2):  # the first two warm up
        for name, step in sides.items():
            wall = timed(step, device)
            if pair >= 2:
                seconds[name].append(wall)
    ratios = [a / b for a, b in zip(seconds["prune"], seconds["erm"], strict=True)]
    prune, plain = (1e3 * statistics.median(seconds[name]) for name in sides)
    print(
        f"a step of pruning: {statistics.median(ratios):.3f} of a step of ERM"
        f" ({min(ratios):.3f} to {max(ratios):.3f}) of {options.pairs} pairs;"
        f" {prune:.0f} ms against {plain:.0f} ms"
    )


if __name__ == "__main__":
    main()
