"""Versions of the code and its libraries."""

import functools
import importlib.metadata
import platform
import subprocess

from spurcor.system.places import REPO

VERSIONS = ("spurcor", "torch", "torchvision", "timm", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that can affect results."""
    found = {name: importlib.metadata.version(name) for name in VERSIONS}
    return {"python": platform.python_version(), **found}


@functools.cache
def commit() -> str:
    """Return the commit of the running code, with a + if files have changed since, or "unknown"."""
    copied = REPO / "commit"  # written next to a sweep's copy of the code
    if copied.exists():
        return copied.read_text().strip()
    git = ["git", "-C", str(REPO)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        watched = ["spurcor", "conf", "sweeps"]
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", *watched],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")
