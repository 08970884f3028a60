"""What a search costs beyond its runs: python scripts/bench/search.py

The runs are done before. A search draws them again, under another name, and finds each done; a list
of the same points finds them done, too. The difference between two numbers of trials leaves out
imports and the report. Interleaved; the median of --pairs pairs.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

QUICK = (
    "method=erm", "method.epochs=1", "backbone=mlp", "backbone.width=8", "dfr=none", "tracker=none",
    "dataset.subset_size=40", "train.batch_size=20",
)  # fmt: skip
SEARCH = ("hydra/sweeper=optuna", "hydra.sweeper.sampler=random")
RATE = "optimizer.lr=tag(log,interval(1e-4,1e-1))"


def seconds(outputs: Path, *words: str) -> float:
    """Run a command of `spurcor.train` and return how long it took."""
    command = [sys.executable, "-m", "spurcor.train", "-m", *QUICK, f"paths.outputs={outputs}"]
    begin = time.perf_counter()
    subprocess.run([*command, *words], check=True, capture_output=True)
    return time.perf_counter() - begin


def main() -> None:
    """Print seconds per trial, and the ratio to a list of the same points."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    few, many = 2, options.trials
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder)
        seconds(outputs, *SEARCH, RATE, "sweep=first", f"hydra.sweeper.n_trials={many}")
        table = (outputs / "sweeps" / "first" / "trials.csv").read_text().splitlines()[1:]
        rates = [line.split(",")[4] for line in table]
        found: dict[str, list[float]] = {"search": [], "list": []}
        for pair in range(options.pairs + 1):
            took = []
            for count in (few, many):
                name = (f"sweep=search{pair}_{count}", f"hydra.sweeper.n_trials={count}")
                listed = f"optimizer.lr={','.join(rates[:count])}"
                search = seconds(outputs, *SEARCH, RATE, *name)
                took.append((search, seconds(outputs, listed, f"sweep=list{pair}_{count}")))
            for kind, less, more in zip(found, took[0], took[1], strict=True):
                found[kind].append((more - less) / (many - few))
    searches, lists = (found[kind][1:] for kind in found)
    ratios = [a / b for a, b in zip(searches, lists, strict=True)]
    print(
        f"{statistics.median(searches):.3f} s per trial of a search"
        f" ({min(searches):.3f} to {max(searches):.3f}), {statistics.median(lists):.3f} s per point"
        f" of a list; ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to"
        f" {max(ratios):.2f}) of {options.pairs} pairs"
    )


if __name__ == "__main__":
    main()
