"""Stop signals, which end a command with a one-sentence message and leave its files intact."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


class Interrupted(BaseException):
    """A request to stop from the scheduler or the user; finished work is on disk.

    Like KeyboardInterrupt, it is not an `Exception`, so that code catching all errors misses it.
    """

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name}; run the same command again to continue")
        self.number = number

    @property
    def exit_code(self) -> int:
        """The exit code that a shell reports for a process ended by a signal."""
        return 128 + self.number


@contextmanager
def handled(handle: Callable[[int], None]) -> Iterator[None]:
    """Call `handle` with each stop signal that this process receives during the block.

    Outside the main thread, signals are not handled. Forked children keep the default action, and
    `nohup` stays in force.
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
    """Raise `Interrupted` in the block as soon as a stop signal arrives.

    After that, only Ctrl-C can stop the clean-up. Errors caused by the interruption are replaced by
    `Interrupted`.
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
