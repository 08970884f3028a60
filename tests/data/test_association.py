"""Cramér's V of columns that may be shortcuts, against values computed by hand."""

import math

import numpy as np
import pytest

from spurcor.data.association import association, cramers_v, strongest

EVEN = [[25, 25], [25, 25]]
# Expected counts are all 25: chi^2 = 4 * 15^2 / 25 = 36, V = sqrt(36 / 100).
SIXTENTHS = [[40, 10], [10, 40]]
# Row sums 30, 30, 30; column sums 45, 45; expected 15: chi^2 = (225 + 225 + 0 + 0 + 225 + 225) / 15
# = 60, V = sqrt(60 / 90 / min(2, 1)).
THREE_BY_TWO = [[30, 0], [15, 15], [0, 30]]


@pytest.mark.parametrize(
    ("counts", "v"),
    [
        (EVEN, 0.0),
        (SIXTENTHS, 0.6),
        (THREE_BY_TWO, math.sqrt(2 / 3)),
        ([[7, 0], [0, 9]], 1.0),
        ([[40, 10, 0], [10, 40, 0], [0, 0, 0]], 0.6),  # empty rows and columns do not count
    ],
)
def test_v_is_what_one_computes_by_hand(counts, v):
    assert cramers_v(np.array(counts)) == pytest.approx(v)
    assert association(np.array(counts)).v == pytest.approx(v)


def test_v_of_a_single_class_is_undefined():
    found = association(np.array([[3, 4], [0, 0]]))
    assert all(math.isnan(value) for value in (found.v, found.low, found.high))
    assert not found.suspicious


def test_the_interval_covers_v_and_is_drawn_by_its_seed():
    counts = np.array(SIXTENTHS)
    found = association(counts)
    assert found == association(counts)
    assert found != association(counts, seed=1)
    # The standard error of phi = 0.6 in a table with equal margins is sqrt((1 - 0.36) / 100).
    assert found.low == pytest.approx(0.6 - 1.96 * 0.08, abs=0.03)
    assert found.high == pytest.approx(0.6 + 1.96 * 0.08, abs=0.03)
    wide, narrow = association(counts), association(counts * 100)
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


def test_what_is_independent_is_no_shortcut_however_many_values_it_has():
    rng = np.random.default_rng(0)
    for _ in range(20):
        counts = rng.multinomial(100, np.full(40, 1 / 40)).reshape(2, 20)
        found = association(counts)
        assert found.low < 0.3
        assert not found.suspicious
    assert association(np.array(THREE_BY_TWO)).suspicious
    assert association(np.array([[50, 0], [0, 50]])).low == 1


def test_the_pair_that_goes_together_most():
    assert strongest(np.array([[90, 10], [50, 50]])) in ((0, 0), (1, 1))
    # Nine in ten of a small class have the value; the largest cell says nothing.
    assert strongest(np.array([[500, 500, 10], [50, 50, 90]])) == (1, 2)
    assert strongest(np.array([[5, 0], [0, 0]])) == (0, 0)
