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
    del result["run"]["seconds"]
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
    line: CommandLine, command: tuple[str, ...], outputs: Path, rng: random.Random, longest: float
) -> str:
    """Start a run and SIGKILL it at a random moment; returns where it was, or 'ended'."""
    started = line.start("train", *command, f"paths.outputs={outputs}")
    at_the_end = rng.random() < 0.2
    before_the_lock = rng.random() < 0.1
    delay = rng.uniform(0.0, longest)  # from the moment that the run is this process's
    while started.running() and not before_the_lock:
        locks = list(outputs.glob("runs/*/*/*/seed0.lock"))  # the last one's may still be there
        if locks and json.loads(locks[0].read_text())["pid"] == started.pid:
            break
        time.sleep(0.001)
    deadline = time.monotonic() + delay
    while started.running():
        if at_the_end:
            found = list(outputs.glob("runs/*/*/*/seed*/last.safetensors"))
            if found and not (found[0].parent / "done").exists():
                break
        elif time.monotonic() > deadline:
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
    beside = list(runs[0].glob(".*.tmp"))
    writing = ", inside the writing of a file" if beside else ""
    for path in beside:
        path.unlink()
    return f"after {rows} rows{writing}"


def compare(
    line: CommandLine, command: tuple[str, ...], folder: Path, kills: int, seed: int, longest: float
) -> tuple[list[str], list[str]]:
    """Returns where the kills fell, and the names of what differs in the end."""
    command = (*command, *OPTIONS)
    peace, war = folder / "peace", folder / "war"
    assert line.run("train", *command, f"paths.outputs={peace}").code == 0
    rng = random.Random(seed)
    moments: list[str] = []
    while len(moments) < kills:
        moment = kill_at_random(line, command, war, rng, longest)
        if moment == "ended":
            break
        moments.append(moment)
    ended = line.run("train", *command, f"paths.outputs={war}")
    assert ended.code == 0, ended.err
    expected, found = contents(run_of(peace)), contents(run_of(war))
    names = expected.keys() | found.keys()
    return moments, sorted(name for name in names if expected.get(name) != found.get(name))
