"""Execute a run: train, repair and analyse it, and report the result."""

import dataclasses
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from spurcor.config.schema import TrainConfig
from spurcor.errors import RunError, UserError, of_system
from spurcor.runs.analyze import analyze_stored
from spurcor.runs.build import build
from spurcor.runs.lookup import has_all, read_config
from spurcor.runs.prepared import Prepared, prepare, prepare_finished
from spurcor.runs.reference import obtain
from spurcor.runs.refusals import refuse_blind_criterion, refuse_changed_defaults
from spurcor.runs.repair import repair, repairing
from spurcor.runs.results import read_result
from spurcor.runs.tables import show_result
from spurcor.runs.train import train
from spurcor.system import versions
from spurcor.system.files import cannot_write, remove_leftovers, write_text
from spurcor.system.lock import HELD_BY, Held, holder, lock_of, locked, remove_dead
from spurcor.system.terminal import Terminal, logged
from spurcor.tracking import Record, Trackers
from spurcor.training.moments import Enough, Pruned, never

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a command on a run ended."""

    status: Literal["done", "failed", "held", "interrupted", "pruned"]
    directory: Path
    message: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    exit_code: int = 0


def execute(
    config: TrainConfig,
    terminal: Terminal,
    on_start: Callable[[], None] = lambda: None,
    enough: Enough = never,
) -> Outcome:
    """Train, repair and analyse what is missing of a run, then show its results.

    Training ends as `pruned` when `enough` says so. User errors are raised before `on_start`, which
    writes the manifest, and before the run's first file is written.
    """
    trackers = Trackers.build(config.tracker, config.paths.outputs)
    if _finished_before(config):
        on_start()
        _show_in_its_sweep(config, trackers)
        return _report(config, config.directory, terminal, trackers, "was done before")
    lock = lock_of(config.directory)
    if (owner := holder(lock)) is not None:
        return _held(config.directory, Held(lock, owner), terminal)
    refuse_blind_criterion(config)
    obtain(config, lambda reference: execute(reference, terminal))
    began = time.time()
    run = dataclasses.replace(prepare(config, trackers), enough=enough)
    prepared = time.time()
    on_start()
    return _carry_out(run, terminal, (began, prepared))


def retrain(directory: Path, config: TrainConfig, terminal: Terminal) -> Outcome:
    """Repair a finished run, rebuilt from its stored configuration.

    Only the repair is locked, not the run, so several repairs can run at the same time.
    """
    asked = dataclasses.replace(config, analysis={})
    trackers = Trackers.build(config.tracker, config.paths.outputs)
    needed = [path for path in asked.needs if path.startswith("dfr/")]
    if has_all(directory, needed):
        return _report(config, directory, terminal, trackers, "this repair was done before")
    run = prepare_finished(asked, directory, trackers)
    assert run.repair is not None
    try:
        with _told(run):
            repair(run, run.repair)
    except Held as held:
        return _held(directory / "dfr" / run.repair.name, held, terminal)
    return _report(config, directory, terminal, run.trackers, "repaired")


def analyze(directory: Path, config: TrainConfig, terminal: Terminal) -> Outcome:
    """Analyse a finished run, rebuilt from its stored configuration, with its stored weights."""
    if not config.analysis:
        raise UserError(
            "analysis=none requests nothing; choose one, as in analysis=[gradient_basis]"
        )
    asked = dataclasses.replace(config, dfr=None)
    trackers = Trackers.build(config.tracker, config.paths.outputs)
    needed = [path for path in asked.needs if path.startswith("analysis/")]
    if has_all(directory, needed):
        return _report(config, directory, terminal, trackers, "this analysis was done before")
    run = prepare_finished(asked, directory, trackers)
    try:
        with _told(run):
            analyze_stored(run)
    except Held as held:
        return _held(directory / "analysis", held, terminal)
    return _report(config, directory, terminal, run.trackers, "analysed")


def set_aside(directory: Path) -> None:
    """Rename a run's directory to <name>.old<k>; the caller holds the run's lock."""
    if directory.exists():
        number = 1
        while (aside := directory.with_name(f"{directory.name}.old{number}")).exists():
            number += 1
        os.replace(directory, aside)


# --- was it finished before? ----------------------------------------------------------------------


def _finished_before(config: TrainConfig) -> bool:
    """Return whether the run with its requested repairs and analyses is on disk.

    Raises UserError if the data or the defaults have changed since.
    """
    directory = config.directory
    if config.rerun:
        return False
    if (directory / "config.yaml").exists():
        refuse_changed_defaults(config, read_config(directory))
    if not has_all(directory, config.needs):
        return False
    _refuse_other_data(config, directory)
    return True


def _refuse_other_data(config: TrainConfig, directory: Path) -> None:
    """Refuse a finished run if `paths.data` has changed and holds other data.

    Under another root, a table may refer to other images.
    """
    if read_config(directory).paths.data == config.paths.data:
        return
    found = build(config)[0].fingerprints
    if found != read_result(directory)["run"]["splits"]:
        raise UserError(
            f"{directory} was trained on data that differs from paths.data={config.paths.data};"
            " use another paths.outputs, or pass rerun=true to set that run aside"
        )


def _show_in_its_sweep(config: TrainConfig, trackers: Trackers) -> None:
    """Tag a run that another sweep has trained with this sweep, too, in the trackers."""
    if (before := read_config(config.directory)).sweep != config.sweep:
        trackers.start(
            Record.of_run(config.directory, dataclasses.replace(before, sweep=config.sweep))
        )
        trackers.close()


# --- carry out ------------------------------------------------------------------------------------


def _carry_out(run: Prepared, terminal: Terminal, prepared: tuple[float, float]) -> Outcome:
    """Train, repair and analyse what is missing, holding the run's lock."""
    directory, outputs = run.directory, run.config.paths.outputs
    try:
        with locked(lock_of(directory), run.guard):
            _make_room(run)
            with _told(run):
                _log_beginning(*prepared)
                try:
                    _work(run, terminal)
                except (UserError, Held):
                    raise
                except Pruned as pruned:
                    return _pruned(directory, pruned, terminal)
                except Exception as error:
                    return _failed(directory, error, terminal)
    except Held as held:
        return _held(directory, held, terminal)
    except OSError as error:
        if directory.exists():
            raise
        raise cannot_write(outputs, error) from error
    return _report(run.config, directory, terminal, run.trackers, "done")


