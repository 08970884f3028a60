"""Random command lines for every entry point: none may end in a traceback, a hang or foreign code.

    python scripts/battery/configurations.py --seconds 60 --seed 0

A warm process forks a child for each command line. Training itself is left out. What fails is
printed as it was typed, with the end of what it said; the exit code is then 1.
"""

# ruff: noqa: E402 - the environment is set before torch is imported
import argparse
import contextlib
import importlib
import os
import random
import resource
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

import matplotlib.figure  # noqa: F401
import mlflow  # noqa: F401
import sklearn.linear_model  # noqa: F401
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import spurcor.presentation.plots
import spurcor.runs.execute
import spurcor.tracking.mlflow  # noqa: F401
from spurcor import cli
from spurcor.config import nodes, resolvers
from spurcor.system import places
from spurcor.training.trainer import Trainer

ENTRIES = (
    "train", "retrain", "analyze", "report", "status",
    "sync", "explain", "selective", "clusters", "prepare",
)  # fmt: skip
HANG_SECONDS = 60
MEMORY = 16 * 2**30
SOUND = (0, 1, 2, 3, 130)  # exit codes that spurcor gives
QUICK = ("tracker=none", "dataset.subset_size=60", "backbone=mlp", "backbone.width=8")
PLAIN = (
    "null", "5", "-1", "0", "1.5", "nan", "inf", "-inf", "1e300", "100000000",
    "99999999999999999999", "true", "text", "''", "[]", "{}", "[1]", "[-1]", "[null]", "[[1]]",
    "{a: 1}", "[a,b]", "???", "${seed}", "${nosuch}", "${oc.env:NOSUCH}", "${oc.decode:x}",
    "${choice:1}", "${", "}", "a b", "a,b", "0,1", "range(3)", "range(0,3,0)", "glob(*)",
    "choice(1,2)", "interval(0,1)", "sort(2,1)", "shuffle(1,2)", "tag(a,1)", "int(x)", "1\r",
    "a\n", "a\tb", "é", "\udcff", "'\"'", "a=b", "a:b", "=", "\\", "%s", "../..", "/dev/null",
    "/", "~", "meta", "xla", "mps", "cuda:99", "vulkan", "cpu:7", "val/group/nope", "val/worst",
    "{_target_: torch.nn.Identity}", "{_target_: 5}", "x" * 300,
)  # fmt: skip
FLAGS = (
    ("-m",), ("--cfg", "job"), ("--cfg", "hydra"), ("--cfg", "all"), ("--info",), ("--resolve",),
    ("--info", "plugins"), ("--info", "defaults-tree"), ("--info", "searchpath"), ("--help",),
    ("--shell-completion",), ("--shell-completion", "query=bash"), ("--hydra-help",), ("--run",),
    ("--shell-completion", "install=bash"), ("--package", "nosuch"), ("--config-name", "nosuch"),
    ("--cfg", "job", "--package", "train"), ("--config-path", "."), ("--config-dir", "nosuch"),
    ("--config-name", "choices"), ("--nosuch",), ("--version",),
)  # fmt: skip
HYDRA = (
    "hydra", "hydra.mode", "hydra.launcher", "hydra/launcher", "hydra.sweeper", "hydra/sweeper",
    "hydra.callbacks", "hydra.job_logging", "hydra.hydra_logging", "hydra/job_logging",
    "hydra.job", "hydra.sweep.dir", "hydra.run", "hydra.run.dir", "hydra.job.chdir",
    "hydra.verbose", "hydra.help", "hydra.output_subdir", "hydra.searchpath", "hydra.job.env_set",
    "hydra.job.env_copy", "hydra.launcher.n_jobs", "hydra.launcher._target_",
    "hydra.sweeper.points", "hydra.runtime", "hydra.sweeper.params", "hydra.overrides",
    "hydra/callbacks", "hydra/env", "hydra.job.name",
)  # fmt: skip
LAUNCHERS = ("in_process", "local_pool", "slurm", "basic", "submitit_local", "submitit_slurm")
EVIL = """
import os
open(os.environ["CANARY"], "w").close()
def evil(*args, **options):
    raise SystemExit(0)
Evil = evil
"""
FACTORIES = (
    "{_target_: torch.hub.load, repo_or_dir: FOLDER, model: evil, source: local}",
    "{_target_: canary_module.Evil}",
    "{_target_: os.system, _args_: ['touch CANARY']}",
    "{_target_: builtins.exec, _args_: [import canary_module]}",
    "{_target_: torch.load, f: FOLDER/config.pickle, weights_only: false}",
    "{_target_: hydra.utils.call, config: {_target_: torch.hub.load, repo_or_dir: FOLDER,"
    " model: evil, source: local}}",
)
LOGGING = (
    "{version: 1, filters: {a: {'()': canary_module.Evil}}}",
    "{version: 1, handlers: {a: {class: canary_module.Evil}}, root: {handlers: [a]}}",
    "{version: 1, handlers: {a: {class: logging.StreamHandler, stream: 'ext://canary_module.Evil'}},"
    " root: {handlers: [a]}}",
    "{version: 1, formatters: {a: {class: canary_module.Evil}}}",
)


