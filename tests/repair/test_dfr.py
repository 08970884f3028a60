"""DFR against a straightforward computation with scikit-learn."""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import yaml
from published_dfr import accuracies, dfr_val, waterbirds_features
from sklearn.linear_model import Lasso, LinearRegression, LogisticRegression, Ridge

from spurcor.config.check import check
from spurcor.config.nodes import Node
from spurcor.config.schema import dfr_name
from spurcor.data.groups import GroupSpec
from spurcor.errors import RunError, UserError
from spurcor.repair.dfr import Dfr
from spurcor.repair.heads import FeatureTable, Linear, Scale
from spurcor.seeding import derive_seed
from spurcor.system.places import CONF

SPEC = GroupSpec(("a", "b"), ("x", "y"), aligned=(0, 1))
THREE = GroupSpec(("a", "b", "c"), ("x", "y"), aligned=(0, 1, 0))
LINKS = ("none", "val_if_known")  # without options of their own
NAMES = sorted(p.stem for p in (CONF / "dfr").glob("*.yaml") if p.stem not in LINKS)


def make(counts, seed=0, num_features=6, noise=1.0, spec=SPEC):
    """Column 0 tells the class, column 1 the attribute, twice as loudly; all at odd scales."""
    rng = np.random.default_rng(seed)
    g = rng.permutation(np.repeat(np.arange(spec.num_groups), counts))
    y, a = np.divmod(g, len(spec.attributes))
    x = rng.normal(size=(len(g), num_features))
    x[:, 0] = noise * x[:, 0] + 2 * y
    x[:, 1] = 0.5 * noise * x[:, 1] + 4 * a
    return FeatureTable(x * np.linspace(0.5, 3, num_features) + 5, y, g)


def make_tables():
    return {
        "train": make([95, 5, 5, 95], seed=1),
        "target": make([12, 14, 16, 18], seed=2),
        "val": make([20, 15, 10, 25], seed=3),
        "test": make([400] * 4, seed=4),
    }


@dataclass(frozen=True)
class Chosen:
    dfr: Node


def from_conf(name, **changes):
    tree = yaml.safe_load((CONF / "dfr" / f"{name}.yaml").read_text())
    return check({"dfr": {**tree, **changes}}, Chosen).dfr.build()


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


def test_balanced_classes_and_the_worst_class_need_no_groups(fits):
    tables = {"val": make([40, 9, 12, 30], seed=1)}
    dfr = Dfr("val", balance="classes", criterion="worst_class", scaler="none", num_retrains=3)
    known = dfr.fit(tables, SPEC, seed=0)
    for x, _, _ in fits[-3:]:
        rows = rows_in(x, tables["val"])
        assert np.bincount(tables["val"].y[rows]).tolist() == [42, 42]
    spec = GroupSpec(SPEC.classes, ("unknown",), known=False)
    hidden = {name: replace(table, g=table.y) for name, table in tables.items()}
    dfr.check({"val": torch.tensor([49, 42])}, spec)
    again = dfr.fit(hidden, spec, seed=0)
    assert np.array_equal(known.linear.weight, again.linear.weight)
    with pytest.raises(UserError, match="needs groups"):
        Dfr("val").check({"val": torch.tensor([49, 42])}, spec)


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


@pytest.mark.parametrize("scaler", ["train", "reweighting"])
def test_tuning_may_be_scaled_like_the_final_fit(scaler, fits):
    tables = make_tables()
    dfr = Dfr("val", scaler=scaler, tune_scaler="same", c_grid=(0.3,), num_retrains=1)
    dfr.fit(tables, SPEC, seed=0)
    val, reference = tables["val"].x, tables["train" if scaler == "train" else "val"].x
    scaled = (val - reference.mean(0)) / reference.std(0)
    allowed = {row.tobytes() for row in np.round(scaled, 9) + 0.0}
    for x, _, _ in fits:
        assert {row.tobytes() for row in np.round(x, 9) + 0.0} <= allowed


def test_the_gradient_flow_repair_scales_its_tuning_by_train():
    dfr = from_conf("gradient_flow")
    assert (dfr.data.scaler, dfr.tuning.tune, dfr.tuning.tune_scaler) == ("train", "half", "same")


