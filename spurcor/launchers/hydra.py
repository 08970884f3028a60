"""Hydra's way into spurcor: points checked together, then run here, in a pool, or by SLURM."""

import dataclasses
import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from spurcor.config.check import check
from spurcor.config.composition import refuse_impossible_sweep
from spurcor.config.packages import WORD, plugins
from spurcor.config.schema import Site, TrainConfig
from spurcor.errors import PointError, RunError, UserError
from spurcor.sweeps import slurm
from spurcor.sweeps.carry_out import _tell_of_other_code, carry_out
from spurcor.sweeps.freeze import copy_code, write_point
from spurcor.sweeps.manifest import Point, open_sweep, sweep_folder, write_manifest
from spurcor.sweeps.read import read
from spurcor.sweeps.states import UNDER_WAY, PointState, inspected, last_line, state, states
from spurcor.system.lock import Held, lock_of, locked
from spurcor.system.passwords import hidden
from spurcor.system.signals import Interrupted
from spurcor.system.terminal import log_to_terminal

log = logging.getLogger(__name__)

POLL_SECONDS = (2.0, 15.0)  # between looks at the queue, at first and in the long run


class Points(Sweeper):
    """The product of the swept keys, for each of a list of points; it writes no file.

    A point is a string of overrides, so a random search is a list that anybody can read and run
    again. A key that is typed or swept wins over the points' value; points that are then the same
    are one.
    """

    def __init__(self, points: Sequence[str] = (), params: dict[str, str] | None = None) -> None:
        if isinstance(points, str) or not isinstance(points or [], Sequence):
            raise UserError(f"hydra.sweeper.points={points} is no list of texts")
        if not isinstance(params or {}, Mapping):
            raise UserError(f"hydra.sweeper.params={params} is no mapping of keys to values")
        self.points = [_words(point) for point in points or ()] or [[]]
        self.params = params or {}
        self._loader: ConfigLoader | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra."""
        self._loader = hydra_context.config_loader
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        if type(self.launcher).__name__ == "SlurmLauncher" and shutil.which("srun") is None:
            raise UserError(
                "hydra/launcher=submitit_slurm needs srun, which this machine does not have; use"
                " hydra/launcher=local_pool or in_process here"
            )

    def sweep(self, arguments: list[str]) -> None:
        """Called by Hydra."""
        assert self.launcher is not None
        for job in self.launcher.launch(self.expand(arguments), initial_job_idx=0):
            _ = job.return_value  # raises what a launcher that is not ours has kept of a failure

    def expand(self, arguments: list[str]) -> list[list[str]]:
        """The overrides of every point."""
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        params = [hidden(f"{key}={value}") for key, value in self.params.items()]
        parser = OverridesParser.create(config_loader=self._loader)
        typed = parser.parse_overrides([*params, *arguments])
        refuse_impossible_sweep(typed)
        (product,) = BasicSweeper.split_arguments(typed, None)
        keys = {override.get_key_element().lstrip("+~") for override in typed}
        listed = [
            [hidden(word) for word in point if word.partition("=")[0].lstrip("+~") not in keys]
            for point in self.points
        ]
        distinct = dict.fromkeys(map(tuple, listed))
        return [[*point, *rest] for point in distinct for rest in product]


def _words(point: Any) -> list[str]:
    """The overrides of a point, a text as it would be typed."""
    try:
        if isinstance(point, str):
            return shlex.split(point)
        problem = "it is no text"
    except ValueError as error:
        problem = str(error).lower()
    raise UserError(
        f'hydra.sweeper.points: {point} is no list of overrides such as "seed=0 optimizer.lr=0.1"'
        f" ({problem})"
    )


def _told(error: str, points: Sequence[str]) -> str:
    """A problem with the first point that has it, and how many more have it."""
    others = f" (and {len(points) - 1} more points)" if len(points) > 1 else ""
    return f"{points[0]}: {error}{others}"


class InProcess(Launcher):
    """One point after the other in this process: imports are paid once."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra."""
        self.hydra_context, self.config = hydra_context, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Check every point, write the manifest, run what is not done, show the table."""
        points = self._compose(job_overrides)
        self.refuse_impossible()
        log_to_terminal()
        _tell_of_other_code(points)
        write_manifest(points)
        open_sweep(points)
        failures = self.run(points)
        if failures is not None:
            self._conclude(points, failures)
        done = JobReturn(status=JobStatus.COMPLETED)
        done.return_value = None
        return [done] * len(points)

    def refuse_impossible(self) -> None:
        """What would fail later is told before anything is written."""

    def run(self, points: Sequence[Point]) -> dict[Path, str] | None:
        """Run the points; returns what went wrong, by run directory, or None: not ended yet."""
        failures = {}
        for point in points:
            print(f"\n--- {' '.join(point.overrides)}", flush=True)
            (outcome,) = carry_out([point.config]).values()
            if outcome.status == "interrupted":
                raise SystemExit(outcome.exit_code)
            if outcome.message:
                failures[outcome.directory] = outcome.message
        return failures

    def _compose(self, job_overrides: Sequence[Sequence[str]]) -> list[Point]:
        """All points, or every problem once, with the first point that has it."""
        import spurcor.runs.execute

        points: list[Point] = []
        problems: dict[str, list[str]] = {}
        for overrides in job_overrides:
            loader = self.hydra_context.config_loader
            try:
                cfg = loader.load_sweep_config(self.config, list(overrides))
                config = read(cfg, cfg.hydra.runtime.choices)
                spurcor.runs.build.validate(config)
                points.append(Point(tuple(overrides), config))
            except UserError as error:
                problems.setdefault(str(error), []).append(" ".join(overrides))
            except (HydraException, OmegaConfBaseException) as error:
                raise PointError(list(overrides)) from error
        if problems:
            raise UserError("\n".join(_told(error, of) for error, of in problems.items()))
        if len(names := {point.config.sweep for point in points}) > 1:
            raise UserError(f"sweep={','.join(sorted(names))}: a sweep has one name")
        return points

    def _conclude(self, points: Sequence[Point], failures: dict[Path, str]) -> None:
        """The table of all points; what is not done makes the sweep fail."""
        found = []
        for point in points:
            entry = {**point.entry, "directory": str(point.config.directory), "log": None}
            one = inspected(state(entry))
            message = failures.get(point.config.directory, one.message)
            if one.status in ("missing", "interrupted") and message:
                one = dataclasses.replace(one, status="failed")
            found.append(dataclasses.replace(one, message="" if one.status == "done" else message))
        not_done = sum(one.status != "done" for one in found)
        _show(found, _command() if not_done else None)
        if len(found) > 1 and not_done < len(found):
            _report(points[0].config)
        if not_done:
            raise RunError(f"{not_done} of {len(found)} points are not done")


class Frozen(InProcess):
    """Points in processes of their own, from a frozen copy of code and configuration."""

    def freeze(self, points: Sequence[Point], size: int = 1) -> list[list[Point]]:
        """Jobs of what is not done: `size` run directories each, with all points of a directory."""
        runs: dict[Path, list[Point]] = {}
        for point in map(_made_anew, points):
            if not point.done:
                runs.setdefault(point.config.directory, []).append(point)
        listed = list(runs.values())
        batches = [listed[first : first + size] for first in range(0, len(listed), size)]
        return [[point for run in batch for point in run] for batch in batches]


class LocalPool(Frozen):
    """`n_jobs` processes at a time on this machine."""

    def __init__(self, n_jobs: int = 2) -> None:
        if not isinstance(n_jobs, int) or n_jobs < 1:
            raise UserError(f"hydra.launcher.n_jobs={n_jobs} must be a whole number, at least 1")
        self.n_jobs = n_jobs
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, points: Sequence[Point]) -> dict[Path, str]:
        """See `InProcess.run`."""
        code = copy_code(sweep_folder(points[0].config))
        jobs = self.freeze(points)
        with ThreadPoolExecutor(self.n_jobs) as pool:
            messages = pool.map(lambda job: self._run_one(job, code), jobs)
            try:
                found = zip((job[0].config.directory for job in jobs), messages, strict=True)
                return {directory: message for directory, message in found if message}
            except BaseException:  # a signal to this process only: those under way save and end
                pool.shutdown(wait=False, cancel_futures=True)
                self._stopped = True
                for process in list(self._processes):
                    process.terminate()
                raise

    def _run_one(self, job: Sequence[Point], code: Path) -> str:
        paths = [write_point(point) for point in job]
        log = paths[0].with_suffix(".log")
        write_manifest([dataclasses.replace(point, log=log) for point in job])
        threads = max(1, (os.cpu_count() or 1) // self.n_jobs)
        path = slurm.search_path(code)
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONPATH": path}
        environment.pop("HYDRA_FULL_ERROR", None)
        listed = ",".join(f'"{path}"' for path in paths)
        with log.open("wb") as output:
            # -P: the working folder stays the user's, and the copy is what is imported.
            command = [sys.executable, "-P", "-m", "spurcor.train", f"point=[{listed}]"]
            with subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT
            ) as process:
                self._processes.add(process)
                if self._stopped:
                    process.terminate()
            self._processes.discard(process)
            exit_code = process.returncode
        for point in job:
            print(
                f"{'done' if point.done else 'not done'}: {' '.join(point.overrides)}", flush=True
            )
        if exit_code < 0:
            return f"killed by signal {-exit_code}, see {log}"
        return "" if exit_code == 0 else last_line(log)


@dataclass(frozen=True)
class SlurmOptions(Site):
    """Keys of hydra.launcher: the site's, and how the sweep is submitted."""

    wait: bool = True
    points_per_job: int = 1

    def __post_init__(self) -> None:
        for name in ("timeout_min", "cpus_per_task", "array_parallelism", "points_per_job"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 < self.signal_delay_s < 60 * self.timeout_min:
            raise ValueError(
                f"signal_delay_s={self.signal_delay_s} must be less than the {self.timeout_min}"
                " minutes of timeout_min"
            )

    @property
    def submitit(self) -> dict[str, Any]:
        """Those that submitit wants, by its names; what is null is left to the cluster."""
        options = {
            "time": self.timeout_min,
            "mem": None if self.mem_gb is None else f"{1024 * self.mem_gb:.0f}M",
            "gpus_per_node": self.gpus_per_node or None,
            "setup": list(self.setup),
        }
        same = ["partition", "account", "qos", "constraint", "cpus_per_task"]
        same += ["array_parallelism", "signal_delay_s", "additional_parameters"]
        options |= {name: getattr(self, name) for name in same}
        return {name: value for name, value in options.items() if value is not None}


class Slurm(Frozen):
    """SLURM job arrays. Once they are submitted, this process is needed no more."""

    def __init__(self, **options: Any) -> None:
        """See `SlurmOptions`."""
        if shutil.which("sbatch") is None:
            raise UserError(
                "hydra/launcher=slurm needs sbatch, which this machine does not have; use"
                " hydra/launcher=local_pool or in_process here"
            )
        try:
            self.options = check(options, SlurmOptions)
        except UserError as error:
            lines = str(error).splitlines()
            raise UserError("\n".join(f"hydra.launcher.{line}" for line in lines)) from error

    def refuse_impossible(self) -> None:
        """See `InProcess.refuse_impossible`."""
        slurm.refuse_impossible(self.options.submitit)

    def run(self, points: Sequence[Point]) -> dict[Path, str] | None:
        """See `InProcess.run`."""
        config = points[0].config
        wanted = {point.key for point in points}
        under_way = {one.key for one in _states(config) if one.status in UNDER_WAY} & wanted
        if under_way:
            print(f"{len(under_way)} points are queued or running already")
        jobs = self.freeze(
            [point for point in points if point.key not in under_way], self.options.points_per_job
        )
        self._submit(jobs, sweep_folder(config))
        under_way |= {point.key for job in jobs for point in job}
        status = f"python -m spurcor.status sweep={config.sweep} watch=true"
        if under_way and not self.options.wait:
            print(f"to see how they come along: {status}")
            return None
        try:
            return self._wait(config, under_way)
        except Interrupted as interrupted:
            print(f"\nspurcor: the jobs go on without this command: {status}", file=sys.stderr)
            raise SystemExit(interrupted.exit_code) from None

    def _submit(self, jobs: Sequence[Sequence[Point]], folder: Path) -> None:
        """Arrays as long as the cluster allows, one after the other."""
        code = copy_code(folder)
        longest = slurm.longest_array()
        options = {**self.options.submitit, "job_name": f"spurcor-{folder.name}"}
        for first in range(0, len(jobs), longest):
            array = jobs[first : first + longest]
            tasks = [slurm.Task(tuple(write_point(point) for point in job)) for job in array]
            taken = slurm.submit(
                tasks, folder / "slurm", code, self.options.max_num_timeout, **options
            )
            write_manifest(
                [
                    dataclasses.replace(point, job=submitted.name, log=submitted.log)
                    for job, submitted in zip(array, taken, strict=True)
                    for point in job
                ]
            )
            number = taken[0].name.partition("_")[0]
            options["dependency"] = f"afterany:{number}"  # else two arrays would run side by side
            print(f"submitted {sum(map(len, array))} points as job {number}", flush=True)

    def _wait(self, config: TrainConfig, keys: set[tuple[str, ...]]) -> dict[Path, str]:
        """Look on until nothing is under way; returns what went wrong, by run directory.

        A point counts as ended when two looks in a row say so: a requeued job is for a moment
        in no queue.
        """
        ended: set[tuple[str, ...]] = set()
        told: set[tuple[str, ...]] = set()
        pause = POLL_SECONDS[0]
        while True:
            found = [one for one in _states(config) if one.key in keys]
            now = {one.key for one in found if one.status not in UNDER_WAY}
            for one in found:
                if one.key in (now & ended) - told:
                    told.add(one.key)
                    print(f"{one.status}: {' '.join(one.entry['overrides'])}", flush=True)
            if told >= keys:
                return {Path(one.entry["directory"]): one.message for one in found if one.message}
            ended = now
            time.sleep(pause)
            pause = min(1.2 * pause, POLL_SECONDS[1])


def _states(config: TrainConfig) -> list[PointState]:
    """States of the sweep's points; waits while the scheduler is away."""
    while True:
        try:
            return states(config.paths.outputs, config.sweep)
        except slurm.Unanswered as error:
            log.warning("%s; asking again", error)
            time.sleep(POLL_SECONDS[1])


def _made_anew(point: Point) -> Point:
    """Set aside here what is to be made again: a frozen point would do so at every requeue."""
    if not point.config.rerun:
        return point
    directory, outputs = point.config.directory, point.config.paths.outputs
    from spurcor.runs.execute import set_aside

    try:
        with locked(lock_of(directory), outputs / ".guard"):
            set_aside(directory)
    except Held as held:
        raise UserError(f"rerun=true: {directory} is being worked on by {held}") from held
    return dataclasses.replace(point, config=dataclasses.replace(point.config, rerun=False))


# Hydra accepts plug-ins under such a name only, and an editable install has no hydra_plugins.
PLUGINS = {
    f"hydra_plugins.spurcor.{plugin.__name__}": plugin
    for plugin in (Points, InProcess, LocalPool, Slurm)
}


def _command() -> str:
    """What re-runs the points that are not done: the same sweep."""
    typed = [word for word in sys.argv[1:] if not word.startswith("rerun=")]
    typed += [f"{WORD}{','.join(plugins())}"] if plugins() else []
    return f"python -m spurcor.train {shlex.join(typed)}"


def _report(config: TrainConfig) -> None:
    """Write the sweep's report, and show it in the trackers."""
    from spurcor.reports import write_report
    from spurcor.reports.options import Options
    from spurcor.tracking import Record, Trackers

    report = write_report(config.paths.outputs, [config.sweep], Options())
    log_to_terminal()
    trackers = Trackers.build(config.tracker, config.paths.outputs)
    trackers.attach(Record.of_sweep(sweep_folder(config)), report.files, "report")
    trackers.close()
    print(f"report  {report.folder / 'report.md'}", flush=True)


def _show(found: Sequence[PointState], command: str | None) -> None:
    from spurcor.sweeps.tables import sweep_table
    from spurcor.system.terminal import Terminal

    terminal = Terminal()
    terminal.say("")
    terminal.console.print(sweep_table(found))
    if command is not None:
        terminal.say(f"to run what is not done: {command}")
