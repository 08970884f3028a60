"""A run on disk: its identity, its lock, what it is rebuilt from, and how it is carried out."""

import dataclasses
import logging
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
import yaml

from spurcor import checkpoint, provenance, results, selection
from spurcor.analysis import Analyses
from spurcor.analysis.stored import analyze_stored
from spurcor.config import (
    Node,
    Paths,
    RunPaths,
    TrainConfig,
    dfr_name,
    plain,
)
from spurcor.console import Terminal
from spurcor.data import DataInfo, GroupSpec, Splits
from spurcor.errors import Damaged, RunError, UserError, of_system
from spurcor.files import read_json, read_lines, remove_leftovers, write_json, write_text
from spurcor.lock import Held, holder, lock_of, locked, remove_dead
from spurcor.method import Method, RunContext
from spurcor.passwords import masked
from spurcor.pretrained import refuse_missing
from spurcor.refusals import (
    refuse_blind_selection,
    refuse_blind_stopping,
    refuse_changed_defaults,
    refuse_impossible,
    refuse_unknown_criterion,
    warn_of_few,
)
from spurcor.repair import refuse_leak, repair, repairing
from spurcor.results import read_result
from spurcor.shapes import Repair, Row
from spurcor.signals import Interrupted
from spurcor.source import DataSource
from spurcor.sweeps import cannot_write, read_frozen
from spurcor.tracking import Record, Trackers
from spurcor.trainer import Trainer, untouched

log = logging.getLogger(__name__)
DEFAULT_THREADS = torch.get_num_threads()  # before any run has set its own
Status = Literal["done", "failed", "held", "interrupted"]


@dataclass(frozen=True)
class Outcome:
    """How a command on a run ended."""

    status: Status
    directory: Path
    message: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    exit_code: int = 0


# --- opening and rebuilding -----------------------------------------------------------------------


def read_config(directory: Path) -> TrainConfig:
    """The configuration a run was made with."""
    return read_frozen(directory / "config.yaml")


def find(reference: str, outputs: Path, key: str = "run") -> Path:
    """A run from its directory, the first digits of its identity [/seed<k>], or mlflow:<run id>.

    `key` is what the user named it by.
    """
    reference = reference.rstrip("/")
    if reference.startswith("mlflow:"):
        directory = _from_mlflow(reference, outputs, key)
    elif Path(reference).is_dir():
        directory = Path(reference).absolute()
    elif Path(reference).is_file():
        raise UserError(
            f"{key}={reference} is a file; name the run's directory, which holds its config.yaml"
        )
    else:
        identity, _, seed = reference.partition("/")
        found = [
            path
            for path in sorted((outputs / "runs").glob(f"*/*/{identity}*/{seed or 'seed*'}"))
            if path.is_dir() and path.name.removeprefix("seed").isdigit()
        ]
        if not found:
            raise UserError(
                f"{key}={reference} is no directory and no run under {outputs}/runs begins with it"
            )
        if len(found) > 1:
            names = ", ".join(f"{path.parent.name}/{path.name}" for path in found[:6])
            raise UserError(f"{key}={reference} fits {len(found)} runs ({names}); name one")
        directory = found[0]
    if not (directory / "config.yaml").exists():
        raise UserError(f"{key}={reference} is not a run: {directory} has no config.yaml")
    return directory


def _from_mlflow(reference: str, outputs: Path, key: str) -> Path:
    from mlflow.exceptions import MlflowException

    from spurcor.tracking.mlflow import open_store, store_uri
    from spurcor.tracking.store import database_of

    uri = store_uri(outputs)
    try:
        if (database := database_of(uri)) is not None and not database.exists():
            raise KeyError(reference)  # it would be made
        run = open_store(uri, outputs).get_run(reference.removeprefix("mlflow:"))
        return Path(run.data.tags["spurcor.directory"])
    except (MlflowException, KeyError) as error:
        raise UserError(
            f"{key}={reference} is no run of spurcor in the MLflow store {masked(uri)}"
        ) from error


def find_done(reference: str, outputs: Path, key: str = "run") -> Path:
    """Such a run, which must be finished."""
    directory = find(reference, outputs, key)
    if not (directory / "done").exists():
        raise UserError(f"{key}={directory} is not finished; the command that began it goes on")
    return directory


