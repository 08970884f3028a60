"""How a run is carried out: trained, repaired, analysed, told."""

import dataclasses
import logging
import os
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import yaml

from spurcor.analysis.contract import Analyses
from spurcor.config.nodes import plain
from spurcor.config.schema import TrainConfig, dfr_name
from spurcor.data.splits import Splits
from spurcor.errors import RunError, UserError, of_system
from spurcor.models import weights
from spurcor.runs import provenance, results
from spurcor.runs.analyze import analyze_stored
from spurcor.runs.build import build, context_of, start_from
from spurcor.runs.lookup import read_config
from spurcor.runs.refusals import (
    refuse_blind_selection,
    refuse_blind_stopping,
    refuse_changed_defaults,
    refuse_impossible,
    refuse_unknown_criterion,
    warn_of_few,
)
from spurcor.runs.repair import repair, repairing
from spurcor.runs.results import read_result
from spurcor.system import versions
from spurcor.system.files import (
    cannot_write,
    read_json,
    read_lines,
    remove_leftovers,
    write_json,
    write_text,
)
from spurcor.system.lock import Held, holder, lock_of, locked, remove_dead
from spurcor.system.passwords import masked
from spurcor.system.shapes import Row
from spurcor.system.signals import Interrupted
from spurcor.system.terminal import Terminal, logged
from spurcor.tracking import Record, Trackers
from spurcor.training import predictions, selection
from spurcor.training.method import Method, RunContext, untouched
from spurcor.training.trainer import Trainer

log = logging.getLogger(__name__)

Status = Literal["done", "failed", "held", "interrupted"]


@dataclass(frozen=True)
class Outcome:
    """How a command on a run ended."""

    status: Status
    directory: Path
    message: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    exit_code: int = 0


def _keep_origin(init: Path, origin: Method, context: RunContext, method: str | None) -> None:
    """Leave to readers of a run, of the one that it starts from, what a phase of its own leaves.

    Figures are of the last weights, as a phase's are, since training goes on from them; MaskTune's
    masks alone are of the `selected` ones, here by that run's criterion.
    """
    result = read_result(init)
    run, selected = result["run"], result["selected"]
    name = run["method"] if run["method"] != method else f"{run['identity']}-seed{run['seed']}"
    folder = context.kept(name)
    if (folder / "result.json").exists():
        return
    about = {key: run[key] for key in ("identity", "seed", "method")}
    about["images_seen"] = run["images_seen"] + run.get("origin_images_seen", 0)
    with untouched(origin):
        predict, splits = origin.predict, context.splits
        predictions.write_phase(folder, predict, splits, origin=about, selected=selected)


def execute(
    config: TrainConfig, terminal: Terminal, on_start: Callable[[], None] | None = None
) -> Outcome:
    """Train what is not trained, repair what is not repaired, say what is there.

    Everything that the user may have got wrong is found before `on_start`, which writes the
    manifest, and the first file of the run.
    """
    directory = config.directory
    Trackers.build(config.tracker, config.paths.outputs)  # for what they refuse
    if not config.rerun and (directory / "config.yaml").exists():
        refuse_changed_defaults(config, read_config(directory))
    if not config.rerun and _complete(config, directory):
        _refuse_other_data(config, directory)
        if on_start is not None:
            on_start()
        if (before := read_config(directory)).sweep != config.sweep:
            with ExitStack() as stack:  # a run in two sweeps carries a tag of each
                record = Record.of_run(directory, dataclasses.replace(before, sweep=config.sweep))
                Trackers.open(config, stack).start(record)
        return _report(config, directory, terminal, "was done before")
    lock = lock_of(directory)
    if (owner := holder(lock)) is not None:
        return _held(directory, Held(lock, owner), terminal)
    imported = time.time()
    splits, method = build(config)
    origin = None if config.init is None else start_from(config.init, splits, method)
    context = context_of(config, splits, directory)  # what is refused is refused before any trace
    for phase in method.phases():
        phase.check(context)
    if method.phases():  # else there is no epoch to select
        refuse_unknown_criterion(config.train, splits)
        refuse_blind_selection(config.train, splits)
        refuse_blind_stopping(config.train, method)
    if config.dfr is None and not method.phases():
        raise UserError("this method trains nothing and dfr=none fits nothing; choose a dfr")
    if config.dfr is not None:
        refuse_impossible(config.dfr, splits, method)
    Analyses.build(config.analysis).check(method, splits)
    built = time.time()
    if on_start is not None:
        on_start()
    try:
        with locked(lock, config.paths.outputs / ".guard"):
            if config.rerun:
                for held in repairing(directory):
                    raise held
                set_aside(directory)
            directory.mkdir(exist_ok=True)
            if not (directory / "done").exists():  # else another process may be repairing it
                remove_leftovers(directory)
            with ExitStack() as stack:
                stack.enter_context(logged(directory / "train.log"))
                process = psutil.Process().create_time()
                log.info(
                    "began %.1f s after its process: imports %.1f s, data and model %.1f s",
                    time.time() - process,
                    imported - process,
                    built - imported,
                )
                trackers = Trackers.open(config, stack)
                (directory / "failed").unlink(missing_ok=True)
                try:
                    if not (directory / "done").exists():
                        if config.init is not None and origin is not None:
                            _keep_origin(config.init, origin, context, config.choices["method"])
                            origin = None  # its memory is for training
                        _train(config, context, method, trackers, terminal)
                    if config.dfr is not None:
                        repair(directory, config, config.dfr, splits, method, trackers)
                    analyze_stored(config, context, method, trackers)
                except (UserError, Held):
                    raise
                except Exception as error:
                    return _failed(directory, error, terminal)
    except Held as held:
        return _held(directory, held, terminal)
    except OSError as error:
        if directory.exists():
            raise
        raise cannot_write(config.paths.outputs, error) from error
    return _report(config, directory, terminal, "done")