@pytest.mark.parametrize(("n", "fitted"), [(70, 35), (71, 36)])
def test_of_an_odd_number_the_smaller_half_judges(n, fitted, fits):
    tables = {"val": make([20, 15, 10, n - 45], seed=3)}
    Dfr("val", balance="none", scaler="none", c_grid=(1.0,), num_retrains=1).fit(tables, SPEC, 0)
    assert [len(x) for x, _, _ in fits] == [fitted, n]


def test_constant_features_do_no_harm():
    tables = {name: FeatureTable(t.x.copy(), t.y, t.g) for name, t in make_tables().items()}
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
    with pytest.raises(RunError, match="criterion=conflicting"):
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
    quick = {"sgd": {"epochs": 300, "lr": 0.05, "patience": 300}} if name == "sgd" else {}
    weight, bias = biased.coef_, biased.intercept_
    own = Linear(np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2)
    fit = from_conf(name, **quick).fit(tables, SPEC, seed=0, own=own)
    after = min(group_accuracies(fit.linear, test))
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
        ({"c_grid": (math.inf,)}, "c_grid"),
        ({"ratio": 1.0}, "ratio=1.0"),
        ({"class_weights": (2.0,)}, "class_weights=.* needs balance=none or split=train"),
        ({"class_weights": (0.0,), "balance": "none"}, "must be a list of positive"),
        ({"split": "train", "add_train": True}, "add_train=true adds train to val or target"),
        ({"head": "sgd"}, "set penalty=none"),
        ({"head": "sgd", "penalty": "none", "loss": "mse"}, "loss=logistic"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Dfr(**options)


def test_a_single_class_cannot_be_fitted():
    tables = {"target": make([10, 10, 0, 0]), "val": make([5, 5, 5, 5])}
    with pytest.raises(RunError, match=r"target split.*has no sample of class b"):
        Dfr("target", "val", scaler="none").fit(tables, SPEC, seed=0)


# --- against the published script -----------------------------------------------------------------


def test_dfr_val_is_the_published_procedure():
    features = waterbirds_features(seed=3)
    tables = {name: FeatureTable(*table) for name, table in features.items()}
    x = features["val"][0]
    assert x.shape == (1199, 2048)
    values = np.linalg.svd(x - x.mean(0), compute_uv=False)
    assert (values > 1e-5 * values[0]).sum() == 50
    fit = from_conf("val").fit(tables, SPEC, seed=3)
    rng = np.random.default_rng(derive_seed("dfr", 3))
    c, theirs = dfr_val(features["train"][0], features["val"], features["test"], rng)
    test = tables["test"]
    ours = accuracies(fit.linear.logits(test.x).argmax(1) == test.y, test.g)
    assert fit.c == c
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert 0.6 < theirs.min() < theirs.max() < 0.99  # a hard problem: the comparison says something


def test_threads_change_no_bit():
    tables, threads = make_tables(), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(Dfr("val", num_retrains=9).fit(tables, SPEC, seed=4))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert np.array_equal(other.linear.weight, found[0].linear.weight)
        assert np.array_equal(other.linear.bias, found[0].linear.bias)
        assert (other.c, other.tuning) == (found[0].c, found[0].tuning)


# --- further options ------------------------------------------------------------------------------


def sign_fit(loss, penalty, x, y, c):
    if loss == "logistic":
        return LogisticRegression(C=np.inf, max_iter=5000, tol=1e-8).fit(x, y)
    model = {"l1": Lasso(1 / c), "l2": Ridge(1 / c), "none": LinearRegression()}[penalty]
    return model.fit(x, 2.0 * y - 1)


@pytest.mark.parametrize(
    ("loss", "penalty"), [("logistic", "none"), ("mse", "l1"), ("mse", "l2"), ("mse", "none")]
)
def test_other_losses_and_penalties(loss, penalty):
    tables = {name: make([40, 30, 30, 40], seed, noise=3.0) for name, seed in [("val", 31)]}
    dfr = Dfr(
        "val", balance="none", scaler="reweighting", loss=loss, penalty=penalty, c_grid=(8.0,),
        num_retrains=2, max_iter=5000,
    )  # fmt: skip
    fit = dfr.fit(tables, SPEC, seed=0)
    data = tables["val"]
    mean, std = data.x.mean(0), data.x.std(0)
    model = sign_fit(loss, penalty, (data.x - mean) / std, data.y, 8.0)
    test = make([50] * 4, seed=32)
    f = (test.x - mean) / std @ np.ravel(model.coef_) + np.ravel(model.intercept_)
    logits = fit.linear.logits(test.x)
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], f, atol=2e-3)
    assert fit.c == (None if penalty == "none" else 8.0)


