"""One mutated input after the other, each read in a process of its own that is watched.

An input may be read or refused in one sentence. Anything else is a finding: a traceback, a crash,
no end within half a minute, memory or disk space without bound, a half-made folder left behind, a
program started, a connection, or a file that is written, moved or removed outside the data root.
"""

import multiprocessing
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import traceback
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.error import URLError

import joblib  # noqa: F401 - the readers import these late, in every process anew
import pandas  # noqa: F401
import psutil
import torch
from conftest import CommandLine
from PIL import Image

import spurcor.system.terminal  # noqa: F401
from scripts.battery.runner import Tally, parser
from spurcor.errors import UserError

HANGS = 30.0  # seconds
MEMORY = 2 << 30  # bytes beyond what the imports take
DISK = 200 << 20
COMMANDS = 50  # every so-many-th input is given to spurcor.prepare as well
SHOWN = 3  # findings of one kind that are printed
PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn"}
# Of what changes a file: where the path stands among the arguments, and the folder it starts from.
CHANGES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "open": ((0, None),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.truncate": ((0, None),),
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
HALF = re.compile(
    r"\..*\.tmp|\..+\.[a-z0-9_]{8}"
)  # what `spurcor.system.files` calls what is not whole


@dataclass(frozen=True)
class Case:
    """What was done to an input, how it is read, and the words that let a command read it."""

    what: str
    read: Callable[[], object]
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """`read`, `refused` or `wrong`, and what is told of it; alike findings have the same `kind`."""

    outcome: str
    text: str = ""
    kind: str = ""
    trace: str = ""


def fuzz(script: str, about: str | None, make: Callable[[random.Random, Path], Case]) -> int:
    """Make and read inputs until the time is up; `make` writes one into an empty data root."""
    described = parser(about)
    described.add_argument("--cases", type=int, default=10**9, help="stop after this many cases")
    described.add_argument("--first", type=int, default=0, help="number of the first case")
    described.add_argument("--keep", type=Path, help="keep the inputs in this folder")
    options = described.parse_args()
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    Image.init()
    tally, kinds = Tally(script, options.seconds), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="battery-") as temporary:
        folder = options.keep or Path(temporary)
        line: CommandLine | None = None
        for number in range(options.first, options.first + options.cases):
            if not tally.time_left:
                break
            root = folder / f"{script}{number}" / "data"
            root.mkdir(parents=True)
            case = make(random.Random(f"{options.seed} {number}"), root)
            verdict = examine(case, root)
            if number % COMMANDS == COMMANDS - 1 and verdict.outcome != "wrong" and case.words:
                line = line or CommandLine(Path(temporary))
                verdict = by_command(line, case, root, verdict)
            tally.count(verdict.outcome)
            if verdict.outcome == "wrong":
                kinds[verdict.kind] += 1
                again = f"python -m scripts.battery.{script} --seed {options.seed}"
                again += f" --first {number} --cases 1 --keep /tmp/kept"
                if kinds[verdict.kind] <= SHOWN:
                    trace = f"\n{verdict.trace}" if options.cases == 1 else ""
                    tally.find(f"{case.what}: {verdict.text}{trace}", again)
            if options.keep is None:
                shutil.rmtree(root.parent)
        if line is not None:
            line.close()
    for kind, count in kinds.most_common():
        print(f"{count:6} x {kind}")
    return tally.end()


# --- one input ------------------------------------------------------------------------------------


def examine(case: Case, root: Path) -> Verdict:
    """Read an input in a process of its own, and look at what it leaves."""
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "file").write_text("as it was")
    before = _listed(root.parent)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_read, args=(case, root, theirs))
    process.start()
    theirs.close()
    verdict = None
    try:
        if ours.poll(HANGS):
            verdict = ours.recv()
    except EOFError:
        pass
    finally:
        if verdict is None and process.is_alive() and not ours.closed:
            process.join(1)
        hangs = process.is_alive() and verdict is None
        process.kill()
        process.join()
    if verdict is None:
        how = f"no end within {HANGS:.0f} s" if hangs else f"a crash ({process.exitcode})"
        return Verdict("wrong", how, how)
    if verdict.outcome == "wrong":
        return verdict
    return _left_behind(root, outside, before, verdict) or verdict


