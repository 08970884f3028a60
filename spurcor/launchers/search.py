"""A search: points that an Optuna study draws one after another, judged on VAL."""

import dataclasses
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from spurcor.config.check import check
from spurcor.errors import PointError, RunError, UserError
from spurcor.launchers.in_process import InProcess, report_sweep
from spurcor.launchers.local_pool import KILLED
from spurcor.launchers.points import instantiate_launcher
from spurcor.sweeps.carry_out import warn_of_other_code
from spurcor.sweeps.manifest import Point, open_sweep, sweep_folder, write_manifest
from spurcor.system.files import read_lines
from spurcor.system.lock import HELD_BY, holder, lock_of
from spurcor.system.passwords import hidden
from spurcor.system.terminal import Terminal, log_to_terminal

if TYPE_CHECKING:
    from spurcor.sweeps.search_options import SearchOptions
    from spurcor.sweeps.space import Space, Values
    from spurcor.sweeps.study import Study, Trial

PATIENCE = 2.0  # seconds until a run that another trial trains is looked at again
# Typed words that a study does not name when it refuses other settings.
PLACES = ("paths.", "tracker", "site", "hydra", "sweep=", "dry=", "+sweeps=")
# How messages of points begin that ended through no fault of their own.
DIED = (KILLED, *(f"SLURM: {how}" for how in ("CANCELLED", "NODE_FAIL", "BOOT_FAIL", "PREEMPTED")))