def retrain(directory: Path, config: TrainConfig, terminal: Terminal) -> Outcome:
    """Repair a finished run, rebuilt from its own configuration.

    The run itself is not locked, so that several repairs of it go on at once; each is.
    """
    node = config.dfr
    assert node is not None
    if (directory / "dfr" / dfr_name(node) / "result.json").exists():
        return _report(config, directory, terminal, "was repaired like this before")
    splits, method = build(config)
    refuse_impossible(node, splits, method)
    try:
        with ExitStack() as stack:
            stack.enter_context(logged(directory / "train.log"))
            trackers = Trackers.open(config, stack)
            repair(directory, config, node, splits, method, trackers)
    except Held as held:
        return _held(directory / "dfr" / dfr_name(node), held, terminal)
    return _report(config, directory, terminal, "repaired")


def analyze(directory: Path, config: TrainConfig, terminal: Terminal) -> Outcome:
    """Analyse a finished run, rebuilt from its own configuration, by the weights that it kept."""
    if not config.analysis:
        raise UserError("analysis=none asks for nothing; name one, as in analysis=[gradient_basis]")
    if all((directory / path).exists() for path in config.needs if path.startswith("analysis/")):
        return _report(config, directory, terminal, "was analysed like this before")
    splits, method = build(config)
    Analyses.build(config.analysis).check(method, splits)
    try:
        with ExitStack() as stack:
            stack.enter_context(logged(directory / "train.log"))
            trackers = Trackers.open(config, stack)
            analyze_stored(config, context_of(config, splits, directory), method, trackers)
    except Held as held:
        return _held(directory / "analysis", held, terminal)
    return _report(config, directory, terminal, "analysed")


def _train(
    config: TrainConfig,
    context: RunContext,
    method: Method,
    trackers: Trackers,
    terminal: Terminal,
) -> None:
    """Train to the end and write the result."""
    directory = config.directory
    if not (directory / "config.yaml").exists():
        tree = {**plain(config), "rerun": False}
        write_json(directory / "code.json", provenance.code_of(config))
        write_text(directory / "config.yaml", masked(yaml.safe_dump(tree, sort_keys=False)))
    elif other := provenance.changed(_code(directory), config):
        log.warning(
            "%s was begun by another version of the code of %s, and is continued by this one;"
            " rerun=true sets it aside and starts over",
            directory,
            ", ".join(other),
        )
    if method.phases():
        warn_of_few(config.train, context.splits)
    record = Record.of_run(directory, config)
    trackers.start(record)
    analyses = Analyses.build(config.analysis)
    with terminal.watch(lambda rows: trackers.rows(record, rows)) as observer:
        trainer = Trainer(directory, config.train, context, observer, analyses)
        try:
            trainer.fit(method)
            _finish(config, context.splits, method, trainer)
        except Interrupted:
            trackers.finish(record, "KILLED")
            raise
        except Exception:
            trackers.finish(record, "FAILED")
            raise
    trackers.report(record)


def _failed(directory: Path, error: Exception, terminal: Terminal) -> Outcome:
    if not directory.exists():
        message = "the run's directory was removed meanwhile; the same command starts over"
        return Outcome("failed", directory, message, exit_code=1)
    with suppress(OSError):  # the disk may be what failed
        write_text(directory / "failed", traceback.format_exc())
    log.error("the run failed: %s", error)
    if not isinstance(error, RunError | OSError):
        terminal.trace()
    return Outcome("failed", directory, _one_line(error), exit_code=1)


