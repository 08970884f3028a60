"""Processes beside a command, which import for seconds what it needs last, while it works."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from spurcor.system.places import REPO


class Companion:
    """A module of spurcor as a process, told what to do by lines of JSON on its stdin.

    Leaving the context ends it, done or not.
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
        """Hand over an order; if the process has ended, `wait` says why."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass

    def wait(self) -> tuple[int, str]:
        """Give no further order and wait for the end; returns exit code and what stderr said."""
        _, said = self._process.communicate()
        return self._process.returncode, said

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()  # closes its pipes
