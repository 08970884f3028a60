"""Masks of a training set against a pass of training over it: python scripts/bench/masks.py

MaskTune's masks by XGrad-CAM of CIFAR-sized images, packed to bits, against forward and backward of
the same backbone over the same batches. Beside them the masks as a loop over images. Interleaved;
the median of 12 pairs. The array of bits is all that grows with the number of images.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from timing import timed
from torch import Tensor
from torch.nn import functional as F

from spurcor.backbones.cifar_resnet import CifarResNet
from spurcor.backbones.vgg_attention import VggAttention
from spurcor.data.groups import DataInfo, GroupSpec
from spurcor.methods.erm import Erm
from spurcor.models.backbone import Backbone
from spurcor.saliency.maps import heat_maps
from spurcor.saliency.masks import Masks, outliers
from spurcor.training.method import Method

PAIRS, BATCHES, SIZE, CLASSES = 12, 2, 128, 10
INFO = DataInfo(GroupSpec(tuple(map(str, range(CLASSES))), ("any",)), (3, 32, 32), torch.ones(10))


def passes(method: Method, batches: list[Tensor], y: Tensor) -> Callable[[], None]:
    """Forward and backward, batch by batch."""

    def run() -> None:
        method.train()
        for x in batches:
            method.zero_grad(set_to_none=True)
            F.cross_entropy(method.predict(x), y).backward()

    return run


def masking(method: Method, batches: list[Tensor], layer: str, size: int) -> Callable[[], None]:
    """Masks of all images, `size` at a time."""

    def run() -> None:
        method.eval()
        masks = Masks.empty(BATCHES * SIZE, 32, 32)
        for i, x in enumerate(batches):
            for first in range(0, SIZE, size):
                heat = heat_maps(method, x[first : first + size], layer)
                masks.put(
                    torch.arange(i * SIZE + first, i * SIZE + first + len(heat)),
                    outliers(heat, 2.0),
                )

    return run


def main() -> None:
    """Ratios for both networks of CIFAR-10."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(parser.parse_args().device)
    networks: dict[str, Backbone] = {
        "vgg_attention": VggAttention(INFO),
        "resnet32": CifarResNet(INFO, depth=32),
    }
    for name, backbone in networks.items():
        torch.manual_seed(0)
        method = Erm(backbone, INFO, epochs=1).to(device)
        batches = [torch.randn(SIZE, 3, 32, 32, device=device) for _ in range(BATCHES)]
        y = torch.arange(SIZE, device=device) % CLASSES
        layer = backbone.spatial()
        sides = {
            "training": passes(method, batches, y),
            "masks": masking(method, batches, layer, SIZE),
            "one by one": masking(method, batches, layer, 1),
        }
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for pair in range(PAIRS + 2):  # the first two warm up
            for side, run in sides.items():
                wall = timed(run, device)
                if pair >= 2:
                    seconds[side].append(wall)
        for side in ("masks", "one by one"):
            ratios = [a / b for a, b in zip(seconds[side], seconds["training"], strict=True)]
            per_image = 1e6 * statistics.median(seconds[side]) / (BATCHES * SIZE)
            print(
                f"{name}, {side}: {statistics.median(ratios):.2f} of forward and backward"
                f" ({min(ratios):.2f} to {max(ratios):.2f}) of {PAIRS} pairs; {per_image:.0f} us an"
                f" image, {32 * 32 // 8} bytes of it kept",
                flush=True,
            )


if __name__ == "__main__":
    main()
