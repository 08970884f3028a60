"""Points of a sweep: checked all together, frozen at submission, run here or in a pool."""

import functools
import hashlib
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from spurcor.config import REPO, TrainConfig, check, plain
from spurcor.errors import RunError, UserError
from spurcor.files import read_json, read_lines, replacing_folder, write_text

if TYPE_CHECKING:
    from spurcor.runs import Outcome

COPIED = ("spurcor", "conf", "sweeps")
GROUPS = ("dataset", "backbone", "method", "optimizer", "schedule", "features", "dfr")


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    overrides: tuple[str, ...]
    config: TrainConfig

    @property
    def entry(self) -> dict[str, Any]:
        """Its line in the manifest."""
        return {
            "overrides": list(self.overrides),
            "identity": self.config.identity,
            "seed": self.config.seed,
            "directory": str(self.config.directory.relative_to(self.config.paths.outputs)),
            "job": None,
        }


def read(cfg: DictConfig, choices: Mapping[str, Any]) -> TrainConfig:
    """Check a composed configuration; the names chosen for the groups become part of it."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    tree = OmegaConf.to_container(own, resolve=True)
    assert isinstance(tree, dict)
    if "choices" in tree:
        raise UserError("choices is no key; say dataset=..., method=... and so on")
    tree["choices"] = {group: str(choices[group]) for group in GROUPS if choices.get(group)}
    for group in ("dfr", "features", "analysis", "tracker"):
        tree[group] = tree.get(group) or {}
    return check({str(key): value for key, value in tree.items()}, TrainConfig)


# --- one run --------------------------------------------------------------------------------------


def run_single(cfg: DictConfig) -> int:
    """A run on its own belongs to the sweep it names."""
    config = read(cfg, HydraConfig.get().runtime.choices)
    overrides = tuple(HydraConfig.get().overrides.task)
    outcome = _execute(config, on_start=lambda: write_manifest([Point(overrides, config)]))
    return outcome.exit_code


def run_point(path: Path) -> int:
    """A point of a submitted sweep, from the configuration frozen at submission."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"point={path} is not a point of a sweep") from error
    if not isinstance(tree, dict):
        raise UserError(f"point={path} is not a point of a sweep")
    outcome = _execute(check(tree, TrainConfig))
    return 3 if outcome.status == "held" else outcome.exit_code


def _execute(config: TrainConfig, on_start: Any = None) -> "Outcome":
    """Carry out a run in this process."""
    import spurcor.runs
    from spurcor.console import Terminal

    log_to_terminal()
    outcome = spurcor.runs.execute(config, Terminal(), on_start)
    if outcome.status in ("failed", "interrupted"):
        print(f"spurcor: {outcome.directory}: {outcome.message}", file=sys.stderr)
    return outcome