def test_ridge_in_closed_form():
    data = make([20, 15, 10, 25], seed=33)
    dfr = Dfr("val", balance="none", scaler="none", loss="mse", penalty="l2", c_grid=(0.1,))
    fit = dfr.fit({"val": data}, SPEC, seed=0)
    s = 2.0 * data.y - 1
    x = data.x - data.x.mean(0)
    w = np.linalg.solve(x.T @ x + 10 * np.eye(6), x.T @ (s - s.mean()))
    np.testing.assert_allclose(2 * fit.linear.weight[1], w, atol=1e-9)
    np.testing.assert_allclose(2 * fit.linear.bias[1], s.mean() - data.x.mean(0) @ w, atol=1e-9)


def test_three_classes_by_least_squares():
    data = make([9, 8, 7, 6, 5, 9], seed=6, spec=THREE)
    dfr = Dfr("val", balance="none", scaler="none", loss="mse", penalty="none", num_retrains=1)
    fit = dfr.fit({"val": data}, THREE, seed=0)
    a = np.column_stack([data.x, np.ones(len(data.y))])
    expected = a @ np.linalg.lstsq(a, 2.0 * (data.y[:, None] == np.arange(3)) - 1)[0]
    np.testing.assert_allclose(fit.linear.logits(data.x), expected, atol=1e-8)


def test_class_weights_are_tried_on_either_class(hard, fits):
    dfr = Dfr(
        "val", balance="none", scaler="none", c_grid=(0.5, 0.05), class_weights=(1.0, 4.0, 30.0),
        num_retrains=1,
    )  # fmt: skip
    fit = dfr.fit({"val": hard["val"]}, SPEC, seed=1)
    sides = [(1.0, 1.0), (1.0, 4.0), (4.0, 1.0), (1.0, 30.0), (30.0, 1.0)]
    assert [(row["c"], tuple(row["class_weight"])) for row in fit.tuning] == [
        (c, side) for c in (0.5, 0.05) for side in sides
    ]
    weights = [tuple(model.class_weight[k] for k in (False, True)) for _, _, model in fits]
    assert weights == [*sides, *sides, fit.class_weight]
    best = max(row["worst"] for row in fit.tuning)
    first = next(row for row in fit.tuning if row["worst"] == best)
    assert (first["c"], tuple(first["class_weight"])) == (fit.c, fit.class_weight)
    # A factor on a class's loss is as many copies of its samples.
    data, (w0, w1) = hard["val"], fit.class_weight
    copies = np.repeat(np.arange(len(data.y)), np.where(data.y == 1, w1, w0).astype(int))
    optimum = [
        LogisticRegression(C=fit.c, l1_ratio=1.0, solver="liblinear", tol=1e-9, max_iter=5000).fit(
            data.x[rows], data.y[rows], weight
        )
        for rows, weight in (
            (copies, None),
            (np.arange(len(data.y)), np.where(data.y == 1, w1, w0)),
        )
    ]
    np.testing.assert_allclose(optimum[0].coef_, optimum[1].coef_, atol=1e-4)
    np.testing.assert_allclose(2 * fit.linear.weight[1], optimum[0].coef_[0], atol=0.02)


def test_weights_of_least_squares_are_copies_too():
    data = make([20, 15, 10, 25], seed=34)
    dfr = Dfr(
        "val", balance="none", scaler="none", loss="mse", penalty="none", class_weights=(3.0,),
        num_retrains=1,
    )  # fmt: skip
    fit = dfr.fit({"val": data}, SPEC, seed=0)
    w0, w1 = fit.class_weight
    rows = np.repeat(np.arange(len(data.y)), np.where(data.y == 1, w1, w0).astype(int))
    model = LinearRegression().fit(data.x[rows], 2.0 * data.y[rows] - 1)
    np.testing.assert_allclose(2 * fit.linear.weight[1], model.coef_, atol=1e-9)


