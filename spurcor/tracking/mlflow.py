"""MLflow as a mirror: everything is sent from one background thread."""

import contextlib
import functools
import logging
import os
import queue
import random
import re
import shlex
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from filelock import FileLock, Timeout

from spurcor.errors import UserError
from spurcor.system.files import read_json, write_json
from spurcor.system.lock import holder, lock_of
from spurcor.system.passwords import masked, whole
from spurcor.tracking import Record, Status, Tracker, metrics_of, store
from spurcor.tracking.names import mlflow_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, Run, RunTag

    Entity = Metric | Param | RunTag

log = logging.getLogger(__name__)
BATCH = 1000  # metrics in one request, MLflow's limit
PARAM_LENGTH, TAG_LENGTH = 6000, 8000  # of their values
# A server needs a third of a second for 1000: among many writers small requests are answered in
# time where large ones run into their timeouts.
SERVER_BATCH = 250
FLUSH_SECONDS = 5.0  # rows are collected for this long
WRITERS = 4  # of an outputs folder that use the store at the same time
TURN_SECONDS, TURN_PAUSE = 30.0, 0.03
CONNECT_SECONDS = 1.0
FIRST_ANSWER_SECONDS = 15.0  # a server that is silent for longer from the beginning is dead
CLOSE_PATIENCE = 20.0  # for a store that refuses while nothing but the mirror is left to do
CLOSE_SECONDS = 60.0  # since the last answer of a store that has work left when a run ends
PAUSE_SECONDS = (0.2, 5.0)  # between two attempts: the first, and the longest
# The page opens on tables and charts of runs; without it, on traces of language models.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
# Set before mlflow is imported. Its own retries block for minutes on a dead server and know
# nothing of the run's end; a busy server may need most of the timeout.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@dataclass(frozen=True)
class _Rows:
    """Metrics that wait to be sent together with others of their record."""

    record: Record
    rows: list[dict[str, Any]]


