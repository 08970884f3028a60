"""Compare selective classification by two finished runs: python -m spurcor.selective runs=[A,B]"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from spurcor import cli
from spurcor.config.check import check
from spurcor.config.nodes import Node
from spurcor.config.schema import OutputPaths
from spurcor.errors import UserError

if TYPE_CHECKING:
    from spurcor.analysis.selective import Stored


@dataclass(frozen=True)
class SelectiveConfig:
    """Options of `spurcor.selective`; predictions are stored, so no data is read."""

    runs: tuple[str, ...]
    analysis: dict[str, Node]
    paths: OutputPaths

    def __post_init__(self) -> None:
        if len(self.runs) != 2:
            raise ValueError(f"runs={list(self.runs)} must name two runs: runs=[<before>,<after>]")
        if list(self.analysis) != ["selective"]:
            raise ValueError(f"analysis={list(self.analysis)} must be selective")


def main(cfg: DictConfig) -> int:
    """Compare the runs, write and show the result, and return the exit code."""
    config = check(cfg, SelectiveConfig)
    selective = config.analysis["selective"].build()

    from spurcor.config.nodes import plain
    from spurcor.runs.lookup import find_done
    from spurcor.runs.results import read_result
    from spurcor.system.files import write_json
    from spurcor.system.terminal import Terminal

    directories = [find_done(run, config.paths.outputs, "runs") for run in config.runs]
    results = [read_result(directory) for directory in directories]
    _refuse_other_splits(results)
    names = [f"{result['run']['identity']}-seed{result['run']['seed']}" for result in results]
    folder = config.paths.outputs / "selective" / "_".join(names)
    folder.mkdir(parents=True, exist_ok=True)
    part = selective.compare(_networks(results, directories), folder)
    options = plain(config.analysis["selective"].arguments)
    write_json(folder / "result.json", {"runs": names, "options": options, **part})
    terminal = Terminal()
    terminal.say((folder / "table.md").read_text(encoding="utf-8"))
    terminal.say(f"files   {folder}")
    return 0


def _refuse_other_splits(results: Sequence[Mapping[str, Any]]) -> None:
    """Refuse runs on different data: neither thresholds nor agreement would be valid."""
    first, second = (result["run"]["splits"] for result in results)
    for name in ("val", "test", *results[1]["tests"]):
        if first.get(name) != second.get(name):
            raise UserError(
                f"runs: {results[0]['run']['identity']} and {results[1]['run']['identity']} have"
                f" different {name} splits; choose two runs on the same data"
            )


def _networks(results: Sequence[Mapping[str, Any]], directories: Sequence[Path]) -> "list[Stored]":
    """Load both runs' stored predictions, named by method, or by identity if methods agree."""
    from spurcor.analysis.selective import Stored
    from spurcor.data.groups import GroupSpec

    for result, directory in zip(results, directories, strict=True):
        if result["val"] is None or not (result["test"] or {}).get("classes"):
            raise UserError(
                f"runs: {directory} has no results on val, on test or per class; choose a run that"
                " was trained by this version, and not on val"
            )
    test = results[0]["test"]
    classes, groups = tuple(test["classes"]), list(test["groups"])
    if "labels" in test:
        spec = GroupSpec(classes, (), task="multilabel")
    else:
        own = groups[: len(groups) // len(classes)]  # groups of the first class
        spec = GroupSpec(classes, tuple(name.removeprefix(f"{classes[0]}/") for name in own))
    names = [result["run"]["method"] for result in results]
    if names[0] == names[1]:
        names = [f"{r['run']['identity']}-seed{r['run']['seed']}" for r in results]
    pairs = zip(names, directories, strict=True)
    return [Stored.load(name, spec, directory) for name, directory in pairs]


if __name__ == "__main__":
    sys.exit(cli.run(main, "selective"))