def _make_room(run: Prepared) -> None:
    """Create the run's directory, without leftovers of a killed process.

    With `rerun`, an existing run is set aside first; raises `Held` if it is being repaired.
    """
    directory = run.directory
    if run.config.rerun:
        for held in repairing(directory):
            raise held
        set_aside(directory)
    directory.mkdir(exist_ok=True)
    if not (directory / "done").exists():  # a finished run may be under repair
        remove_leftovers(directory)


def _work(run: Prepared, terminal: Terminal) -> None:
    directory = run.directory
    for mark in ("failed", "pruned"):
        (directory / mark).unlink(missing_ok=True)
    if not (directory / "done").exists():
        train(run, terminal)
    if run.repair is not None:
        repair(run, run.repair)
    analyze_stored(run)


@contextmanager
def _told(run: Prepared) -> Iterator[None]:
    """Log to train.log, and close the trackers at the end."""
    try:
        with logged(run.directory / "train.log"):
            yield
    finally:
        run.trackers.close()


def _log_beginning(began: float, prepared: float) -> None:
    process = psutil.Process().create_time()
    log.info(
        "began %.1f s after its process: imports %.1f s, data and model %.1f s",
        time.time() - process,
        began - process,
        prepared - began,
    )


# --- report ---------------------------------------------------------------------------------------


def _report(
    config: TrainConfig, directory: Path, terminal: Terminal, trackers: Trackers, how: str
) -> Outcome:
    _tidy(directory, config.paths.outputs)
    result = read_result(directory)
    made, now = result["run"].get("commit", "unknown"), versions.commit()
    if made != now and not result["run"].get("code"):  # no fingerprints to compare
        how += f" (trained at commit {made}; the code is at {now})"
    show_result(terminal, result, directory, how, trackers)
    return Outcome("done", directory, result=result)


def _tidy(directory: Path, outputs: Path) -> None:
    """Remove files and locks that a process killed right after writing `done` left behind."""
    with suppress(OSError):  # readers may lack write permission
        for path in directory.glob("selected-*.safetensors"):
            path.unlink(missing_ok=True)
        repairs = directory.glob("dfr/*.lock")
        for lock in (lock_of(directory), lock_of(directory / "analysis"), *repairs):
            remove_dead(lock, outputs / ".guard")


def _held(directory: Path, held: Held, terminal: Terminal) -> Outcome:
    message = f"{directory} {HELD_BY} {held}"
    terminal.say(message)
    return Outcome("held", directory, message)


def _pruned(directory: Path, pruned: Pruned, terminal: Terminal) -> Outcome:
    write_text(directory / "pruned", f"{pruned}\n")
    log.info("pruned %s", pruned)
    terminal.say(f"pruned {pruned}: {directory}")
    return Outcome("pruned", directory)


def _failed(directory: Path, error: Exception, terminal: Terminal) -> Outcome:
    if not directory.exists():
        message = "the run's folder was removed during the run; run the same command to start over"
        return Outcome("failed", directory, message, exit_code=1)
    with suppress(OSError):  # the disk may have failed
        write_text(directory / "failed", traceback.format_exc())
    log.error("the run failed: %s", error)
    if not isinstance(error, RunError | OSError):
        terminal.trace()
    return Outcome("failed", directory, _one_line(error), exit_code=1)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError):
        return str(of_system(error))
    text = str(error).strip().splitlines()
    first = text[0] if text else ""
    return first if isinstance(error, RunError) else f"{type(error).__name__}: {first}"
