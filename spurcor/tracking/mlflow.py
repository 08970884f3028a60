"""MLflow tracker: everything is sent from one background thread."""

import contextlib
import functools
import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spurcor.tracking import Record, Status, Tracker, metrics_of
from spurcor.tracking.mlflow_connection import Connection, unanswered
from spurcor.tracking.mlflow_runs import Runs
from spurcor.tracking.names import mlflow_name
from spurcor.tracking.sender import Rows, Sender, Task

log = logging.getLogger(__name__)
BATCH = 1000  # metrics per request, MLflow's limit
# A server takes a third of a second for 1000 metrics; with many writers, requests of that size time
# out where small ones do not.
SERVER_BATCH = 250


class MlflowTracker(Tracker):
    """One MLflow experiment per sweep, with runs below their sweep and DFR below its run.

    The id of the MLflow run is stored in the record's folder, so a requeued or resumed run
    continues it. Requests to a busy or unreachable store are retried; if it stays so, the tracker
    is switched off for this process, and `spurcor.sync` sends what is missing.
    """

    title = "MLflow"

    def __init__(self, outputs: Path, uri: str | None = None, patience: float = 60.0) -> None:
        """`uri` null: MLFLOW_TRACKING_URI, or else a sqlite store in the outputs folder.

        `patience`: seconds for which a request is retried while the run goes on.
        """
        self._connection = Connection(outputs, uri)
        self._runs = Runs(self._connection)
        self._sender = Sender(self._connection, patience, self._batches, self._tell_failure)

    @property
    def uri(self) -> str:
        """Address of the store, with passwords masked."""
        return self._connection.uri

    @property
    def failure(self) -> Exception | None:
        """The error for which the store was given up, or None."""
        return self._sender.failure

    @property
    def alive(self) -> bool:
        """Whether the store has accepted everything so far."""
        return self.failure is None and not self._runs.refused

    @property
    def address(self) -> str:
        """Address of a server, or the command that opens a local store."""
        if self._connection.server is not None:
            return self.uri
        return shlex.join(["mlflow", "ui", "--backend-store-uri", self.uri])

    def prepare(self) -> None:
        """Import mlflow, unless its server is unreachable: the first request reports that."""
        with contextlib.suppress(OSError):
            self._connection.prepare()

    # --- calls by the run, which only queue -------------------------------------------------------

    def start(self, record: Record) -> None:
        """Create the MLflow run, or continue it."""
        self._sender.put(lambda: self._runs.start(record))

    def log(self, record: Record, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log metrics with the row's own time, so a row that is sent twice is stored once."""
        self._sender.put(Rows(record, [dict(row) for row in rows]))

    def result(self, record: Record, row: Mapping[str, Any]) -> None:
        """Log metrics as for any other row."""
        self.log(record, [row])

    def artifact(self, record: Record, path: Path, folder: str = "") -> None:
        """Copy a file to the artifact store."""
        self._sender.put(lambda: self._runs.artifact(record, path, folder))

    def finish(self, record: Record, status: Status) -> None:
        """Terminate the MLflow run."""
        self._sender.put(lambda: self._runs.finish(record, status))

    def close(self) -> None:
        """Wait until all is sent or has failed, or the store has not answered for too long."""
        self._sender.close()

    # --- for the sender ---------------------------------------------------------------------------

    def _batches(self, waiting: Sequence[Rows]) -> Iterator[Task]:
        """Yield requests that send the rows of each record in batches, each retried separately."""
        size = SERVER_BATCH if self._connection.server else BATCH
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
                yield functools.partial(self._runs.metrics, record, part)

    def _tell_failure(self, error: Exception) -> None:
        away = self._connection.may_pass(error) or unanswered(error)
        log.warning(
            "MLflow at %s %s (%s); python -m spurcor.sync sends what it misses",
            self.uri,
            "is not reached" if away else "is refused",
            self._connection.reason(error),
        )
