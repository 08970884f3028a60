"""DFR_Tr^Val against the published procedure: python scripts/bench/dfr.py [--pairs 5].

Features of Waterbirds' size, 1,199 x 2,048 of rank 50. The shipped fit and a plain scikit-learn
script (tests/published_dfr.py: one call per fit) take turns; the figure is the median of the
ratios of their wall times. Both must choose the same C and reach the same accuracies.
"""

import argparse
import importlib.util
import os
import statistics
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from spurcor.data.groups import GroupSpec
from spurcor.repair.dfr import Dfr
from spurcor.repair.heads import Table
from spurcor.seeding import derive_seed

SPEC = GroupSpec(("landbird", "waterbird"), ("land", "water"), aligned=(0, 1))


def published() -> ModuleType:
    """The plain script, which lives with the tests."""
    path = Path(__file__).parents[2] / "tests" / "published_dfr.py"
    spec = importlib.util.spec_from_file_location("published_dfr", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Print each pair, then median and spread."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    plain = published()
    ratios, plain_seconds = [], []
    for seed in range(-1, options.pairs):  # the first pair warms up
        features = plain.waterbirds_features(max(seed, 0))
        tables = {name: Table(*table) for name, table in features.items()}
        x, y, g = features["test"]

        begin = time.perf_counter()
        fit = Dfr().fit(tables, SPEC, seed)
        ours = plain.accuracies(fit.linear.logits(x).argmax(1) == y, g)
        middle = time.perf_counter()
        rng = np.random.default_rng(derive_seed("dfr", seed))
        c, theirs = plain.dfr_val(features["train"][0], features["val"], features["test"], rng)
        end = time.perf_counter()

        if seed < 0:
            continue
        difference = float(abs(ours - theirs).max())
        if fit.c != c or difference > 1e-3:
            raise SystemExit(f"seed {seed}: C {fit.c} and {c}, accuracies apart by {difference}")
        ratios.append((middle - begin) / (end - middle))
        plain_seconds.append(end - middle)
        print(
            f"seed {seed}: C={c}, accuracies apart by {difference:.1e};"
            f" ours {middle - begin:.2f} s, plain {end - middle:.2f} s, ratio {ratios[-1]:.2f}",
            flush=True,
        )
    print(
        f"median ratio {statistics.median(ratios):.3f} of {len(ratios)} pairs (from"
        f" {min(ratios):.3f} to {max(ratios):.3f}) with {torch.get_num_threads()} threads, load"
        f" {os.getloadavg()[0]:.1f}; plain takes {statistics.median(plain_seconds):.2f} s"
    )


if __name__ == "__main__":
    main()