@dataclass(frozen=True)
class Line:
    """A command line, and the sweep file that `+sweeps=odd` names."""

    entry: str
    arguments: tuple[str, ...]
    sweep: str = ""

    def __str__(self) -> str:
        typed = f"python -m spurcor.{self.entry} {shlex.join(self.arguments)}"
        return typed + (f"\n  with sweeps/odd.yaml: {self.sweep!r}" if self.sweep else "")


class Generator:
    """Draws command lines; `keys` are those of each entry point's composed configuration."""

    def __init__(self, seed: int, folder: Path, run: str) -> None:
        self.draw, self.folder = random.Random(seed), folder
        self.base = {
            "retrain": (f"run={run}", "tracker=none", "dfr=val", "dfr.num_retrains=1"),
            "analyze": (f"run={run}", "tracker=none", "analysis=[output_moments]"),
            "report": ("sweep=default", "tracker=none"),
            "status": ("sweep=default",),
            "sync": ("tracker=none",),
            "explain": (f"run={run}", "num_images=1"),
            "selective": (f"runs=[{run},{run}]",),
            "clusters": (f"run={run}", "num_clusters=2"),
            "prepare": ("dataset.subset_size=60",),
            "train": ("method.epochs=1", "dfr=none", *QUICK),
        }
        self.keys = {entry: self._keys(entry) for entry in ENTRIES}

    def _keys(self, entry: str) -> list[str]:
        typed = [*self.base[entry], "analysis=[gap_dynamics]"] if entry == "train" else []
        with initialize_config_dir(str(places.CONF), version_base="1.3"):
            tree = OmegaConf.to_container(compose(entry, typed), resolve=False)
        groups = [path.name for path in places.CONF.iterdir() if path.is_dir()]
        return [*tree, *nodes.flat("", tree)] + [group for group in groups if group in tree]

    def value(self) -> str:
        """A plain value, one that names a class, or one with a character changed."""
        if self.draw.random() < 0.1:
            return self.evil(self.draw.choice(FACTORIES))
        value = self.draw.choice(PLAIN)
        if self.draw.random() < 0.1 and value:
            at = self.draw.randrange(len(value))
            value = value[:at] + self.draw.choice("[]{}(),:='\"\\\r\n #é$") + value[at:]
        return value

    def evil(self, text: str) -> str:
        """With the places of this run."""
        return text.replace("FOLDER", str(self.folder)).replace("CANARY", "$CANARY")

    def override(self, entry: str) -> str:
        """A key of the entry point or of Hydra, sometimes misspelt, with some value."""
        kind = self.draw.random()
        key = self.draw.choice(self.keys[entry]).lstrip(".") if kind < 0.75 else None
        key = key or self.draw.choice(HYDRA)
        if key.startswith("hydra/launcher") and self.draw.random() < 0.7:
            return f"hydra/launcher={self.draw.choice(LAUNCHERS)}"
        if "logging" in key and self.draw.random() < 0.7:
            return f"{key}={self.evil(self.draw.choice(LOGGING))}"
        if key == "hydra.searchpath" and self.draw.random() < 0.7:
            return f"{key}=[{self.draw.choice(('pkg', 'structured'))}://canary_module]"
        if key == "hydra.mode" and self.draw.random() < 0.7:
            return f"{key}={self.draw.choice(('RUN', 'MULTIRUN'))}"
        if self.draw.random() < 0.1:
            key += self.draw.choice(("x", ".x", "._target_", "@x", "/x", "=", "..", "[0]"))
        return self.draw.choice(("", "", "", "", "", "+", "++", "~")) + f"{key}={self.value()}"

    def sweep(self) -> str:
        """A sweep file with odd values in it."""
        draw, value = self.draw, self.value()
        with contextlib.suppress(yaml.YAMLError):
            value = yaml.safe_load(value)
        key = draw.choice(HYDRA).replace("/", ".").removeprefix("hydra.")
        tree = {}
        if draw.random() < 0.5:
            for part in reversed(("hydra", *key.split("."))):
                value = {part: value}
            tree = value
        elif draw.random() < 0.5:
            tree = {"hydra": {"sweeper": {"points": [draw.choice(("", self.override("train")))]}}}
        else:
            name = draw.choice(self.keys["train"]).lstrip(".")
            for part in reversed(name.split(".")):
                value = {part: value}
            tree = value
        text = yaml.safe_dump(tree, allow_unicode=True)
        if draw.random() < 0.1:
            text += draw.choice(("\0", "\t", "a: &a *a", "- x", "!!python/name:os.system x: 1"))
        return "# @package _global_\n" + text

    def line(self) -> Line:
        """A command line."""
        entry = self.draw.choice(ENTRIES if self.draw.random() < 0.5 else ENTRIES[:1])
        arguments = [f"paths.outputs={self.folder}/outputs", *self.base[entry]]
        arguments += [self.override(entry) for _ in range(self.draw.choice((0, 1, 1, 1, 2, 3)))]
        sweep = ""
        if entry == "train" and self.draw.random() < 0.25:
            sweep = self.sweep()
            arguments += [f"--config-dir={self.folder}/conf", "+sweeps=odd", "-m"]
        elif self.draw.random() < 0.4:
            arguments += self.draw.choice(FLAGS)
        elif self.draw.random() < 0.05:
            arguments += ["--experimental-rerun", f"{self.folder}/config.pickle"]
        self.draw.shuffle(arguments) if self.draw.random() < 0.05 else None
        return Line(entry, tuple(word.replace("\0", "") for word in arguments), sweep)


