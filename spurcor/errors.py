"""The ways in which a command ends without a result."""

import errno
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MISPLACED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
)


class UserError(ValueError):
    """A mistake of the user's, told in one sentence that names key, value and fix (exit code 2)."""


class Damaged(UserError):  # noqa: N818 - as a file is said to be
    """A file on disk that does not hold what was written there; names it and what to do."""

    def __init__(self, path: Path, reason: str, fix: str | None = None) -> None:
        super().__init__(f"{path} {reason}; {fix or _remedy(path)}")
        self.path, self.reason = path, reason


class RunError(RuntimeError):
    """A run or a sweep that was started properly and failed (exit code 1)."""


class PointError(Exception):
    """A point of a sweep that Hydra cannot compose; its cause says why (exit code 2)."""

    def __init__(self, overrides: list[str]) -> None:
        super().__init__(" ".join(overrides))
        self.overrides = overrides


def _remedy(path: Path) -> str:
    """How to get back what a damaged file held."""
    for folder in path.parents:
        if folder.parent.name in ("dfr", "analysis"):
            return f"remove {folder} and ask for it again"
    return "rerun=true sets the run aside and starts over"


def of_system(error: OSError) -> UserError | RunError:
    """What the system said when a file could not be read or written, in a sentence."""
    place = error.filename2 or error.filename
    said = error.strerror or str(error) or type(error).__name__
    told = f"{place}: {said}" if place else said
    if error.errno in FULL:
        return RunError(f"{told}; make room there, and the same command goes on")
    if error.errno in MISPLACED:
        return UserError(f"{told}; allow reading and writing there, or name another place")
    return RunError(f"{told}; put that right, and the same command goes on")