def reopen(reference: str, paths: RunPaths, **asked: Any) -> tuple[Path, TrainConfig]:
    """A finished run with its own configuration, and what is asked of it now (dfr, analysis)."""
    directory = find_done(reference, paths.outputs)
    config = read_config(directory)
    here = Paths(data=paths.data or config.paths.data, outputs=paths.outputs)
    return directory, dataclasses.replace(config, paths=here, **asked)


def device(options: str) -> torch.device:
    """The device named, or the GPU where there is one."""
    if options == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with warnings.catch_warnings(action="ignore"):  # of what is refused anyway
            chosen = torch.device(options)
            torch.zeros(1, device=chosen).item()  # meta has no values
    except (RuntimeError, AssertionError, ImportError, ValueError, TypeError) as error:
        raise UserError(f"train.device={options} cannot be used here; say cpu or auto") from error
    return chosen


def build(config: TrainConfig) -> tuple[Splits, Method]:
    """Data and untrained method of a run; every draw of its initialisation is seeded."""
    options = config.train
    torch.set_num_threads(options.num_threads or DEFAULT_THREADS)
    source: DataSource = config.dataset.build()
    _refuse_missing_weights(config, source)
    splits = Splits.load(source, config.paths.data, device(options.device))
    if config.features is None:
        return splits, _method(config, splits.info, splits.device)
    from spurcor.features import fixed_network, freeze

    network, info = fixed_network(config.features, splits.info, config.seed)
    # Extraction may take hours: what does not fit features is refused before.
    method = _method(config, info, splits.device)
    with torch.random.fork_rng():  # what training draws is the same whether they are there or not
        splits = freeze(splits, network, config.features, config.dataset, config.paths.data)
    return splits, method


def _refuse_missing_weights(config: TrainConfig, source: DataSource) -> None:
    """Decoding photographs may take hours, and what comes after it needs these."""
    size = getattr(source.transform, "size", None)
    if size is None:  # no photographs
        return
    info = DataInfo(GroupSpec(("0", "1"), ("0",)), (3, size, size), torch.ones(2))
    for node in (config.backbone, *([config.features.backbone] if config.features else [])):
        refuse_missing(node, info)


def _method(config: TrainConfig, info: DataInfo, place: torch.device) -> Method:
    options = config.train
    torch.manual_seed(config.seed)
    info = dataclasses.replace(info, loss=options.loss)
    backbone = config.backbone.build(info=info)
    backbone.name = f"backbone={config.choices['backbone']}"
    method: Method = config.method.build(backbone=backbone, info=info)
    try:
        method.phases()
    except ValueError as error:
        raise UserError(f"method.{error}") from error
    backbone.autocast = torch.bfloat16 if options.precision == "bf16" else None
    backbone.channels_last = options.channels_last
    if options.channels_last:
        method.to(memory_format=torch.channels_last)
    if options.compile:
        backbone.compile()
    return method.to(place)


def start_from(directory: Path, splits: Splits, method: Method) -> Method:
    """Give a method the last backbone and head of a finished run, trained on the same splits.

    Returns that run's own network, since the method's may have parts that it had not.
    """
    result = read_result(directory)
    refuse_leak(result["run"]["splits"], splits)
    if result["val"] is None:
        raise UserError(
            f"method.init={directory} has no figure of val: it was trained on val, which could"
            " then select nothing, or on nothing; start from another run"
        )
    last = directory / "last.safetensors"
    checkpoint.load_trained(method, last)
    with torch.random.fork_rng():
        origin = _method(read_config(directory), splits.info, splits.device)
    checkpoint.load_trained(origin, last)
    return origin


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
        results.write_phase(folder, predict, splits, origin=about, selected=selected)


# --- carrying out ---------------------------------------------------------------------------------


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


def validate(config: TrainConfig) -> None:
    """Build what is cheap to build, so that a sweep learns of bad values before it starts."""
    config.dataset.build()
    if config.dfr is not None:
        config.dfr.build()
    Analyses.build(config.analysis)
    Trackers.build(config.tracker, config.paths.outputs)
    _optimizers(config)


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


