"""Means, intervals and tests: by hand, and against scipy.stats."""

import numpy as np
import pytest
from scipy import stats

from spurcor.presentation.statistics import Summary, holm, sign_flip_p


def test_a_summary_by_hand():
    summary = Summary.of([1.0, 2.0, 3.0, 4.0])
    assert summary.mean == 2.5
    assert summary.std == pytest.approx((5 / 3) ** 0.5)
    half = 3.182446305284263 * (5 / 3) ** 0.5 / 2  # t(0.975, 3) from a table
    assert (summary.low, summary.high) == pytest.approx((2.5 - half, 2.5 + half))
    assert str(summary) == "2.5 ± 1.3"
    assert summary.interval == "[0.4, 4.6]"


def test_a_summary_is_scipys():
    values = list(np.random.default_rng(1).normal(70, 5, size=7))
    summary = Summary.of(values)
    interval = stats.t.interval(0.95, 6, loc=np.mean(values), scale=stats.sem(values))
    assert (summary.low, summary.high) == pytest.approx(interval)
    assert summary.std == pytest.approx(np.std(values, ddof=1))


def test_one_value_has_no_deviation_and_none_no_summary():
    assert str(Summary.of([42.0])) == "42.0"
    assert Summary.of([42.0]).interval == "-"
    assert Summary.of([]) is None


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 3], 2 / 8),  # +++ and --- alone reach 6
        ([1, 1, -1], 1.0),  # every pattern reaches 1
        ([3, 2, -1], 4 / 8),  # 4 is reached by +++, ++- and their mirrors
        ([0, 0, 0, 0], 1.0),
        ([5.0], 1.0),
        ([1] * 5, 2 / 32),
    ],
)
def test_sign_flips_by_hand(differences, p):
    assert sign_flip_p(differences) == p


def test_sums_that_differ_by_rounding_are_ties():
    whole = [1, 2, -3, 6, 7, -2, 4]
    assert sign_flip_p([value / 30 for value in whole]) == sign_flip_p(whole)


@pytest.mark.parametrize("count", [2, 5, 12])
def test_sign_flips_are_scipys(count):
    values = np.random.default_rng(count).normal(0.5, 1, size=count)
    expected = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=False
    )
    assert sign_flip_p(values) == pytest.approx(expected.pvalue)


def test_beyond_sixteen_pairs_patterns_are_drawn_always_the_same():
    values = np.random.default_rng(3).normal(0.4, 1, size=18)
    p = sign_flip_p(values)
    assert p == sign_flip_p(values)
    every = 1 - 2 * (np.arange(2**18)[:, None] >> np.arange(18) & 1)
    exact = np.mean(abs(every @ values) >= abs(values.sum()) - 1e-9)
    assert p != exact
    assert p == pytest.approx(exact, abs=0.005)
    assert sign_flip_p([1.0] * 40) == 1 / 65536  # the pattern observed counts, so never 0


def test_holm_by_hand():
    # sorted 0.01, 0.03, 0.04: times 3, 2, 1, and never below an earlier one
    corrected = holm({"a": 0.04, "b": 0.01, "c": 0.03})
    assert corrected == pytest.approx({"b": 0.03, "c": 0.06, "a": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}
