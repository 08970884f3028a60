"""An Optuna study that lives in the folder of its sweep, shared by any number of processes.

A trial is drawn and stored in one line of the journal, so that a kill loses or doubles none. Who
works on a trial holds its lock; a trial under way that nobody holds is taken up again.
"""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from filelock import FileLock
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from spurcor.errors import UserError
from spurcor.seeding import derive_seed
from spurcor.sweeps.journal import JOURNAL, LOCK, open_study
from spurcor.sweeps.pruning import SEARCH, Pruner, Rows, best_so_far
from spurcor.sweeps.search_options import KEPT, SearchOptions
from spurcor.sweeps.space import Space, Values
from spurcor.system.files import decoding
from spurcor.system.lock import holder, locked

ATTEMPTS = 3  # of one process to carry out a trial whose points are killed
FEW = 10  # with fewer trials, importances are noise


class _Qmc(QMCSampler):
    """Quasi-random numbers whose place in the sequence is the trial's, kept in no store."""

    def _find_sample_id(self, study: optuna.Study, *space: Any, **options: Any) -> int:
        return len(study.get_trials(deepcopy=False))


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=True, group=True),
    "random": lambda seed: RandomSampler(seed=seed),
    "gp": lambda seed: GPSampler(seed=seed),
}


@dataclass(frozen=True)
class Trial:
    """A draw of the searched keys; `ended` is the time in epoch ms at which its value was told."""

    number: int
    values: Values
    state: Literal["running", "done", "failed", "pruned"] = "running"
    value: float | None = None
    scores: tuple[float, ...] = ()  # one per seed
    runs: tuple[str, ...] = ()  # their folders in the outputs, once they are done
    message: str = ""
    ended: int | None = None


class Study:
    """The trials of a search."""

    def __init__(
        self,
        folder: Path,
        space: Space,
        options: SearchOptions,
        base: tuple[str, list[str]],
        choices: Mapping[str, Any],
    ) -> None:
        """Open the study in `folder`, or begin it.

        `base` is the identity of one point, which tells apart settings that are not searched, with
        the overrides typed for them; `choices` are the options of the groups.
        Raises UserError if the study there searches another space, or cannot be read.
        """
        self.folder, self.space, self.options, self.choices = folder, space, options, choices
        self.grid = list(space.grid(choices)) if options.sampler == "grid" else None
        self.size = min(options.n_trials, len(self.grid)) if self.grid else options.n_trials
        self._killed: dict[int, int] = {}  # times that this process saw it, by trial
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / JOURNAL
        about = {
            "space": space.described(),
            **{name: getattr(options, name) for name in KEPT},
            "base": base[0],
            "typed": base[1],
        }
        with self._alone(), decoding(path, "choose another name with sweep=<name>"):
            self._study = open_study(folder, options.direction)
            known = self._study.user_attrs.get(SEARCH)
            if known is None:
                self._study.set_user_attr(SEARCH, about)
        if known is not None:
            _refuse_other(folder, known, about)

    def take(self, stack: ExitStack, *, draw: bool = True) -> Trial | None:
        """Return a trial to carry out, held until `stack` closes; None if there is none left.

        A trial that its process did not end comes first, with the same values; a new one comes only
        with `draw`.
        """
        with self._alone():
            trials = self._study.get_trials(deepcopy=False)
            for trial in trials:
                if trial.state == TrialState.RUNNING and holder(self._lock(trial.number)) is None:
                    return self._hold(trial, stack)
            if len(trials) >= self.size or not draw:
                return None
            self._study.add_trial(self._draw(trials))
            return self._hold(self._study.get_trials(deepcopy=False)[-1], stack)

    def tell(self, trial: Trial, rows: Sequence[Rows], runs: Sequence[str] = ()) -> None:
        """End a trial whose `runs` have these rows; the mean of their metric is its value."""
        found = [best_value(of, self.options.metric) if of else None for of in rows]
        scores = [value for value in found if value is not None]
        if len(scores) < len(rows):
            self.give_up(trial, f"no epoch has {self.options.metric}")
            return
        if self.options.pruner != "none":  # others are compared with all of its epochs
            Pruner(self.folder, trial.number)(rows[0])
        with self._alone():
            about = {"scores": scores, "runs": list(runs)}
            self._study.set_user_attr(_about(trial.number), about)
            self._study.tell(trial.number, sum(scores) / len(scores))

    def give_up(self, trial: Trial, message: str) -> None:
        """End a trial as failed."""
        with self._alone():
            self._study.set_user_attr(_about(trial.number), {"message": message})
            self._study.tell(trial.number, state=TrialState.FAIL)

    def prune(self, trial: Trial) -> None:
        """End a trial whose first run was stopped."""
        with self._alone():
            self._study.tell(trial.number, state=TrialState.PRUNED)

    def may_try_again(self, trial: Trial) -> bool:
        """Count that a trial was killed; return whether this process may try it again."""
        self._killed[trial.number] = self._killed.get(trial.number, 0) + 1
        return self._killed[trial.number] < ATTEMPTS

    def trials(self) -> list[Trial]:
        """Return all trials, in the order in which they were drawn."""
        with self._alone():
            trials, about = self._study.get_trials(deepcopy=False), self._study.user_attrs
        return [_read(trial, about.get(_about(trial.number), {})) for trial in trials]

    def ranked(self) -> list[Trial]:
        """Return all trials, the best first, those without a value last."""
        sign = -1 if self.options.direction == "maximize" else 1
        known = [trial for trial in self.trials() if trial.value is not None]
        others = [trial for trial in self.trials() if trial.value is None]
        return sorted(known, key=lambda trial: sign * float(trial.value or 0)) + others

    def importances(self) -> dict[str, float]:
        """Return the share of the variance over trials that each key explains (fANOVA).

        Of the keys that all trials have; empty with fewer than FEW of them.
        """
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances

        done = [trial for trial in self.trials() if trial.value is not None]
        keys = [
            key
            for key in (done[0].values if done else ())
            if all(key in trial.values for trial in done)
            and len({trial.values[key] for trial in done}) > 1
        ]
        if len(done) < FEW or len({trial.value for trial in done}) == 1 or not keys:
            return {}
        with self._alone():
            evaluator = FanovaImportanceEvaluator(seed=0)
            return get_param_importances(self._study, evaluator=evaluator, params=keys)

    def _alone(self) -> FileLock:
        """Return the lock under which the study is read and written."""
        return FileLock(self.folder / LOCK)

    def _lock(self, number: int) -> Path:
        return self.folder / "trials" / f"{number}.lock"

    def _hold(self, trial: FrozenTrial, stack: ExitStack) -> Trial:
        path = self._lock(trial.number)
        stack.enter_context(locked(path, self.folder / ".guard"))
        return _read(trial, {})

    def _draw(self, known: list[FrozenTrial]) -> FrozenTrial:
        """Return the next trial. Its number and the seed fix the sampler's randomness.

        It is drawn in memory, so that it can be stored in a single line.
        """
        number = len(known)
        memory = optuna.create_study(
            sampler=self._sampler(number), direction=self.options.direction
        )
        memory.add_trials(known)
        if self.grid is not None:
            memory.enqueue_trial(self.grid[number])
        drawn = memory.ask(dict(self.space.common))
        for section in self.space.sections(drawn.params, self.choices):
            for key, one in section.items():
                _suggest(drawn, key, one)
        return create_trial(
            state=TrialState.RUNNING, params=drawn.params, distributions=drawn.distributions
        )

    def _sampler(self, number: int) -> BaseSampler:
        name = self.options.sampler
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            if name == "qmc":  # one sequence, whose seed is that of all trials
                return _Qmc(seed=self.options.seed, scramble=True)
            seed = derive_seed("sampler", self.options.seed, number) % 2**32
            return SAMPLERS["random" if name == "grid" else name](seed)


