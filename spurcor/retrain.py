"""Deep Feature Reweighting of a finished run: python -m spurcor.retrain run=... dfr=..."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig

from spurcor import cli
from spurcor.config import Node, Paths, check


@dataclass(frozen=True)
class RetrainPaths:
    """Where runs are, and where their data is now if not where they read it."""

    outputs: Path
    data: Path | None = None


@dataclass(frozen=True)
class RetrainConfig:
    """What a repair is made from; the rest is the run's own configuration."""

    run: str
    dfr: Node
    tracker: dict[str, Node]
    paths: RetrainPaths


def main(cfg: DictConfig) -> int:
    """One repair; returns its exit code."""
    config = check(cfg, RetrainConfig)

    from spurcor import runs
    from spurcor.console import Terminal
    from spurcor.launcher import log_to_terminal

    log_to_terminal()
    outputs = config.paths.outputs.expanduser().absolute()
    directory = runs.find_done(config.run, outputs)
    run = runs.read_config(directory)
    run = replace(
        run,
        dfr=config.dfr,
        tracker=config.tracker,
        paths=Paths(data=config.paths.data or run.paths.data, outputs=outputs),
    )
    return runs.retrain(directory, run, Terminal()).exit_code


if __name__ == "__main__":
    sys.exit(cli.run(main, "retrain"))
