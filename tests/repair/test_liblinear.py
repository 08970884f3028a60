"""Fits in threads against the same fits one after the other."""

import threading
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from spurcor.repair import liblinear


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def collinear(seed):
    """Features whose weights liblinear's stopping rule leaves undecided: the order of its draws
    shows.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(120, 8)) @ rng.normal(size=(8, 300))
    return x, x[:, 0] + 3 * rng.normal(size=120) > 0


def fit(estimator, seed, tol=1e-4):
    x, y = collinear(seed)
    return estimator(l1_ratio=1.0, solver="liblinear", random_state=0, tol=tol).fit(x, y).coef_


def tasks(count):
    return [lambda estimator, i=i: fit(estimator, i) for i in range(count)]


def test_other_draws_give_other_weights():
    x, y = collinear(0)
    one, other = (
        LogisticRegression(l1_ratio=1.0, solver="liblinear", random_state=i).fit(x, y).coef_
        for i in range(2)
    )
    assert abs(one - other).max() > 1e-3  # without this the next test would show nothing


@pytest.mark.parametrize("count", [2, 4])
def test_threads_give_the_bits_of_one(threads, count):
    expected = [fit(LogisticRegression, i) for i in range(24)]
    threads(count)
    for _ in range(3):
        found = liblinear.run(tasks(24))
        assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_every_thread_has_a_library_of_its_own(threads):
    threads(3)
    together = threading.Barrier(3)

    def task(estimator):
        together.wait(10)  # all three run at once
        return estimator

    estimators = set(liblinear.run([task] * 3))
    assert len(estimators) == 3
    assert LogisticRegression not in estimators


def test_a_library_of_its_own_leaves_the_shared_one_alone():
    import sklearn.linear_model._logistic as logistic
    import sklearn.svm._base as base
    import sklearn.svm._liblinear as shared

    before = (logistic._fit_liblinear, base.liblinear, base._fit_liblinear)
    own = liblinear.own_estimator()
    assert (logistic._fit_liblinear, base.liblinear, base._fit_liblinear) == before
    assert base.liblinear is shared
    assert own is not LogisticRegression
    assert np.array_equal(fit(own, 0), fit(LogisticRegression, 0))


@pytest.mark.parametrize("error", [ImportError("mapped noexec"), AttributeError("renamed")])
def test_where_it_cannot_be_loaded_fits_are_serial_and_the_same(
    threads, monkeypatch, caplog, error
):
    def refuse():
        raise error

    threads(2)
    monkeypatch.setattr(liblinear, "_estimators", [])
    monkeypatch.setattr(liblinear, "own_estimator", refuse)
    found = liblinear.run(tasks(3))
    assert all(np.array_equal(one, fit(LogisticRegression, i)) for i, one in enumerate(found))
    assert f"({error})" in caplog.text
    assert "one after another" in caplog.text


def test_a_name_that_another_scikit_learn_lacks_is_noticed(monkeypatch):
    import sklearn.linear_model._logistic as logistic

    with pytest.raises(AttributeError):
        liblinear._replace(logistic, "no_such_name", None)
    assert not hasattr(logistic, "no_such_name")


@pytest.mark.parametrize("count", [1, 2])
def test_what_fails_in_a_thread_is_raised_and_nothing_stays_taken(threads, count):
    def fail(estimator):
        raise RuntimeError("no fit")

    threads(count)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="no fit"):
            liblinear.run([fail, fail])
    assert len(liblinear.run(tasks(2))) == 2


@pytest.mark.parametrize("count", [1, 2])
def test_stopping_early_is_no_warning(threads, count):
    def task(estimator):
        x, y = collinear(0)
        return estimator(l1_ratio=1.0, solver="liblinear", max_iter=1).fit(x, y)

    threads(count)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        liblinear.run([task, task])
    with pytest.warns(ConvergenceWarning):
        task(LogisticRegression)  # the filter is gone again
