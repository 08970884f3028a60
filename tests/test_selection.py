"""Which row a run is judged by."""

import math

import pytest

from spurcor.selection import default_criterion, is_best, is_exhausted, score


def rows(values, criterion="val/worst", phase="erm"):
    return [{"phase": phase, criterion: value} for value in values]


def best_index(values, criterion="val/worst"):
    """The last row that was the best when it was written."""
    table = rows(values, criterion)
    return [i for i in range(len(table)) if is_best(table[: i + 1], criterion)][-1]


@pytest.mark.parametrize("criterion", ["test/worst", "train/loss", "opposite/worst", "worst", ""])
def test_only_validation_metrics_select(criterion):
    with pytest.raises(ValueError, match="validation"):
        score({criterion: 1.0}, criterion)


def test_larger_is_better_but_for_losses():
    row = {"val/worst": 0.25, "val/loss": 2.0}
    assert score(row, "val/worst") == 0.25
    assert score(row, "val/loss") == -2.0


@pytest.mark.parametrize("row", [{}, {"val/worst": None}, {"val/worst": math.nan}])
def test_undefined_has_no_score(row):
    assert score(row, "val/worst") is None


def test_zero_is_defined():
    assert score({"val/worst": 0.0}, "val/worst") == 0.0


def test_the_best_row_is_the_first_of_the_highest():
    assert best_index([0.1, 0.5, 0.4, 0.5]) == 1
    assert best_index([0.5, 0.1]) == 0
    assert best_index([0.1, 0.2, 0.3]) == 2
    assert best_index([3.0, 1.0, 2.0, 1.0], "val/loss") == 1


def test_undefined_rows_lose_against_defined_ones():
    assert best_index([None, 0.1, None, 0.05]) == 1
    assert best_index([None, None, None]) == 2
    assert best_index([0.0, None, math.nan]) == 0


def test_only_rows_of_the_same_phase_compete():
    table = [*rows([0.9], phase="erm"), *rows([0.2], phase="retrain")]
    assert is_best(table, "val/worst")
    assert not is_best([*table, *rows([0.1], phase="retrain")], "val/worst")


@pytest.mark.parametrize(
    ("values", "patience", "expected"),
    [
        ([0.5], 1, False),
        ([0.5, 0.4], 1, True),
        ([0.5, 0.6], 1, False),
        ([0.5, 0.5], 1, True),
        ([0.5, 0.4, 0.6, 0.5], 2, False),
        ([0.5, 0.4, 0.6, 0.5, 0.6], 2, True),
        ([0.5, 0.4, 0.3], 3, False),
        ([0.5, None, math.nan], 2, True),
        ([None, None, 0.5], 2, False),
    ],
)
def test_patience(values, patience, expected):
    assert is_exhausted(rows(values), "val/worst", patience) is expected


def test_patience_waits_for_lower_losses():
    assert not is_exhausted(rows([3.0, 2.0, 1.0], "val/loss"), "val/loss", 2)
    assert is_exhausted(rows([1.0, 2.0, 3.0], "val/loss"), "val/loss", 2)


def test_patience_begins_anew_with_a_phase():
    table = [*rows([0.9, 0.8, 0.7], phase="erm"), *rows([0.2], phase="retrain")]
    assert not is_exhausted(table, "val/worst", 1)
    assert is_exhausted([*table, *rows([0.1], phase="retrain")], "val/worst", 1)


def test_the_average_stands_in_where_there_are_no_groups():
    assert default_criterion({"val/worst": None, "val/average": 0.5}, "val/worst") == "val/average"
    assert default_criterion({"val/worst": 0.0, "val/average": 0.5}, "val/worst") == "val/worst"
    assert default_criterion({"val/average": 0.5}, "val/balanced") == "val/balanced"
    assert default_criterion({}, "val/worst") == "val/worst"
