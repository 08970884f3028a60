"""SLURM: what a job runs, how it is submitted, and how its state is queried."""

import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spurcor.config.packages import VARIABLE, plugins
from spurcor.errors import UserError

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

ANSWER_SECONDS = 30.0
ENDED_WELL = "COMPLETED"


@dataclass(frozen=True)
class Job:
    """The scheduler's information about a job."""

    name: str  # 123, or 123_4 of an array
    state: str  # its word, e.g. RUNNING; "" if it has forgotten the job
    reason: str = ""
    active: bool = False

    @property
    def ending(self) -> str:
        """How it ended without finishing its point."""
        return "" if self.active or self.state in ("", ENDED_WELL) else f"SLURM: {self.reason}"

    def owns(self, owner: Mapping[str, Any]) -> bool:
        """Whether a lock is that of this job."""
        number, _, index = self.name.partition("_")
        return owner.get("job") == number and index in ("", owner.get("task"))


class Unanswered(Exception):  # noqa: N818 - the scheduler may be restarting
    """The scheduler does not answer; this may be temporary."""


def query(names: Iterable[str]) -> dict[str, Job]:
    """Jobs by name. Empty where there is no SLURM; raises `Unanswered` where it is away."""
    wanted = set(names)
    if not wanted or shutil.which("squeue") is None:
        return {}
    numbers = ",".join(sorted({name.partition("_")[0] for name in wanted}))
    found = {}
    text = _ask("squeue", "--array", "--noheader", "--format=%i|%T|%r", f"--jobs={numbers}")
    for line in text.splitlines():
        name, state, reason = line.strip().split("|", 2)
        found[name] = Job(name, state, "" if reason == "None" else reason, active=True)
    if ended := wanted - found.keys():
        found |= _ended(ended, numbers)
    return {name: found.get(name, Job(name, "")) for name in wanted}


def _ended(names: set[str], numbers: str) -> dict[str, Job]:
    """How jobs ended, if SLURM keeps accounting; only the job step shows OUT_OF_MEMORY."""
    if shutil.which("sacct") is None:
        return {}
    columns = ("--noheader", "--parsable2", "--format=JobID,State,ExitCode")
    try:
        text = _ask("sacct", *columns, f"--jobs={numbers}")
    except Unanswered:  # a cluster without accounting: only the files remain
        return {}
    found: dict[str, Job] = {}
    for line in text.splitlines():
        listed, state, code = line.strip().split("|")
        listed, _, step = listed.partition(".")
        for name in names.intersection(_tasks(listed)):
            if not step or state == "OUT_OF_MEMORY":
                found[name] = Job(name, state.split()[0], f"{state}, exit code {code}")
    return found


def _tasks(listed: str) -> list[str]:
    """Tasks of an array that sacct shows as one: 7_[1-2,5%4] is 7_1, 7_2 and 7_5."""
    match = re.fullmatch(r"(\d+_)\[([\d,-]+)(?:%\d+)?\]", listed)
    if match is None:
        return [listed]
    bounds = [part.split("-") for part in match[2].split(",")]
    return [f"{match[1]}{i}" for b in bounds for i in range(int(b[0]), int(b[-1]) + 1)]


def _ask(*command: str) -> str:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise Unanswered(f"{command[0]} does not answer") from error
    if answer.returncode != 0 and "Invalid job id" not in answer.stderr:
        raise Unanswered(answer.stderr.strip().splitlines()[-1] if answer.stderr else command[0])
    return answer.stdout.strip()


@dataclass(frozen=True)
class Task:
    """The points of one job, one after the other. Its class is read from the frozen code."""

    points: tuple[Path, ...]

    def __call__(self) -> None:
        """Carry out the points; called by submitit inside the job."""
        from spurcor.sweeps.carry_out import run_points

        code = run_points(self.points)
        number = code - 128
        if number in (signal.SIGUSR1, signal.SIGUSR2) or (number == signal.SIGTERM and _goes_on()):
            # The run has saved itself. Now the signal may have the effect that submitit gives it:
            # the job is requeued, and continues in the same folder.
            signal.raise_signal(signal.SIGUSR2)
        if code:
            raise SystemExit(code)  # so that the scheduler's state is that of the points

    def checkpoint(self) -> "DelayedSubmission":
        """What a requeued job runs: the same task, which resumes."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self)


def _goes_on() -> bool:
    """Whether SLURM still counts this job as running after SIGTERM.

    Then it is in the grace time of a preemption, and a job that ends by itself there is not
    requeued. One that was cancelled or requeued by hand counts as ended already.
    """
    environment = os.environ
    number = environment.get("SLURM_ARRAY_JOB_ID") or environment["SLURM_JOB_ID"]
    task = environment.get("SLURM_ARRAY_TASK_ID")
    name = number if task is None else f"{number}_{task}"
    try:
        return query([name])[name].state == "RUNNING"
    except Unanswered:
        return False


@dataclass(frozen=True)
class Submitted:
    """A job that the scheduler has taken."""

    name: str
    log: Path


def submit(
    tasks: Sequence[Task], folder: Path, code: Path, requeues: int, **options: Any
) -> list[Submitted]:
    """Submit tasks as one array; if SLURM rejects them, its own message is shown.

    `options` are those of submitit.SlurmExecutor.
    """
    import submitit

    executor = submitit.SlurmExecutor(folder / "%j", max_num_timeout=requeues)
    setup = [
        f"export PYTHONPATH={shlex.quote(search_path(code))} PYTHONSAFEPATH=1",
        f"export {VARIABLE}={','.join(plugins())}",
        'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"',
        *options.pop("setup"),
    ]
    try:
        executor.update_parameters(setup=setup, stderr_to_stdout=True, **options)
        with executor.batch():
            jobs = [executor.submit(task) for task in tasks]
    except submitit.core.utils.FailedJobError as error:
        raise UserError(f"SLURM rejected the jobs: {_words(str(error))}") from error
    return [Submitted(job.job_id, job.paths.stdout) for job in jobs]


def search_path(code: Path) -> str:
    """Where a point's process imports from: the frozen copy, then what its user has added."""
    return os.pathsep.join([str(code), *filter(None, [os.environ.get("PYTHONPATH")])])


def require_slurm(launcher: str) -> None:
    """Refuse a launcher whose programs this machine does not have."""
    if absent := [program for program in ("sbatch", "srun") if shutil.which(program) is None]:
        raise UserError(
            f"hydra/launcher={launcher} needs {' and '.join(absent)}, which this machine does not"
            " have; use hydra/launcher=local_pool or in_process here"
        )


def try_submission(options: Mapping[str, Any]) -> None:
    """Ask SLURM whether it would take such a job, before anything is written."""
    named = ("partition", "account", "qos", "constraint", "time", "mem", "gpus_per_node")
    asked = {key: options.get(key) for key in (*named, "cpus_per_task")}
    asked |= options["additional_parameters"]
    flags = [
        f"--{key.replace('_', '-')}={value}" for key, value in asked.items() if value is not None
    ]
    command = ["sbatch", "--test-only", *flags, "--wrap=true"]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode != 0:
        raise UserError(f"SLURM rejected the jobs: {_words(answer.stderr)}")


def _words(output: str) -> str:
    """The error message of sbatch."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(("sbatch: ", "allocation failure: "))]
    return " ".join(dict.fromkeys(said or lines))


def longest_array() -> int:
    """The most tasks that one array may have."""
    match = re.search(
        r"^MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"), re.MULTILINE
    )
    return int(match[1]) if match else 1000