def mirror(directory: Path, config: TrainConfig, trackers: Trackers) -> None:
    """Send everything that is on disk of a run that nobody works on."""
    record = Record.of_run(directory, config)
    rows = read_lines(directory / "metrics.jsonl", Row)
    done = (directory / "done").exists()
    if not done:  # later rows will be made again, with another time
        saved = directory / "checkpoint.pt"
        rows = rows[: _rows_of(saved) if saved.exists() else 0]
    trackers.start(record)
    trackers.rows(record, rows)
    if not done:
        trackers.finish(record, "FAILED" if (directory / "failed").exists() else "KILLED")
        return
    trackers.report(record)
    for part in sorted(directory.glob("dfr/*/result.json")):
        options = read_json(part, Repair)["options"]
        node = Node("dfr", "spurcor.dfr.Dfr", options)
        trackers.report(Record.of_dfr(directory, part.parent, node, config))


def _rows_of(path: Path) -> int:
    """How many rows a checkpoint counts."""
    progress = checkpoint.load(path, ("progress",))["progress"]
    if not isinstance(progress, dict) or not isinstance(progress.get("rows"), int):
        raise Damaged(path, "is no checkpoint of this version: it counts no rows")
    return int(progress["rows"])


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
    checkpoint.save_weights(directory / "last.safetensors", checkpoint.snapshot(method))
    selected = dict(progress.selected or {"criterion": None, "phase": None, "epoch": None})
    checkpoint.load_weights(method, directory / selected.pop("file", "last.safetensors"))
    checkpoint.save_weights(directory / "model.safetensors", checkpoint.snapshot(method))
    reports: dict[str, Any] = {"val": None, "test": None, "tests": {}}  # of what was not trained
    with untouched(method):
        if progress.selected is not None:
            reported = splits.without(method.consumed)
            reports = results.predict_all(method.predict, reported, directory / "predictions.npz")
        for folder, part in trainer.analyses.finish(directory, config, method, splits).items():
            write_json(directory / "analysis" / folder / "result.json", part)
    run = {
        "identity": config.identity,
        "seed": config.seed,
        **{key: config.choices.get(key) for key in ("dataset", "method", "backbone")},
        "config": config.settings,
        "commit": results.commit(),
        "code": _code(directory),
        "versions": results.versions(),
        "environment": progress.environment,
        "moved": progress.moved,
        "seconds": round(progress.seconds, 1),
        "images_seen": progress.images_seen,
        "splits": splits.fingerprints,
    }
    for part in results.kept_phases(directory).values():
        if "origin" in part:  # a run that started from another costs what that one did, too
            run["origin_images_seen"] = part["origin"]["images_seen"]
    results.write_result(directory, {"run": run, "selected": selected, **reports})
    write_text(directory / "done", results.commit() + "\n")
    for path in directory.glob("selected-*.safetensors"):
        path.unlink()


def context_of(config: TrainConfig, splits: Splits, directory: Path) -> RunContext:
    """What the phases of a run get; optimiser and schedule are tried on the way."""
    optimizer, schedule = _optimizers(config)
    return RunContext(splits, config.seed, config.train.batch_size, directory, optimizer, schedule)


def _optimizers(config: TrainConfig) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Factories of optimisers and schedules, tried once on a parameter of their own."""

    def optimizer(parameters: Any) -> Any:
        return config.optimizer.build(params=list(parameters))

    def schedule(optimizer: Any, epochs: int) -> Any:
        total = {"T_max": epochs} if config.schedule.takes("T_max") else {}
        return config.schedule.build(optimizer=optimizer, **total)

    schedule(optimizer([torch.nn.Parameter(torch.zeros(1))]), 1)
    return optimizer, schedule


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
    made, now = result["run"].get("commit", "unknown"), results.commit()
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


class RunLog(logging.FileHandler):
    """train.log; what a full disk does not take is lost without another word."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Called by logging."""

    def close(self) -> None:
        """Write what is left, if there is room."""
        with suppress(OSError):
            super().close()


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Write spurcor's log to a file for the while."""
    handler = RunLog(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("spurcor")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
