"""Analyse a finished run: python -m spurcor.analyze run=... analysis=[...]"""

import sys
from dataclasses import dataclass

from omegaconf import DictConfig

from spurcor import cli
from spurcor.config.check import check
from spurcor.config.nodes import Node
from spurcor.config.schema import RunPaths


@dataclass(frozen=True)
class AnalyzeConfig:
    """Options of `spurcor.analyze`; everything else comes from the run's saved configuration."""

    run: str
    analysis: dict[str, Node]
    tracker: dict[str, Node]
    paths: RunPaths


def main(cfg: DictConfig) -> int:
    """Run the analyses and return the exit code."""
    config = check(cfg, AnalyzeConfig)

    from spurcor.runs import execute, lookup
    from spurcor.system.terminal import Terminal, log_to_terminal

    log_to_terminal()
    asked = {"analysis": config.analysis, "tracker": config.tracker}
    directory, run = lookup.reopen(config.run, config.paths, **asked)
    return execute.analyze(directory, run, Terminal()).exit_code


if __name__ == "__main__":
    sys.exit(cli.run(main, "analyze"))
