"""A sweep on a real SLURM cluster that everything happens to, against one that is left in peace."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from conftest import REPO
from killing import contents
from servers import MlflowServer

from spurcor.sweeps import manifest, slurm
from spurcor.sweeps import states as sweeps
from spurcor.system.files import read_json, read_lines
from spurcor.system.lock import lock_of

CLUSTER = REPO / "scripts" / "slurm" / "cluster"
OPTIONS = ("train.num_threads=1", "train.checkpoint_seconds=2", "sweep=ordeal")
SITE = ("site.cpus_per_task=1", "site.mem_gb=2", "site.timeout_min=30")
RUNS_SECONDS = 30  # until a job with a time limit is told to save


@dataclass(frozen=True)
class Size:
    """How large a sweep, and for how long the disturbances last."""

    sweep: tuple[str, ...]  # overrides of the sweep
    limit_min: int  # time limit that one running job is given
    server_seconds: float  # how long the MLflow server is away


class Ordeal:
    """One sweep in one folder: its own clone of the code, outputs, MLflow server."""

    def __init__(self, folder: Path, size: Size, tell: Callable[[str], None] = print) -> None:
        self.size, self.tell = size, tell
        self.clone, self.outputs, self.peace = (folder / n for n in ("clone", "outputs", "peace"))
        ignored = shutil.ignore_patterns(".*", "outputs", "data", "*.egg-info", "__pycache__")
        shutil.copytree(REPO, self.clone, symlinks=True, ignore=ignored)
        self.server = MlflowServer(folder / "server")
        self.command = ("-m", *size.sweep, *OPTIONS)
        delay = f"site.signal_delay_s={60 * size.limit_min - RUNS_SECONDS}"
        self.on_slurm = (*self.command, "hydra/launcher=slurm", *SITE, delay)

    def run(self, module: str, *arguments: str, outputs: Path | None = None) -> tuple[int, str]:
        """A command as a user types it, with the clone's code; returns exit code and output."""
        place = f"paths.outputs={outputs or self.outputs}"
        command = [sys.executable, "-P", "-m", f"spurcor.{module}", *arguments, place]
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.clone),
            "MLFLOW_TRACKING_URI": self.server.uri,
            "COLUMNS": "200",
        }
        ended = subprocess.run(
            command,
            env=environment,
            cwd=self.clone,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return ended.returncode, ended.stdout

    def states(self) -> list[sweeps.PointState]:
        """The points, once the scheduler answers."""
        while True:
            try:
                return sweeps.states(self.outputs, "ordeal")
            except slurm.Unanswered:
                time.sleep(1)

    # --- what happens -----------------------------------------------------------------------------

    def endure(self) -> str:
        """Submit, disturb, wait until nothing is under way; returns the killed run's name."""
        self.server.start()
        code, output = self.run("train", *self.on_slurm, "hydra.launcher.wait=false")
        assert code == 0, output
        self.tell(output.strip().splitlines()[-1])
        edited = self._edit()
        self.tell("conf and code are edited; then a requeue, a time limit, a SIGKILL")
        requeued = self._next_running(())
        subprocess.run(["scontrol", "requeue", str(requeued.entry["job"])], check=True)
        limited = self._next_running((requeued,))
        limit = f"TimeLimit={self.size.limit_min}"
        job = f"JobId={limited.entry['job']}"
        subprocess.run(["scontrol", "update", job, limit], check=True)
        killed = self._next_running((requeued, limited))
        os.kill(read_json(lock_of(Path(killed.entry["directory"])))["pid"], signal.SIGKILL)
        self.tell("controller restarts, MLflow server goes away")
        subprocess.run([CLUSTER, "restart-controller"], check=True)
        self.server.stop(signal.SIGKILL)
        back = threading.Timer(self.size.server_seconds, self.server.start)
        back.start()
        while any(one.status in sweeps.UNDER_WAY for one in self.states()):
            time.sleep(2)
        back.join()
        for path, text in edited.items():
            path.write_text(text)
        assert self._restarts(requeued), f"{requeued.run} was not requeued"
        assert self._restarts(limited), f"{limited.run} was not stopped by its time limit"
        return killed.run

    def _edit(self) -> dict[Path, str]:
        """Spoil the clone for whatever would still read it; returns what to put back."""
        paths = [self.clone / "conf/method/erm.yaml", self.clone / "spurcor/methods/iw.py"]
        before = {path: path.read_text() for path in paths}
        paths[0].write_text("_target_: spurcor.methods.erm.Erm\nepochs: 1\n")
        paths[1].write_text("raise RuntimeError('edited while jobs were queued')\n")
        return before

    def _next_running(self, known: tuple[sweeps.PointState, ...]) -> sweeps.PointState:
        """Another point, once it has finished an epoch."""
        taken = {one.run for one in known}
        while True:
            for one in self.states():
                if one.status == "running" and one.progress and one.run not in taken:
                    return one
            time.sleep(0.5)

    def _restarts(self, one: sweeps.PointState) -> bool:
        return "resumed after" in (Path(one.entry["directory"]) / "train.log").read_text()

    # --- what must hold ---------------------------------------------------------------------------

    def differences(self) -> list[str]:
        """Runs that are not those of the same sweep left in peace, in one process."""
        code, output = self.run("train", *self.command, "tracker=none", outputs=self.peace)
        assert code == 0, output
        found = []
        for entry in manifest.manifest(self.peace, "ordeal"):
            quiet = contents(Path(entry["directory"]))
            place = Path(entry["directory"]).relative_to(self.peace)
            troubled = contents(self.outputs / place)
            for one in (quiet, troubled):  # the mirror's own files
                one["files"] = [name for name in one["files"] if "mlflow.json" not in name]
            names = sorted(k for k in quiet.keys() | troubled if quiet.get(k) != troubled.get(k))
            if names:
                found.append(f"{place}: {', '.join(names)}")
        return found

    def missing_in_mlflow(self) -> list[str]:
        """What MLflow lacks or has twice, after a sync."""
        code, output = self.run("sync", "sweep=ordeal")
        assert code == 0, output
        from mlflow import MlflowClient

        client = MlflowClient(self.server.uri)
        experiment = client.get_experiment_by_name("ordeal")
        shown = client.search_runs([experiment.experiment_id], max_results=1000)
        runs = [run for run in shown if run.data.tags["spurcor.kind"] == "run"]
        by_place = {run.data.tags["spurcor.directory"]: run for run in runs}
        entries = manifest.manifest(self.outputs, "ordeal")
        found = [] if len(runs) == len(by_place) == len(entries) else [f"{len(runs)} runs"]
        for entry in entries:
            run = by_place[entry["directory"]]
            if run.info.status != "FINISHED":
                found.append(f"{entry['directory']} is {run.info.status}")
            rows = read_lines(Path(entry["directory"]) / "metrics.jsonl")
            for key in ("train/loss", "val/worst", "test/worst", "seconds"):
                history = client.get_metric_history(run.info.run_id, key)
                points = sorted((metric.step, metric.value) for metric in history)
                if points != [(row["step"], row[key]) for row in rows]:
                    found.append(f"{entry['directory']} {key}: {len(points)} of {len(rows)} rows")
        return found


def submitted(output: str) -> int:
    """How many points a command says that it has submitted."""
    words = [line.split() for line in output.splitlines() if line.startswith("submitted ")]
    return sum(int(line[1]) for line in words)


def withstand(folder: Path, size: Size, tell: Callable[[str], None] = print) -> None:
    """The whole ordeal; raises AssertionError where anything was lost, doubled or changed."""
    ordeal = Ordeal(folder, size, tell)
    try:
        killed = ordeal.endure()
        not_done = [one for one in ordeal.states() if one.status != "done"]
        tell(json.dumps([(one.run, one.status, one.message) for one in not_done]))
        assert [(one.run, one.status) for one in not_done] == [(killed, "failed")]
        code, output = ordeal.run("status", "sweep=ordeal")
        assert code == 1, output
        code, output = ordeal.run("train", *ordeal.on_slurm)
        assert code == 0, output
        assert submitted(output) == 1, output
        code, output = ordeal.run("train", *ordeal.on_slurm)
        assert code == 0, output
        assert submitted(output) == 0, output
        tell("compared with the sweep left in peace")
        assert not (found := ordeal.differences()), found
        assert not (found := ordeal.missing_in_mlflow()), found
    finally:
        ordeal.server.stop()
