"""What each criterion chooses, and that none but the oracle sees test data."""

import random

import pytest
from test_report import trial

from spurcor.presentation.tables import LAST, ORACLE
from spurcor.reports.selection import STANDARD, judge
from spurcor.reports.tables import Metric
from spurcor.reports.trials import with_settings
from spurcor.training.selection import Best

HONEST = [*(key for key in STANDARD if key != ORACLE), "val/conflicting", "val/loss"]


class Blindfolded(dict):
    """A row that does not let itself be read where a test set stands."""

    def get(self, key, default=None):
        assert not key.startswith(("test/", "opposite/")), f"{key} was read"
        return super().get(key, default)

    __getitem__ = get


def rows(*figures, **fixed):
    """A row per epoch; figures are validation accuracies, or (validation, test)."""
    pairs = [one if isinstance(one, tuple) else (one, 0.5) for one in figures]
    return [
        {"phase": "erm", "epoch": epoch, "val/worst": val, "test/worst": test, **fixed}
        for epoch, (val, test) in enumerate(pairs, 1)
    ]


def chosen(trials, criterion):
    return [one for one in judge(with_settings(trials), criterion) if one.chosen]


@pytest.mark.parametrize("criterion", HONEST)
@pytest.mark.parametrize("defined", [True, False])
@pytest.mark.parametrize("repair", [True, False])
def test_no_criterion_but_the_oracle_reads_test_data(criterion, defined, repair):
    keys = ["val/worst", "val/average", "val/worst_class", "val/conflicting", "val/loss"]
    figures = dict.fromkeys(keys, 0.5 if defined else None)
    both = {"test/worst": 0.9, "opposite/worst": 0.9}
    trials = [
        trial(
            rows=[
                Blindfolded({"phase": "erm", "epoch": epoch, **figures, **both})
                for epoch in ([None] if repair else [1, 2, 3])
            ],
            identity=f"r{setting}",
            seed=seed,
            lr=setting,
            repair="val-1" if repair else None,
        )
        for setting in (1, 2)
        for seed in (0, 1)
    ]
    assert len(chosen(trials, criterion)) == (1 if defined else 2)
    with pytest.raises(AssertionError, match="test/worst was read"):
        judge(trials, ORACLE)


@pytest.mark.parametrize("criterion", ["test/worst", "opposite/worst", "train/loss"])
def test_a_criterion_that_names_another_split_is_refused(criterion):
    with pytest.raises(ValueError, match="selects on validation data"):
        judge([trial(rows=rows(0.5))], criterion)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("averages", [(None,), (0.5, 0.6, 0.7)])
def test_the_epoch_is_the_one_that_training_keeps(seed, averages):
    draw = random.Random(seed)
    figures = [draw.choice([None, 0.1, 0.2, 0.3, 0.3]) for _ in range(8)]
    made = [row | {"val/average": draw.choice(averages)} for row in rows(*figures)]
    best = Best()
    kept = [row for row in made if best.add(row["val/worst"], row["val/average"])]
    (one,) = chosen([trial(rows=made)], "val/worst")
    if any(figure is not None for figure in figures):
        assert one.picks[0].row is kept[-1]
    elif averages == (None,):
        assert one.picks[0].row is made[-1]


def test_test_figures_are_read_off_at_the_epoch_that_validation_chose():
    made = [trial(rows=rows((0.2, 0.9), (0.6, 0.3), (0.6, 0.8), (0.4, 0.7)))]
    metric = Metric("worst", "test/worst")
    found = {criterion: chosen(made, criterion)[0] for criterion in ("val/worst", LAST, ORACLE)}
    assert {name: metric.of(one).mean for name, one in found.items()} == pytest.approx(
        {"val/worst": 30.0, LAST: 70.0, ORACLE: 90.0}
    )


def test_the_average_decides_between_settings_whose_worst_groups_are_equal():
    low = trial("r1", 0, [row | {"val/average": 0.5} for row in rows(0.0)], lr=1)
    high = trial("r2", 0, [row | {"val/average": 0.6} for row in rows(0.0)], lr=2)
    assert [one.trial.setting for one in chosen([low, high], "val/worst")] == ["lr=2"]


def test_the_setting_is_chosen_by_its_mean_over_seeds_at_the_chosen_epochs():
    steady = [trial("r1", seed, rows(0.1, (0.6, 0.1)), lr=1) for seed in (0, 1)]
    lucky = [trial("r2", 0, rows((0.9, 0.9)), lr=2), trial("r2", 1, rows((0.2, 0.9)), lr=2)]
    assert [one.trial.setting for one in chosen(steady + lucky, "val/worst")] == ["lr=1"]
    assert [one.trial.setting for one in chosen(steady + lucky, ORACLE)] == ["lr=2"]


def test_the_last_epoch_chooses_the_setting_by_validation_there():
    early = trial("r1", 0, rows(0.9, 0.2), lr=1)
    late = trial("r2", 0, rows(0.1, 0.3), lr=2)
    assert [one.trial.setting for one in chosen([early, late], "val/worst")] == ["lr=1"]
    assert [one.trial.setting for one in chosen([early, late], LAST)] == ["lr=2"]


def test_without_attributes_the_average_chooses():
    made = [trial("r1", 0, rows(None, None, None))]
    for row, average in zip(made[0].rows, (0.1, 0.4, 0.2), strict=True):
        row["val/average"] = average
    (one,) = chosen(made, "val/worst")
    assert (one.column, one.picks[0].row["epoch"]) == ("val/average", 2)
    assert chosen(made, LAST)[0].column == "val/average"


def test_smaller_losses_are_better():
    made = rows(0.1, 0.1, 0.1)
    for row, loss in zip(made, (0.7, 0.3, 0.5), strict=True):
        row["val/loss"] = loss
    assert chosen([trial(rows=made)], "val/loss")[0].picks[0].row["epoch"] == 2


def test_a_repair_without_validation_figures_is_chosen_by_nothing():
    def repair(name, val, test):
        row = {"phase": None, "epoch": None, "val/worst": val, "test/worst": test}
        return trial(f"r1/{name}", 0, [row], repair=name, **{"dfr.layer": name})

    blind = [repair("a", None, 0.3), repair("b", None, 0.8)]
    for criterion in HONEST:
        found = chosen(blind, criterion)
        assert [one.trial.setting for one in found] == ["layer=a", "layer=b"]
        assert all(one.undecided and one.column is None for one in found)
    assert [one.trial.setting for one in chosen(blind, ORACLE)] == ["layer=b"]
    (alone,) = chosen(blind[:1], "val/worst")
    assert not alone.undecided
    # One that validation did see is chosen, and does not hide the others.
    both = chosen([*blind, repair("c", 0.1, 0.1)], "val/worst")
    assert [(one.trial.setting, one.undecided) for one in both] == [
        ("layer=a", True), ("layer=b", True), ("layer=c", False),
    ]  # fmt: skip


def test_settings_are_compared_with_the_seeds_they_have():
    full = [trial("r1", seed, rows(0.5), lr=1) for seed in range(3)]
    partial = [trial("r2", 0, rows(0.6), lr=2)]
    found = judge(with_settings(full + partial), "val/worst", planned={"r1": 5})
    assert [(len(one.picks), one.expected, one.chosen) for one in found] == [
        (3, 5, False), (1, 5, True),
    ]  # fmt: skip


def test_numbers_that_are_none_do_not_count():
    made = rows(0.3, "0.9", True, float("nan"), float("inf"))
    assert chosen([trial(rows=made)], "val/worst")[0].picks[0].row["epoch"] == 1
