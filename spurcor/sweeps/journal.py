"""The journal file that keeps the study of a search in the folder of its sweep."""

from pathlib import Path
from typing import Literal

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

Direction = Literal["maximize", "minimize"]
JOURNAL = "study.log"
LOCK = ".study.lock"  # under which the study is read and written


def open_study(folder: Path, direction: Direction | None = None) -> optuna.Study:
    """Return the study in a folder; with a direction, it is begun if there is none.

    The caller holds the lock.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = folder / JOURNAL
    _tidy(path)
    storage = JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))
    if direction is None or folder.name in optuna.get_all_study_names(storage):
        return optuna.load_study(study_name=folder.name, storage=storage)
    return optuna.create_study(study_name=folder.name, storage=storage, direction=direction)


def _tidy(path: Path) -> None:
    """Remove what a kill or a full disk has left: Optuna's lock, a last line without its end."""
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    if path.exists() and not (text := path.read_bytes()).endswith(b"\n") and text:
        with path.open("r+b") as file:
            file.truncate(text.rfind(b"\n") + 1)
