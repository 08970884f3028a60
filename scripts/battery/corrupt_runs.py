"""Damage a file of a run or a sweep in some way, and run some command: nothing but sentences.

python scripts/battery/corrupt_runs.py [--seconds 60] [--cases N] [--seed 0] [--only CASE]

Small runs on the digits (finished, repaired, analysed, with phases, unfinished) are made once. Each
case copies them, damages one file, and runs a command on the copy. A traceback, a hang, or an exit
code beside 0, 1 and 2 is a failure; its seed and number are printed, and `--only` runs it alone.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

REPO = Path(__file__).resolve().parents[2]
os.environ["PYTHONPATH"] = str(REPO)  # what is tested is what stands here
sys.path.insert(0, str(REPO / "tests"))
sys.path.insert(0, str(REPO))

from conftest import CommandLine, Ended  # noqa: E402 - stands there

DATA = ("dataset=digits", "tracker=none", "train.device=cpu")
SMALL = (*DATA, "method.epochs=2", "sweep=battery")
ERM = (*SMALL, "method=erm", "dfr=val", "analysis=[selective]")
MASKTUNE = (*SMALL, "method=masktune", "dfr=none", "train.keep_epochs=[1]")
LONG = (*DATA, "method=erm", "method.epochs=10", "dfr=none", "train.checkpoint_seconds=0")
UNFINISHED = (*LONG, "sweep=unfinished")
LEFT_ALONE = {".guard", ".lock"}  # nobody's record: other scripts kill processes that hold them
QUICK = ("train again", "train with phases", "report", "report of both", "status")
QUICK += ("status of unfinished", "sync", "explain", "selective")
WRONG: tuple[Any, ...] = (None, "x", 3, -1, 0.5, True, [], {}, [None], {"a": None}, "", 10**30)


@dataclass(frozen=True)
class Base:
    """The sound runs that every case begins with."""

    outputs: Path
    erm: str
    masktune: str


# --- the sound runs -------------------------------------------------------------------------------


def make(line: CommandLine, folder: Path) -> Base:
    """A sweep of two seeds with a repair, one with phases, and one that was stopped."""
    outputs = folder / "sound"
    place = f"paths.outputs={outputs}"
    for arguments in (("-m", "seed=0,1", *ERM, place), (*MASKTUNE, place)):
        ended = line.run("train", *arguments)
        assert ended.code == 0, ended.err + ended.out
    started = line.start("train", *UNFINISHED, place)
    while started.running() and not [*outputs.glob("runs/*/erm/*/seed0/checkpoint.pt")][1:]:
        time.sleep(0.01)
    started.kill(15)
    assert started.wait().code == 143, started.text("err")

    def only(method: str) -> str:
        (found,) = {path.parents[1].name for path in outputs.glob(f"runs/*/{method}/*/seed*/done")}
        return found

    return Base(outputs, only("erm"), only("masktune"))


def commands(base: Base) -> dict[str, tuple[str, ...]]:
    """Every command on one of the runs; the module is the first word."""
    erm, masktune = f"{base.erm}/seed0", f"{base.masktune}/seed0"
    return {
        "train again": ("train", *ERM),
        "train with phases": ("train", *MASKTUNE),
        "another repair": ("train", *ERM, "dfr=target"),
        "another analysis": ("train", *MASKTUNE, "analysis=[gradient_basis]"),
        "rerun": ("train", *ERM, "rerun=true"),
        "resume": ("train", *UNFINISHED),
        "sweep": ("train", "-m", "seed=0,1", *ERM),
        "start from": ("train", *SMALL, "method=masktune", f"method.init={erm}", "dfr=none"),
        "retrain": ("retrain", f"run={erm}", "dfr=target", "tracker=none"),
        "analyze": ("analyze", f"run={erm}", "analysis=[gradient_basis]", "tracker=none"),
        "analyze phases": ("analyze", f"run={masktune}", "analysis=[selective]", "tracker=none"),
        "report": ("report", "sweep=battery", "tracker=none", "plots=false"),
        "report of both": ("report", "sweep=[battery,unfinished]", "tracker=none", "plots=false"),
        "status": ("status", "sweep=battery"),
        "status of unfinished": ("status", "sweep=unfinished"),
        "sync": ("sync", "tracker=tensorboard"),
        "explain": ("explain", f"run={masktune}", "mistakes=true", "num_images=1"),
        "selective": ("selective", f"runs=[{erm},{masktune}]"),
        "clusters": ("clusters", f"run={erm}", "num_clusters=2"),
        "prepare": ("prepare", "dataset=digits"),
    }


# --- ways to damage a file ------------------------------------------------------------------------


def truncate(path: Path, rng: random.Random) -> None:
    """Cut it off somewhere."""
    os.truncate(path, rng.randrange(path.stat().st_size + 1))


def empty(path: Path, rng: random.Random) -> None:
    """Leave nothing."""
    os.truncate(path, 0)


def garble(path: Path, rng: random.Random) -> None:
    """Change a few bytes."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 4)):
        if content:
            content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content)


def delete(path: Path, rng: random.Random) -> None:
    """Remove it."""
    path.unlink()


def folder(path: Path, rng: random.Random) -> None:
    """Put a folder in its place."""
    path.unlink()
    path.mkdir()


