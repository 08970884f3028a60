"""Which row a run is judged by."""

import math
import random

import pytest
import torch
from training import read

from spurcor.data.splits import Splits
from spurcor.runs.refusals import warn_of_few
from spurcor.training.selection import Best, best_epoch, default_criterion, score


def after(values, criterion="val/worst"):
    """The best of a phase after these values, and which of them it was."""
    best, index = Best(), None
    for i, value in enumerate(values):
        if best.add(score({criterion: value}, criterion)):
            index = i
    return best, index


def best_index(values, criterion="val/worst"):
    return after(values, criterion)[1]


def exhausted(values, patience, criterion="val/worst"):
    return after(values, criterion)[0].exhausted(patience)


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


def val(worst, average):
    return {"val/worst": worst, "val/average": average}


@pytest.mark.parametrize(
    ("figures", "epoch"),
    [
        ([(0.0, 0.5), (0.0, 0.7), (0.0, 0.6)], 1),  # the worst group says nothing
        ([(0.0, 0.9), (0.1, 0.2), (0.1, 0.4), (0.1, 0.4)], 2),
        ([(0.2, 0.1), (0.1, 0.9)], 0),
        ([(None, 0.1), (None, 0.3), (None, 0.2)], 1),  # without groups the average itself
        ([(0.3, None), (0.3, None)], 0),
    ],
)
def test_the_average_decides_between_equal_worst_groups(figures, epoch):
    made = [{"epoch": i, **val(*pair)} for i, pair in enumerate(figures)]
    assert best_epoch(made, "val/worst") == epoch


def test_a_row_that_was_not_evaluated_is_not_chosen():
    made = [{"epoch": 0, "gap/loss": 1.0}, {"epoch": 1, **val(0.1, 0.1)}, {"epoch": 2}]
    assert best_epoch(made, "val/worst") == 1
    assert best_epoch(made[:1], "val/worst") is None


def test_undefined_rows_lose_against_defined_ones():
    assert best_index([None, 0.1, None, 0.05]) == 1
    assert best_index([None, None, None]) == 2
    assert best_index([0.0, None, math.nan]) == 0


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
    assert exhausted(values, patience) is expected


def test_patience_waits_for_lower_losses():
    assert not exhausted([3.0, 2.0, 1.0], 2, "val/loss")
    assert exhausted([1.0, 2.0, 3.0], 2, "val/loss")


@pytest.mark.parametrize("seed", range(20))
def test_what_is_kept_of_the_rows_is_what_reading_all_of_them_says(seed):
    draw = random.Random(seed)
    values = [draw.choice([None, math.nan, 0.0, 0.1, 0.2, 0.3]) for _ in range(30)]
    for end in range(1, len(values) + 1):
        scores = [score({"val/worst": value}, "val/worst") for value in values[:end]]
        known = [one for one in scores if one is not None]
        first = scores.index(max(known)) if known else end - 1
        assert best_index(values[:end]) == first
        for patience in (1, 2, 5):
            waited = end - 1 - first if known else end - 1
            assert exhausted(values[:end], patience) == (waited >= patience)


def test_the_average_stands_in_where_there_are_no_groups():
    assert default_criterion({"val/worst": None, "val/average": 0.5}, "val/worst") == "val/average"
    assert default_criterion({"val/worst": 0.0, "val/average": 0.5}, "val/worst") == "val/worst"
    assert default_criterion({"val/average": 0.5}, "val/balanced") == "val/balanced"
    assert default_criterion({}, "val/worst") == "val/worst"


def told_by(caplog):
    """What spurcor says; Hydra says what it composes where another test has made it talk."""
    return [one.getMessage() for one in caplog.records if one.name.startswith("spurcor")]


@pytest.mark.parametrize(
    ("selection", "told"),
    [("val/worst", True), ("val/group/small/red", True), ("val/average", False)],
)
def test_groups_that_are_too_small_to_select_by_are_told_with_their_counts(selection, told, caplog):
    cfg = read("dataset.num_val=12", f"train.selection={selection}")
    splits = Splits.load(cfg.dataset.build(), cfg.paths.data, torch.device("cpu"))
    warn_of_few(cfg.train, splits)
    count = int(splits["val"].group_counts[0])
    assert 0 < count < 10
    assert [f"{count} of small/red" in message for message in told_by(caplog)] == [True] * told


def test_groups_of_ten_are_not_told(caplog):
    cfg = read()
    warn_of_few(cfg.train, Splits.load(cfg.dataset.build(), cfg.paths.data, torch.device("cpu")))
    assert told_by(caplog) == []
