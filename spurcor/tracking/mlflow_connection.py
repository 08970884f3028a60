"""Connection to an MLflow store: address, client, turns among writers, and errors."""

import contextlib
import logging
import os
import random
import re
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from filelock import FileLock, Timeout

from spurcor.errors import UserError
from spurcor.system.passwords import masked, whole
from spurcor.tracking import store
from spurcor.tracking.sender import Answers

if TYPE_CHECKING:
    from mlflow import MlflowClient

WRITERS = 4  # of an outputs folder, at the same time
TURN_SECONDS, TURN_PAUSE = 30.0, 0.03
CONNECT_SECONDS = 1.0
# Set before mlflow is imported. Its own retries would block for minutes on an unreachable server,
# even at the end of a run; a busy server may need most of the timeout.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class Connection:
    """Connection of one process to the MLflow store of an outputs folder; a `sender.Store`."""

    def __init__(self, outputs: Path, uri: str | None) -> None:
        """`uri` null: MLFLOW_TRACKING_URI, or else a sqlite store in the outputs folder."""
        self.outputs = outputs
        self._address = store_uri(outputs, uri)
        self.uri = masked(self._address)
        self.answers = Answers()
        self._client: MlflowClient | None = None
        # Not the global generator, from which training may draw.
        self._turn_of = random.Random().randrange(WRITERS)

    @property
    def client(self) -> "MlflowClient":
        """MLflow's client; available after `connect`."""
        assert self._client is not None
        return self._client

    @property
    def server(self) -> tuple[str, int] | None:
        """Host and port of a server; None for a local store."""
        address = urlparse(self._address)
        if address.scheme not in ("http", "https"):
            return None
        return address.hostname or "", address.port or {"http": 80, "https": 443}[address.scheme]

    def prepare(self) -> None:
        """Import mlflow; raises OSError before that if the server is unreachable."""
        self._knock()
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # It logs each locked database with a traceback, even if a retry succeeds.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        import mlflow

        if self.uri.startswith("sqlite"):  # otherwise imported by the first request
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    def connect(self) -> None:
        """Open the store, unless it is open already."""
        if self._client is not None:
            return
        self.prepare()
        if self.server is not None:
            self.answers.asked()
        client = open_store(self._address, self.outputs)
        self.answers.answered()
        self._client = client

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Limit the writers of an outputs folder to `WRITERS` at a time.

        A writer without a turn for `TURN_SECONDS` goes on regardless. With many at once, writers of
        a sqlite file wait longer than sqlite's own timeout. A server takes more than one database
        connection per request, so as many requests as it has connections would wait for each other
        until they time out.
        """
        lock = _lock(self.outputs, str(self._turn_of))
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(Timeout):
                stack.enter_context(lock.acquire(TURN_SECONDS, TURN_PAUSE / 2))
            yield
        time.sleep(TURN_PAUSE)  # lets others take the lock before the next task does

    def may_pass(self, error: BaseException) -> bool:
        """Return whether a retry of the same request may succeed."""
        if self.server is None:
            return "database is locked" in str(error)
        return unanswered(error)

    def reachable(self) -> bool:
        """Return whether a server accepts connections; a local store always does."""
        try:
            self._knock()
        except OSError:
            return False
        return True

    def reason(self, error: Exception) -> str:
        """Return an error's message in one line, with passwords masked."""
        # The innermost cause is specific; the outer ones repeat addresses.
        reasons = [e for e in _chain(error) if isinstance(e, OSError | sqlite3.Error)]
        text = str([error, *reasons][-1]).replace(self._address, self.uri).strip().splitlines()
        return masked(text[0])[:200] if text else type(error).__name__

    def _knock(self) -> None:
        if self.server is not None:
            socket.create_connection(self.server, CONNECT_SECONDS).close()


def unanswered(error: BaseException) -> bool:
    """Return whether the store did not answer at all, as opposed to refusing the request."""
    import requests

    network = (
        *(ConnectionError, TimeoutError, socket.gaierror),
        *(requests.ConnectionError, requests.Timeout),
        requests.exceptions.RetryError,  # the server's own 429 and 5xx
    )
    return any(isinstance(cause, network) for cause in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and its causes, the innermost last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def open_store(address: str, outputs: Path) -> "MlflowClient":
    """Return a client of a store; a local store is created or migrated first if needed."""
    from mlflow import MlflowClient

    database = store.database_of(address)
    with contextlib.ExitStack() as stack:
        if urlparse(address).scheme not in ("http", "https"):  # many may create it at once
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
    """Return the address of the MLflow store, including its password.

    It is `uri`, MLFLOW_TRACKING_URI, or a sqlite file in the outputs folder, in this order.
    """
    if uri is not None:
        return _checked("tracker.mlflow.uri", uri)
    if named := os.environ.get("MLFLOW_TRACKING_URI"):
        return _checked("MLFLOW_TRACKING_URI", named)
    return f"sqlite:///{outputs}/mlflow.db"


def _checked(key: str, uri: str) -> str:
    """Return an address with its password; UserError for an invalid one.

    A server without a scheme is refused, since MLflow would take it for a folder.
    """
    first = uri.partition("/")[0]
    a_port = re.fullmatch(r"(.*@)?([\w.-]+|\[[\w:]+\]):\d+", first)
    a_name = re.fullmatch(r"(.*@)?\w[\w-]*(\.[\w-]+)+", first) and not Path(uri).exists()
    if a_port or a_name:
        web = f"http://{uri}"
        raise UserError(f"{key}={masked(web)[7:]} has no scheme; add http:// or https://")
    try:
        _ = urlparse(uri).port if uri.startswith("http") else None
    except ValueError as error:
        shown = masked(uri)
        raise UserError(
            f"{key}={shown} is not an address ({error}); use http://host:port"
        ) from error
    return whole(uri, key)
