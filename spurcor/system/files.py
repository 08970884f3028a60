"""Atomic writes, and one-sentence errors for files that are damaged."""

import contextlib
import errno
import fcntl
import functools
import glob
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import psutil

from spurcor.errors import Damaged, RunError, UserError, of_system

JsonObject = dict[str, Any]
CHUNK = 1 << 16
CLUTTER = ("thumbs.db", "desktop.ini", "__macosx", "icon\r")


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Add the path to an OSError, because a failed write to a full disk does not name its file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = error.filename or str(path)
        raise


def is_clutter(name: str) -> bool:
    """Return whether a file or folder is hidden or of the kind that desktop systems create."""
    return name.startswith(".") or name.lower() in CLUTTER


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces `path` once it is on disk.

    Temporary files that killed processes on this machine left for the same target are removed.
    """
    prefix = f".{path.name}.{_machine()}-"
    for left in path.parent.glob(f"{glob.escape(prefix)}*.tmp"):
        if not psutil.pid_exists(int(left.name[len(prefix) : -len(".tmp")])):
            left.unlink(missing_ok=True)
    beside = path.with_name(f"{prefix}{os.getpid()}.tmp")
    try:
        with _named(path):
            yield beside
            with beside.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(beside, path)
    finally:
        with contextlib.suppress(OSError):  # the folder may be gone, or no longer writable
            beside.unlink(missing_ok=True)


@functools.cache
def _machine() -> str:
    """Return an identifier of this boot and container, within which process ids are valid."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        return hashlib.sha256(f"{boot}{os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:8]
    except OSError:
        return uuid.uuid4().hex[:8]  # unique to this process, so nothing counts as a leftover


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of killed `replacing` calls; the caller holds the folder's lock."""
    for path in folder.rglob(".*.tmp"):
        path.unlink()


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path`, unless another process has created `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    around = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    beside = around / path.name  # `around` itself is readable by this user only
    try:
        beside.mkdir()
        yield beside
        try:
            os.rename(beside, path)
        except OSError:
            if not path.exists():
                raise
    finally:
        shutil.rmtree(around, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; raise ValueError for NaN, which other readers cannot parse."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


@contextlib.contextmanager
def decoding(path: Path, fix: str | None = None) -> Iterator[None]:
    """Raise `Damaged` if the file is missing or a decoder fails on it in the block.

    Other errors of the operating system, such as a missing permission, are raised unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Damaged(Path(error.filename or path), "is missing", fix) from error
    except IsADirectoryError as error:
        raise Damaged(path, "is a folder, not a file", fix) from error
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # EINVAL: a seek to an invalid offset
            raise
        raise Damaged(path, f"is damaged ({reason(error)})", fix) from error
    except Exception as error:  # decoders may raise anything
        raise Damaged(path, f"is damaged ({reason(error)})", fix) from error


def reason(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def read_json(path: Path, shape: Any = JsonObject, fix: str | None = None) -> dict[str, Any]:
    """Read a JSON object and raise `Damaged` unless it has the types in `shape`."""
    with decoding(path, fix):
        return checked(path, json.loads(path.read_text(encoding="utf-8")), shape, fix)


def checked(path: Path, value: Any, shape: Any, fix: str | None = None) -> dict[str, Any]:
    """Return a value read from a file if it has the types in `shape`, else raise `Damaged`."""
    from pydantic import ValidationError

    if not isinstance(value, dict):
        raise Damaged(path, "does not contain a JSON object", fix)
    try:
        _validator(shape).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Damaged(path, f"is damaged ({place}: {first['msg']})", fix) from error
    return value


@functools.cache
def _validator(shape: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


def read_lines(path: Path, shape: Any = JsonObject, fix: str | None = None) -> list[dict[str, Any]]:
    """Read a JSON-lines file, empty if missing; an incomplete last line is ignored."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except (IsADirectoryError, NotADirectoryError) as error:
        raise Damaged(path, "is a folder, not a file", fix) from error
    if not _whole(lines[-1]):
        lines.pop()
    return [_line(path, number, line, shape, fix) for number, line in enumerate(lines, 1) if line]


def _line(path: Path, number: int, line: bytes, shape: Any, fix: str | None) -> dict[str, Any]:
    try:
        return checked(path, json.loads(line), shape, fix)
    except Damaged as error:
        raise Damaged(path, f"{error.reason}, line {number}", fix) from error
    except ValueError as error:
        raise Damaged(path, f"cannot be read at line {number} ({error})", fix) from error


def _whole(line: bytes) -> bool:
    """Return whether a last line lacks only its line break, for example after manual editing."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one line to a JSON-lines file; see `append_lines`."""
    append_lines(path, [value])


def append_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Append lines to a JSON-lines file, unbuffered and one process at a time.

    An incomplete line left by a killed process is removed first, or it would merge with the next.
    """
    text = "".join(json.dumps(value, allow_nan=False) + "\n" for value in values)
    with _named(path), path.open("a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _end_last_line(file)
        left = memoryview(text.encode())
        while left:
            left = left[file.write(left) :]


def _end_last_line(file: FileIO) -> None:
    size = file.seek(0, os.SEEK_END)
    end = b""
    while size > len(end) and b"\n" not in end:  # backwards, as rows may be megabytes long
        start = max(0, size - len(end) - CHUNK)
        file.seek(start)
        end = file.read(size - len(end) - start) + end
    last = end.rpartition(b"\n")[2]
    if _whole(last):
        file.write(b"\n")
    elif last:
        os.truncate(file.fileno(), size - len(last))


def sync(path: Path) -> None:
    """Flush appended lines to the disk."""
    if path.exists():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def keep_lines(path: Path, count: int) -> None:
    """Truncate a JSON-lines file to its first `count` lines."""
    if not path.exists():
        return
    size = 0
    with path.open("rb") as file:
        for _ in range(count):
            line = file.readline()
            size += len(line) if line.endswith(b"\n") else 0
    os.truncate(path, size)


def tail(path: Path, size: int = 1 << 16) -> str:
    """Return the last lines (`size` bytes) of a text file; undecodable bytes are replaced."""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        begin = max(0, file.tell() - size)
        file.seek(begin)
        text = file.read().decode(errors="replace")
    return text.partition("\n")[2] if begin else text


def cannot_write(outputs: Path, error: OSError) -> UserError | RunError:
    """Return the error for an outputs folder that is not writable or is on a full disk."""
    told = of_system(error)
    if isinstance(told, RunError):
        return told
    return UserError(f"paths.outputs={outputs} is not writable ({told})")
