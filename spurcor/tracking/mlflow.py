"""MLflow as a mirror: everything is sent from one background thread."""

import contextlib
import logging
import os
import queue
import re
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from filelock import FileLock

from spurcor.files import read_json, write_json
from spurcor.lock import holder, lock_of
from spurcor.tracking import UNTRACKED, Record, Status

if TYPE_CHECKING:
    from mlflow.entities import Run

log = logging.getLogger(__name__)
BATCH = 1000  # metrics in one request, MLflow's limit
CONNECT_SECONDS = 1.0
CLOSE_SECONDS = 60.0
# The page opens on tables and charts of runs; without it, on traces of language models.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
# Set before mlflow is imported: its own defaults block for minutes on a dead server.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


class MlflowTracker:
    """One MLflow experiment per sweep; runs below their sweep, DFR below its run.

    The id of the MLflow run is kept in the record's folder, so a requeued or resumed run continues
    it. The first failure switches the mirror off for this process; `spurcor.sync` catches up.
    """

    def __init__(self, outputs: Path, uri: str | None = None) -> None:
        """`uri` null: MLFLOW_TRACKING_URI, or else a sqlite store in the outputs folder."""
        self.outputs = outputs
        self.uri = store_uri(outputs, uri)
        self.failure: Exception | None = None
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._experiments: dict[str, str] = {}
        self._worker = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._worker.start()

    @property
    def alive(self) -> bool:
        """Whether the store has taken everything so far."""
        return self.failure is None

    # --- calls of the run: they only queue --------------------------------------------------------

    def start(self, record: Record) -> None:
        """Create the MLflow run, or continue it."""
        self._queue.put(lambda: self._start(record))

    def log(self, record: Record, rows: Sequence[Mapping[str, Any]]) -> None:
        """Metrics with the row's own time: a row that is sent twice is stored once."""
        frozen = [dict(row) for row in rows]
        self._queue.put(lambda: self._log(record, frozen))

    def artifact(self, record: Record, path: Path) -> None:
        """Copy a file to the artifact store."""
        self._queue.put(lambda: self._client.log_artifact(self._run_id(record), str(path)))

    def finish(self, record: Record, status: Status) -> None:
        """Close the MLflow run."""
        self._queue.put(lambda: self._finish(record, status))

    def close(self) -> None:
        """Wait until everything is sent or has failed."""
        self._queue.put(None)
        self._worker.join(CLOSE_SECONDS)
        if self._worker.is_alive():
            self.failure = TimeoutError(f"no answer for {CLOSE_SECONDS:.0f} s")
            self._warn()

    # --- the thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            if self.failure is not None:
                continue
            try:
                if not hasattr(self, "_client"):
                    self._connect()
                task()
            except Exception as error:  # the files are the record: a mirror never stops a run
                self.failure = error
                self._warn()

    def _warn(self) -> None:
        text = str(self.failure).strip().splitlines()
        log.warning(
            "MLflow at %s is not reached (%s); python -m spurcor.sync sends what it misses",
            self.uri,
            text[0][:200] if text else type(self.failure).__name__,
        )

    def _connect(self) -> None:
        address = urlparse(self.uri)
        if address.scheme in ("http", "https"):  # spare a dead server the import of mlflow
            port = address.port or {"http": 80, "https": 443}[address.scheme]
            socket.create_connection((address.hostname or "", port), CONNECT_SECONDS).close()
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        from mlflow import MlflowClient

        with self._creation_lock():
            self._client: MlflowClient = MlflowClient(tracking_uri=self.uri)
            self._client.search_experiments(max_results=1)

    @contextlib.contextmanager
    def _creation_lock(self) -> Iterator[None]:
        """A fresh sqlite store breaks when two processes create it."""
        if self.uri.startswith("sqlite"):
            self.outputs.mkdir(parents=True, exist_ok=True)
            with FileLock(self.outputs / ".mlflow.lock"):
                yield
        else:
            yield

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            with self._creation_lock():
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    local = self.uri.startswith("sqlite")
                    place = (self.outputs / "mlflow-artifacts").as_uri() if local else None
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
            if kind in ("run", "dfr") and directory.exists() and holder(lock_of(owner)) is None:
                self._client.set_terminated(run.info.run_id, "KILLED")

    def _start(self, record: Record) -> None:
        from mlflow.entities import Param, RunTag

        path = record.directory / "mlflow.json"
        if not path.exists():  # before the MLflow run, so that a kill in between loses nothing
            write_json(path, {"id": uuid.uuid4().hex})
        tags = {
            **record.tags,
            "spurcor.directory": str(record.directory),
            "spurcor.id": read_json(path)["id"],
            "spurcor.kind": record.kind,
        }
        run = self._known(record)
        if run is None:
            if record.parent is not None and (parent := self._stored_id(record.parent)):
                tags["mlflow.parentRunId"] = parent
            run = self._client.create_run(
                self._experiment(record.sweep),
                start_time=record.times[0],
                tags=tags,
                run_name=record.name,
            )
        elif record.kind == "run" and run.info.status in ("KILLED", "FAILED"):
            self._client.update_run(run.info.run_id, status="RUNNING")
        write_json(path, {**read_json(path), self.uri: run.info.run_id})
        missing = {key: v for key, v in record.params.items() if key not in run.data.params}
        self._client.log_batch(
            run.info.run_id,
            params=[Param(key, value[:6000]) for key, value in missing.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )

    def _finish(self, record: Record, status: Status) -> None:
        run_id = self._run_id(record)
        if self._client.get_run(run_id).info.status != status:  # else it keeps its end time
            self._client.set_terminated(run_id, status, end_time=record.times[1])

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
        key = read_json(record.directory / "mlflow.json")["id"]
        experiments = [self._experiment(record.sweep)]
        found = self._client.search_runs(experiments, f"tags.`spurcor.id` = '{key}'", max_results=1)
        return found[0] if found else None

    def _stored_id(self, directory: Path) -> str | None:
        path = directory / "mlflow.json"
        return read_json(path).get(self.uri) if path.exists() else None

    def _run_id(self, record: Record) -> str:
        run_id = self._stored_id(record.directory)
        if run_id is None:
            raise RuntimeError(f"{record.directory} was never started in MLflow")
        return run_id

    def _log(self, record: Record, rows: Sequence[Mapping[str, Any]]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(
                re.sub(r"[^\w\-. /]", "_", key), float(value), int(row["time"]), int(row["step"])
            )
            for row in rows
            for key, value in row.items()
            if key not in UNTRACKED and value is not None
        ]
        run_id = self._run_id(record)
        for first in range(0, len(metrics), BATCH):
            self._client.log_batch(run_id, metrics=metrics[first : first + BATCH])


def store_uri(outputs: Path, uri: str | None = None) -> str:
    """The MLflow store that is written to."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{outputs}/mlflow.db"