def _left_behind(root: Path, outside: Path, before: set[str], verdict: Verdict) -> Verdict | None:
    after = _listed(root.parent)
    new = sorted(after - before)
    beyond = [path for path in new if not path.startswith(f"{root.name}/")]
    if beyond or before - after or (outside / "file").read_text() != "as it was":
        text = f"outside the data root: {sorted(before - after) + beyond}"
        return Verdict("wrong", text, "a file outside the data root")
    if half := [path for path in new if HALF.fullmatch(path.rpartition("/")[2])]:
        return Verdict("wrong", f"{half} left behind ({verdict.text})", "left behind half-made")
    for path in new:
        place = root.parent / path
        if place.is_symlink() and not place.resolve().is_relative_to(root.resolve()):
            return Verdict("wrong", f"{path} leads to {place.resolve()}", "a link that leads out")
    size = sum(path.lstat().st_size for path in root.parent.rglob("*"))
    if size > DISK:
        return Verdict("wrong", f"{size:,} bytes on disk", "disk space")
    return None


def _listed(folder: Path) -> set[str]:
    """All names below, links not followed."""
    return {
        os.path.relpath(os.path.join(place, name), folder)
        for place, folders, files in os.walk(folder)
        for name in (*folders, *files)
    }


def by_command(line: CommandLine, case: Case, root: Path, expected: Verdict) -> Verdict:
    """The same by a command: exit code 0 or 2, as before, and one line on stderr where it is 2."""
    ended = line.run(
        "prepare", *case.words, f"paths.data={root}", f"paths.outputs={root.parent}/outputs"
    )
    code = {"read": 0, "refused": 2}[expected.outcome]
    lines = [one for one in ended.err.split("\n") if one.strip()]
    last = lines[-1] if lines else "nothing on stderr"
    told = code == 0 or (lines and last.startswith("spurcor: ") and last.isprintable())
    if ended.code != code or "Traceback" in ended.err or not told:
        text = f"exit code {ended.code} of the command, where it is {expected.outcome}: {last}"
        return Verdict("wrong", text, f"the command: {last[:60]}")
    return expected


# --- in the process that reads --------------------------------------------------------------------


def _read(case: Case, root: Path, answer: Connection) -> None:
    """Runs in a process of its own; sends a verdict."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    memory = psutil.Process().memory_info().vms + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    urllib.request.urlopen = _offline
    deeds = _watch(root)
    try:
        case.read()
        verdict = Verdict("read")
    except UserError as error:
        text = str(error)
        verdict = Verdict("refused", text)
        if len(re.split("[\r\n]", text)) > 1 or not text:
            verdict = Verdict("wrong", f"refused by {text!r}", "a sentence that is no line")
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in place if "/spurcor/" in frame.filename] or place
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {type(error).__name__}"
        told = " ".join(str(error).split())[:200]
        verdict = Verdict("wrong", f"{where}: {told}", where, traceback.format_exc())
    if deeds and verdict.outcome != "wrong":
        verdict = Verdict("wrong", "; ".join(deeds[:5]), deeds[0].partition(" ")[0])
    answer.send(verdict)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - nothing is said at the end


def _offline(*_: object, **__: object) -> None:
    raise URLError("no network")


def _watch(root: Path) -> list[str]:
    """A list that programs, connections, and changes outside the data root are added to."""
    deeds: list[str] = []
    own = str(root.resolve())

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event in PROGRAMS or event == "socket.connect":
            deeds.append(f"{event} {arguments[:2]}")
        if event == "open" and not arguments[2] & WRITING:
            return
        for name, start in CHANGES.get(event, ()):
            if isinstance(arguments[name], int):  # an open file
                continue
            place = os.fsdecode(arguments[name])
            if start is not None and arguments[start] >= 0:
                place = os.path.join(os.readlink(f"/proc/self/fd/{arguments[start]}"), place)
            parent, last = os.path.split(os.path.abspath(place))
            place = os.path.join(os.path.realpath(parent), last)
            if place != own and not place.startswith((f"{own}/", "/dev/null", "/proc/")):
                deeds.append(f"{event} {place}")

    sys.addaudithook(look)
    return deeds
