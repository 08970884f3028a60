"""Sends to a store from a background thread: in order, in batches, and again where it must."""

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
FIRST_ANSWER_SECONDS = 15.0  # a server that is silent for longer from the beginning is dead
CLOSE_PATIENCE = 20.0  # for a store that refuses while nothing but the mirror is left to do
CLOSE_SECONDS = 60.0  # since the last answer of a store that has work left when a run ends
PAUSE_SECONDS = (0.2, 5.0)  # between two attempts: the first, and the longest
Task = Callable[[], None]


@dataclass(frozen=True)
class Rows:
    """Metrics that wait to be sent together with others of their record."""

    record: Record
    rows: list[dict[str, Any]]


class Answers:
    """When a store was first asked and last answered."""

    def __init__(self) -> None:
        self._asked: float | None = None
        self._answered: float | None = None

    def asked(self) -> None:
        """A first request is on its way, which only a server may leave unanswered."""
        self._asked = self._asked or time.monotonic()

    def answered(self) -> None:
        """A request was carried out."""
        self._answered = time.monotonic()

    def stopped(self, begin: float) -> bool:
        """Whether a store that is waited for since `begin` deserves no more of it."""
        now = time.monotonic()
        if now - max(begin, self._answered or begin) > CLOSE_SECONDS:
            return True
        if self._asked is None or self._answered is not None:
            return False
        return now - self._asked > FIRST_ANSWER_SECONDS


class Store(Protocol):
    """What a sender knows of the store that its tasks write to."""

    answers: Answers

    def connect(self) -> None:
        """Open it, unless that is done."""

    def turn(self) -> AbstractContextManager[None]:
        """Held while a task writes, so that other processes get their turns."""

    def may_pass(self, error: BaseException) -> bool:
        """Whether the same request may succeed in a moment."""

    def reachable(self) -> bool:
        """Whether anything is there to answer."""


class Sender:
    """A queue and the thread that empties it; after a failure nothing is sent any more.

    A task that the store is too busy for is repeated: for `patience` seconds while the run goes
    on, and for `CLOSE_PATIENCE` at most once nothing else is left to do. `batches` makes tasks of
    rows that have waited together; `on_failure` says that the store was given up.
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
        self._random = random.Random()  # its own: training may draw from the common one

    def put(self, task: Task | Rows) -> None:
        """Send this after what was put before; returns at once."""
        if self._worker is None:  # a tracker that is only asked for its address needs no thread
            self._worker = threading.Thread(target=self._work, name="mlflow", daemon=True)
            self._worker.start()
        self._queue.put(task)

    def close(self) -> None:
        """Wait until everything is sent or has failed, or the store is silent for too long."""
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
        due = 0.0  # when rows are sent
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
        """Do a task, again if the store was only busy or away; nothing after a failure."""
        refused: float | None = None  # since when
        pause, longest = PAUSE_SECONDS
        while self.failure is None:
            try:
                self.store.connect()
                with self.store.turn():
                    task()
                self.store.answers.answered()
                return
            except Exception as error:  # the files are the record: a mirror never stops a run
                refused = refused or time.monotonic()
                if not self._worth_repeating(error, refused):
                    self._give_up(error)
                    return
            self._rest(pause)
            pause = min(2 * pause, longest)

    def _worth_repeating(self, error: Exception, refused: float) -> bool:
        """Whether a task that fails since `refused` is tried again."""
        closing = self._closing.is_set()
        patience = min(self.patience, CLOSE_PATIENCE) if closing else self.patience
        if time.monotonic() - refused > patience or not self.store.may_pass(error):
            return False
        return not closing or self.store.reachable()

    def _rest(self, pause: float) -> None:
        # Many writers that were refused together must not come back together.
        seconds = pause * self._random.uniform(0.5, 1.5)
        if self._closing.is_set():
            time.sleep(seconds)
        else:  # the end of the run wakes it for a last attempt
            self._closing.wait(seconds)

    def _give_up(self, error: Exception) -> None:
        if self.failure is None:
            self.failure = error
            self._on_failure(error)
