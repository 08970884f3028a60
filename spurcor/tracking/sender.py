"""Background thread that sends to a store: in order, in batches, with retries."""

import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from spurcor.tracking import Record

FLUSH_SECONDS = 5.0  # rows are collected for this long
FIRST_ANSWER_SECONDS = 15.0  # a server without any answer by then is taken as unreachable
CLOSE_PATIENCE = 20.0  # for retries at the end of a run
CLOSE_SECONDS = 60.0  # without an answer at the end of a run
PAUSE_SECONDS = (0.2, 5.0)  # between attempts: the first and the longest pause
Task = Callable[[], None]


@dataclass(frozen=True)
class Rows:
    """Metrics that wait to be sent together with others of their record."""

    record: Record
    rows: list[dict[str, Any]]


class Answers:
    """Times of the first request to a store and of its last answer."""

    def __init__(self) -> None:
        self._asked: float | None = None
        self._answered: float | None = None

    def asked(self) -> None:
        """Record the time of the first request; only a server may leave it unanswered."""
        self._asked = self._asked or time.monotonic()

    def answered(self) -> None:
        """Record that a request succeeded."""
        self._answered = time.monotonic()

    def stopped(self, begin: float) -> bool:
        """Return whether to stop waiting for a store, after having waited since `begin`."""
        now = time.monotonic()
        if now - max(begin, self._answered or begin) > CLOSE_SECONDS:
            return True
        if self._asked is None or self._answered is not None:
            return False
        return now - self._asked > FIRST_ANSWER_SECONDS


class Store(Protocol):
    """The interface of a store that a sender writes to."""

    answers: Answers

    def connect(self) -> None:
        """Open the store, unless it is open already."""

    def turn(self) -> AbstractContextManager[None]:
        """Return a context that is held while a task writes, so that processes take turns."""

    def may_pass(self, error: BaseException) -> bool:
        """Return whether a retry of the same request may succeed."""

    def reachable(self) -> bool:
        """Return whether the store accepts connections."""


class Sender:
    """A queue and the thread that empties it; after a failure, nothing more is sent.

    A task is retried while the store is busy or unreachable: for `patience` seconds during the run,
    and for at most `CLOSE_PATIENCE` seconds in `close`. `batches` turns rows that have waited
    together into tasks; `on_failure` is called when the store is given up.
    """

    def __init__(
        self,
        store: Store,
        patience: float,
        batches: Callable[[Sequence[Rows]], Iterable[Task]],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self.store, self.patience = store, patience
        self.failure: Exception | None = None
        self._batches, self._on_failure = batches, on_failure
        self._queue: queue.Queue[Task | Rows | None] = queue.Queue()
        self._worker: threading.Thread | None = None
        self._closing = threading.Event()
        self._random = random.Random()  # training may draw from the global one

    def put(self, task: Task | Rows) -> None:
        """Queue a task or rows, to be sent in order; returns at once."""
        if self._worker is None:  # no thread if only the address is read
            self._worker = threading.Thread(target=self._work, name="mlflow", daemon=True)
            self._worker.start()
        self._queue.put(task)

    def close(self) -> None:
        """Wait until all is sent or has failed, or the store has not answered for too long."""
        if self._worker is None:
            return
        self._closing.set()
        self._queue.put(None)
        begin = time.monotonic()
        while self._worker.is_alive() and not self.store.answers.stopped(begin):
            self._worker.join(0.1)
        if self._worker.is_alive():
            self._give_up(TimeoutError("no answer in time"))

    # --- the thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        waiting: list[Rows] = []
        due = 0.0  # time of the next flush of rows
        while not (self._closing.is_set() and self._queue.empty() and not waiting):
            task: Task | Rows | None = None
            with contextlib.suppress(queue.Empty):
                pause = max(due - time.monotonic(), 0.0)
                task = self._queue.get(timeout=pause if waiting else None)
            if isinstance(task, Rows):
                waiting.append(task)
                if time.monotonic() < due:
                    continue
                task = None
            if waiting:
                due = time.monotonic() + FLUSH_SECONDS
                for batch in self._batches(waiting):
                    self._carry_out(batch)
                waiting = []
            if task is not None:
                self._carry_out(task)

    def _carry_out(self, task: Task) -> None:
        """Execute a task, with retries while the store is busy; does nothing after a failure."""
        refused: float | None = None  # time of the first refusal
        pause, longest = PAUSE_SECONDS
        while self.failure is None:
            try:
                self.store.connect()
                with self.store.turn():
                    task()
                self.store.answers.answered()
                return
            except Exception as error:  # a tracker must never stop a run
                refused = refused or time.monotonic()
                if not self._worth_repeating(error, refused):
                    self._give_up(error)
                    return
            self._rest(pause)
            pause = min(2 * pause, longest)

    def _worth_repeating(self, error: Exception, refused: float) -> bool:
        """Return whether to retry a task that has been failing since `refused`."""
        closing = self._closing.is_set()
        patience = min(self.patience, CLOSE_PATIENCE) if closing else self.patience
        if time.monotonic() - refused > patience or not self.store.may_pass(error):
            return False
        return not closing or self.store.reachable()

    def _rest(self, pause: float) -> None:
        # Jitter: writers that were refused together must not retry together.
        seconds = pause * self._random.uniform(0.5, 1.5)
        if self._closing.is_set():
            time.sleep(seconds)
        else:  # the end of the run triggers a last attempt
            self._closing.wait(seconds)

    def _give_up(self, error: Exception) -> None:
        if self.failure is None:
            self.failure = error
            self._on_failure(error)
