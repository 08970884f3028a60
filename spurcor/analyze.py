"""Analyses of a finished run: python -m spurcor.analyze run=... analysis=[...]"""

import sys
from dataclasses import dataclass

from omegaconf import DictConfig

from spurcor import cli
from spurcor.config import Node, RunPaths, check


@dataclass(frozen=True)
class AnalyzeConfig:
    """Which analyses of which run; the rest is the run's own configuration."""

    run: str
    analysis: dict[str, Node]
    tracker: dict[str, Node]
    paths: RunPaths


def main(cfg: DictConfig) -> int:
    """The analyses of one run; returns the exit code."""
    config = check(cfg, AnalyzeConfig)

    from spurcor import runs
    from spurcor.console import Terminal
    from spurcor.launcher import log_to_terminal

    log_to_terminal()
    asked = {"analysis": config.analysis, "tracker": config.tracker}
    directory, run = runs.reopen(config.run, config.paths, **asked)
    return runs.analyze(directory, run, Terminal()).exit_code


if __name__ == "__main__":
    sys.exit(cli.run(main, "analyze"))
