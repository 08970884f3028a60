"""File names as written in tables, matched to the files on disk."""

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from spurcor.errors import UserError

ODD = re.compile(r"^/|\\|//|\./")  # with these characters, one file can have several names


def located(root: Path, names: Sequence[str]) -> list[str]:
    """Return the names under `root`, with slashes for backslashes where only that names a file.

    The `names` must be distinct; a `UserError` is raised if two of them refer to the same file.
    """
    if not any(ODD.search(name) for name in names):  # the usual case, kept fast for long tables
        return list(names)
    found = [_slashed(root, name) if "\\" in name else name for name in names]
    places: dict[str, str] = {}
    for written, name in zip(names, found, strict=True):
        place = os.path.normpath(os.path.join(root, name))
        if (other := places.setdefault(place, written)) != written:
            raise UserError(
                f"{root}: {other} and {written} are the same file, listed twice; keep one"
            )
    return found


def _slashed(root: Path, name: str) -> str:
    """Return the name with slashes for backslashes if only that exists as a file."""
    slashed = name.replace("\\", "/")
    # Unlike os.path.exists, Path.exists raises if a name is too long for a file.
    there, other = (os.path.exists(root / one) for one in (name, slashed))
    return slashed if other and not there else name


def nearest(root: Path, name: str) -> str | None:
    """Return the existing file that a name without a file probably refers to, or None.

    It may differ in case, extension, whitespace or the encoding of accents, or lack leading
    folders.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    for first in range(1, len(parts)):
        end = "/".join(parts[first:])
        if os.path.isfile(root / end):
            return end
    place = root
    for part in parts:
        if (entry := _alike(place, part, part is parts[-1])) is None:
            return None
        place = place / entry
    return os.path.relpath(place, root) if os.path.isfile(place) and parts else None


def _alike(folder: Path, part: str, last: bool) -> str | None:
    """Return the entry of `folder` that equals a path component or nearly so, or None."""
    if part == "/" or (os.path.exists(folder / part) and not last):
        return part
    try:
        entries = sorted(os.listdir(folder))
    except OSError:
        return None
    by_name = {_plain(entry): entry for entry in entries}
    if last:
        by_stem = {_plain(os.path.splitext(entry)[0]): entry for entry in entries}
        stem = _plain(os.path.splitext(part)[0])
        return by_name.get(_plain(part)) or by_stem.get(stem) or by_stem.get(_plain(part))
    return by_name.get(_plain(part))


def _plain(name: str) -> str:
    return "".join(unicodedata.normalize("NFC", name).casefold().split())
