"""DFR against a straightforward computation with scikit-learn."""

import itertools

import numpy as np
import pytest
import torch
import yaml
from sklearn.linear_model import LogisticRegression

from spurcor.config import CONF, Node
from spurcor.data import GroupSpec
from spurcor.dfr import Dfr, Linear, Table
from spurcor.errors import RunError, UserError

SPEC = GroupSpec(("a", "b"), ("x", "y"), aligned=(0, 1))
THREE = GroupSpec(("a", "b", "c"), ("x", "y"), aligned=(0, 1, 0))
NAMES = sorted(p.stem for p in (CONF / "dfr").glob("*.yaml") if p.stem != "none")


def make(counts, seed=0, num_features=6, noise=1.0, spec=SPEC):
    """Column 0 tells the class, column 1 the attribute, twice as loudly; all at odd scales."""
    rng = np.random.default_rng(seed)
    g = rng.permutation(np.repeat(np.arange(spec.num_groups), counts))
    y, a = np.divmod(g, len(spec.attributes))
    x = rng.normal(size=(len(g), num_features))
    x[:, 0] = noise * x[:, 0] + 2 * y
    x[:, 1] = 0.5 * noise * x[:, 1] + 4 * a
    return Table(x * np.linspace(0.5, 3, num_features) + 5, y, g)


def make_tables():
    return {
        "train": make([95, 5, 5, 95], seed=1),
        "target": make([12, 14, 16, 18], seed=2),
        "val": make([20, 15, 10, 25], seed=3),
        "test": make([400] * 4, seed=4),
    }


def from_conf(name, **changes):
    tree = yaml.safe_load((CONF / "dfr" / f"{name}.yaml").read_text())
    return Node("dfr", tree.pop("_target_"), {**tree, **changes}).build()


def plain_fit(x, target, c, l1=True):
    return LogisticRegression(
        C=c, l1_ratio=float(l1), solver="liblinear", max_iter=100, random_state=0
    ).fit(x, target)


def group_accuracies(linear, table, num_groups=4):
    hit = linear.logits(table.x).argmax(1) == table.y
    return [hit[table.g == g].mean() for g in range(num_groups) if (table.g == g).any()]


@pytest.fixture
def fits(monkeypatch):
    """Every (x, target, model) that is fitted, in their order: by one thread."""
    seen, fit, threads = [], LogisticRegression.fit, torch.get_num_threads()
    torch.set_num_threads(1)

    def spy(self, x, y, *args, **options):
        fit(self, x, y, *args, **options)
        seen.append((np.array(x), np.array(y), self))
        return self

    monkeypatch.setattr(LogisticRegression, "fit", spy)
    yield seen
    torch.set_num_threads(threads)


def rows_in(x, table):
    """Positions in a table of the rows of x, which must be rows of it."""
    where = {row.tobytes(): i for i, row in enumerate(table.x)}
    return [where[row.tobytes()] for row in np.ascontiguousarray(x)]


# --- balance --------------------------------------------------------------------------------------


def test_subsets_have_as_many_of_every_group_as_the_smallest_has(fits):
    tables = make_tables()
    Dfr("target", scaler="none", c_grid=(1.0,), num_retrains=5).fit(tables, SPEC, seed=0)
    target = tables["target"]
    subsets = [rows_in(x, target) for x, _, _ in fits[1:]]
    assert len(subsets) == 5
    for subset in subsets:
        assert np.bincount(target.g[subset]).tolist() == [12] * 4
        assert len(set(subset)) == 48
    assert len({frozenset(subset) for subset in subsets}) == 5
    assert set().union(*subsets) == set(range(60))


def test_tuning_fits_a_balanced_subset_of_one_half(fits):
    tables = make_tables()
    Dfr("val", scaler="none", c_grid=(1.0, 0.1), num_retrains=1).fit(tables, SPEC, seed=0)
    tuned = [rows_in(x, tables["val"]) for x, _, _ in fits[:2]]
    assert tuned[0] == tuned[1]
    counts = np.bincount(tables["val"].g[tuned[0]], minlength=4)
    assert len(set(counts)) == 1
    assert 4 <= len(tuned[0]) <= 35


