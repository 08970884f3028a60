"""One process at a time in a run directory, also after crashes, requeues and across hosts."""

import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from spurcor.files import read_json, write_json

HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 300.0


class Held(Exception):  # noqa: N818 - not an error: somebody else does the work
    """Another live process has the lock."""

    def __init__(self, path: Path, owner: dict[str, Any]) -> None:
        job = f", SLURM job {owner['job']}" if owner.get("job") else ""
        super().__init__(f"process {owner['pid']} on {owner['host']}{job}")
        self.path, self.owner = path, owner


def lock_of(directory: Path) -> Path:
    """The lock of a run directory stands beside it, so that it can be taken before that exists."""
    return directory.with_name(directory.name + ".lock")


def holder(path: Path) -> dict[str, Any] | None:
    """The live owner of a lock, or None; a requeued SLURM task is not held by its former self."""
    try:
        owner = read_json(path)
        age = time.time() - path.stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (json.JSONDecodeError, ValueError):
        return None  # never written by us: locks appear whole
    me = _identity()
    if (owner["host"], owner["boot"]) == (me["host"], me["boot"]):
        return owner if _alive(owner["pid"], owner["started"]) else None
    if owner.get("job") and (owner["job"], owner["task"]) == (me["job"], me["task"]):
        return None  # this task, requeued from another host
    if age > STALE_SECONDS or (owner.get("job") and _job_ended(owner["job"])):
        return None
    return owner


@contextlib.contextmanager
def locked(path: Path, guard: Path) -> Iterator[None]:
    """Hold the lock at `path`; raises `Held` at once if another live process has it.

    Looking and taking happen under `guard`, so of two takers of a stale lock one wins.
    """
    guard.parent.mkdir(parents=True, exist_ok=True)
    mine = {**_identity(), "nonce": uuid.uuid4().hex}
    with FileLock(guard):
        if (owner := holder(path)) is not None:
            raise Held(path, owner)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, mine)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, stop), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        with contextlib.suppress(OSError, ValueError):
            if read_json(path)["nonce"] == mine["nonce"]:
                path.unlink()


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)


def _identity() -> dict[str, Any]:
    environment = os.environ
    job = environment.get("SLURM_ARRAY_JOB_ID") or environment.get("SLURM_JOB_ID")
    task = environment.get("SLURM_ARRAY_TASK_ID") or environment.get("SLURM_PROCID")
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": pid,
        "started": psutil.Process(pid).create_time(),
        "job": job,
        "task": task if job else None,
    }


@functools.cache
def _boot() -> str:
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    return boot_id.read_text().strip() if boot_id.exists() else str(int(psutil.boot_time()))


def _alive(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < 1.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _job_ended(job: str) -> bool:
    """Whether the scheduler says that a job runs no more; silence is no answer."""
    if shutil.which("squeue") is None:
        return False
    command = ["squeue", "--noheader", "--format=%T", f"--jobs={job}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return False
    if "Invalid job id" in answer.stderr:
        return True
    return answer.returncode == 0 and not {"RUNNING", "COMPLETING"} & set(answer.stdout.split())
