"""Tables from the files of a sweep: python -m spurcor.report sweep=..."""

import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from spurcor import cli
from spurcor.config import OutputPaths, check
from spurcor.files import read_json

COLUMNS = ("worst", "average", "aligned", "conflicting")


@dataclass(frozen=True)
class ReportConfig:
    """Which sweep."""

    sweep: str
    paths: OutputPaths


def main(cfg: DictConfig) -> int:
    """Print the table of a sweep as Markdown; returns the exit code."""
    config = check(cfg, ReportConfig)

    from spurcor.launcher import manifest

    entries = manifest(config.paths.outputs, config.sweep)
    found, missing = {}, []
    for entry in entries:
        path = Path(entry["directory"]) / "result.json"
        if path.exists():
            found[path] = read_json(path)
        else:
            missing.append(f"{entry['identity']}/seed{entry['seed']}")
    print("\n".join(markdown(found)))
    if missing:
        print(f"\nnot finished: {', '.join(missing)}")
    return 0


def markdown(results: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    """Test accuracies in per cent, mean and standard deviation over seeds, a row per setting."""
    rows: dict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for result in results.values():
        run = result["run"]
        key = (run["dataset"], run["method"], run["identity"])
        rows[key].append(result["test"])
        for name, part in result["dfr"].items():
            rows[(run["dataset"], f"{run['method']} + DFR {name}", run["identity"])].append(
                part["test"]
            )
    lines = ["| data set | method | seeds | " + " | ".join(COLUMNS) + " |"]
    lines.append("|---|---|---|" + "---|" * len(COLUMNS))
    for (dataset, method, _), tests in rows.items():
        cells = [_spread([test[column] for test in tests]) for column in COLUMNS]
        lines.append(f"| {dataset} | {method} | {len(tests)} | " + " | ".join(cells) + " |")
    return lines


def _spread(values: list[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    if len(known) < 2:
        return f"{known[0]:.1f}" if known else "-"
    return f"{statistics.mean(known):.1f} ± {statistics.stdev(known):.1f}"


if __name__ == "__main__":
    sys.exit(cli.run(main, "report"))
