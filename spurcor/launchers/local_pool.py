"""Run a sweep in several parallel processes on this machine."""

import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from spurcor.errors import UserError
from spurcor.launchers.in_process import InProcess
from spurcor.launchers.jobs import batch, set_aside_reruns
from spurcor.sweeps.carry_out import HELD
from spurcor.sweeps.freeze import copy_code, write_point
from spurcor.sweeps.manifest import Point, sweep_folder, write_manifest
from spurcor.sweeps.order import in_order
from spurcor.sweeps.slurm import search_path
from spurcor.sweeps.states import last_line
from spurcor.system.lock import HELD_BY

KILLED = "killed by signal"
SIGNALLED = 128  # plus the signal: the exit code of a point that saved and stopped


class LocalPool(InProcess):
    """Launcher of `n_jobs` processes at a time, from a frozen copy of code and configuration."""

    def __init__(self, n_jobs: int = 2) -> None:
        if not isinstance(n_jobs, int) or n_jobs < 1:
            raise UserError(f"hydra.launcher.n_jobs={n_jobs} must be a whole number, at least 1")
        self.n_jobs = self.width = n_jobs
        self._slots = threading.Semaphore(n_jobs)  # shared by the trials of a search
        self._copy: Path | None = None
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, points: Sequence[Point]) -> dict[Path, str]:
        """See `InProcess.run`."""
        self._copy = self._copy or copy_code(sweep_folder(points[0].config))
        code = self._copy
        batches = in_order(set_aside_reruns(points))
        jobs = [job for together in batches for job in batch(together)]
        ended = {job[0].config.directory: threading.Event() for job in jobs}

        def run_one(job: Sequence[Point]) -> str:
            # Jobs come after those that they start from, so a job that waits here keeps no
            # process from starting that it waits for.
            if (before := ended.get(job[0].config.init or Path())) is not None:
                before.wait()
            try:
                return self._run_one(job, code)
            finally:
                ended[job[0].config.directory].set()

        with ThreadPoolExecutor(self.n_jobs) as pool:
            messages = pool.map(run_one, jobs)
            try:
                found = zip((job[0].config.directory for job in jobs), messages, strict=True)
                return {directory: message for directory, message in found if message}
            except BaseException:  # stopped by a signal: let running points save and end
                pool.shutdown(wait=False, cancel_futures=True)
                self.stop()
                raise

    def stop(self) -> None:
        """See `InProcess.stop`."""
        self._stopped = True
        for process in list(self._processes):
            process.terminate()

    def _run_one(self, job: Sequence[Point], code: Path) -> str:
        with self._slots:
            return "" if self._stopped else self._run_process(job, code)

    def _run_process(self, job: Sequence[Point], code: Path) -> str:
        paths = [write_point(point) for point in job]
        log = paths[0].with_suffix(".log")
        write_manifest([dataclasses.replace(point, log=log) for point in job])
        threads = max(1, (os.cpu_count() or 1) // self.n_jobs)
        path = search_path(code)
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONPATH": path}
        environment.pop("HYDRA_FULL_ERROR", None)
        listed = ",".join(f'"{path}"' for path in paths)
        with log.open("wb") as output:
            # -P: import the frozen copy, not code in the working folder.
            command = [sys.executable, "-P", "-m", "spurcor.train", f"point=[{listed}]"]
            with subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT
            ) as process:
                self._processes.add(process)
                if self._stopped:
                    process.terminate()
            self._processes.discard(process)
            exit_code = process.returncode
        for point in job:
            print(
                f"{'done' if point.done else 'not done'}: {' '.join(point.overrides)}", flush=True
            )
        if exit_code < 0 or exit_code > SIGNALLED:
            number = -exit_code if exit_code < 0 else exit_code - SIGNALLED
            return f"{KILLED} {number}, see {log}"
        if exit_code == HELD:  # an orphan of an earlier command may still write into the log
            return f"{job[0].config.directory} {HELD_BY} another process"
        return "" if exit_code == 0 else last_line(log)
