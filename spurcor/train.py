"""Train a classifier, repair it, record everything: python -m spurcor.train [key=value ...]."""

import sys
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from spurcor import cli
from spurcor.config.check import check


@dataclass(frozen=True)
class FrozenPoints:
    """Paths of frozen points, files that hold the rest of the configuration."""

    point: str | tuple[str, ...]


def main(cfg: DictConfig) -> int:
    """Train one run, or the given frozen points, and return the exit code."""
    from spurcor.sweeps import carry_out

    if cfg.get("point"):
        frozen = check(OmegaConf.masked_copy(cfg, "point"), FrozenPoints).point
        paths = [frozen] if isinstance(frozen, str) else frozen
        return carry_out.run_points(Path(path) for path in paths)
    return carry_out.run_single(cfg)


if __name__ == "__main__":
    sys.exit(cli.run(main, "train"))