def _finish(config: TrainConfig, splits: Splits, method: Method, trainer: Trainer) -> None:
    directory, progress = config.directory, trainer.progress
    weights.save_weights(directory / "last.safetensors", weights.snapshot(method))
    selected = dict(progress.selected or {"criterion": None, "phase": None, "epoch": None})
    weights.load_weights(method, directory / selected.pop("file", "last.safetensors"))
    weights.save_weights(directory / "model.safetensors", weights.snapshot(method))
    reports: dict[str, Any] = {"val": None, "test": None, "tests": {}}  # of what was not trained
    with untouched(method):
        if progress.selected is not None:
            reported = splits.without(method.consumed)
            reports = predictions.predict_all(
                method.predict, reported, directory / "predictions.npz"
            )
        for folder, part in trainer.analyses.finish(directory, config, method, splits).items():
            write_json(directory / "analysis" / folder / "result.json", part)
    run = {
        "identity": config.identity,
        "seed": config.seed,
        **{key: config.choices.get(key) for key in ("dataset", "method", "backbone")},
        "config": config.settings,
        "commit": versions.commit(),
        "code": _code(directory),
        "versions": versions.versions(),
        "environment": progress.environment,
        "moved": progress.moved,
        "seconds": round(progress.seconds, 1),
        "images_seen": progress.images_seen,
        "splits": splits.fingerprints,
    }
    for part in predictions.kept_phases(directory).values():
        if "origin" in part:  # a run that started from another costs what that one did, too
            run["origin_images_seen"] = part["origin"]["images_seen"]
    results.write_result(directory, {"run": run, "selected": selected, **reports})
    write_text(directory / "done", versions.commit() + "\n")
    for path in directory.glob("selected-*.safetensors"):
        path.unlink()


def _code(directory: Path) -> dict[str, str]:
    """Fingerprints of the code that a run was begun by; earlier versions kept none."""
    path = directory / "code.json"
    return read_json(path) if path.exists() else {}


def outdated(config: TrainConfig) -> list[str]:
    """What the numbers of a finished run come from that is different now, as it is typed."""
    directory = config.directory
    result = read_result(directory)
    parts = provenance.changed(result["run"].get("code", {}), config)
    selected = result["selected"]
    rows = read_lines(directory / "metrics.jsonl", Row)
    rows = [row for row in rows if row["phase"] == selected["phase"]]
    if selected["criterion"] and selected["epoch"] != selection.best_epoch(
        rows, config.train.selection
    ):
        parts.append(f"train.selection={config.train.selection}")
    return parts


def _complete(config: TrainConfig, directory: Path) -> bool:
    """Whether the run and the repairs asked for are on disk."""
    return all((directory / path).exists() for path in config.needs)


def _report(config: TrainConfig, directory: Path, terminal: Terminal, how: str) -> Outcome:
    _tidy(directory, config.paths.outputs)
    result = read_result(directory)
    made, now = result["run"].get("commit", "unknown"), versions.commit()
    if made != now and not result["run"].get("code"):  # else it is known whether that matters
        how += f" (trained at commit {made}; the code is at {now})"
    terminal.result(result, directory, how, config)
    return Outcome("done", directory, result=result)


def _tidy(directory: Path, outputs: Path) -> None:
    """Remove what a process killed just after the word `done` would have removed itself."""
    with suppress(OSError):  # whoever only looks at a run may not be allowed to
        for path in directory.glob("selected-*.safetensors"):
            path.unlink(missing_ok=True)
        remove_dead(lock_of(directory), outputs / ".guard")


def _held(directory: Path, held: Held, terminal: Terminal) -> Outcome:
    message = f"{directory} is being worked on by {held}"
    terminal.say(message)
    return Outcome("held", directory, message)


def set_aside(directory: Path) -> None:
    """Keep a run under another name; the caller holds its lock."""
    if directory.exists():
        number = 1
        while (aside := directory.with_name(f"{directory.name}.old{number}")).exists():
            number += 1
        os.replace(directory, aside)


def _refuse_other_data(config: TrainConfig, directory: Path) -> None:
    """Under another root a table may name other images: a result is shown for its own data only."""
    if read_config(directory).paths.data == config.paths.data:
        return
    found = build(config)[0].fingerprints
    if found != read_result(directory)["run"]["splits"]:
        raise UserError(
            f"{directory} was trained on other data than paths.data={config.paths.data} holds now;"
            " name another paths.outputs, or say rerun=true to set that run aside"
        )


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError):
        return str(of_system(error))
    text = str(error).strip().splitlines()
    first = text[0] if text else ""
    return first if isinstance(error, RunError) else f"{type(error).__name__}: {first}"
