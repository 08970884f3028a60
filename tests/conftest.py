"""Fixtures: a warmed process that command lines are forked from, and small configurations."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import pytest

REPO = Path(__file__).resolve().parents[1]

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: the workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@dataclass
class Ended:
    """A command line that has ended."""

    code: int
    out: str
    err: str


class Started:
    """A command line that runs in a forked process."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid, self.folder = pid, folder

    def wait(self, seconds: float = 120) -> Ended:
        end = time.monotonic() + seconds
        while not (self.folder / "code").exists():
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError(f"{self.folder}: {self.text('out')}{self.text('err')}")
            time.sleep(0.01)
        return Ended(int((self.folder / "code").read_text()), self.text("out"), self.text("err"))

    def running(self) -> bool:
        return not (self.folder / "code").exists()

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def text(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""


class CommandLine:
    """Forks command lines from one process that has imported everything slow."""

    def __init__(self, folder: Path, within: Sequence[str] = ()) -> None:
        """`within` is a command that starts another, such as one that sets limits."""
        self.folder, self.count = folder, 0
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_LOGGING_LEVEL": "WARNING",
        }
        self.environment.pop("HYDRA_FULL_ERROR", None)
        self.environment.pop("MLFLOW_TRACKING_URI", None)
        self.process = subprocess.Popen(
            [*within, sys.executable, str(REPO / "tests" / "zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=self.environment,
        )

    def start(self, module: str, *arguments: str, cwd: Path | None = None, **env: str) -> Started:
        self.count += 1
        folder = self.folder / f"command{self.count}"
        folder.mkdir()
        order = {
            "module": module,
            "arguments": list(arguments),
            "folder": str(folder),
            "cwd": str(cwd or folder),
            "env": env,
        }
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return Started(int(self.process.stdout.readline()), folder)

    def run(self, module: str, *arguments: str, cwd: Path | None = None, **env: str) -> Ended:
        return self.start(module, *arguments, cwd=cwd, **env).wait()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)


@pytest.fixture(scope="session")
def command_line(tmp_path_factory):
    line = CommandLine(tmp_path_factory.mktemp("zygote"))
    yield line
    line.close()


@pytest.fixture(autouse=True)
def fresh_logging():
    """A command, or a fixture of a module, sets spurcor's logger up; each test begins without."""
    logger = logging.getLogger("spurcor")
    logger.setLevel(logging.NOTSET)
    logger.propagate, logger.handlers = True, []
    if terminal := sys.modules.get("spurcor.system.terminal"):
        terminal.log_to_terminal.cache_clear()


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **options):
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.fixture(scope="session")
def small_root(tmp_path_factory):
    """A data root with a small copy of every data set."""
    from small_data import write_all

    root = tmp_path_factory.mktemp("small") / "data"
    write_all(root)
    return root


@pytest.fixture(scope="session")
def data_root():
    """A data root with the real MNIST and CIFAR-10, where SPURCOR_DATA names one."""
    root = os.environ.get("SPURCOR_DATA")
    if not root or not (Path(root) / "MNIST").is_dir():
        pytest.skip("SPURCOR_DATA names no folder with MNIST and CIFAR-10")
    return Path(root)
