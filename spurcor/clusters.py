"""Cluster the representation of a finished run: python -m spurcor.clusters run=..."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig

from spurcor import cli
from spurcor.config.check import check
from spurcor.config.schema import RunPaths
from spurcor.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class ClustersConfig:
    """Options of `spurcor.clusters`; everything else comes from the run's saved configuration."""

    run: str
    paths: RunPaths
    num_clusters: int = 16
    seed: int | None = None
    device: str = "auto"
    centres: Literal["directions", "features"] = "directions"

    def __post_init__(self) -> None:
        if self.num_clusters < 1:
            raise ValueError(f"num_clusters={self.num_clusters} must be at least 1")


def main(cfg: DictConfig) -> int:
    """Cluster the training images, write and show the result, and return the exit code."""
    config = check(cfg, ClustersConfig)

    from spurcor.data.groups import Split
    from spurcor.models import weights
    from spurcor.pruning import clusters as clustering
    from spurcor.runs import build, lookup
    from spurcor.runs.refusals import refuse_leak
    from spurcor.runs.results import read_result
    from spurcor.system.terminal import Terminal, log_to_terminal

    log_to_terminal()
    directory, run = lookup.reopen(config.run, config.paths)
    splits, method = build.build(replace(run, train=replace(run.train, device=config.device)))
    refuse_leak(read_result(directory)["run"]["splits"], splits)
    train = splits[Split.TRAIN]
    train.spec.require_classes("a table of clusters against classes and attributes")
    if config.num_clusters > len(train):
        raise UserError(
            f"num_clusters={config.num_clusters} is more than the {len(train)} samples of train;"
            " make it smaller"
        )
    weights.load_weights(method, directory / "last.safetensors")
    seed = run.seed if config.seed is None else config.seed
    x = clustering.represent(method.eval().backbone, train, splits.transform)
    clusters = clustering.cluster(x, config.num_clusters, seed, config.centres)
    of = "" if config.centres == "directions" else f"-{config.centres}"
    folder = directory / f"clusters-{config.num_clusters}{of}-seed{seed}"
    clustering.write_clusters(folder, train, clusters)
    found = clustering.describe(folder, folder / "clusters.png", x, train, clusters)
    terminal = Terminal()
    terminal.console.print(_table(found))
    for path in sorted(folder.iterdir()):
        terminal.say(str(path))
    return 0


def _table(found: Mapping[str, Any]) -> "Table":
    """Return a table of how well the clusters predict class and attribute."""
    from rich.table import Table

    table = Table("of", "purity (%)", "mutual information (nats)", "normalised")
    for of in ("class", "attribute"):
        values = found[of]
        table.add_row(
            of,
            f"{100 * values['purity']:.1f}",
            f"{values['mutual_information']:.3f}",
            f"{values['normalized_mutual_information']:.3f}",
        )
    return table


if __name__ == "__main__":
    sys.exit(cli.run(main, "clusters"))