class MlflowTracker(Tracker):
    """One MLflow experiment per sweep; runs below their sweep, DFR below its run.

    The id of the MLflow run is kept in the record's folder, so a requeued or resumed run continues
    it. A store that is busy or away is tried again; one that stays so switches the mirror off for
    this process, and `spurcor.sync` catches up.
    """

    title = "MLflow"

    def __init__(self, outputs: Path, uri: str | None = None, patience: float = 60.0) -> None:
        """`uri` null: MLFLOW_TRACKING_URI, or else a sqlite store in the outputs folder.

        `patience`: seconds for which a request is repeated while the run goes on.
        """
        self.outputs = outputs
        self._address = store_uri(outputs, uri)
        self.uri = masked(self._address)
        self.patience = patience
        self.failure: Exception | None = None
        self._queue: queue.Queue[Callable[[], None] | _Rows | None] = queue.Queue()
        self._worker: threading.Thread | None = None
        self._closing = threading.Event()
        self._asked: float | None = None  # when a server got the first request
        self._answered: float | None = None
        self._random = random.Random()  # its own: training may draw from the common one
        self._turn_of = self._random.randrange(WRITERS)
        self._experiments: dict[str, str] = {}
        self._statuses: dict[Path, str] = {}
        self._unsure: set[Path] = set()  # records that a failed request may have created
        self._lost: set[str] = set()  # what the store refused

    @property
    def alive(self) -> bool:
        """Whether the store has taken everything so far."""
        return self.failure is None and not self._lost

    @property
    def address(self) -> str:
        """A server's address, or the command that opens a local store."""
        if self._server is not None:
            return self.uri
        return shlex.join(["mlflow", "ui", "--backend-store-uri", self.uri])

    def prepare(self) -> None:
        """Import mlflow, unless its server is dead: that is told by the first call."""
        with contextlib.suppress(OSError):
            self._import()

    # --- calls of the run: they only queue --------------------------------------------------------

    def start(self, record: Record) -> None:
        """Create the MLflow run, or continue it."""
        self._put(lambda: self._start(record))

    def log(self, record: Record, rows: Sequence[Mapping[str, Any]]) -> None:
        """Metrics with the row's own time: a row that is sent twice is stored once."""
        self._put(_Rows(record, [dict(row) for row in rows]))

    def result(self, record: Record, row: Mapping[str, Any]) -> None:
        """Metrics like those of any row."""
        self.log(record, [row])

    def artifact(self, record: Record, path: Path, folder: str = "") -> None:
        """Copy a file to the artifact store."""
        self._put(lambda: self._artifact(record, path, folder))

    def finish(self, record: Record, status: Status) -> None:
        """Close the MLflow run."""
        self._put(lambda: self._finish(record, status))

    def close(self) -> None:
        """Wait until everything is sent or has failed, or the store is silent for too long."""
        if self._worker is None:
            return
        self._closing.set()
        self._queue.put(None)
        begin = time.monotonic()
        while self._worker.is_alive() and not self._silent(begin):
            self._worker.join(0.1)
        if self._worker.is_alive():
            self._fail(TimeoutError("no answer in time"))

    def _put(self, task: Callable[[], None] | _Rows | None) -> None:
        if self._worker is None:  # a tracker that is only asked for its address needs no thread
            self._worker = threading.Thread(target=self._work, name="mlflow", daemon=True)
            self._worker.start()
        self._queue.put(task)

    def _silent(self, begin: float) -> bool:
        """Whether a store that is waited for since `begin` deserves no more of it."""
        now = time.monotonic()
        if now - max(begin, self._answered or begin) > CLOSE_SECONDS:
            return True
        never = self._asked is not None and self._answered is None
        return never and now - (self._asked or now) > FIRST_ANSWER_SECONDS

    # --- the thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        waiting: list[_Rows] = []
        due = 0.0  # when rows are sent
        while not (self._closing.is_set() and self._queue.empty() and not waiting):
            task: Callable[[], None] | _Rows | None = None
            with contextlib.suppress(queue.Empty):
                pause = max(due - time.monotonic(), 0.0)
                task = self._queue.get(timeout=pause if waiting else None)
            if isinstance(task, _Rows):
                waiting.append(task)
                if time.monotonic() < due:
                    continue
                task = None
            if waiting:
                due = time.monotonic() + FLUSH_SECONDS
                self._send(waiting)
                waiting = []
            if task is not None:
                self._carry_out(task)

    def _send(self, waiting: Sequence[_Rows]) -> None:
        """Send rows together, in requests that are tried again one by one."""
        size = SERVER_BATCH if self._server else BATCH
        for record in {entry.record.directory: entry.record for entry in waiting}.values():
            metrics = [
                (mlflow_name(key), value, int(row["time"]), int(row["step"]))
                for entry in waiting
                for row in entry.rows
                for key, value in metrics_of(row)
                if entry.record.directory == record.directory
            ]
            for first in range(0, len(metrics), size):
                part = metrics[first : first + size]
                self._carry_out(functools.partial(self._metrics, record, part))

    def _carry_out(self, task: Callable[[], None]) -> None:
        """Do a task, again if the store was only busy or away; nothing after a failure."""
        refused: float | None = None  # since when
        pause, longest = PAUSE_SECONDS
        while self.failure is None:
            try:
                if not hasattr(self, "_client"):
                    self._connect()
                with self._turn():
                    task()
                self._answered = time.monotonic()
                return
            except Exception as error:  # the files are the record: a mirror never stops a run
                closing = self._closing.is_set()
                patience = min(self.patience, CLOSE_PATIENCE) if closing else self.patience
                refused = refused or time.monotonic()
                late = time.monotonic() - refused > patience
                if late or not self._passing(error) or (closing and not self._reachable()):
                    self._fail(error)
                    return
            # Many writers that were refused together must not come back together.
            wait = pause * self._random.uniform(0.5, 1.5)
            if closing:
                time.sleep(wait)
            else:  # the end of the run wakes it for a last attempt
                self._closing.wait(wait)
            pause = min(2 * pause, longest)

    def _passing(self, error: BaseException) -> bool:
        """Whether the same request may succeed in a moment."""
        if self._server is None:
            return "database is locked" in str(error)
        return _unanswered(error)

    def _fail(self, error: Exception) -> None:
        """Give the store up, and say why."""
        if self.failure is not None:
            return
        self.failure = error
        how = "is not reached" if self._passing(error) or _unanswered(error) else "is refused"
        log.warning(
            "MLflow at %s %s (%s); python -m spurcor.sync sends what it misses",
            self.uri,
            how,
            self._reason(error),
        )

    def _lose(self, what: str, error: Exception) -> None:
        """Go on without one thing that the store refuses; that is told once."""
        if what not in self._lost:
            self._lost.add(what)
            log.warning("MLflow at %s refuses %s (%s)", self.uri, what, self._reason(error))

    def _reason(self, error: Exception) -> str:
        # The innermost reason says it: those around it repeat addresses.
        reasons = [e for e in _chain(error) if isinstance(e, OSError | sqlite3.Error)]
        text = str([error, *reasons][-1]).replace(self._address, self.uri).strip().splitlines()
        return masked(text[0])[:200] if text else type(error).__name__

    @property
    def _server(self) -> tuple[str, int] | None:
        """Host and port of a server; None for a local store."""
        address = urlparse(self._address)
        if address.scheme not in ("http", "https"):
            return None
        return address.hostname or "", address.port or {"http": 80, "https": 443}[address.scheme]

    def _reachable(self) -> bool:
        try:
            self._knock()
        except OSError:
            return False
        return True

    def _knock(self) -> None:
        if self._server is not None:
            socket.create_connection(self._server, CONNECT_SECONDS).close()

    def _import(self) -> None:
        self._knock()  # spares a dead server the import of mlflow
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # It logs every lock of the database with its traceback, also those that pass.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        import mlflow

        if self.uri.startswith("sqlite"):  # else imported by the first request
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    def _connect(self) -> None:
        self._import()
        if self._server is not None and self._asked is None:
            self._asked = time.monotonic()
        client = open_store(self._address, self.outputs)
        self._answered = time.monotonic()
        self._client = client

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """A courtesy among the writers of an outputs folder; one whose turn never comes goes on.

        Many at once keep a sqlite file's writers waiting beyond its own patience. And a server
        takes more than one database connection for a request, so that as many requests as it has
        connections wait for each other until they time out.
        """
        lock = _lock(self.outputs, str(self._turn_of))
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(Timeout):
                stack.enter_context(lock.acquire(TURN_SECONDS, TURN_PAUSE / 2))
            yield
        time.sleep(TURN_PAUSE)  # or the next task takes the lock before anybody else looks at it

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            found = self._client.get_experiment_by_name(name)
            if found is None:
                local = self.uri.startswith("sqlite")
                place = (self.outputs / store.ARTIFACTS).as_uri() if local else None
                try:
                    created = self._client.create_experiment(name, place, EXPERIMENT_TAGS)
                except Exception:
                    found = self._client.get_experiment_by_name(name)
                    if found is None:  # not created by another process meanwhile either
                        raise
            if found is not None and found.lifecycle_stage == "deleted":
                self._client.restore_experiment(found.experiment_id)
            self._experiments[name] = created if found is None else found.experiment_id
            self._close_stale(self._experiments[name])
        return self._experiments[name]

    def _close_stale(self, experiment: str) -> None:
        """Runs shown as running whose process is gone."""
        for run in self._client.search_runs([experiment], "attributes.status = 'RUNNING'"):
            directory = Path(run.data.tags.get("spurcor.directory", "/nowhere"))
            kind = run.data.tags.get("spurcor.kind")
            owner = directory.parents[1] if kind == "dfr" else directory
            # What is not on this disk is the run of another machine.
            if kind not in ("run", "dfr") or not directory.exists():
                continue
            if holder(lock_of(owner)) is not None:
                continue
            # It may have finished since the search: it says so before it lets go of its lock.
            if self._client.get_run(run.info.run_id).info.status == "RUNNING":
                self._client.set_terminated(run.info.run_id, "KILLED")

    def _start(self, record: Record) -> None:
        path = record.directory / "mlflow.json"
        fresh = not path.exists()
        if fresh:  # written before the MLflow run, so that a kill in between loses nothing
            write_json(path, {"id": uuid.uuid4().hex})
        tags = {
            **record.tags,
            "spurcor.directory": str(record.directory),
            "spurcor.id": read_json(path)["id"],
            "spurcor.kind": record.kind,
        }
        run = None if fresh else self._known(record)
        if run is None:
            first = {key: tags[key] for key in ("spurcor.directory", "spurcor.id", "spurcor.kind")}
            if record.parent is not None and (parent := self._stored_id(record.parent)):
                first["mlflow.parentRunId"] = parent
            experiment = self._experiment(record.sweep)
            try:
                run = self._client.create_run(experiment, record.times[0], first, record.name)
            except Exception:
                self._unsure.add(record.directory)
                raise
        status = run.info.status
        if record.kind == "run" and status in ("KILLED", "FAILED"):
            self._client.update_run(run.info.run_id, status := "RUNNING")
        self._statuses[record.directory] = status
        if self._stored_id(record.directory) != run.info.run_id:
            known = {masked(uri): value for uri, value in read_json(path).items()}
            write_json(path, {**known, self.uri: run.info.run_id})
        self._describe(run, record.params, tags)

    def _describe(self, run: "Run", params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Log those parameters and tags that a run has not."""
        from mlflow.entities import Param, RunTag

        fresh: dict[str, list[Entity]] = {}
        for key, text in _taken(params, PARAM_LENGTH).items():
            if key not in run.data.params:
                fresh[f"parameter {key}"] = [Param(key, text)]
        for key, text in _taken(tags, TAG_LENGTH).items():
            if run.data.tags.get(key) != text:
                fresh[f"tag {key}"] = [RunTag(key, text)]
        self._log(run.info.run_id, fresh)

    def _finish(self, record: Record, status: Status) -> None:
        run_id = self._run_id(record)
        if record.directory in self._unsure:  # a request that timed out may have been carried out
            for run in self._search(record):
                if run.info.run_id != run_id:
                    self._client.delete_run(run.info.run_id)
        if self._statuses.get(record.directory) != status:  # else it keeps its end time
            self._client.set_terminated(run_id, status, end_time=record.times[1])
            self._statuses[record.directory] = status

    def _known(self, record: Record) -> "Run | None":
        """The MLflow run of a record: by its stored id, or by its tag if that is missing."""
        from mlflow.exceptions import MlflowException

        if stored := self._stored_id(record.directory):
            try:
                run = self._client.get_run(stored)
                if run.info.lifecycle_stage == "active":
                    return run
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        found = self._search(record)
        return found[0] if found else None

    def _search(self, record: Record) -> "list[Run]":
        """The MLflow runs that carry the record's own id."""
        key = read_json(record.directory / "mlflow.json")["id"]
        experiments = [self._experiment(record.sweep)]
        return list(self._client.search_runs(experiments, f"tags.`spurcor.id` = '{key}'"))

    def _stored_id(self, directory: Path) -> str | None:
        path = directory / "mlflow.json"
        return read_json(path).get(self.uri) if path.exists() else None

    def _run_id(self, record: Record) -> str:
        run_id = self._stored_id(record.directory)
        if run_id is None:
            raise RuntimeError(f"{record.directory} was never started in MLflow")
        return run_id

    def _metrics(self, record: Record, rows: Sequence[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        named: dict[str, list[Entity]] = {}
        for row in rows:
            named.setdefault(f"metric {row[0]}", []).append(Metric(*row))
        self._log(self._run_id(record), named)

    def _artifact(self, record: Record, path: Path, folder: str) -> None:
        run_id = self._run_id(record)
        try:
            self._client.log_artifact(run_id, str(path), folder or None)
        except Exception as error:
            if self._passing(error):
                raise
            self._lose(f"file {Path(folder, path.name)}", error)

    def _log(self, run_id: str, named: "Mapping[str, Sequence[Entity]]") -> None:
        """Log metrics, parameters or tags: together, or name by name if the store refuses that.

        What it refuses alone costs only itself; if it refuses all, something else is wrong.
        """
        try:
            self._log_together(run_id, [entity for group in named.values() for entity in group])
        except Exception as error:
            if self._passing(error):
                raise
            refused: dict[str, Exception] = {}
            for name, group in named.items():
                try:
                    self._log_together(run_id, group)
                except Exception as of_one:
                    if self._passing(of_one):
                        raise
                    refused[name] = of_one
            if len(refused) == len(named) > 1:
                raise
            for name, reason in refused.items():
                self._lose(name, reason)

    def _log_together(self, run_id: str, entities: "Sequence[Entity]") -> None:
        from mlflow.entities import Metric, Param, RunTag

        if entities:
            self._client.log_batch(
                run_id,
                metrics=[entity for entity in entities if isinstance(entity, Metric)],
                params=[entity for entity in entities if isinstance(entity, Param)],
                tags=[entity for entity in entities if isinstance(entity, RunTag)],
            )


def _taken(values: Mapping[str, str], length: int) -> dict[str, str]:
    """Parameters or tags as MLflow takes them; a text that is too long is cut, as its end shows."""
    return {
        mlflow_name(key, also=":"): text if len(text) <= length else f"{text[: length - 3]}..."
        for key, text in values.items()
    }


def _unanswered(error: BaseException) -> bool:
    """Whether the store did not answer, rather than answer with a refusal."""
    import requests

    network = (
        *(ConnectionError, TimeoutError, socket.gaierror),
        *(requests.ConnectionError, requests.Timeout),
        requests.exceptions.RetryError,  # the server's own 429 and 5xx
    )
    return any(isinstance(cause, network) for cause in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what it came from, the innermost last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def open_store(address: str, outputs: Path) -> "MlflowClient":
    """A client of a store; one on this machine is made first, if it must be."""
    from mlflow import MlflowClient

    database = store.database_of(address)
    with contextlib.ExitStack() as stack:
        if urlparse(address).scheme not in ("http", "https"):  # many may need a fresh one at once
            stack.enter_context(_lock(outputs if database is None else database.parent, "create"))
        if database is not None:
            store.make(database, outputs / store.ARTIFACTS)
            if database == outputs / "mlflow.db":
                store.follow(database, outputs)
        client = MlflowClient(tracking_uri=address)
        client.search_experiments(max_results=1)
    return client


def _lock(folder: Path, name: str) -> FileLock:
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f".mlflow.{name}.lock")


def store_uri(outputs: Path, uri: str | None = None) -> str:
    """The MLflow store that is written to, with its password."""
    if uri is not None:
        return _checked("tracker.mlflow.uri", uri)
    if named := os.environ.get("MLFLOW_TRACKING_URI"):
        return _checked("MLFLOW_TRACKING_URI", named)
    return f"sqlite:///{outputs}/mlflow.db"


def _checked(key: str, uri: str) -> str:
    """An address with its password; a server without a scheme, for MLflow a folder, is refused."""
    first = uri.partition("/")[0]
    a_port = re.fullmatch(r"(.*@)?([\w.-]+|\[[\w:]+\]):\d+", first)
    a_name = re.fullmatch(r"(.*@)?\w[\w-]*(\.[\w-]+)+", first) and not Path(uri).exists()
    if a_port or a_name:
        web = f"http://{uri}"
        raise UserError(f"{key}={masked(web)[7:]} names no scheme; add http:// or https://")
    try:
        _ = urlparse(uri).port if uri.startswith("http") else None
    except ValueError as error:
        shown = masked(uri)
        raise UserError(f"{key}={shown} is no address ({error}); say http://host:port") from error
    return whole(uri, key)
