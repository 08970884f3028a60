"""Train, repair and dissect image classifiers that learn shortcuts."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spurcor.library import FinishedRun, fit, open_run

__all__ = ["FinishedRun", "fit", "open_run"]

# Allocating fresh memory for every batch costs more time in page faults than in actual work. With
# this variable torch requests huge pages, which alone doubles the speed of data loading on a CPU.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def __getattr__(name: str) -> Any:
    """Import the notebook API on first access, because importing torch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from spurcor import library

    return getattr(library, name)
