"""Kill a run again and again, restart it with the same command, compare with one left in peace."""

import json
import random
import time
from pathlib import Path

from conftest import CommandLine

# Checkpoints all the time, so that kills fall inside their writing too.
OPTIONS = ("train.checkpoint_seconds=0.1", "train.num_threads=1", "tracker=none")


def run_of(outputs: Path) -> Path:
    """The one run directory in an outputs folder."""
    (run,) = (path for path in outputs.glob("runs/*/*/*/seed*") if path.is_dir())
    return run


def contents(run: Path) -> dict[str, object]:
    """All that must be equal: rows and result but for clocks, and weights to the bit."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((run / "result.json").read_text())
    del result["run"]["seconds"], result["run"]["commit"]  # a commit may come between
    return {
        "rows": [{k: v for k, v in row.items() if k not in ("time", "seconds")} for row in rows],
        "result": result,
        **{
            str(path.relative_to(run)): path.read_bytes()
            for path in sorted(run.rglob("*.safetensors"))
        },
        "files": sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()),
    }


def kill_at_random(
    line: CommandLine,
    command: tuple[str, ...],
    outputs: Path,
    rng: random.Random,
    longest: float,
    at_the_end: bool,
) -> str:
    """Start a run and SIGKILL it; returns where it was, or 'ended'.

    The moment is random, up to `longest` seconds after the run took its lock, or, `at_the_end`,
    random between the end of its last phase and the word that it is done.
    """
    started = line.start("train", *command, f"paths.outputs={outputs}")
    before_the_lock = rng.random() < 0.1
    delay = rng.uniform(0.0, longest)  # from the moment that the run is this process's
    while started.running() and not before_the_lock:
        locks = list(outputs.glob("runs/*/*/*/seed0.lock"))  # the last one's may still be there
        if locks and json.loads(locks[0].read_text())["pid"] == started.pid:
            break
        time.sleep(0.001)
    deadline = None if at_the_end else time.monotonic() + delay
    while started.running():
        if deadline is None and list(outputs.glob("runs/*/*/*/seed*/last.safetensors")):
            deadline = time.monotonic() + delay * 0.1
        if deadline is not None and time.monotonic() > deadline:
            break
        time.sleep(0.001)
    else:
        started.wait()
        return "ended"
    try:
        started.kill()
    except ProcessLookupError:
        return "ended"
    started.wait()
    runs = list(outputs.glob("runs/*/*/*/seed0"))
    if not runs or not (runs[0] / "metrics.jsonl").exists():
        return "before the first row"
    if (runs[0] / "last.safetensors").exists():
        return "finishing"
    rows = len((runs[0] / "metrics.jsonl").read_text().splitlines())
    writing = ", inside the writing of a file" if list(runs[0].glob(".*.tmp")) else ""
    return f"after {rows} rows{writing}"


def compare(
    line: CommandLine,
    command: tuple[str, ...],
    folder: Path,
    kills: int,
    seed: int,
    longest: float,
    at_the_end: int = 1,
) -> tuple[list[str], list[str]]:
    """Returns where the kills fell, and the names of what differs in the end.

    The last `at_the_end` kills fall after training, where weights and results are written.
    """
    command = (*command, *OPTIONS)
    peace, war = folder / "peace", folder / "war"
    assert line.run("train", *command, f"paths.outputs={peace}").code == 0
    rng = random.Random(seed)
    moments: list[str] = []
    for left in range(kills, 0, -1):
        moment = kill_at_random(line, command, war, rng, longest, left <= at_the_end)
        if moment == "ended":
            break
        moments.append(moment)
    ended = line.run("train", *command, f"paths.outputs={war}")
    assert ended.code == 0, ended.err
    expected, found = contents(run_of(peace)), contents(run_of(war))
    names = expected.keys() | found.keys()
    return moments, sorted(name for name in names if expected.get(name) != found.get(name))
