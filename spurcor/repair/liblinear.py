"""liblinear in several threads at once, with results bit-identical to running each fit alone.

liblinear permutes the features by one random generator per loaded library, seeded at the start of a
fit. Two concurrent fits would draw from the same generator, and on collinear features, where the
stopping rule leaves weights undetermined, a different order can change a coefficient by as much as
its size. Each thread therefore loads its own copy of the library, with its own generator. Threads
are faster because a fit releases the interpreter lock.
"""

import importlib.util
import logging
import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import ExtensionFileLoader
from queue import SimpleQueue
from types import ModuleType
from typing import Any, TypeVar

import torch

log = logging.getLogger(__name__)
T = TypeVar("T")
MOST = 16  # threads; each holds a subset, and liblinear two more copies of it

_estimators: list[Any] = []
_busy = threading.Lock()  # callers take turns: the process has one set of generators


def run(tasks: Sequence[Callable[[Any], T]]) -> list[T]:
    """Call each task with a LogisticRegression class; return the results in order.

    Uses as many threads as torch does. With one thread, or where the library cannot be loaded
    twice, the tasks run one after another and give the same numbers.
    """
    from joblib import Parallel, delayed
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with _busy, warnings.catch_warnings():
        # The paper's code, too, stops liblinear at 100 iterations and averages unconverged fits.
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimators = _load(min(torch.get_num_threads(), len(tasks), MOST))
        if len(estimators) < 2:
            return [task(LogisticRegression) for task in tasks]
        free: SimpleQueue[Any] = SimpleQueue()
        for estimator in estimators:
            free.put(estimator)

        def lend(task: Callable[[Any], T]) -> T:
            estimator = free.get()
            try:
                return task(estimator)
            finally:
                free.put(estimator)

        done: list[T] = Parallel(len(estimators), backend="threading")(
            delayed(lend)(task) for task in tasks
        )
        return done


def _load(count: int) -> list[Any]:
    """Return `count` classes, each with its own library; fewer than 2 if that is not possible."""
    if count < 2:
        return []
    try:
        while len(_estimators) < count:
            _estimators.append(own_estimator())
    except (ImportError, OSError, AttributeError) as error:
        log.warning(
            "liblinear cannot be loaded once per thread (%s): the fits run one after another,"
            " which is slower but gives the same results",
            error,
        )
        return []
    return _estimators[:count]


def own_estimator() -> Any:
    """Return a LogisticRegression class backed by its own private copy of liblinear."""
    import sklearn.svm._liblinear as shared

    assert shared.__file__ is not None
    with tempfile.TemporaryDirectory() as folder:  # the file is not needed once loaded
        path = shutil.copy(shared.__file__, folder)
        loader = ExtensionFileLoader(shared.__name__, path)
        spec = importlib.util.spec_from_file_location(shared.__name__, path, loader=loader)
        assert spec is not None
        library = importlib.util.module_from_spec(spec)
        loader.exec_module(library)
    base = _again("sklearn.svm._base")
    _replace(base, "liblinear", library)
    logistic = _again("sklearn.linear_model._logistic")
    _replace(logistic, "_fit_liblinear", base._fit_liblinear)
    return logistic.LogisticRegression


def _again(name: str) -> ModuleType:
    """Import a second, private copy of a module."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} is not there")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _replace(module: ModuleType, name: str, value: Any) -> None:
    """Set an existing attribute; raise AttributeError if this scikit-learn lacks the name."""
    getattr(module, name)
    setattr(module, name, value)
