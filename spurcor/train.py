"""Train a classifier, repair it, record everything: python -m spurcor.train [key=value ...]."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from spurcor import cli


def main(cfg: DictConfig) -> int:
    """One run; returns its exit code."""
    from spurcor import launcher

    if cfg.get("point"):
        paths = [cfg.point] if isinstance(cfg.point, str) else cfg.point
        return launcher.run_points(Path(path) for path in paths)
    return launcher.run_single(cfg)


if __name__ == "__main__":
    sys.exit(cli.run(main, "train"))
