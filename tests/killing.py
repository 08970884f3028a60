"""Kill a command again and again, issue it anew, compare with what it leaves when left in peace.

A process is killed by the clock, or right before a change of a file, where the clock seldom hits.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from conftest import REPO, CommandLine, Ended, Started

# A commit may come between; the file of the selected weights is named by how often it was written.
CLOCKS = {"time", "seconds", "commit", "file"}
# Files that two runs never have in common, or that hold clocks in a form of their own; the last is
# Hydra's, which writes it at every -m of a command that has no launcher of ours.
UNLIKE = {"train.log", "mlflow.json", "multirun.yaml"}
STORE = re.compile(r"(?<=\.extracted/)([\w-]+)-\w{8}(?=/|\.|$)")
PATIENCE = 120.0  # seconds beyond a multiple of the peaceful run's, after which it counts as hung
TRIES = 30  # of a command that another process keeps from its work


def wait_for_rows(started, outputs, count=3):
    """Until a run in another process has measured some epochs."""
    while True:
        found = list(outputs.glob("runs/*/*/*/seed*/metrics.jsonl"))
        if found and found[0].read_bytes().count(b"\n") >= count:
            return
        assert started.running(), started.text("err")
        time.sleep(0.01)


def run_of(outputs: Path) -> Path:
    """The one run directory in an outputs folder."""
    (run,) = (path for path in outputs.glob("runs/*/*/*/seed*") if path.is_dir())
    return run


def contents(run: Path) -> dict[str, object]:
    """All of a run that must be equal: rows and result but for clocks, and weights to the bit."""
    return {
        "rows": comparable(run / "metrics.jsonl"),
        "result": comparable(run / "result.json"),
        **{
            str(path.relative_to(run)): path.read_bytes()
            for path in sorted(run.rglob("*.safetensors"))
        },
        "files": sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()),
    }


def comparable(path: Path) -> object:
    """What of a file must be equal."""
    if path.name in UNLIKE or path.suffix == ".log":
        return None
    if path.suffix == ".json":
        return _without_clocks(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        if path.name == "points.jsonl":  # a manifest: the last line of each point counts
            return {(line["directory"], *line["needs"]): line for line in lines}
        return [_without_clocks(line) for line in lines]
    if path.suffix == ".pt":
        return _without_clocks(torch.load(path, weights_only=True))
    return path.read_bytes()


def _without_clocks(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), value.shape, value.numpy().tobytes())
    if isinstance(value, dict):
        return {k: _without_clocks(v) for k, v in value.items() if k not in CLOCKS}
    if isinstance(value, list | tuple):
        return [_without_clocks(one) for one in value]
    return value


def everything(folder: Path) -> dict[str, object]:
    """Every file and folder under `folder`.

    The names of stores end with a hash of the times of files, which an archive's are not the same.
    """
    return {
        STORE.sub(r"\1", str(path.relative_to(folder))): (
            "folder" if path.is_dir() else comparable(path)
        )
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts
    }


@dataclass(frozen=True)
class Command:
    """Words of a command line: `{place}` is where everything happens, `{run}` the run before."""

    module: str
    words: tuple[str, ...]
    again: bool = True  # whether a second issue changes nothing
    processes: bool = False  # whether it starts others that work on


class Cold(Started):
    """A command in a Python process of its own."""

    def __init__(self, command: list[str], folder: Path, env: dict[str, str]) -> None:
        folder.mkdir()
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            self.process = subprocess.Popen(
                command, cwd=folder, env=env, stdout=out, stderr=err, start_new_session=True
            )
        super().__init__(self.process.pid, folder)

    def running(self) -> bool:
        return self.process.poll() is None

    def wait(self, seconds: float = 120) -> Ended:
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise TimeoutError(f"{self.folder}: {self.text('err')}") from None
        return Ended(code, self.text("out"), self.text("err"))


@dataclass
class Battle:
    """A command in a folder of its own, first in peace, then under fire.

    `findings` has a sentence for all that a user could have told the two apart by.
    """

    line: CommandLine
    folder: Path
    command: Command
    before: tuple[Command, ...] = ()
    cold_percent: int = 0
    clock_percent: int = 50
    signals: tuple[signal.Signals, ...] = (signal.SIGKILL,)
    findings: list[str] = field(default_factory=list)
    moments: Counter[str] = field(default_factory=Counter)

    @property
    def place(self) -> Path:
        return self.folder / "place"

    def make_peace(self) -> None:
        """What the command works on, and what it leaves of it undisturbed."""
        self.place.mkdir(parents=True, exist_ok=True)
        for command in self.before:
            ended = self._start(command).wait(600)
            assert ended.code == 0, (command, ended.err)
        _copy(self.place, self.folder / "before")
        started = self._start(self.command, watched=0)
        began = time.monotonic()
        ended = started.wait(600)
        self.seconds = time.monotonic() - began
        assert ended.code == 0, (self.command, ended.err)
        self.changes = int(started.text("changes") or 1)
        self.expected = everything(self.place)

    def fight(
        self,
        rng: random.Random,
        kills: int,
        latest: float = 1.0,
        going_on: Callable[[], bool] = lambda: True,
    ) -> int:
        """Kill it up to `kills` times, all before a share `latest` of it; returns how often.

        The last time that it is issued, it is left to come to its end.
        """
        shutil.rmtree(self.place, ignore_errors=True)
        _copy(self.folder / "before", self.place)
        count = 0
        while count < kills and (going_on() or not count):
            ended = self._kill(rng, latest)
            self._look_for_trace(ended)
            if ended.code == 0:
                break
            count += 1
        self._finish()
        return count

    # --- one kill ---------------------------------------------------------------------------------

    def _kill(self, rng: random.Random, latest: float) -> Ended:
        number = rng.choice(self.signals)
        if rng.random() * 100 >= self.clock_percent and not self.command.processes:
            before = 1 + int(_early(rng) * self.changes * latest)
            ended = self._start(self.command, watched=before, number=number).wait(self._patience)
            self._count(number, "before a change of a file", ended)
            return ended
        cold = rng.random() * 100 < self.cold_percent
        started = self._start(self.command, cold=cold)
        # A cold process imports for some seconds first, which are worth a kill, too.
        deadline = time.monotonic() + _early(rng) * (self.seconds * latest + 4.0 * cold)
        while started.running() and time.monotonic() < deadline:
            time.sleep(0.001)
        if started.running():
            if cold and self.command.processes and rng.random() < 0.5:
                os.killpg(started.pid, number)
            else:
                started.kill(number)
        ended = started.wait(self._patience)
        self._count(number, "by the clock" + ", cold" * cold, ended)
        return ended

    def _count(self, number: signal.Signals, how: str, ended: Ended) -> None:
        if ended.code == 0:
            return
        inside = ", inside the writing of a file" if list(self.place.rglob(".*.tmp")) else ""
        self.moments[f"{number.name} {how}{inside}"] += 1
        if ended.code not in (-number, 128 + number):
            told = f"{number.name} ended it with exit code {ended.code}: {_last(ended.err)}"
            self.findings.append(told)

    def _start(
        self,
        command: Command,
        cold: bool = False,
        watched: int | None = None,
        number: signal.Signals = signal.SIGKILL,
    ) -> Started:
        words = [word.replace("{place}", str(self.place)) for word in command.words]
        if any("{run}" in word for word in words):
            before = self.folder / "before"
            run = self.place / run_of(before / "outputs").relative_to(before)
            words = [word.replace("{run}", str(run)) for word in words]
        env = {"SOURCE_DATE_EPOCH": "0"}  # else a PDF tells when it was made
        if cold:
            self.line.count += 1
            folder = self.line.folder / f"cold{self.line.count}"
            python = [sys.executable, "-P", "-m", f"spurcor.{command.module}", *words]
            paths = [str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])]  # plug-ins lie there
            env |= {"PYTHONPATH": os.pathsep.join(paths)}
            return Cold(python, folder, {**self.line.environment, **env})
        if watched is not None:
            env |= {"WATCHED": str(self.place), "FATAL": f"{watched} {number:d}"}
        return self.line.start(command.module, *words, **env)

    @property
    def _patience(self) -> float:
        return PATIENCE + 10 * self.seconds

    # --- what must hold ---------------------------------------------------------------------------

    def _look_for_trace(self, ended: Ended) -> None:
        if "Traceback" in ended.err:
            self.findings.append(f"a traceback: {_last(ended.err)}")

    def _finish(self) -> None:
        """Issue the command until it is done, compare, issue it once more."""
        for _ in range(TRIES):
            ended = self._start(self.command).wait(self._patience)
            self._look_for_trace(ended)
            if ended.code == 0:
                break
            if "is being worked on" not in ended.out + ended.err:
                break
            time.sleep(1)  # what a killed launcher started works on
        if ended.code != 0:
            self.findings.append(f"exit code {ended.code} after the kills: {_last(ended.err)}")
            return
        found = everything(self.place)
        names = sorted(self.expected.keys() | found.keys())
        for name in names:
            if name not in found:
                self.findings.append(f"{name} is missing")
            elif name not in self.expected:
                self.findings.append(f"{name} is left over")
            elif name.startswith("outputs/reports/") and self.command.module != "report":
                continue  # of runs that took as many seconds as they took
            elif self.expected[name] != found[name]:
                self.findings.append(f"{name} differs")
        for path in (self.place / "outputs").rglob("*"):
            if re.fullmatch(r"\..*\.tmp|selected-.*\.safetensors|.*\.lock", path.name):
                self.findings.append(f"{path.relative_to(self.place)} stays behind")
        if self.command.again:
            self._issue_again()

    def _issue_again(self) -> None:
        before = self._stamps()
        ended = self._start(self.command).wait(self._patience)
        self._look_for_trace(ended)
        if ended.code != 0:
            self.findings.append(f"exit code {ended.code} of a second issue: {_last(ended.err)}")
        after = self._stamps()
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                self.findings.append(f"{name} was touched by a second issue")

    def _stamps(self) -> dict[str, tuple[int, int]]:
        """Size and time of every file but a sweep's own."""
        files = [
            path
            for path in self.place.rglob("*")
            if path.is_file() and path.name != "multirun.yaml"  # Hydra's, see UNLIKE
        ]
        return {
            str(path.relative_to(self.place)): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in files
            if not {"sweeps", "reports"} & set(path.relative_to(self.place).parts)
            and not path.name.endswith((".lock", ".guard"))
        }


def _early(rng: random.Random) -> float:
    """A share of a run: the early ones more often, since what was done before is not done again."""
    return rng.random() ** 2


def _copy(source: Path, target: Path) -> None:
    """With the times of files, which stores of photographs go by."""
    shutil.copytree(source, target, symlinks=True)


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "(nothing was said)"
