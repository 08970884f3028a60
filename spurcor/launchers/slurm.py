"""Run a sweep as SLURM job arrays."""

import dataclasses
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spurcor.config.check import check
from spurcor.errors import UserError
from spurcor.launchers.in_process import InProcess
from spurcor.launchers.jobs import batch, set_aside_reruns
from spurcor.launchers.slurm_options import SlurmOptions
from spurcor.sweeps import slurm
from spurcor.sweeps.freeze import copy_code, write_point
from spurcor.sweeps.manifest import Point, sweep_folder, write_manifest
from spurcor.sweeps.order import in_order
from spurcor.sweeps.states import UNDER_WAY, PointState, states
from spurcor.system.signals import Interrupted

log = logging.getLogger(__name__)

POLL_SECONDS = (2.0, 15.0)  # between polls of the queue: at first, and at most


class Slurm(InProcess):
    """Launcher that submits job arrays that run a frozen copy of code and configuration.

    After submission this process is no longer needed, unless it searches and waits: it asks for the
    next trial when one has ended, and may be stopped and started again.
    """

    def __init__(self, **options: Any) -> None:
        """See `SlurmOptions`."""
        slurm.require_slurm("slurm")
        try:
            self.options = check(options, SlurmOptions)
        except UserError as error:
            lines = str(error).splitlines()
            raise UserError("\n".join(f"hydra.launcher.{line}" for line in lines)) from error
        self.width = self.options.array_parallelism
        self._submitting, self._polling = threading.Lock(), threading.Lock()
        self._polled: tuple[float, list[PointState]] = (-math.inf, [])
        self._stopped = False

    def refuse_impossible(self) -> None:
        """See `InProcess.refuse_impossible`."""
        slurm.try_submission(self.options.submitit)

    def run(self, points: Sequence[Point]) -> dict[Path, str] | None:
        """See `InProcess.run`."""
        config = points[0].config
        folder = sweep_folder(config)
        wanted = {point.key for point in points}
        with self._submitting:  # a search runs several trials at a time
            states = [one for one in _states(folder) if one.status in UNDER_WAY]
            under_way = {one.key for one in states} & wanted
            if under_way:
                print(f"{len(under_way)} points are queued or running already")
            others = set_aside_reruns([point for point in points if point.key not in under_way])
            job_of = {Path(one.entry["directory"]): one.entry["job"] for one in states}
            batches = [batch(one, self.options.points_per_job) for one in in_order(others)]
            self._submit(batches, folder, job_of)
        under_way |= {point.key for jobs in batches for job in jobs for point in job}
        status = f"python -m spurcor.status sweep={config.sweep} watch=true"
        if under_way and not self.options.wait:
            print(f"to follow them: {status}")
            return None
        try:
            return self._wait(folder, under_way)
        except Interrupted as interrupted:
            print(
                f"\nspurcor: the jobs continue without this command; to follow them: {status}",
                file=sys.stderr,
            )
            raise SystemExit(interrupted.exit_code) from None

    def stop(self) -> None:
        """See `InProcess.stop`; the jobs go on."""
        self._stopped = True

    def look(self, folder: Path) -> list[PointState]:
        """Return the states of the points in a sweep's folder; none before the first is there."""
        if not (folder / "points.jsonl").exists():
            return []
        found = _states(folder)
        if any(state.status not in (*UNDER_WAY, "done") for state in found):
            time.sleep(POLL_SECONDS[0])  # as in `_wait`: a requeued job briefly leaves the queue
            found = _states(folder)
        return found

    def go_on(self, folder: Path, jobs: Sequence[str], words: Sequence[str]) -> None:
        """Submit a job that runs this command again as soon as one of the jobs has ended."""
        options = {**self.options.submitit, "job_name": f"spurcor-{folder.name}"}
        # Whichever site it is, drawing and judging takes one core.
        options |= {"cpus_per_task": 1, "dependency": "?".join(f"afterany:{job}" for job in jobs)}
        options.pop("gpus_per_node", None)
        task = slurm.Command(tuple(words), os.environ.get(slurm.THREADS))
        code, requeues = copy_code(folder), self.options.max_num_timeout
        (taken,) = slurm.submit([task], folder / "slurm", code, requeues, **options)
        print(f"the search goes on as job {taken.name} when one of them has ended", flush=True)
        print(f"to follow it: python -m spurcor.status sweep={folder.name} watch=true; {taken.log}")

    def _submit(
        self,
        batches: Sequence[Sequence[Sequence[Point]]],
        folder: Path,
        job_of: Mapping[Path, str],
    ) -> None:
        """Submit arrays as long as the cluster allows, each to start after the previous one.

        A batch starts from runs of earlier ones, or from those that earlier jobs, `job_of`, train.
        """
        code = copy_code(folder)
        longest = slurm.longest_array()
        options = {**self.options.submitit, "job_name": f"spurcor-{folder.name}"}
        before: set[str] = set()
        for array in (
            jobs[first : first + longest]
            for jobs in batches
            for first in range(0, len(jobs), longest)
        ):
            origins = {point.config.init for job in array for point in job} & job_of.keys()
            before |= {job_of[origin] for origin in origins if origin is not None}
            if before:
                options["dependency"] = f"afterany:{':'.join(sorted(before))}"
            tasks = [slurm.Task(tuple(write_point(point) for point in job)) for job in array]
            taken = slurm.submit(
                tasks, folder / "slurm", code, self.options.max_num_timeout, **options
            )
            write_manifest(
                [
                    dataclasses.replace(point, job=submitted.name, log=submitted.log)
                    for job, submitted in zip(array, taken, strict=True)
                    for point in job
                ]
            )
            before = {taken[0].name.partition("_")[0]}  # or two arrays would run in parallel
            print(f"submitted {sum(map(len, array))} points as job {min(before)}", flush=True)

    def _wait(self, folder: Path, keys: set[tuple[str, ...]]) -> dict[Path, str]:
        """Wait until no point is queued or running and return failures by run directory.

        A point counts as ended only after two polls in a row, as a requeued job briefly leaves the
        queue.
        """
        ended: set[tuple[str, ...]] = set()
        shown: set[tuple[str, ...]] = set()
        pause, looked = POLL_SECONDS[0], time.monotonic()
        while True:
            looked, everything = self._look(folder, looked)
            found = [one for one in everything if one.key in keys]
            now = {one.key for one in found if one.status not in UNDER_WAY}
            for one in found:
                if one.key in (now & ended) - shown:
                    shown.add(one.key)
                    print(f"{one.status}: {' '.join(one.entry['overrides'])}", flush=True)
            if shown >= keys or self._stopped:
                return {Path(one.entry["directory"]): one.message for one in found if one.message}
            ended = now
            time.sleep(pause)
            pause = min(1.2 * pause, POLL_SECONDS[1])

    def _look(self, folder: Path, after: float) -> tuple[float, list[PointState]]:
        """Return states looked at later than `after`, and when.

        The trials of a search share a look, so that many of them ask SLURM as often as one does,
        but none gets the same look twice.
        """
        with self._polling:
            if self._polled[0] <= after:
                now = time.monotonic()
                self._polled = now, _states(folder)
            return self._polled


def _states(folder: Path) -> list[PointState]:
    """Return the states of a sweep's points, waiting while SLURM does not respond."""
    while True:
        try:
            return states(folder.parents[1], folder.name)
        except slurm.Unanswered as error:
            log.warning("%s; asking again", error)
            time.sleep(POLL_SECONDS[1])
