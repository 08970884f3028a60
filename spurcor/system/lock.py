"""Locks that admit one process to a run directory, across crashes, requeues and hosts."""

import contextlib
import functools
import logging
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

from spurcor.system.files import read_json, write_json

log = logging.getLogger(__name__)
OWNED = {"host", "boot", "pid", "started", "nonce"}  # keys of every lock file
HEARTBEAT_SECONDS = 15.0
HELD_BY = "is being worked on by"  # in messages on a run that another process has
STALE_SECONDS = 300.0


class Held(Exception):  # noqa: N818 - not an error: another process does the work
    """A lock that another live process holds."""

    def __init__(self, path: Path, owner: dict[str, Any]) -> None:
        job = f", SLURM job {owner['job']}" if owner.get("job") else ""
        super().__init__(f"process {owner['pid']} on {owner['host']}{job}")
        self.path, self.owner = path, owner


def lock_of(directory: Path) -> Path:
    """Return a run's lock file, beside its folder so that it can be taken before that exists."""
    return directory.with_name(directory.name + ".lock")


def holder(path: Path) -> dict[str, Any] | None:
    """Return the live owner of a lock, or None.

    A requeued SLURM task is not blocked by the lock of its previous attempt.
    """
    try:
        owner = _owner(path)
        age = time.time() - path.stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return None  # not a lock of spurcor, which writes them atomically
    me = _identity()
    if (alive := _alive(owner, me)) is not None:
        return owner if alive else None
    # A heartbeat far in the future is stale, too: one of the clocks was changed.
    if _ended(owner, me) or abs(age) > STALE_SECONDS:
        return None
    return owner


def _owner(path: Path) -> dict[str, Any]:
    owner = read_json(path)
    if not owner.keys() >= OWNED:
        raise ValueError(f"{path} names no owner")
    return owner


@contextlib.contextmanager
def locked(path: Path, guard: Path) -> Iterator[None]:
    """Hold the lock at `path` during the block; raise `Held` if another live process has it.

    The lock is checked and taken under `guard`, so only one process can take over a stale lock.
    """
    guard.parent.mkdir(parents=True, exist_ok=True)
    mine = {**_identity(), "nonce": uuid.uuid4().hex}
    _listen(path)
    with FileLock(guard):
        if (owner := holder(path)) is not None:
            raise Held(path, owner)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, mine)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, mine["nonce"], stop), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        with contextlib.suppress(OSError, ValueError):
            # A forked child leaves this block as well, but the lock belongs to its parent.
            if read_json(path).get("nonce") == mine["nonce"] and os.getpid() == mine["pid"]:
                path.unlink()


def remove_dead(path: Path, guard: Path) -> None:
    """Remove the lock and temporary files that a killed process left."""
    if not path.exists() and not any(path.parent.glob(f".{path.name}.*.tmp")):
        return
    with FileLock(guard):
        if holder(path) is None:
            for left in (path, *path.parent.glob(f".{path.name}.*.tmp")):
                left.unlink(missing_ok=True)


def _listen(path: Path) -> None:
    """Watch a lock that looks stale for 30 seconds and raise `Held` if it gets a heartbeat.

    It may only look stale because a clock was changed, or because the clocks of two hosts differ.
    """
    with contextlib.suppress(OSError, ValueError):
        owner, beat, me = _owner(path), path.stat().st_mtime_ns, _identity()
        if holder(path) is not None or _alive(owner, me) is not None or _ended(owner, me):
            return
        for _ in range(10):
            time.sleep(HEARTBEAT_SECONDS / 5)
            if path.stat().st_mtime_ns != beat:
                raise Held(path, owner)


def _beat(path: Path, nonce: str, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError, ValueError):
            if (owner := read_json(path)).get("nonce") != nonce:
                _give_way(path, owner)
            os.utime(path)


def _give_way(path: Path, owner: dict[str, Any]) -> None:
    """Exit at once, because another process took over the lock while this one was suspended.

    Nothing may be saved any more, since both processes write the same files.
    """
    log.error("%s was taken over by %s; this process is stopping", path, Held(path, owner))
    os._exit(1)


def _identity() -> dict[str, Any]:
    environment = os.environ
    job = environment.get("SLURM_ARRAY_JOB_ID") or environment.get("SLURM_JOB_ID")
    task = environment.get("SLURM_ARRAY_TASK_ID") or environment.get("SLURM_PROCID")
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "space": _space(),
        "pid": pid,
        "ticks": _ticks(pid),
        "started": psutil.Process(pid).create_time(),  # for versions that do not use ticks
        "job": job,
        "task": task if job else None,
        "restarts": environment.get("SLURM_RESTART_COUNT", "0") if job else None,
    }


def _differ(owner: dict[str, Any], me: dict[str, Any], *keys: str) -> bool:
    """Return whether two processes differ in a key; keys that older locks lack count as equal."""
    return any(owner.get(key, me[key]) != me[key] for key in keys)


def _space() -> str | None:
    """Return the namespaces in which a process id and its ticks are valid, or None if unknown.

    Containers share the boot id of their machine, and may share a host name.
    """
    found = []
    for kind in ("pid", "time"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/ns/{kind}"))
    return " ".join(found) or None


@functools.cache
def _boot() -> str:
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    return boot_id.read_text().strip() if boot_id.exists() else str(int(psutil.boot_time()))


def _alive(owner: dict[str, Any], me: dict[str, Any]) -> bool | None:
    """Return whether the lock's owner is running, or None if only its heartbeat can tell."""
    if _differ(owner, me, "host", "boot", "space"):
        return None
    pid = owner["pid"]
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if owner.get("ticks") is not None:
            return bool(_ticks(pid) == owner["ticks"])
        # A different start time means another process or a changed wall clock.
        return True if abs(process.create_time() - owner["started"]) < 1.0 else None
    except psutil.NoSuchProcess:
        return None if _hidden(pid) else False
    except psutil.AccessDenied:
        return None


def _ticks(pid: int) -> int | None:
    """Return a process's start in ticks since boot, which no change of the clock affects."""
    try:
        # The start is the 20th field after the name in brackets, which may contain brackets itself.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19])


def _hidden(pid: int) -> bool:
    """Return whether a process of another user exists that /proc does not show."""
    with contextlib.suppress(ProcessLookupError):
        try:
            os.kill(pid, 0)
        except PermissionError:
            return True
    return False


def _ended(owner: dict[str, Any], me: dict[str, Any]) -> bool:
    """Return whether the owner's SLURM job has ended, or was requeued and now runs here."""
    if not owner.get("job"):
        return False
    if not _differ(owner, me, "job", "task"):  # requeued, or a process beside this one
        return _differ(owner, me, "host", "boot", "restarts")
    return _job_ended(owner["job"])


def _job_ended(job: str) -> bool:
    """Return whether SLURM says that a job is no longer running; False if it does not answer."""
    if shutil.which("squeue") is None:
        return False
    command = ["squeue", "--noheader", "--format=%T", f"--jobs={job}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return False
    if "Invalid job id" in answer.stderr:
        return True
    there = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING"}
    return answer.returncode == 0 and not there & set(answer.stdout.split())
