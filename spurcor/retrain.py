"""Apply Deep Feature Reweighting to a finished run: python -m spurcor.retrain run=... dfr=..."""

import sys
from dataclasses import dataclass

from omegaconf import DictConfig

from spurcor import cli
from spurcor.config.check import check
from spurcor.config.nodes import Node
from spurcor.config.schema import RunPaths


@dataclass(frozen=True)
class RetrainConfig:
    """Options of `spurcor.retrain`; everything else comes from the run's saved configuration."""

    run: str
    dfr: Node
    tracker: dict[str, Node]
    paths: RunPaths


def main(cfg: DictConfig) -> int:
    """Repair the run and return the exit code."""
    config = check(cfg, RetrainConfig)

    from spurcor.runs import execute, lookup
    from spurcor.system.terminal import Terminal, log_to_terminal

    log_to_terminal()
    directory, run = lookup.reopen(config.run, config.paths, dfr=config.dfr, tracker=config.tracker)
    return execute.retrain(directory, run, Terminal()).exit_code


if __name__ == "__main__":
    sys.exit(cli.run(main, "retrain"))
