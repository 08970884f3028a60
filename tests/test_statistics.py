"""Intervals and paired tests against hand computations and scipy."""

import itertools

import numpy as np
import pytest
from scipy import stats

from spurcor.reports.statistics import Summary, holm, sign_flip_p


def test_mean_deviation_and_interval_by_hand():
    found = Summary.of([80.0, 84.0, 88.0])
    # deviation sqrt((16 + 0 + 16) / 2) = 4; t(0.975, 2) = 4.302653; 4.302653 * 4 / sqrt(3) = 9.9365
    assert (found.mean, found.std, found.count) == (84.0, pytest.approx(4.0), 3)
    assert found.low == pytest.approx(84 - 9.93655, abs=1e-4)
    assert found.high == pytest.approx(84 + 9.93655, abs=1e-4)
    assert Summary.of([]) is None
    assert Summary.of([7.0]) == Summary(7.0, None, None, None, 1)


@pytest.mark.parametrize("count", [2, 5, 12])
def test_the_interval_is_scipys(count):
    values = np.random.default_rng(count).normal(70, 5, count)
    found = Summary.of(values.tolist())
    low, high = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_sign_flips_by_hand():
    # Of the 8 sign patterns of (1, 2, 3) only +++ and --- have a sum as far from 0 as 6.
    assert sign_flip_p([1.0, 2.0, 3.0]) == 2 / 8
    # (1, 2, -3) sums to 0: every pattern is as far.
    assert sign_flip_p([1.0, 2.0, -3.0]) == 1.0
    # (3, -1): |2| or more for all four patterns: 2, 4, -4, -2.
    assert sign_flip_p([3.0, -1.0]) == 1.0
    # (4, 3, -1): sum 6; patterns with |sum| >= 6: 8, 6 and their negatives.
    assert sign_flip_p([4.0, 3.0, -1.0]) == 4 / 8


def test_sign_flips_are_those_of_all_patterns_counted_one_by_one():
    values = np.random.default_rng(1).normal(0.5, 1, 9)
    sums = [abs(np.dot(signs, values)) for signs in itertools.product([-1, 1], repeat=9)]
    expected = np.mean(np.array(sums) >= abs(values.sum()) - 1e-9)
    assert sign_flip_p(values.tolist()) == pytest.approx(expected, abs=1e-12)


def test_sign_flips_are_scipys_permutation_test():
    values = np.random.default_rng(2).normal(1, 1, 8)
    found = stats.permutation_test(
        (values,), lambda x, axis: x.mean(axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=np.inf,
    )  # fmt: skip
    assert sign_flip_p(values.tolist()) == pytest.approx(found.pvalue)


def test_many_pairs_are_drawn_at_random_the_same_each_time():
    values = np.random.default_rng(3).normal(0.3, 1, 30).tolist()
    p = sign_flip_p(values)
    assert p == sign_flip_p(values)
    assert p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.02)


def test_holm_by_hand():
    # sorted 0.01, 0.03, 0.04: 3 * 0.01, max(0.03, 2 * 0.03), max(0.06, 1 * 0.04)
    corrected = holm({"a": 0.04, "b": 0.01, "c": 0.03})
    assert corrected == {"a": pytest.approx(0.06), "b": pytest.approx(0.03), "c": 0.06}
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}