def test_groups_that_do_not_occur_do_not_count(fits):
    tables = {"val": make([20, 0, 0, 15], seed=5)}
    dfr = Dfr("val", scaler="none", c_grid=(1.0,), num_retrains=2, criterion="average")
    dfr.fit(tables, SPEC, seed=0)
    for x, _, _ in fits[1:]:
        counts = np.bincount(tables["val"].g[rows_in(x, tables["val"])], minlength=4)
        assert counts.tolist() == [15, 0, 0, 15]


def test_without_balance_all_data_are_fitted(fits):
    tables = make_tables()
    dfr = Dfr("target", balance="none", scaler="none", c_grid=(1.0,), num_retrains=2)
    dfr.fit(tables, SPEC, seed=0)
    assert [len(x) for x, _, _ in fits] == [30, 60, 60]


# --- what is fitted -------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", ["l1", "l2"])
@pytest.mark.parametrize("scaler", ["train", "reweighting", "none"])
def test_folding_standardisation_into_the_weights(scaler, penalty):
    tables = make_tables()
    dfr = Dfr("val", balance="none", scaler=scaler, penalty=penalty, c_grid=(0.1,), num_retrains=2)
    fit = dfr.fit(tables, SPEC, seed=0)
    data = tables["val"]
    reference = {"train": tables["train"].x, "reweighting": data.x}.get(scaler)
    mean, std = (0, 1) if reference is None else (reference.mean(0), reference.std(0))
    model = plain_fit((data.x - mean) / std, data.y, 0.1, penalty == "l1")
    f = model.decision_function((tables["test"].x - mean) / std)
    logits = fit.linear.logits(tables["test"].x)
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], f, atol=1e-8)
    np.testing.assert_allclose(logits.sum(1), 0, atol=1e-8)
    assert (logits.argmax(1) == model.predict((tables["test"].x - mean) / std)).all()


def test_scalers_and_penalties_differ():
    tables = make_tables()
    weights = [
        Dfr("val", scaler=scaler, penalty=penalty, c_grid=(0.1,), num_retrains=2)
        .fit(tables, SPEC, seed=0)
        .linear.weight
        for scaler in ("train", "reweighting", "none")
        for penalty in ("l1", "l2")
    ]
    for one, other in itertools.combinations(weights, 2):
        assert not np.allclose(one, other, rtol=1e-3)


def test_coefficients_are_averaged_over_the_fits(fits):
    tables = make_tables()
    fit = Dfr("val", c_grid=(0.3,), num_retrains=4).fit(tables, SPEC, seed=0)
    mean, std = tables["train"].x.mean(0), tables["train"].x.std(0)
    models = [model for _, _, model in fits[1:]]
    assert len(models) == 4
    coefficient = np.mean([model.coef_[0] for model in models], axis=0)
    intercept = np.mean([model.intercept_[0] for model in models])
    f = (tables["test"].x - mean) / std @ coefficient + intercept
    logits = fit.linear.logits(tables["test"].x)
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], f, atol=1e-8)
    assert np.std([model.coef_[0] for model in models], axis=0).max() > 1e-3


