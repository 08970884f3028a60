"""liblinear in several threads at once, every fit with the same bits as if it were alone.

liblinear permutes the features by one random generator per loaded library, seeded at the start of a
fit: two fits that run at once draw from each other's, and on collinear features, where its stopping
rule leaves weights undecided, another order moves a coefficient by as much as its size. A thread
therefore gets a copy of the library, loaded from a file of its own, and with it a generator of its
own. Threads are worth it because a fit holds no interpreter lock.
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
MOST = 16  # threads: each holds a subset, and liblinear two more copies of it

_estimators: list[Any] = []
_busy = threading.Lock()  # of two callers one waits: the generators are this process's


def run(tasks: Sequence[Callable[[Any], T]]) -> list[T]:
    """Results of the tasks in their order, each called with a LogisticRegression to fit.

    As many threads as torch has; with one, or where the library cannot be loaded twice, the tasks
    run one after the other and give the same numbers.
    """
    from joblib import Parallel, delayed
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with _busy, warnings.catch_warnings():
        # The paper's code stops liblinear at 100 iterations too, and averages what it has.
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
    """`count` classes, each with a library of its own; fewer than 2 where that is not possible."""
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
    """scikit-learn's LogisticRegression on top of a liblinear that nothing else uses."""
    import sklearn.svm._liblinear as shared

    assert shared.__file__ is not None
    with tempfile.TemporaryDirectory() as folder:  # once loaded, the file may go
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
    """A second copy of a module that other importers do not see."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} is not there")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _replace(module: ModuleType, name: str, value: Any) -> None:
    """Set what the module has under the name; another scikit-learn may call it otherwise."""
    getattr(module, name)
    setattr(module, name, value)