def _refuse_other(folder: Path, known: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Refuse to go on with a study of other runs."""
    now = json.loads(json.dumps(about))
    names = {"space": "hydra.sweeper.search", "base": "the other settings"}
    for key in (*KEPT, "space", "base"):
        if known.get(key) != now[key]:
            what = names.get(key, f"hydra.sweeper.{key}")
            of = "typed" if key == "base" else key
            said = f" (were {_text(known.get(of))}, are now {_text(now[of])})"
            raise UserError(
                f"sweep={folder.name}: its study was begun with others in {what}"
                f"{said if key != 'space' else ''}; repeat the command that began it, or choose"
                " another name with sweep=<name>"
            )


def _text(value: Any) -> str:
    return " ".join(map(str, value)) or "none typed" if isinstance(value, list) else str(value)


def _about(number: int) -> str:
    """Return the user attribute of the study with what is known of a trial beyond its value."""
    return f"trial {number}"


def _suggest(trial: optuna.Trial, key: str, one: BaseDistribution) -> None:
    if isinstance(one, CategoricalDistribution):
        trial.suggest_categorical(key, one.choices)
    elif isinstance(one, IntDistribution):
        trial.suggest_int(key, one.low, one.high, step=one.step, log=one.log)
    elif isinstance(one, FloatDistribution):
        trial.suggest_float(key, one.low, one.high, step=one.step, log=one.log)


def _read(trial: FrozenTrial, about: Mapping[str, Any]) -> Trial:
    states: dict[TrialState, Literal["done", "failed", "pruned"]] = {
        TrialState.COMPLETE: "done",
        TrialState.FAIL: "failed",
        TrialState.PRUNED: "pruned",
    }
    return Trial(
        trial.number,
        dict(trial.params),
        states.get(trial.state, "running"),
        trial.value if trial.state == TrialState.COMPLETE else None,
        tuple(about.get("scores", ())),
        tuple(about.get("runs", ())),
        about.get("message", ""),
        None
        if trial.datetime_complete is None
        else int(1000 * trial.datetime_complete.timestamp()),
    )


def best_value(rows: Rows, metric: str) -> float | None:
    """Return the best value of a metric of VAL among the epochs of a run's last phase."""
    last = [row for row in rows if row["phase"] == rows[-1]["phase"]]
    return next((value for _, value in reversed(list(best_so_far(last, metric)))), None)
