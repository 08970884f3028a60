"""Downloads from the first of several mirrors that has the file."""

import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

from filelock import FileLock

from spurcor.errors import UserError

TIMEOUT = 30.0  # seconds without receiving a byte


def download(addresses: Sequence[str], target: Path, otherwise: str) -> None:
    """Download `target` atomically from the first of `addresses` that has it.

    If none has it, a `UserError` is raised with the message `otherwise` and the reason for each
    address. The caller verifies the contents.
    """
    from torch.hub import download_url_to_file

    reasons = []
    lock = target.with_name(f".{target.name}.lock")
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):  # one process downloads while the others wait
        if target.exists():
            return
        for address in addresses:
            try:
                with _patience():
                    download_url_to_file(address, str(target), progress=sys.stderr.isatty())
            except (OSError, HTTPException, ValueError) as error:
                reasons.append(f"{address}: {_reason(error)}")
            else:
                return
    lock.unlink(missing_ok=True)
    if not any(target.parent.iterdir()):
        target.parent.rmdir()
    raise UserError(f"{otherwise} ({'; '.join(reasons)})")


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"{error.code} {error.reason}"
    return str(getattr(error, "reason", None) or error or type(error).__name__)


@contextmanager
def _patience() -> Iterator[None]:
    """Set a socket timeout, so that a firewall that drops packets cannot hang a job forever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