def test_train_samples_are_added_to_every_subset(fits):
    tables = make_tables()
    dfr = Dfr("target", scaler="none", add_train=True, c_grid=(1.0,), num_retrains=3)
    dfr.fit(tables, SPEC, seed=0)
    added = []
    for x, _, _ in fits[1:]:
        assert len(x) == 2 * 48
        assert (
            np.bincount(tables["target"].g[rows_in(x[:48], tables["target"])]).tolist() == [12] * 4
        )
        added.append(rows_in(x[48:], tables["train"]))
        assert len(set(added[-1])) == 48
    assert len({frozenset(rows) for rows in added}) == 3
    tuned = len(fits[0][0])
    assert tuned % 8 == 0
    rows_in(fits[0][0][tuned // 2 :], tables["train"])  # the tuning's too


def test_added_samples_are_scaled_like_the_others(fits):
    tables = make_tables()
    dfr = Dfr("target", scaler="train", add_train=True, c_grid=(1.0,), num_retrains=1)
    dfr.fit(tables, SPEC, seed=0)
    train = tables["train"].x
    allowed = {row.tobytes() for row in np.round((train - train.mean(0)) / train.std(0), 9) + 0.0}
    assert {row.tobytes() for row in np.round(fits[1][0][48:], 9) + 0.0} <= allowed


def test_added_samples_count_where_the_half_scales_the_tuning(fits):
    tables = make_tables()
    dfr = Dfr("target", scaler="train", add_train=True, c_grid=(1.0,), num_retrains=1)
    dfr.fit(tables, SPEC, seed=0)
    np.testing.assert_allclose(fits[0][0].mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(fits[0][0].std(0), 1, atol=1e-9)


def test_a_share_of_train_is_rounded_down(fits):
    tables = {"train": make([20, 13, 13, 13], seed=41)}
    dfr = Dfr("split_from_train", scaler="none", balance="none", c_grid=(1.0,), num_retrains=1)
    dfr.fit(tables, SPEC, seed=0)
    assert len(fits[-1][0]) == 11  # of 0.2 x 59


def test_a_share_of_train_is_halved_and_balanced(fits):
    tables = {"train": make([60, 20, 20, 60], seed=41)}
    dfr = Dfr(
        "split_from_train", ratio=0.5, scaler="none", balance="none", c_grid=(1.0,), num_retrains=4
    )
    assert dfr.reads == ["train"]
    dfr.fit(tables, SPEC, seed=0)
    tuned, *final = [set(rows_in(x, tables["train"])) for x, _, _ in fits]
    assert (len(tuned), len(final[0])) == (40, 80)
    assert tuned < final[0]
    assert all(rows == final[0] for rows in final)
    fits.clear()
    dfr.fit(tables, SPEC, seed=1)
    assert set(rows_in(fits[1][0], tables["train"])) != final[0]


def test_the_tuning_is_kept(hard):
    fit = Dfr("train", "val", "average", c_grid=GRID, num_retrains=1).fit(hard, SPEC, seed=0)
    assert [row["c"] for row in fit.tuning] == list(GRID)
    assert all(row["class_weight"] is None for row in fit.tuning)
    best = max(fit.tuning, key=lambda row: row["average"])
    assert best["c"] == fit.c
    plain = {"balance": "none", "scaler": "none", "num_retrains": 1}
    fit = Dfr("train", "val", c_grid=(1.0,), **plain).fit(hard, SPEC, seed=0)
    assert fit.tuning[0]["worst"] == min(group_accuracies(fit.linear, hard["val"]))


def test_a_constant_that_rounding_hides_is_no_feature():
    x = np.column_stack([np.full(1000, 0.1), np.linspace(5, 9, 1000)])
    assert x[:, 0].std() > 0  # the mean is not quite 0.1
    scale = Scale.of(x, 2)
    assert scale.std[0] == 1
    np.testing.assert_allclose(scale.std[1], x[:, 1].std(), rtol=1e-12)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["train", "val"])
def test_features_that_are_not_finite_are_named(name, value):
    tables = make_tables()
    tables[name].x[[3, 5], 1] = value
    with pytest.raises(RunError, match=rf"features of 2 of \d+ {name} samples are not finite"):
        Dfr("val").fit(tables, SPEC, seed=0)


def test_a_grid_that_leaves_no_feature_gives_a_constant_classifier_and_says_so(caplog):
    tables = make_tables()
    fit = Dfr("val", c_grid=(1e-5,), balance="none").fit(tables, SPEC, seed=0)
    assert not fit.linear.weight.any()
    assert fit.c == 1e-5
    assert len(set(fit.linear.logits(tables["test"].x).argmax(1))) == 1
    for text in (fit.note, caplog.text):
        assert "every weight is 0" in text
        assert "dfr.c_grid=[1e-05]" in text
    assert "every weight" not in Dfr("val", c_grid=(1.0,)).fit(tables, SPEC, seed=0).note


def few_of(dfr, caplog, **counts):
    """The sentence on groups of few samples, which is logged once."""
    caplog.clear()
    tables = {name: make(count, seed=7) for name, count in counts.items()}
    note = dfr.fit(tables, SPEC, seed=0).note
    assert [record.getMessage() for record in caplog.records] == [f"dfr: {note}"] * bool(note)
    return note


@pytest.mark.parametrize("head", ["regression", "sgd"])
def test_groups_of_few_samples_are_told_with_their_counts(head, caplog):
    trained = {"head": "sgd", "penalty": "none"} if head == "sgd" else {}
    options = {"scaler": "none", "num_retrains": 1, **trained}
    dfr = Dfr("target", "val", **options)
    assert few_of(dfr, caplog, target=[10] * 4, val=[10] * 4) == ""
    note = few_of(dfr, caplog, target=[10, 9, 10, 10], val=[10, 10, 3, 10])
    assert "target has 9 of a/y" in note
    assert "val has 3 of b/x" in note
    assert note.count(" of ") == 3  # and "of a group"
    note = few_of(Dfr("val", balance="none", **options), caplog, val=[80, 18, 80, 80])
    assert "val has" not in note.replace("half of val", "")  # 18 in all, but not in its halves
    told = [int(part.split()[0]) for part in note.split(" has ")[1:]]
    assert min(told) < 10
    assert note.count("of a/y") == len(told)
    assert few_of(Dfr("val", balance="none", **options), caplog, val=[80, 0, 80, 80]) == ""


def refusal(dfr, spec=SPEC, **counts):
    full = {name: [9] * spec.num_groups for name in ("train", "val", "target", "test")}
    with pytest.raises(UserError) as caught:
        dfr.check({name: torch.tensor(v) for name, v in {**full, **counts}.items()}, spec)
    return str(caught.value)


def test_what_no_fit_can_come_of_is_refused_before():
    dfr = Dfr("target")
    assert "target split has no sample of class b" in refusal(dfr, target=[3, 3, 0, 0])
    assert "target split has no sample of group a/y, and test has 9" in refusal(
        dfr, target=[3, 0, 3, 3]
    )
    assert "class_weights is for two classes" in refusal(
        Dfr(balance="none", class_weights=(2.0,)), THREE
    )
    plain = GroupSpec(("a", "b"), ("x", "y"))
    assert "criterion=conflicting is undefined" in refusal(Dfr(criterion="conflicting"), plain)
    options = {"criterion": "conflicting", "balance": "none"}
    for dfr, split in (
        (Dfr("target", "val", **options), "val"),
        (Dfr("target", **options), "target"),
    ):
        aligned = {split: [9, 0, 0, 9]}
        assert f"{split} split has no sample of a conflicting" in refusal(dfr, **aligned)
    labels = GroupSpec(("a", "b"), (), task="multilabel")
    assert "needs one class per image" in refusal(dfr, labels)


def test_groups_that_nothing_tests_or_balances_may_be_absent():
    counts = {name: torch.tensor([9, 9, 9, 9]) for name in ("train", "val", "test")}
    absent = torch.tensor([9, 0, 9, 9])
    Dfr("val").check({**counts, "val": absent, "test": absent}, SPEC)
    Dfr("val", balance="none").check({**counts, "val": absent}, SPEC)


def test_new_options_did_not_rename_the_repairs():
    trees = {
        name: yaml.safe_load((CONF / "dfr" / f"{name}.yaml").read_text())
        for name in ("val", "target", "train", "scale")
    }
    nodes = {name: check({"dfr": tree}, Chosen).dfr for name, tree in trees.items()}
    names = {name: dfr_name(replace(node, revision=1)) for name, node in nodes.items()}
    assert names == {
        "val": "val-96d5dd12",
        "target": "target-cb31bf4b",
        "train": "train-f1a43c9c",
        "scale": "target-9f13a302",
    }
