"""Train, repair and dissect image classifiers that learn shortcuts."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spurcor.library import FinishedRun, fit, open_run

__all__ = ["FinishedRun", "fit", "open_run"]

# Fresh memory for every batch costs more page faults than work; torch asks for huge pages if told
# to, which the kernel grants where it can. On a CPU this alone makes the input path twice as fast.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def __getattr__(name: str) -> Any:
    """What a notebook needs is imported when it is asked for: torch alone takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from spurcor import library

    return getattr(library, name)
