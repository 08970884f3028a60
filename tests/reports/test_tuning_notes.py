"""What a report says of how settings were tried: their order, edges, and unequal budgets."""

import itertools
from statistics import fmean
from types import SimpleNamespace

import pytest

from spurcor.presentation.statistics import Summary
from spurcor.reports.budgets import best_of_n, budgets, expected_best
from spurcor.reports.selection import judge
from spurcor.reports.tables import Metric, interval_of, methods, settings
from spurcor.reports.trials import Trial

WORST = (Metric("worst", "test/worst"),)


def trial(method: str, rate: float, val: float | None, seed: int = 0) -> Trial:
    run = SimpleNamespace(identity=f"{method}{rate}", images=1, seconds=1.0, seed=seed)
    row = {"epoch": 1, "val/worst": val, "val/average": val, "test/worst": 1 - (val or 0)}
    config = {"method": method, "optimizer.lr": rate, "train.compile": False}
    return Trial(run, "digits", method, f"{method}{rate}", config, [row], setting=f"lr={rate}")


def judged(*trials: Trial):
    found: dict[tuple[str, str], list[Trial]] = {}
    for one in trials:
        found.setdefault((one.dataset, one.method), []).append(one)
    return {group: judge(of, "val/worst") for group, of in found.items()}


def test_settings_are_in_the_order_of_their_validation_score():
    found = judged(trial("erm", 0.1, 0.5), trial("erm", 0.2, 0.9), trial("erm", 0.3, 0.7))
    shown = settings(found, WORST).records
    assert [record["setting"] for record in shown] == ["lr=0.2", "lr=0.3", "lr=0.1"]
    assert [record["chosen"] for record in shown] == ["yes", "", ""]


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({0.1: 0.5, 0.2: 0.9, 0.3: 0.7}, None),
        ({0.1: 0.5, 0.2: 0.6, 0.3: 0.7}, "the largest of 3 values of optimizer.lr, 0.3"),
        ({0.1: 0.9, 0.2: 0.6, 0.3: 0.7}, "the smallest of 3 values of optimizer.lr, 0.1"),
        ({0.1: 0.9, 0.2: 0.6}, None),  # one of two is always at an end
        ({0.1: 0.9}, None),
    ],
)
def test_the_best_at_the_edge_of_what_was_tried_is_told(values, note):
    table = methods(judged(*(trial("erm", rate, val) for rate, val in values.items())), WORST)
    said = [one for one in table.notes if one.startswith("digits, erm: the best setting has")]
    assert said == ([] if note is None else [f"digits, erm: the best setting has {note}."])


def test_unequal_numbers_of_settings_are_told():
    equal = (trial("erm", 0.1, 0.5), trial("erm", 0.2, 0.9), trial("iw", 0.1, 0.5))
    notes = methods(judged(*equal), WORST).notes
    assert any("unequal numbers of settings (erm 2, iw 1)" in note for note in notes)
    notes = methods(judged(*equal, trial("iw", 0.2, 0.4)), WORST).notes
    assert not any("unequal" in note for note in notes)


def test_two_seeds_have_no_interval():
    assert interval_of(Summary.of([50.0, 51.0])) is None
    assert interval_of(Summary.of([50.0, 51.0, 52.0])).summary.low == pytest.approx(
        48.516, abs=1e-3
    )
    found = judged(trial("erm", 0.1, 0.5, 0), trial("erm", 0.1, 0.6, 1))
    table = methods(found, WORST)
    assert table.records[0]["95 % interval of worst"] is None
    assert "No interval from two seeds: it would span everything." in table.notes


# --- equal budgets --------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", range(1, 7))
def test_the_best_of_n_is_the_mean_over_all_draws(draws):
    """TEST is read at the best on VAL, whatever its own order is."""
    test = [0.3, 0.9, 0.1, 0.7, 0.2, 0.5]  # in the order of VAL
    chosen = [test[min(drawn)] for drawn in itertools.combinations(range(6), draws)]
    assert expected_best(test, draws) == pytest.approx(fmean(chosen), abs=1e-12)


def test_methods_are_compared_at_the_budget_of_the_smallest():
    erm = [trial("erm", rate, rate) for rate in (0.1, 0.2, 0.3)]  # TEST is one minus VAL
    iw = [trial("iw", rate, rate) for rate in (0.4, 0.5)]
    table = budgets(judged(*erm, *iw), WORST[0])
    first, second = table.records
    assert (first["method"], first["settings"], first["compared at"]) == ("erm", 3, 2)
    assert first["worst of one"] == pytest.approx(80)
    assert first["worst at equal budget"] == pytest.approx((70 * 2 + 80) / 3)
    assert first["worst of all"] == pytest.approx(70)
    assert second["worst at equal budget"] == second["worst of all"] == pytest.approx(50)
    (panel,) = best_of_n(judged(*erm, *iw), WORST[0]).panels
    assert [list(series.x) for series in panel.series] == [[1, 2, 3], [1, 2]]
    assert panel.series[0].y == pytest.approx([80, 220 / 3, 70])


def test_equal_budgets_need_no_table():
    erm = [trial("erm", rate, rate) for rate in (0.1, 0.2)]
    iw = [trial("iw", rate, rate) for rate in (0.4, 0.5)]
    assert not budgets(judged(*erm, *iw), WORST[0]).records
    assert not budgets(judged(*erm), WORST[0]).records
    assert not best_of_n(judged(erm[0], iw[0]), WORST[0]).panels


def test_settings_without_a_score_on_val_are_in_no_budget():
    erm = [trial("erm", rate, rate) for rate in (0.1, 0.2, 0.3)]
    lost = trial("iw", 0.5, None)
    table = budgets(judged(*erm, lost, trial("iw", 0.4, 0.4)), WORST[0])
    assert [record["settings"] for record in table.records] == [3, 1]