@functools.cache
def log_to_terminal() -> None:
    """Warnings go to stderr; the rest is in the run's train.log."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("spurcor: %(message)s"))
    logger = logging.getLogger("spurcor")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


# --- sweeps ---------------------------------------------------------------------------------------


class InProcess(Launcher):
    """One point after the other in this process: imports are paid once."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra."""
        self.hydra_context, self.config = hydra_context, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Check every point, write the manifest, run what is not done, show the table."""
        points = self._compose(job_overrides)
        write_manifest(points)
        open_sweep(points[0].config)
        failures = self.run(points)
        states = [state(point, failures.get(point.config.directory)) for point in points]
        _show(states, self._command(states))
        if not_done := sum(entry["status"] != "done" for entry in states):
            raise RunError(f"{not_done} of {len(states)} points are not done")
        done = JobReturn(status=JobStatus.COMPLETED)
        done.return_value = None
        return [done] * len(states)

    def run(self, points: Sequence[Point]) -> dict[Path, str]:
        """Run the points; returns what went wrong, by run directory."""
        failures = {}
        for point in points:
            print(f"\n--- {' '.join(point.overrides)}", flush=True)
            try:
                outcome = _execute(point.config)
            except Exception as error:  # the next point may be sound
                failures[point.config.directory] = str(error).partition("\n")[0]
                if not isinstance(error, UserError):
                    traceback.print_exc()
                print(f"spurcor: {error}", file=sys.stderr)
                continue
            if outcome.status == "interrupted":
                raise SystemExit(outcome.exit_code)
            if outcome.message:
                failures[outcome.directory] = outcome.message
        return failures

    def _compose(self, job_overrides: Sequence[Sequence[str]]) -> list[Point]:
        """All points, or every problem of all of them."""
        import spurcor.runs

        points, problems = [], []
        for overrides in job_overrides:
            loader = self.hydra_context.config_loader
            try:
                cfg = loader.load_sweep_config(self.config, list(overrides))
                config = read(cfg, cfg.hydra.runtime.choices)
                spurcor.runs.validate(config)
                points.append(Point(tuple(overrides), config))
            except UserError as error:
                problems.append(f"{' '.join(overrides)}: {error}")
        if problems:
            raise UserError("\n".join(problems))
        if len(names := {point.config.sweep for point in points}) > 1:
            raise UserError(f"sweep={','.join(sorted(names))}: a sweep has one name")
        return points

    def _command(self, states: Sequence[Mapping[str, Any]]) -> str | None:
        """What re-runs the points that are not done: the same sweep."""
        if all(entry["status"] == "done" for entry in states):
            return None
        typed = [
            word for word in sys.argv[1:] if not word.startswith(("hydra.sweep.dir=", "rerun="))
        ]
        return f"python -m spurcor.train {shlex.join(typed)}"


class LocalPool(InProcess):
    """`n_jobs` processes at a time, each with one point, from a frozen copy of code and config."""

    def __init__(self, n_jobs: int = 2) -> None:
        if n_jobs < 1:
            raise UserError(f"hydra.launcher.n_jobs={n_jobs} must be at least 1")
        self.n_jobs = n_jobs

    def run(self, points: Sequence[Point]) -> dict[Path, str]:
        """Run the points; returns what went wrong, by run directory."""
        code = copy_code(sweep_folder(points[0].config))
        with ThreadPoolExecutor(self.n_jobs) as pool:
            messages = pool.map(lambda point: self._run_one(point, code), points)
            found = zip((point.config.directory for point in points), messages, strict=True)
            return {directory: message for directory, message in found if message}

    def _run_one(self, point: Point, code: Path) -> str:
        path = write_point(point)
        threads = max(1, (os.cpu_count() or 1) // self.n_jobs)
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONPATH": str(code)}
        environment.pop("HYDRA_FULL_ERROR", None)
        log = path.with_suffix(".log")
        with log.open("ab") as output:
            # -P: the working folder stays the user's, and the copy is what is imported.
            command = [sys.executable, "-P", "-m", "spurcor.train", f"point={path}"]
            code_ = subprocess.run(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT
            ).returncode
        print(f"{'done' if code_ == 0 else 'not done'}: {' '.join(point.overrides)}", flush=True)
        if code_ < 0:
            return f"killed by signal {-code_}, see {log}"
        return "" if code_ == 0 else f"{_last_line(log)}"


# Hydra accepts launchers under such a name only, and an editable install has no hydra_plugins.
PLUGINS = {
    "hydra_plugins.spurcor.InProcess": InProcess,
    "hydra_plugins.spurcor.LocalPool": LocalPool,
}


def sweep_folder(config: TrainConfig) -> Path:
    """Where a sweep keeps its manifest, points and code."""
    return config.paths.outputs / "sweeps" / config.sweep


def manifest(outputs: Path, name: str) -> list[dict[str, Any]]:
    """The points of a sweep, in the order they were first asked for."""
    path = outputs / "sweeps" / name / "points.jsonl"
    if not path.exists():
        found = sorted(p.parent.name for p in (outputs / "sweeps").glob("*/points.jsonl"))
        raise UserError(
            f"sweep={name} does not exist in {outputs}; there is {', '.join(found) or 'none yet'}"
        )
    entries = {entry["directory"]: entry for entry in read_lines(path)}
    return [{**entry, "directory": str(outputs / place)} for place, entry in entries.items()]


def write_manifest(points: Sequence[Point]) -> None:
    """Add points to their sweep's manifest; one that is there already is not added again."""
    path = sweep_folder(points[0].config) / "points.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        outputs = points[0].config.paths.outputs
        raise UserError(f"paths.outputs={outputs} cannot be written ({error.strerror})") from error
    known = {entry["directory"] for entry in read_lines(path)}
    fresh = [p.entry for p in points if p.entry["directory"] not in known]
    # One write in append mode: concurrent single runs of the same sweep lose no line.
    text = "".join(json.dumps(entry) + "\n" for entry in fresh)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def write_point(point: Point) -> Path:
    """The checked configuration of a point, as its process will read it."""
    config = point.config
    folder = sweep_folder(config) / "points"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{config.identity}-seed{config.seed}.yaml"
    write_text(path, yaml.safe_dump(plain(config), sort_keys=False))
    return path


