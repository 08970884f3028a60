"""Run a sweep in this process: check all points, run them one by one, and show the results."""

import dataclasses
import itertools
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from spurcor.config.packages import WORD, plugins
from spurcor.config.schema import TrainConfig
from spurcor.errors import PointError, RunError, UserError
from spurcor.sweeps.carry_out import carry_out, warn_of_other_code
from spurcor.sweeps.manifest import Point, open_sweep, sweep_folder, write_manifest
from spurcor.sweeps.order import in_order, with_origins
from spurcor.sweeps.read import read
from spurcor.sweeps.states import PointState, inspected, state
from spurcor.system.terminal import log_to_terminal


class InProcess(Launcher):
    """Launcher that runs one point after another in this process, which imports only once.

    `width` is the number of trials of a search that may be under way.
    """

    width = 1

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Store the context and configuration; called by Hydra."""
        self.hydra_context, self.config = hydra_context, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Check all points, write the manifest, run unfinished points, and show the table."""
        points = self.compose(job_overrides)
        done = JobReturn(status=JobStatus.COMPLETED)
        done.return_value = None
        if points[0].config.dry:
            show_plan(points)
            return [done] * len(points)
        self.refuse_impossible()
        log_to_terminal()
        warn_of_other_code(points)
        write_manifest(points)
        open_sweep(points)
        failures = self.run(points)
        if failures is not None:
            self._conclude(points, failures)
        return [done] * len(points)

    def stop(self) -> None:
        """End the processes that `run` has started in other threads."""

    def refuse_impossible(self) -> None:
        """Raise UserError if submission would fail; called before anything is written."""

    def run(self, points: Sequence[Point]) -> dict[Path, str] | None:
        """Run the points and return failures by run directory, or None if they have not ended."""
        failures = {}
        for point in itertools.chain.from_iterable(in_order(points)):
            print(f"\n--- {' '.join(point.overrides)}", flush=True)
            (outcome,) = carry_out([point.config]).values()
            if outcome.status == "interrupted":
                raise SystemExit(outcome.exit_code)
            if outcome.message:
                failures[outcome.directory] = outcome.message
        return failures

    def compose(self, job_overrides: Sequence[Sequence[str]]) -> list[Point]:
        """Return all points, or raise UserError with each distinct problem and its first point."""
        from spurcor.runs import build

        points: list[Point] = []
        problems: dict[str, list[str]] = {}
        for overrides in job_overrides:
            loader = self.hydra_context.config_loader
            try:
                cfg = loader.load_sweep_config(self.config, list(overrides))
                config = read(cfg, cfg.hydra.runtime.choices, in_sweep=True)
                build.validate(config)
                points.append(Point(tuple(overrides), config))
            except UserError as error:
                problems.setdefault(str(error), []).append(" ".join(overrides))
            except (HydraException, OmegaConfBaseException) as error:
                raise PointError(list(overrides)) from error
        if problems:
            raise UserError("\n".join(_with_points(error, of) for error, of in problems.items()))
        if len(names := {point.config.sweep for point in points}) > 1:
            raise UserError(f"sweep={','.join(sorted(names))}: a sweep has one name")
        return with_origins(points)

    def _conclude(self, points: Sequence[Point], failures: dict[Path, str]) -> None:
        """Show the table of all points and write the report; raise RunError if any is not done."""
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
            report_sweep(points[0].config)
        if not_done:
            raise RunError(f"{not_done} of {len(found)} points are not done")


def _with_points(error: str, points: Sequence[str]) -> str:
    """Return a problem with the first point that has it and the number of other points."""
    others = f" (and {len(points) - 1} more)" if len(points) > 1 else ""
    return f"{points[0]}: {error}{others}"


def show_plan(points: Sequence[Point]) -> None:
    """Print what the points of a sweep would run."""
    from spurcor.sweeps.plan import plan_summary, plan_table
    from spurcor.system.terminal import Terminal

    terminal = Terminal()
    terminal.console.print(plan_table(points))
    terminal.say(plan_summary(points))


def command_words() -> list[str]:
    """Return the words of this command, with the plug-ins that it has loaded."""
    return [*sys.argv[1:], *([f"{WORD}{','.join(plugins())}"] if plugins() else [])]


def _command() -> str:
    """Return the command that runs the unfinished points: the same sweep, without `rerun`."""
    typed = [word for word in command_words() if not word.startswith("rerun=")]
    return f"python -m spurcor.train {shlex.join(typed)}"


def report_sweep(
    config: TrainConfig,
    more: Sequence[Path] = (),
    rows: Sequence[Mapping[str, Any]] = (),
    tags: Mapping[Path, Mapping[str, str]] | None = None,
) -> None:
    """Write the sweep's report; send it, `more` files and the sweep's own rows to the trackers.

    `tags` are added to the runs in these directories.
    """
    from spurcor.reports import write_report
    from spurcor.reports.options import Options
    from spurcor.runs.lookup import read_config
    from spurcor.tracking import Record, Trackers

    report = write_report(config.paths.outputs, [config.sweep], Options())
    log_to_terminal()
    trackers = Trackers.build(config.tracker, config.paths.outputs)
    record = Record.of_sweep(sweep_folder(config))
    trackers.start(record)
    trackers.rows(record, rows)
    for directory, own in (tags or {}).items():
        run = dataclasses.replace(read_config(directory), sweep=config.sweep)
        tagged = Record.of_run(directory, run)
        trackers.tag(dataclasses.replace(tagged, tags={**tagged.tags, **own}))
    trackers.attach(record, [*report.files, *more], "report")
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
