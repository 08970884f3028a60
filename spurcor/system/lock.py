"""One process at a time in a run directory, also after crashes, requeues and across hosts."""

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
OWNED = {"host", "boot", "pid", "started", "nonce"}  # what every lock says of its owner
HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 300.0


class Held(Exception):  # noqa: N818 - not an error: somebody else does the work
    """Another live process has the lock."""

    def __init__(self, path: Path, owner: dict[str, Any]) -> None:
        job = f", SLURM job {owner['job']}" if owner.get("job") else ""
        super().__init__(f"process {owner['pid']} on {owner['host']}{job}")
        self.path, self.owner = path, owner


def lock_of(directory: Path) -> Path:
    """The lock file is next to the run's folder, so it can be taken before that exists."""
    return directory.with_name(directory.name + ".lock")


def holder(path: Path) -> dict[str, Any] | None:
    """The live owner of a lock, or None; a requeued SLURM task is not held by its former self."""
    try:
        owner = _owner(path)
        age = time.time() - path.stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return None  # not written by spurcor: locks appear atomically
    me = _identity()
    if (alive := _alive(owner, me)) is not None:
        return owner if alive else None
    # A heart that is ahead of the clock has stopped, too: one of the clocks was set anew.
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
    """Hold the lock at `path`; raises `Held` if another live process has it.

    Looking and taking happen under `guard`, so of two takers of a stale lock one wins.
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
            # A fork of the process leaves this block as well, and the lock stays its parent's.
            if read_json(path).get("nonce") == mine["nonce"] and os.getpid() == mine["pid"]:
                path.unlink()


def remove_dead(path: Path, guard: Path) -> None:
    """Remove what a killed process has left of a lock, or of its writing."""
    if not path.exists() and not any(path.parent.glob(f".{path.name}.*.tmp")):
        return
    with FileLock(guard):
        if holder(path) is None:
            for left in (path, *path.parent.glob(f".{path.name}.*.tmp")):
                left.unlink(missing_ok=True)


def _listen(path: Path) -> None:
    """Raise `Held` if a heart beats that seems to have stopped.

    It only seems so by the clock, which may have been set anew, or differ from the one of its host.
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
    """End at once: this process was suspended for so long that another took it for dead.

    Nothing may be saved any more, since both write the same files.
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
        "started": psutil.Process(pid).create_time(),  # for versions that know no ticks
        "job": job,
        "task": task if job else None,
        "restarts": environment.get("SLURM_RESTART_COUNT", "0") if job else None,
    }


def _differ(owner: dict[str, Any], me: dict[str, Any], *keys: str) -> bool:
    """Whether two processes differ in one of the keys; earlier versions have not all of them."""
    return any(owner.get(key, me[key]) != me[key] for key in keys)


def _space() -> str | None:
    """The namespaces in which the number of a process and its ticks mean something.

    Containers share the boot of their machine, and may share a host name.
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
    """Whether the process that took a lock runs; None: from here only its heart can tell."""
    if _differ(owner, me, "host", "boot", "space"):
        return None
    pid = owner["pid"]
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if owner.get("ticks") is not None:
            return bool(_ticks(pid) == owner["ticks"])
        # The wall clock may have been set anew: another time may be another process, or not.
        return True if abs(process.create_time() - owner["started"]) < 1.0 else None
    except psutil.NoSuchProcess:
        return None if _hidden(pid) else False
    except psutil.AccessDenied:
        return None


def _ticks(pid: int) -> int | None:
    """When a process began, in ticks since boot: unlike a time, no setting of a clock moves it."""
    try:
        # The name, in brackets, may hold brackets and spaces; of what follows it is the 20th field.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19])


def _hidden(pid: int) -> bool:
    """Whether a process is there that /proc does not show, since it is another user's."""
    with contextlib.suppress(ProcessLookupError):
        try:
            os.kill(pid, 0)
        except PermissionError:
            return True
    return False


def _ended(owner: dict[str, Any], me: dict[str, Any]) -> bool:
    """Whether SLURM tells that a process is gone: its job ended, or was requeued and runs here."""
    if not owner.get("job"):
        return False
    if not _differ(owner, me, "job", "task"):  # another may be of the same job, beside this one
        return _differ(owner, me, "host", "boot", "restarts")
    return _job_ended(owner["job"])


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
    there = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING"}
    return answer.returncode == 0 and not there & set(answer.stdout.split())
