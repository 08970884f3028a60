"""A step of SCALE against two steps of ERM: python scripts/bench/scale.py

ResNet-18 on 64 x 32 images, as in dominoes. Two ERM steps are forward, backward and one step of SGD
each, on as many images. Beside it the gating as a loop over parameters that reads every cosine on
the CPU, which waits for the device at every layer. Interleaved; the median of 30 pairs.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
from timing import timed
from torch.nn import functional as F

from spurcor.backbones.resnet import ResNet
from spurcor.data.groups import Batch, DataInfo, GroupSpec
from spurcor.methods.scale import Scale, TwoStreams, cosine

PAIRS, CLASSES = 30, 10
SPEC = GroupSpec(tuple(map(str, range(CLASSES))), tuple(map(str, range(CLASSES))))


def make(device: torch.device, batch_size: int) -> tuple[Scale, TwoStreams, dict[str, Batch]]:
    """A method on its device, its phase set up, and a batch of each stream."""
    torch.manual_seed(0)
    info = DataInfo(SPEC, (3, 64, 32), torch.ones(CLASSES**2))
    method = Scale(ResNet(info, depth=18, pretrained="none"), info, epochs=1).to(device).train()
    (phase,) = method.phases()
    assert isinstance(phase, TwoStreams)
    run = SimpleNamespace(
        optimizer=lambda weights: torch.optim.SGD(weights, 1e-3, momentum=0.9, weight_decay=1e-3),
        schedule=lambda optimizer, epochs: None,
        accumulate=1,
        clip_norm=None,
    )
    phase.setup(run)  # type: ignore[arg-type]
    labels = torch.arange(batch_size, device=device) % CLASSES
    batches = {
        role: Batch(
            torch.randn(batch_size, 3, 64, 32, device=device), labels, labels, labels, labels
        )
        for role in ("train", "target")
    }
    return method, phase, batches


def two_erm_steps(method: Scale, batches: dict[str, Batch]) -> Callable[[], None]:
    """Forward, backward and step, once per batch."""
    weights = [*method.backbone.parameters(), *method.head.parameters()]
    optimizer = torch.optim.SGD(weights, 1e-3, momentum=0.9, weight_decay=1e-3)

    def steps() -> None:
        for batch in batches.values():
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(method.predict(batch.x), batch.y).backward()
            optimizer.step()

    return steps


def with_a_loop(phase: TwoStreams, batches: dict[str, Batch]) -> Callable[[], None]:
    """The same step, each layer's weights taken to the CPU and back, its mean cosine read."""

    @torch.no_grad()
    def pair(taken: Sequence[torch.Tensor | None], function: object) -> list[torch.Tensor]:
        found = []
        shared = zip(phase.shared.weights, phase.shared.groups.values(), taken, strict=True)
        for weight, groups, g_tr in shared:
            assert weight.grad is not None
            assert g_tr is not None
            cosines = []
            for tr, ta in zip(groups.parts(g_tr), groups.parts(weight.grad), strict=True):
                c = cosine(tr, ta).cpu()
                float(c.mean())
                ta.addcmul_(tr, ((c + 1) / 2).to(ta.device)[:, None])
                cosines.append(c.to(ta.device))
            found.append(torch.cat(cosines))
        return found

    phase.shared.pair = pair  # type: ignore[method-assign]
    return lambda: _ignore(phase.step(batches))


def _ignore(_: object) -> None:
    pass


def main() -> None:
    """Ratios for both batch sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(parser.parse_args().device)
    for batch_size in (64, 16):
        method, phase, batches = make(device, batch_size)
        _, other, _ = make(device, batch_size)
        sides: dict[str, Callable[[], None]] = {
            "scale": lambda phase=phase, batches=batches: _ignore(phase.step(batches)),
            "erm": two_erm_steps(make(device, batch_size)[0], batches),
            "loop": with_a_loop(other, batches),
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for pair in range(PAIRS + 3):  # the first three warm up
            for name, step in sides.items():
                wall = timed(step, device)
                if pair >= 3:
                    seconds[name].append(wall)
        del method
        for name in ("scale", "loop"):
            ratios = [a / b for a, b in zip(seconds[name], seconds["erm"], strict=True)]
            print(
                f"batch {batch_size}, {name}: {statistics.median(ratios):.3f} of two ERM steps"
                f" ({min(ratios):.3f} to {max(ratios):.3f}) of {PAIRS} pairs;"
                f" {1e3 * statistics.median(seconds[name]):.0f} ms against"
                f" {1e3 * statistics.median(seconds['erm']):.0f} ms",
                flush=True,
            )


if __name__ == "__main__":
    main()
