"""Errors that end a command, each with a one-sentence message."""

import errno
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MISPLACED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
)


class UserError(ValueError):
    """A user error; the message names the key, the value and the fix (exit code 2)."""


class Damaged(UserError):  # noqa: N818 - it describes the file
    """A damaged file on disk; the message names it and says how to recover."""

    def __init__(self, path: Path, reason: str, fix: str | None = None) -> None:
        super().__init__(f"{path} {reason}; {fix or _remedy(path)}")
        self.path, self.reason = path, reason


class RunError(RuntimeError):
    """A failure of a run or sweep that had started properly (exit code 1)."""


class PointError(Exception):
    """A sweep point that Hydra cannot compose; `__cause__` holds the reason (exit code 2)."""

    def __init__(self, overrides: list[str]) -> None:
        super().__init__(" ".join(overrides))
        self.overrides = overrides


def on_one_line(text: str) -> str:
    """Return `text` for use in a message, escaped if it contains unprintable characters."""
    return text if text.isprintable() else repr(text)[1:-1]


def _remedy(path: Path) -> str:
    """Return how to recover from a damaged file."""
    for folder in path.parents:
        if folder.parent.name in ("dfr", "analysis"):
            return f"remove {folder} and repeat that repair or analysis"
    return "pass rerun=true to set the run aside and start over"


def of_system(error: OSError) -> UserError | RunError:
    """Return a one-sentence error: UserError if the path is at fault, else RunError."""
    place = error.filename2 or error.filename
    said = error.strerror or str(error) or type(error).__name__
    told = f"{place}: {said}" if place else said
    if error.errno in FULL:
        return RunError(f"{told}; free some space and run the same command again to continue")
    if error.errno in MISPLACED:
        return UserError(f"{told}; check the path and its permissions, or use another path")
    return RunError(f"{told}; fix this and run the same command again to continue")
