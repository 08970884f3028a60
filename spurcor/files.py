"""Files that are there whole or not at all."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes the place of `path` once it is on disk."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes killed inside `replacing` left; the caller holds the folder's lock."""
    for path in folder.rglob(".*.tmp"):
        path.unlink()


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a folder; if another process was first, theirs stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    around = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    beside = around / path.name  # not `around` itself, which nobody else may read
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
    """Write a text file as a whole."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file as a whole; NaN is refused, since other readers choke on it."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file; a last line that was cut off in the writing is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1] if line]


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Add a line to a JSON-lines file; it is on its way to the disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value, allow_nan=False) + "\n")


def sync(path: Path) -> None:
    """Put what was appended on the disk."""
    if path.exists():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def keep_lines(path: Path, count: int) -> None:
    """Cut a JSON-lines file back to its first `count` lines."""
    if not path.exists():
        return
    size = 0
    with path.open("rb") as file:
        for _ in range(count):
            line = file.readline()
            size += len(line) if line.endswith(b"\n") else 0
    os.truncate(path, size)


def tail(path: Path, size: int = 1 << 16) -> str:
    """The end of a text file, whole lines; what is no text is replaced."""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        begin = max(0, file.tell() - size)
        file.seek(begin)
        text = file.read().decode(errors="replace")
    return text.partition("\n")[2] if begin else text
