"""Pruning: after each evaluation a trial's first run asks its study whether to go on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.trial import TrialState

from spurcor.errors import UserError
from spurcor.sweeps.journal import JOURNAL, LOCK, open_study
from spurcor.training.selection import LOWER_IS_BETTER, default_criterion, score

Rows = Sequence[Mapping[str, Any]]
SEARCH = "search"  # the user attribute of a study that says what it searches, and how

PRUNERS: dict[str, Callable[[int], BasePruner]] = {
    "none": lambda warmup: NopPruner(),
    "median": lambda warmup: MedianPruner(n_startup_trials=5, n_warmup_steps=warmup - 1),
    "asha": lambda warmup: SuccessiveHalvingPruner(min_resource=warmup, reduction_factor=3),
}


class Pruner:
    """Tells a study the rows of a trial, and says whether the trial has had enough."""

    def __init__(self, folder: Path, number: int) -> None:
        """Read from the study in `folder` how it prunes; UserError if it has no such trial."""
        unknown = UserError(
            f"trial={number}: {folder} has no search with that trial; leave trial to"
            " hydra/sweeper=optuna"
        )
        if not (folder / JOURNAL).exists():
            raise unknown
        self._lock, self._number = FileLock(folder / LOCK), number
        with self._lock:
            self._study = open_study(folder)
            if not 0 <= number < len(self._study.get_trials(deepcopy=False)):
                raise unknown
            about = self._study.user_attrs[SEARCH]
        self._metric = about["metric"]
        self._study.pruner = PRUNERS[about["pruner"]](about["warmup"])

    def __call__(self, rows: Rows) -> bool:
        """Report the best value so far at each epoch of the rows; return whether to stop."""
        with self._lock:
            frozen = self._study.get_trials(deepcopy=False)[self._number]
            if frozen.state != TrialState.RUNNING:
                return False
            trial = optuna.Trial(self._study, frozen._trial_id)
            for epoch, value in best_so_far(rows, self._metric):
                if epoch not in frozen.intermediate_values:
                    trial.report(value, epoch)
            return bool(trial.should_prune())


def best_so_far(rows: Rows, metric: str) -> Iterator[tuple[int, float]]:
    """Yield the epochs of a run, counted over its phases, and the best value in the phase so far.

    Only metrics of VAL can be read. Epochs without the metric are left out.
    """
    before, phase, best = 0, None, -float("inf")
    sign = -1.0 if metric.rpartition("/")[2] in LOWER_IS_BETTER else 1.0
    last = 0
    for row in rows:
        if row["phase"] != phase:
            before, phase, best = last, row["phase"], -float("inf")
        last = before + row["epoch"]
        value = score(row, default_criterion(row, metric))
        if value is not None:
            best = max(best, value)
            yield last, sign * best
