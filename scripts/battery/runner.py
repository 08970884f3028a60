"""What the scripts have in common: options, time, a line of progress, findings, the exit code."""

import argparse
import sys
import time
from collections import Counter

LINE_SECONDS = 30.0  # between lines of progress where stderr is no terminal


def parser(about: str | None) -> argparse.ArgumentParser:
    """Options that every script has."""
    found = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument(
        "--seconds", type=float, default=60.0, help="start no new case after this time"
    )
    found.add_argument("--seed", type=int, default=0)
    return found


class Tally:
    """What has happened so far, and whether there is time for more."""

    def __init__(self, script: str, seconds: float) -> None:
        self.script, self.began, self.seconds = script, time.monotonic(), seconds
        self.counts: Counter[str] = Counter()
        self.num_findings = 0
        self._last_line = self.began

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began

    @property
    def time_left(self) -> bool:
        """Whether something new may begin."""
        return self.elapsed < self.seconds

    def count(self, what: str, how_often: int = 1) -> None:
        """One more of a kind."""
        self.counts[what] += how_often
        if sys.stderr.isatty():
            print(f"\r{self._line()}\033[K", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            print(f"{self._line()} so far", file=sys.stderr, flush=True)

    def find(self, what: str, again: str) -> None:
        """Something is wrong; `again` is the command that shows it."""
        self.num_findings += 1
        print(f"\nFINDING  {what}\n   again: {again}", flush=True)

    def end(self) -> int:
        """The last line; returns the exit code."""
        print(f"\n{self._line()}" if sys.stderr.isatty() else self._line(), flush=True)
        return int(self.num_findings > 0)

    def _line(self) -> str:
        told = ", ".join(f"{count} {what}" for what, count in self.counts.most_common())
        found = f"findings: {self.num_findings}" if self.num_findings else "no finding"
        return f"{self.script}: {self.elapsed:.0f} s, {told or 'nothing yet'}, {found}"
