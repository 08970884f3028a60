"""SLURM: the task of a job, its submission, and queries of its state."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
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
THREADS = "OMP_NUM_THREADS"
OF_JOB = ("SLURM_", "SBATCH_", "SRUN_", "SUBMITIT_", THREADS)


@dataclass(frozen=True)
class Job:
    """State of a job according to the scheduler."""

    name: str  # 123, or 123_4 in an array
    state: str  # in SLURM's terms, e.g. RUNNING; "" if SLURM no longer knows the job
    reason: str = ""
    active: bool = False

    @property
    def ending(self) -> str:
        """How the job ended without completing; "" if it is active, completed or forgotten."""
        return "" if self.active or self.state in ("", ENDED_WELL) else f"SLURM: {self.reason}"

    def owns(self, owner: Mapping[str, Any]) -> bool:
        """Return whether the owner of a lock is this job."""
        number, _, index = self.name.partition("_")
        return owner.get("job") == number and index in ("", owner.get("task"))


class Unanswered(Exception):  # noqa: N818 - the scheduler may be restarting
    """The scheduler does not answer, possibly only for a while."""


def query(names: Iterable[str]) -> dict[str, Job]:
    """Return jobs by name; empty without SLURM. Raises `Unanswered` if SLURM does not answer."""
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
    """Return how jobs ended, if SLURM keeps accounting.

    Job steps are read as well, since only they show OUT_OF_MEMORY.
    """
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
    """Expand array tasks that sacct lists as one: 7_[1-2,5%4] to 7_1, 7_2 and 7_5."""
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
    """The points of one job, run one after another; unpickled with the frozen code."""

    points: tuple[Path, ...]

    def __call__(self) -> None:
        """Run the points; called by submitit inside the job."""
        from spurcor.sweeps.carry_out import run_points

        code = run_points(self.points)
        number = code - 128
        if number in (signal.SIGUSR1, signal.SIGUSR2) or (number == signal.SIGTERM and _goes_on()):
            # The run has saved its checkpoint. submitit's own handler now requeues the job, which
            # resumes in the same folder.
            signal.raise_signal(signal.SIGUSR2)
        if code:
            raise SystemExit(code)  # the scheduler then shows the points' failure

    def checkpoint(self) -> "DelayedSubmission":
        """Return the submission of a requeued job: the same task, which resumes its points."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class Command:
    """A command of spurcor.train as a job of its own, with the user's own number of threads."""

    words: tuple[str, ...]
    threads: str | None

    def __call__(self) -> None:
        """Run the command; called by submitit inside the job."""
        # What describes this job would pass to those that the command submits.
        environment = {
            key: value
            for key, value in os.environ.items()
            if key == "SLURM_CONF" or not key.startswith(OF_JOB)
        }
        environment |= {} if self.threads is None else {THREADS: self.threads}
        command = [sys.executable, "-P", "-m", "spurcor.train", *self.words]
        code = subprocess.run(command, env=environment).returncode
        if code:
            raise SystemExit(code)

    def checkpoint(self) -> "DelayedSubmission":
        """Return the submission of a requeued job: the same command, which repeats nothing."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self)


def _goes_on() -> bool:
    """Return whether SLURM still lists this job as running after SIGTERM.

    It is then in the grace period of a preemption, where a job that exits by itself is not
    requeued. A job that was cancelled or requeued by hand is no longer listed as running.
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
    """A job that the scheduler has accepted."""

    name: str
    log: Path


def submit(
    tasks: Sequence[Task | Command], folder: Path, code: Path, requeues: int, **options: Any
) -> list[Submitted]:
    """Submit tasks as one array; raises UserError with SLURM's own message if it rejects them.

    `options` are parameters of submitit.SlurmExecutor.
    """
    import submitit

    executor = submitit.SlurmExecutor(folder / "%j", max_num_timeout=requeues)
    setup = [
        f"export PYTHONPATH={shlex.quote(search_path(code))} PYTHONSAFEPATH=1",
        f"export {VARIABLE}={','.join(plugins())}",
        f'export {THREADS}="${{{THREADS}:-${{SLURM_CPUS_PER_TASK:-1}}}}"',
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
    """Return the PYTHONPATH of a job: the frozen copy, then the user's own entries."""
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([str(code), *filter(None, own)]))


def require_slurm(launcher: str) -> None:
    """Refuse a launcher whose programs are not installed on this machine."""
    if absent := [program for program in ("sbatch", "srun") if shutil.which(program) is None]:
        raise UserError(
            f"hydra/launcher={launcher} needs {' and '.join(absent)}, which this machine does not"
            " have; use hydra/launcher=local_pool or in_process here"
        )


def try_submission(options: Mapping[str, Any]) -> None:
    """Ask SLURM whether it would accept such a job, before anything is written."""
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
    """Return the error message in the output of sbatch."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(("sbatch: ", "allocation failure: "))]
    return " ".join(dict.fromkeys(said or lines))


def longest_array() -> int:
    """Return SLURM's `MaxArraySize`; 1000 if it names none."""
    match = re.search(
        r"^MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"), re.MULTILINE
    )
    return int(match[1]) if match else 1000
