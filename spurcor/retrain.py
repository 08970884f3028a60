"""Deep Feature Reweighting of a finished run: python -m spurcor.retrain run=... dfr=..."""

import sys
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from spurcor import cli
from spurcor.config import Node, Paths, check


@dataclass(frozen=True)
class RetrainConfig:
    """What a repair is made from; the rest is the run's own configuration."""

    run: str
    dfr: Node
    tracker: dict[str, Node]
    paths: Paths


def main(cfg: DictConfig) -> int:
    """One repair; returns its exit code."""
    tree = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(tree, dict)
    tree["paths"]["data"] = tree["paths"].get("data", ".")
    config = check({str(k): v for k, v in tree.items()}, RetrainConfig)

    from spurcor import runs
    from spurcor.console import Terminal

    directory = runs.find(config.run, config.paths.outputs)
    return runs.retrain(directory, config.dfr, config.tracker, Terminal()).exit_code


if __name__ == "__main__":
    sys.exit(cli.run(main, "retrain"))