class Optuna(Sweeper):
    """Sweeper that carries out the trials of a study, as many at a time as the launcher allows."""

    def __init__(self, **options: Any) -> None:
        """See `SearchOptions`."""
        try:
            import optuna  # noqa: F401
        except ImportError as error:
            raise UserError(
                "hydra/sweeper=optuna needs Optuna: pip install 'spurcor[tune]'"
            ) from error
        from spurcor.sweeps.search_options import SearchOptions

        given = {key: _plain(value) for key, value in options.items()}
        if of_points := [key for key in ("points", "params", "zip") if given.get(key)]:
            raise UserError(
                f"hydra.sweeper.{of_points[0]} lists points, and a search draws its own; leave out"
                " hydra/sweeper=optuna, or the sweep file"
            )
        try:
            self.options = check(given, SearchOptions)
        except UserError as error:
            lines = str(error).splitlines()
            raise UserError("\n".join(f"hydra.sweeper.{line}" for line in lines)) from error
        self._one_at_a_time = threading.RLock()  # Hydra composes in one thread only
        self._stopped = False
        self._opened = False

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Instantiate the launcher; called by Hydra."""
        self._loader = hydra_context.config_loader
        self.launcher = instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> None:
        """Carry out the trials that the study lacks; called by Hydra."""
        launcher = self.launcher
        if not isinstance(launcher, InProcess):
            raise UserError(
                "hydra/sweeper=optuna runs with hydra/launcher=in_process, local_pool or slurm;"
                " choose one"
            )
        launcher.refuse_search()
        parser = OverridesParser.create(config_loader=self._loader)
        typed = parser.parse_overrides(arguments)
        from spurcor.sweeps.space import parse_space
        from spurcor.sweeps.study import Study

        space = parse_space(self.options.search or {}, typed, parser)
        fixed = [str(one.input_line) for one in typed if not one.is_sweep_override()]
        if seeded := [word for word in fixed if word.partition("=")[0].lstrip("+~") == "seed"]:
            raise UserError(
                f"{seeded[0]}: the seeds of a search are those of hydra.sweeper.seeds; set that"
            )
        example = self._probed(launcher, space, fixed)
        if example.config.rerun:
            raise UserError(
                "rerun=true would train a run again whenever its values are drawn; choose another"
                " paths.outputs to search anew"
            )
        if example.config.dry:
            _show(space, self.options, example)
        else:
            launcher.refuse_impossible()
            log_to_terminal()
            folder = sweep_folder(example.config)
            typed_words = sorted(word for word in fixed if not word.startswith(PLACES))
            base = (example.config.identity, typed_words)
            study = Study(folder, space, self.options, base, example.config.choices)
            self._carry_out(launcher, study, fixed)
            _conclude(study, example)

    # --- before anything is written -------------------------------------------------------------

    def _probed(self, launcher: InProcess, space: "Space", fixed: list[str]) -> Point:
        """Check that each key makes other runs, at both of its ends; return a point."""
        from spurcor.sweeps.space import ends

        seeds = self.options.seeds[:1]
        low = {key: ends(one)[0] for key, one in space.common.items()}
        (example,) = self._points(launcher, fixed, low, seeds)
        if self.options.sampler == "grid":
            next(space.grid(example.config.choices))
        for key, values, others in space.probes(example.config.choices):
            identities = {
                self._points(launcher, fixed, drawn, seeds)[0].config.identity
                for drawn in (values, *others)
            }
            if others and len(identities) == 1:
                raise UserError(
                    f"hydra.sweeper.search: {key} has no effect on training, so nothing can be"
                    " learnt from searching it; set it to one value"
                )
        return example

    def _points(
        self, launcher: InProcess, fixed: list[str], values: "Values", seeds: Sequence[int]
    ) -> list[Point]:
        drawn = [f"{key}={value}" for key, value in values.items()]
        with self._one_at_a_time:
            return launcher.compose(
                [[*map(hidden, fixed), *drawn, f"seed={seed}"] for seed in seeds]
            )

    # --- trials -----------------------------------------------------------------------------------

    def _carry_out(self, launcher: InProcess, study: "Study", fixed: list[str]) -> None:
        """Carry out trials until the study has all, in as many threads as the launcher is wide."""

        def work() -> None:
            while not self._stopped and self._carry_out_one(launcher, study, fixed):
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

    def _carry_out_one(self, launcher: InProcess, study: "Study", fixed: list[str]) -> bool:
        """Carry out the next trial; return False if there is none."""
        with ExitStack() as stack:
            trial = study.take(stack)
            if trial is None:
                return False
            try:
                points = self._points_of(launcher, fixed, trial)
            except (UserError, PointError) as error:
                study.give_up(trial, str(error))
                return True
            with self._one_at_a_time:
                warn_of_other_code(points)
                write_manifest(points)
                if not self._opened:
                    open_sweep(points)
                    self._opened = True
            # The first seed decides alone whether a trial is pruned.
            first = 1 if self.options.pruner != "none" else len(points)
            failures = launcher.run(points[:first]) or {}
            if first < len(points) and points[0].done and not self._stopped:
                failures |= launcher.run(points[first:]) or {}
            if not self._stopped:
                self._judge(study, trial, points, failures)
        return True

    def _points_of(self, launcher: InProcess, fixed: list[str], trial: "Trial") -> list[Point]:
        points = self._points(launcher, fixed, trial.values, self.options.seeds)
        if self.options.pruner == "none":
            return points
        first = dataclasses.replace(points[0].config, trial=trial.number)
        return [dataclasses.replace(points[0], config=first), *points[1:]]

    def _judge(
        self, study: "Study", trial: "Trial", points: Sequence[Point], failures: dict[Path, str]
    ) -> None:
        """Tell the study how a trial ended; one that was killed or held up stays under way."""
        unfinished = [point for point in points if not point.done]
        if not unfinished:
            files = [point.config.directory / "metrics.jsonl" for point in points]
            runs = [point.entry["directory"] for point in points]
            study.tell(trial, [read_lines(path) for path in files], runs)
            Terminal().say(_line(study, trial.number))
            return
        said = [failures.get(point.config.directory, "") for point in unfinished]
        held = [holder(lock_of(point.config.directory)) for point in unfinished]
        if any(held) or any(HELD_BY in text for text in said):
            time.sleep(PATIENCE)
            return
        if self.options.pruner != "none" and (points[0].config.directory / "pruned").exists():
            study.prune(trial)
        else:
            failed = [text for text in said if text and not text.startswith(DIED)]
            if not failed and study.may_try_again(trial):
                return
            study.give_up(trial, next(iter(failed or said)) or "its process ended early")
        Terminal().say(_line(study, trial.number))


def _show(space: "Space", options: "SearchOptions", example: Point) -> None:
    """Print what would be searched."""
    from spurcor.sweeps.space import described

    for name, section in {"": space.common, **space.conditional}.items():
        for key, one in section.items():
            print(f"{key}: {described(one)}" + f" (with {name})" * bool(name))
    number = options.n_trials
    if options.sampler == "grid":
        number = min(number, sum(1 for _ in space.grid(example.config.choices)))
    runs = len(options.seeds) * number
    print(f"{number} trials, {runs} runs, judged by {options.metric}", flush=True)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _line(study: "Study", number: int) -> str:
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


def _conclude(study: "Study", example: Point) -> None:
    """Show the trials, the best first, and write the report; raise RunError if it is not done."""
    from spurcor.sweeps.search_files import run_tags, search_rows, write_search
    from spurcor.sweeps.tables import search_table

    ranked = study.ranked()
    terminal = Terminal()
    terminal.say("")
    terminal.console.print(search_table(study.options.metric, ranked))
    if importances := study.importances():
        shares = ", ".join(f"{key} {share:.2f}" for key, share in importances.items())
        terminal.say(f"importance: {shares}")
    files = write_search(study)
    terminal.say(f"search  {files[:2][-1]}")  # the picture, if there is one
    if any(trial.state == "done" for trial in ranked):
        report_sweep(example.config, files, search_rows(study), run_tags(study))
    missing = study.size - sum(trial.state != "running" for trial in ranked)
    if missing > 0:
        raise RunError(f"{missing} of {study.size} trials are not done")
    if not any(trial.state == "done" for trial in ranked):
        raise RunError(f"none of {len(ranked)} trials was trained to its end")
