"""What groups that nobody annotated cost: python scripts/bench/groups.py

A step of JTT's second network, and one of LfF, against a step of ERM on equal batches of digits,
interleaved; the median of 30. Then the seconds of inference on features (160,000, 2,048)
by clusters, and on as many logits by environments; no plain alternative stands beside these.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from timing import timed

from spurcor.config import resolvers
from spurcor.config.schema import TrainConfig
from spurcor.data.groups import GroupSpec
from spurcor.groups.clusters import Clusters
from spurcor.groups.contract import Table
from spurcor.groups.eiil import Eiil
from spurcor.runs.build import build, context_of
from spurcor.runs.execute import execute
from spurcor.runs.reference import obtain
from spurcor.sweeps.read import read
from spurcor.system.places import CONF
from spurcor.system.terminal import Terminal

PAIRS, SAMPLES, WIDTH = 30, 160_000, 2_048
CPU = torch.device("cpu")


def configured(outputs: Path, *words: str) -> TrainConfig:
    """Compose and check a configuration."""
    resolvers.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        typed = [*words, f"paths.outputs={outputs}", "tracker=none", "dfr=none"]
        cfg = compose("train", typed, return_hydra_config=True)
    return read(cfg, cfg.hydra.runtime.choices)


def stepper(config: TrainConfig) -> Callable[[], object]:
    """Return a function that makes the next step of a run's only phase."""
    obtain(config, lambda reference: execute(reference, Terminal(quiet=True)))
    splits, method = build(config)
    context = context_of(config, splits, config.directory)
    (phase,) = method.phases()
    phase.setup(context)
    method.train()
    batches = itertools.cycle(list(itertools.islice(phase.streams(context)["train"].start(0), 10)))
    return lambda: phase.step({"train": next(batches)})


def main() -> None:
    """Print the ratio of the steps, and the seconds of inference."""
    with tempfile.TemporaryDirectory() as folder:
        names = ("erm", "jtt", "lff")
        steps = [stepper(configured(Path(folder), f"method={name}")) for name in names]
        for step in 5 * steps:
            step()
        times = [[timed(step, CPU) for step in steps] for _ in range(PAIRS)]
    for place, name in enumerate(names[1:], 1):
        ratios = sorted(row[place] / row[0] for row in times)
        print(
            f"a step of {name} / a step of erm: {statistics.median(ratios):.3f}"
            f" ({ratios[PAIRS // 4]:.3f} to {ratios[3 * PAIRS // 4]:.3f}, the middle half)"
        )
    torch.manual_seed(0)
    y = torch.randint(2, (SAMPLES,))
    features, logits = torch.randn(SAMPLES, WIDTH) + y[:, None], torch.randn(SAMPLES, 2)
    table, spec = {"train": Table(y, logits, features)}, GroupSpec(("a", "b"), ("x", "y"))
    for name, inference in (("clusters", Clusters(epochs=1)), ("eiil", Eiil(epochs=1))):
        begin = time.perf_counter()
        inference.infer(table, spec, 0)
        print(f"groups={name} on {SAMPLES:,} samples: {time.perf_counter() - begin:.1f} s")


if __name__ == "__main__":
    main()