def test_tuning_is_scaled_by_what_it_fits_and_the_final_fit_by_train(fits):
    tables = make_tables()
    Dfr("val", c_grid=(0.3,), num_retrains=2).fit(tables, SPEC, seed=0)
    tuned, *final = [x for x, _, _ in fits]
    np.testing.assert_allclose(tuned.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(tuned.std(0), 1, atol=1e-9)
    train, val = tables["train"].x, tables["val"].x
    allowed = {row.tobytes() for row in np.round((val - train.mean(0)) / train.std(0), 9) + 0.0}
    for x in final:
        assert {row.tobytes() for row in np.round(x, 9) + 0.0} <= allowed


def test_constant_features_do_no_harm():
    tables = {name: Table(t.x.copy(), t.y, t.g) for name, t in make_tables().items()}
    for table in tables.values():
        table.x[:, 5] = 7.0
    fit = Dfr("val", c_grid=(0.3,), num_retrains=2).fit(tables, SPEC, seed=0)
    assert np.isfinite(fit.linear.weight).all()
    assert min(group_accuracies(fit.linear, tables["test"])) > 0.7


def test_three_classes_are_one_against_the_rest():
    tables = {
        "val": make([9, 8, 7, 6, 5, 9], seed=6, spec=THREE),
        "test": make([20] * 6, seed=7, spec=THREE),
    }
    dfr = Dfr("val", balance="none", scaler="none", c_grid=(0.7,), num_retrains=2)
    fit = dfr.fit(tables, THREE, seed=0)
    data, test = tables["val"], tables["test"]
    expected = [plain_fit(data.x, data.y == k, 0.7).decision_function(test.x) for k in range(3)]
    np.testing.assert_allclose(fit.linear.logits(test.x).T, expected, atol=1e-8)
    assert fit.linear.weight.shape == (3, 6)


def test_logits():
    linear = Linear(np.array([[1.0, 2], [3, 4], [5, 6]]), np.array([0.5, 0, -1]))
    assert linear.logits(np.array([[1.0, 10]])).tolist() == [[21.5, 43, 64]]


# --- the choice of C ------------------------------------------------------------------------------

GRID = (3.0, 0.5, 0.1, 0.05, 0.03, 0.02, 0.01)


def scores_by_hand(table, predicted):
    hit = predicted == table.y
    return {
        "worst": min(hit[table.g == g].mean() for g in np.unique(table.g)),
        "average": hit.mean(),
        "conflicting": hit[np.isin(table.g, [1, 2])].mean(),
    }


def chosen_by_hand(candidates, judged, criterion):
    """The first C of the highest score."""
    scores = [
        scores_by_hand(judged, (judged.x @ model.coef_[0] + model.intercept_[0] > 0) * 1)[criterion]
        for model in candidates
    ]
    return GRID[scores.index(max(scores))]


@pytest.fixture(scope="module")
def hard():
    """Noisy data on which the criteria disagree about C."""
    return {
        "train": make([60, 10, 10, 60], seed=11, num_features=10, noise=3.0),
        "val": make([60, 20, 30, 90], seed=12, num_features=10, noise=3.0),
    }


@pytest.mark.parametrize("criterion", ["worst", "average", "conflicting"])
@pytest.mark.parametrize("seed", range(3))
def test_c_has_the_best_score_on_the_half_that_does_not_fit(hard, fits, criterion, seed):
    dfr = Dfr("val", criterion=criterion, balance="none", scaler="none", c_grid=GRID)
    fit = dfr.fit({"val": hard["val"]}, SPEC, seed)
    fitted = rows_in(fits[0][0], hard["val"])
    assert len(set(fitted)) == 100
    judged = hard["val"].take(np.setdiff1d(np.arange(200), fitted))
    candidates = [model for _, _, model in fits[: len(GRID)]]
    assert [model.C for model in candidates] == list(GRID)
    assert fit.c == chosen_by_hand(candidates, judged, criterion)
    assert {model.C for _, _, model in fits[len(GRID) :]} == {fit.c}


@pytest.mark.parametrize("criterion", ["worst", "average", "conflicting"])
def test_train_is_tuned_on_val(hard, fits, criterion):
    dfr = Dfr("train", "val", criterion, scaler="none", c_grid=GRID, num_retrains=2)
    fit = dfr.fit(hard, SPEC, seed=0)
    candidates = [model for _, _, model in fits[: len(GRID)]]
    assert fit.c == chosen_by_hand(candidates, hard["val"], criterion)
    for x, _, _ in fits:
        counts = np.bincount(hard["train"].g[rows_in(x, hard["train"])], minlength=4)
        assert counts.tolist() == [10] * 4


def test_criteria_disagree_on_these_data(hard):
    chosen = {
        criterion: [
            Dfr("train", "val", criterion, c_grid=GRID, num_retrains=1).fit(hard, SPEC, seed).c
            for seed in range(4)
        ]
        for criterion in ("worst", "average", "conflicting")
    }
    assert len(set(map(tuple, chosen.values()))) == 3, chosen


def test_an_undefined_criterion_is_refused():
    spec = GroupSpec(("a", "b"), ("x", "y"))
    with pytest.raises(UserError, match="criterion=conflicting"):
        Dfr("val", criterion="conflicting", c_grid=(1.0,)).fit(make_tables(), spec, seed=0)


# --- configurations -------------------------------------------------------------------------------


def test_conf_train_is_the_published_one(fits):
    tables = make_tables()
    dfr = from_conf("train")
    assert dfr.reads == ["train", "val"]
    dfr.fit(tables, SPEC, seed=0)
    assert len(fits) == 7 + 10
    assert {len(x) for x, _, _ in fits} == {4 * 5}


def test_conf_val_is_the_published_one(fits):
    dfr = from_conf("val")
    assert sorted(dfr.reads) == ["train", "val"]
    dfr.fit(make_tables(), SPEC, seed=0)
    assert [model.C for _, _, model in fits[:7]] == [1, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01]
    assert len(fits) == 7 + 20
    assert all(model.l1_ratio == 1 and model.solver == "liblinear" for _, _, model in fits)


def test_conf_scale_is_the_published_one(fits):
    tables = make_tables()
    dfr = from_conf("scale")
    assert sorted(dfr.reads) == ["target", "val"]
    fit = dfr.fit(tables, SPEC, seed=0)
    assert [model.C for _, _, model in fits[:9]] == [0.01, 0.05, 0.1, 0.5, 1, 1.5, 2, 2.5, 3]
    assert len(fits) == 9 + 1  # ten fits of the same data are one
    assert all(np.array_equal(x, tables["target"].x) for x, _, _ in fits)
    model = plain_fit(tables["target"].x, tables["target"].y, fit.c)
    np.testing.assert_allclose(2 * fit.linear.weight[1], model.coef_[0], atol=1e-8)


@pytest.mark.parametrize(
    ("split", "tune", "scaler", "add_train"),
    [
        choice
        for choice in itertools.product(
            ("val", "target", "train", "split_from_train"),
            ("half", "val"),
            ("train", "reweighting", "none"),
            (False, True),
        )
        if choice[:2] != ("val", "val") and not (choice[3] and "train" in choice[0])
    ],
)
def test_a_fit_needs_the_splits_that_it_says_it_reads(split, tune, scaler, add_train):
    options = {"c_grid": (3.0, 0.3), "num_retrains": 1, "ratio": 0.9}
    dfr = Dfr(split, tune, scaler=scaler, add_train=add_train, **options)
    tables = make_tables()
    read = {name: tables[name] for name in dfr.reads}
    fit = dfr.fit(read, SPEC, seed=0)
    for name in dfr.reads:
        other = make(np.bincount(tables[name].g), seed=9, noise=4.0)
        changed = dfr.fit({**read, name: other}, SPEC, seed=0)
        assert not np.allclose(changed.linear.weight, fit.linear.weight) or (
            changed.tuning != fit.tuning
        ), name


@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_repairs_a_shortcut(name):
    tables = make_tables()
    train, test = tables["train"], tables["test"]
    biased = plain_fit(train.x, train.y, 1.0)
    hit = biased.predict(test.x) == test.y
    before = min(hit[test.g == g].mean() for g in range(4))
    after = min(group_accuracies(from_conf(name).fit(tables, SPEC, seed=0).linear, test))
    assert before < 0.5
    assert after > before + 0.2


def test_the_same_seed_gives_the_same_fit():
    tables, dfr = make_tables(), Dfr("val", num_retrains=3)
    np.random.seed(0)
    one = dfr.fit(tables, SPEC, seed=1)
    np.random.seed(1)
    two, other = dfr.fit(tables, SPEC, seed=1), dfr.fit(tables, SPEC, seed=2)
    assert np.array_equal(one.linear.weight, two.linear.weight)
    assert np.array_equal(one.linear.bias, two.linear.bias)
    assert one.c == two.c
    assert not np.array_equal(one.linear.weight, other.linear.weight)


def test_tables_stay_as_they_are():
    tables = make_tables()
    before = {name: table.x.copy() for name, table in tables.items()}
    Dfr("val", num_retrains=1, c_grid=(1.0,)).fit(tables, SPEC, seed=0)
    assert all(np.array_equal(tables[name].x, x) for name, x in before.items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_retrains": 0}, "num_retrains=0"),
        ({"max_iter": 0}, "max_iter=0"),
        ({"c_grid": ()}, "c_grid"),
        ({"c_grid": (1.0, 0.0)}, "c_grid"),
        ({"c_grid": (-1.0,)}, "c_grid"),
        ({"split": "val", "tune": "val"}, "tune=val"),
        ({"split": "nowhere"}, "nowhere"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Dfr(**options)


def test_a_single_class_cannot_be_fitted():
    tables = {"target": make([10, 10, 0, 0]), "val": make([5, 5, 5, 5])}
    with pytest.raises(RunError, match="the target split has no sample of class b"):
        Dfr("target", "val", scaler="none").fit(tables, SPEC, seed=0)
