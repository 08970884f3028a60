"""Signals that ask a command to stop: it ends with a sentence, and what it was writing is whole."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


class Interrupted(BaseException):
    """The scheduler or the user asked the command to stop; what it had finished is on disk.

    Like KeyboardInterrupt no `Exception`: whoever survives any error must not survive this.
    """

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name}; run the same command again to continue")
        self.number = number

    @property
    def exit_code(self) -> int:
        """As a shell tells of a process that a signal ended."""
        return 128 + self.number


@contextmanager
def handled(handle: Callable[[int], None]) -> Iterator[None]:
    """Call `handle` with the signals of this process while the block runs, in the main thread.

    Forked children are none of its business. `nohup` stays in force.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def receive(number: int, _frame: object) -> None:
        if os.getpid() == owner:
            handle(number)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = [number for number in STOPPING if number != signal.SIGHUP or not ignored]
    before = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interrupting() -> Iterator[None]:
    """Raise `Interrupted` at once, wherever the block is.

    What follows it is cleaning up, which only a second Ctrl-C ends. Errors of code that it left in
    the middle are no errors: it is raised in their place.
    """
    told: Interrupted | None = None

    def interrupt(number: int) -> None:
        nonlocal told
        if told is None:
            told = Interrupted(number)
            raise told
        if number == signal.SIGINT:
            raise KeyboardInterrupt

    with handled(interrupt):
        try:
            yield
        except Exception as error:
            if told is None:
                raise
            raise told from error