def forbid(path: Path, rng: random.Random) -> None:
    """Take the right to read or to write; root does not mind."""
    path.chmod(rng.choice((0o000, 0o444)))


def foreign(path: Path, rng: random.Random) -> None:
    """Put what is no such thing in its place: text, pickled arrays, lists."""
    kind = rng.choice(("text", "pickle", "array", "list", "checkpoint"))
    if kind == "text":
        path.write_text("hello, this is another file\n")
    elif kind == "list":
        path.write_text("[1, 2]\n")
    elif kind == "checkpoint":
        import torch

        torch.save(rng.choice(([1, 2], {}, {"step": 1}, torch.ones(2))), path)
    else:
        arrays = {"test/y": np.array([{}, None], object), "val/y": np.ones(3)}
        with path.open("wb") as file:
            if kind == "pickle":
                np.savez(file, **arrays)  # type: ignore[arg-type]
            else:
                np.save(file, arrays["val/y"])


def swap(path: Path, rng: random.Random) -> None:
    """Change the type of a value, or leave a key out, where the format is known."""
    text = path.read_text()
    if path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(_swapped(yaml.safe_load(text), rng), sort_keys=False))
    elif path.suffix == ".jsonl":
        lines = text.splitlines()
        if lines:
            place = rng.randrange(len(lines))
            lines[place] = json.dumps(_swapped(json.loads(lines[place]), rng))
        path.write_text("".join(f"{line}\n" for line in lines))
    else:
        path.write_text(json.dumps(_swapped(json.loads(text), rng)))


def _swapped(tree: Any, rng: random.Random) -> Any:
    """Any node is as likely as any other, so inner ones are met too."""
    nodes: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            nodes.append((value, key))
            if isinstance(item, dict | list):
                walk(item)

    walk(tree)
    if not nodes or rng.random() < 0.02:
        return rng.choice(WRONG)
    owner, key = rng.choice(nodes)
    if rng.random() < 0.3:
        del owner[key]
    else:
        owner[key] = rng.choice(WRONG)
    return tree


WAYS: tuple[Callable[[Path, random.Random], None], ...] = (
    *(truncate, empty, garble, delete, folder, forbid, foreign),
)
STRUCTURED = (".json", ".jsonl", ".yaml")


def damage(outputs: Path, rng: random.Random) -> str:
    """Damage a file of the runs or of their sweeps; returns what was done to which."""
    files = sorted(
        path
        for path in (*outputs.glob("runs/**/*"), *outputs.glob("sweeps/**/*"))
        if path.is_file() and path.suffix not in LEFT_ALONE and path.name not in LEFT_ALONE
    )
    kinds: dict[str, list[Path]] = {}
    for path in files:  # of many files of a kind, such as plots, none is more likely
        kinds.setdefault("".join(path.suffixes) or path.name, []).append(path)
    path = rng.choice(kinds[rng.choice(sorted(kinds))])
    ways = (*WAYS, *[swap] * 6) if path.suffix in STRUCTURED else WAYS
    way = rng.choice(ways)
    way(path, rng)
    return f"{way.__name__} {path.relative_to(outputs)}"


# --- cases ----------------------------------------------------------------------------------------


def run_case(
    line: CommandLine, base: Base, place: Path, seed: int, case: int, seconds: float
) -> tuple[str, str]:
    """Returns the command's name and what is wrong with how it ended."""
    rng = random.Random(f"{seed}/{case}")
    outputs = place / "outputs"
    shutil.copytree(base.outputs, outputs)
    done = damage(outputs, rng)
    listed = commands(base)
    name = rng.choice([*sorted(listed), *sorted(QUICK) * 3])
    module, *arguments = listed[name]
    try:
        ended = line.start(module, *arguments, f"paths.outputs={outputs}").wait(seconds)
        wrong = fault(ended)
    except TimeoutError:
        wrong = f"hangs for {seconds:g} s"
    finally:
        shutil.rmtree(place)
    return name, f"{done}, then {name}: {wrong}" if wrong else ""


def fault(ended: Ended) -> str:
    """What is wrong with how a command ended, if anything is."""
    if ended.code not in (0, 1, 2):
        return f"exit code {ended.code}\n{ended.out}{ended.err}"
    if "Traceback" in ended.out + ended.err:
        return f"traceback\n{ended.out}{ended.err}"
    if ended.code == 2 and "spurcor: " not in ended.err:
        return f"no sentence\n{ended.out}{ended.err}"
    return ""


def main() -> int:
    """Returns 1 if any case failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--cases", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--hang", type=float, default=60.0)
    options = parser.parse_args()
    failed, told = 0, Counter[str]()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        line = CommandLine(root)
        base = make(line, root)
        end = time.monotonic() + options.seconds
        cases = itertools.count() if options.cases is None else range(options.cases)
        for case in cases if options.only is None else (options.only,):
            if options.cases is None and time.monotonic() > end:
                break
            name, wrong = run_case(
                line, base, root / f"case{case}", options.seed, case, options.hang
            )
            told[name] += 1
            if wrong:
                failed += 1
                print(f"--- seed {options.seed}, case {case}: {wrong}", flush=True)
        line.close()
    print(f"{sum(told.values())} cases ({dict(sorted(told.items()))}), {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
