"""The trials of a study, carried out with a launcher."""

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from spurcor.errors import PointError, UserError
from spurcor.launchers.in_process import InProcess
from spurcor.launchers.local_pool import KILLED
from spurcor.launchers.slurm import Slurm
from spurcor.sweeps.carry_out import warn_of_other_code
from spurcor.sweeps.manifest import Point, open_sweep, write_manifest
from spurcor.sweeps.space import Values
from spurcor.sweeps.states import UNDER_WAY, PointState
from spurcor.sweeps.study import Study, Trial
from spurcor.system.files import read_lines
from spurcor.system.lock import HELD_BY, holder, lock_of
from spurcor.system.terminal import Terminal

PATIENCE = 2.0  # seconds until a run that another trial trains is looked at again
# How messages of points begin that ended through no fault of their own.
DIED = (KILLED, *(f"SLURM: {how}" for how in ("CANCELLED", "NODE_FAIL", "BOOT_FAIL", "PREEMPTED")))


class Trials:
    """Carries out the trials that a study lacks.

    `compose` returns the points of drawn values, one per seed.
    """

    def __init__(
        self, study: Study, compose: Callable[[Values, Sequence[int]], list[Point]]
    ) -> None:
        self.study, self.compose, self.options = study, compose, study.options
        self._composing = threading.RLock()  # Hydra composes in one thread only
        self._stopped = False
        self._opened = False

    def carry_out(self, launcher: InProcess) -> None:
        """Carry out trials until the study has all, in as many threads as the launcher is wide."""

        def work() -> None:
            while not self._stopped and self._carry_out_one(launcher):
                pass

        if launcher.width == 1:  # in this thread, which signals interrupt
            work()
            return
        with ThreadPoolExecutor(launcher.width) as pool:
            futures = [pool.submit(work) for _ in range(launcher.width)]
            try:
                for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                    future.result()
            except BaseException:
                self._stopped = True
                launcher.stop()
                raise

    def submit(self, launcher: Slurm) -> list[str]:
        """Judge the trials that have ended, submit others, and return the jobs that are under way.

        Nothing is waited for. A trial that was killed is submitted again only by a command that a
        person has typed, so that jobs that were cancelled stay so.
        """
        states = launcher.look(self.study.folder)
        room = launcher.width - sum(state.status in UNDER_WAY for state in states)
        wanted: list[Point] = []
        with ExitStack() as stack:
            while (trial := self.study.take(stack, draw=len(wanted) < room)) is not None:
                if points := self._points_of(trial):
                    wanted += self._to_submit(trial, points, states)
            if wanted:
                self._open(wanted)
                launcher.run(wanted)
        under_way = launcher.look(self.study.folder)
        return [one.entry["job"] for one in under_way if one.status in UNDER_WAY]

    def _to_submit(
        self, trial: Trial, points: Sequence[Point], states: Sequence[PointState]
    ) -> list[Point]:
        """Return those of a trial's points that are to be submitted; judge it if there are none."""
        keys = {point.key for point in points}
        begun = {state.key: state for state in states if state.key in keys and state.entry["job"]}
        if any(state.status in UNDER_WAY for state in begun.values()):
            return []
        due = points if points[0].done else points[: self._deciding]
        missing = [point for point in due if not point.done]
        if fresh := [point for point in missing if point.key not in begun]:
            return fresh
        failures = {Path(one.entry["directory"]): one.message for one in begun.values()}
        ended = self._judge(trial, points, failures)
        return [] if ended or self.options.continues else missing

    @property
    def _deciding(self) -> int | None:
        """How many of a trial's runs decide alone whether it is pruned; None: it never is."""
        return None if self.options.pruner == "none" else 1

    def _carry_out_one(self, launcher: InProcess) -> bool:
        """Carry out the next trial; return False if there is none."""
        with ExitStack() as stack:
            trial = self.study.take(stack)
            if trial is None:
                return False
            points = self._points_of(trial)
            if not points:
                return True
            self._open(points)
            failures = launcher.run(points[: self._deciding]) or {}
            if self._deciding and points[0].done and not self._stopped:
                failures |= launcher.run(points[self._deciding :]) or {}
            if not self._stopped:
                self._judge(trial, points, failures)
        return True

    def _open(self, points: Sequence[Point]) -> None:
        with self._composing:
            warn_of_other_code(points)
            write_manifest(points)
            if not self._opened:
                open_sweep(points)
                self._opened = True

    def _points_of(self, trial: Trial) -> list[Point]:
        """Return the points of a trial; give it up, and return none, if they cannot be."""
        try:
            with self._composing:
                points = self.compose(trial.values, self.options.seeds)
        except (UserError, PointError) as error:
            self.study.give_up(trial, str(error))
            return []
        if self.options.pruner == "none":
            return points
        first = dataclasses.replace(points[0].config, trial=trial.number)
        return [dataclasses.replace(points[0], config=first), *points[1:]]

    def _judge(self, trial: Trial, points: Sequence[Point], failures: dict[Path, str]) -> bool:
        """Tell the study how a trial ended; return False if it was killed or held up."""
        unfinished = [point for point in points if not point.done]
        if not unfinished:
            files = [point.config.directory / "metrics.jsonl" for point in points]
            runs = [point.entry["directory"] for point in points]
            self.study.tell(trial, [read_lines(path) for path in files], runs)
            Terminal().say(_line(self.study, trial.number))
            return True
        said = [failures.get(point.config.directory, "") for point in unfinished]
        held = [holder(lock_of(point.config.directory)) for point in unfinished]
        if any(held) or any(HELD_BY in text for text in said):
            time.sleep(PATIENCE)
            return False
        if self.options.pruner != "none" and (points[0].config.directory / "pruned").exists():
            self.study.prune(trial)
        else:
            failed = [text for text in said if text and not text.startswith(DIED)]
            if not failed and self.study.may_try_again(trial):
                return False
            message = next(iter(failed or said)) or "its process ended early"
            self.study.give_up(trial, message)
        Terminal().say(_line(self.study, trial.number))
        return True


def _line(study: Study, number: int) -> str:
    """Return a line on a trial that has ended, and on the best so far."""
    ranked = study.ranked()
    ended = next(trial for trial in ranked if trial.number == number)
    settings = " ".join(f"{key}={_short(value)}" for key, value in ended.values.items())
    value = ended.state if ended.value is None else f"{ended.value:.4g}"
    best = ranked[0]
    so_far = "" if best.value is None else f", best {best.value:.4g} (trial {best.number})"
    metric = study.options.metric
    done = f"{sum(trial.state != 'running' for trial in ranked)} of {study.size}"
    return f"trial {number} ({done}): {metric} {value}{so_far}: {settings}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