def copy_code(folder: Path) -> Path:
    """Freeze code and configuration: what was submitted is what runs."""
    from spurcor.results import commit

    files = sorted(
        path
        for name in COPIED
        for path in (REPO / name).rglob("*")
        if path.is_file() and path.suffix in (".py", ".yaml") and "__pycache__" not in path.parts
    )
    digest = hashlib.sha256()
    for path in files:
        digest.update(str(path.relative_to(REPO)).encode() + path.read_bytes())
    target = folder / f"code-{digest.hexdigest()[:8]}"
    if not target.exists():
        with replacing_folder(target) as beside:
            for name in COPIED:
                ignored = shutil.ignore_patterns("__pycache__", "outputs")
                shutil.copytree(REPO / name, beside / name, symlinks=True, ignore=ignored)
            (beside / "commit").write_text(commit() + "\n")
    return target


def open_sweep(config: TrainConfig) -> None:
    """Create the trackers' stores and the sweep's own record before any point starts."""
    from contextlib import ExitStack

    from spurcor.tracking import Record, Trackers

    log_to_terminal()
    with ExitStack() as stack:
        trackers = Trackers.open(config, stack)
        record = Record.of_sweep(sweep_folder(config))
        trackers.start(record)
        trackers.finish(record, "FINISHED")


def state(point: Point, message: str | None) -> dict[str, Any]:
    """Status of a point from its files, with the figures of the table."""
    import spurcor.runs
    from spurcor.repair import dfr_name

    config = point.config
    directory = config.directory
    entry: dict[str, Any] = {
        "overrides": point.overrides,
        "run": f"{config.identity}/seed{config.seed}",
        "status": spurcor.runs.status(config),
        "message": message or "",
    }
    if (directory / "result.json").exists():
        result = read_json(directory / "result.json")
        entry["worst"] = result["test"]["worst"]
        name = None if config.dfr is None else dfr_name(config.dfr)
        entry["dfr"] = result["dfr"].get(name, {}).get("test", {}).get("worst")
    return entry


def _show(states: Sequence[dict[str, Any]], command: str | None) -> None:
    from spurcor.console import Terminal, sweep_table

    shared = set.intersection(*(set(entry["overrides"]) for entry in states))
    for entry in states if len(states) > 1 else []:
        entry["overrides"] = [text for text in entry["overrides"] if text not in shared]

    terminal = Terminal()
    terminal.say("")
    terminal.console.print(sweep_table(states))
    if command is not None:
        terminal.say(f"to run what is not done: {command}")


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("spurcor: ") if lines else ""
