"""The options of a search."""

from dataclasses import dataclass
from typing import Any, Literal

from spurcor.config.schema import check_criterion
from spurcor.sweeps.journal import Direction
from spurcor.training.selection import LOWER_IS_BETTER

KEPT = ("metric", "seeds", "sampler", "seed", "pruner", "warmup")  # for the life of a study


@dataclass(frozen=True)
class SearchOptions:
    """Options of `hydra/sweeper=optuna`."""

    sampler: Literal["tpe", "random", "gp", "qmc", "grid", "cmaes"] = "tpe"
    n_trials: int = 20
    seeds: tuple[int, ...] = (0,)  # of the runs of each trial, which its value is the mean of
    metric: str = "val/worst"
    seed: int = 0  # of the sampler
    pruner: Literal["none", "median", "asha"] = "none"
    warmup: int = 1  # epochs of a run before which it is not pruned
    search: dict[str, Any] | None = None
    continues: bool = False  # set by a job that goes on with a search

    def __post_init__(self) -> None:
        for name in ("n_trials", "warmup"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(
                f"seeds={list(self.seeds)} must be a list of different numbers of at least 0"
            )
        check_criterion("metric", self.metric)
        if self.sampler == "cmaes":
            raise ValueError(
                "sampler=cmaes is not offered: Optuna keeps its state in the study as a pickle,"
                " which could run anything when it is read; use gp or tpe"
            )

    @property
    def direction(self) -> Direction:
        """Whether a larger value of the metric is better."""
        lower = self.metric.rpartition("/")[2] in LOWER_IS_BETTER
        return "minimize" if lower else "maximize"