def child(line: Line, folder: Path) -> int:
    """Carry out a command line up to the training, in the forked process."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    Trainer.fit = lambda *_: os._exit(0)
    sys.argv = [f"{line.entry}.py", *line.arguments]
    try:
        return cli.run(importlib.import_module(f"spurcor.{line.entry}").main, line.entry)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1


def carry_out(line: Line, folder: Path, verbose: bool) -> str:
    """What is wrong with how a command line ended; nothing if it is sound."""
    canary = folder / "canary"
    os.environ["CANARY"] = str(canary)
    (folder / "conf" / "sweeps").mkdir(parents=True, exist_ok=True)
    (folder / "conf" / "sweeps" / "odd.yaml").write_text(line.sweep or "{}", encoding="utf-8")
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        code = child(line, folder)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code % 256)
    end = time.monotonic() + HANG_SECONDS
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > end:
            break
        time.sleep(0.01)
    hung = time.monotonic() > end
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # and what it has started
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    said = "".join((folder / name).read_text(errors="replace") for name in ("out", "err"))
    if verbose:
        print(f"{line}\n  {code}: {said.strip()[-200:]}", flush=True)
    if canary.exists():
        canary.unlink()
        return "foreign code ran"
    if hung:
        return f"not ended after {HANG_SECONDS} seconds"
    if "Traceback (most recent call last)" in said:
        return "traceback: " + said.strip()[-600:]
    return "" if code in SOUND else f"exit code {code}: {said.strip()[-300:]}"


def prepare(folder: Path) -> str:
    """A finished run, and files of foreign code; returns the run's name."""
    outputs = folder / "outputs"
    for name in ("hubconf", "canary_module"):
        (folder / f"{name}.py").write_text(EVIL)
    (folder / "config.pickle").write_bytes(b"ccanary_module\nEvil\n(tR.")
    if pid := os.fork():
        os.waitpid(pid, 0)
    else:
        arguments = (f"paths.outputs={outputs}", "method.epochs=1", "dfr=none", *QUICK)
        sys.argv = ["train.py", *arguments]
        os._exit(cli.run(importlib.import_module("spurcor.train").main, "train"))
    (run,) = outputs.glob("runs/*/*/*/seed0")
    return str(run)


def main() -> int:
    """Draw and try command lines until time is up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="stop after this many command lines")
    parser.add_argument("--verbose", action="store_true", help="show the output of every command")
    options = parser.parse_args()
    resolvers.register()
    failed: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generator = Generator(options.seed, folder, prepare(folder))
        end, count = time.monotonic() + options.seconds, 0
        while time.monotonic() < end and count != options.count:
            line, count = generator.line(), count + 1
            if wrong := carry_out(line, folder, options.verbose):
                failed[wrong.partition(":")[0]] += 1
                print(f"{line}\n  {wrong}\n", flush=True)
    print(f"seed {options.seed}: {count} command lines, {dict(failed) or 'all sound'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
