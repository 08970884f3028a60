"""Helper processes that import slow libraries while the command does other work."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from spurcor.system.places import REPO


class Companion:
    """A spurcor module run as a process that reads orders from stdin as JSON lines.

    Leaving the context kills the process, finished or not.
    """

    def __init__(self, module: str, **environment: str) -> None:
        self._module, self._environment = module, environment

    def __enter__(self) -> Self:
        path = os.pathsep.join(filter(None, (str(REPO), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module],
            env={**os.environ, **self._environment, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self

    def tell(self, order: Mapping[str, Any]) -> None:
        """Send an order; if the process has died, `wait` reports why."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass

    def wait(self) -> tuple[int, str]:
        """Close stdin, wait for the process to end, and return its exit code and stderr."""
        _, said = self._process.communicate()
        return self._process.returncode, said

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()  # closes its pipes
