"""Automatic Feature Reweighting: its weights, its descent, and what it chooses."""

import numpy as np
import pytest
import torch
from training import read

from spurcor.data.groups import GroupSpec
from spurcor.errors import RunError, UserError
from spurcor.repair.afr import Afr, sample_weights
from spurcor.repair.heads import FeatureTable, Linear
from spurcor.runs.results import read_result

SPEC = GroupSpec(("a", "b"), ("x", "y"))


def table(count: int, seed: int) -> FeatureTable:
    """Features of which the first is the attribute and the second, smaller one the class."""
    rng = np.random.default_rng(seed)
    y, agrees = rng.integers(0, 2, count), rng.random(count) < 0.85
    a = np.where(agrees, y, 1 - y)
    x = rng.normal(size=(count, 4))
    x[:, 0] += 4 * (2 * a - 1)
    x[:, 1] += 2 * (2 * y - 1)
    return FeatureTable(x, y, 2 * y + a)


OWN = Linear(np.array([[-1.0, -0.1, 0, 0], [1.0, 0.1, 0, 0]]), np.zeros(2))  # of the attribute
TABLES = {"target": table(300, 0), "val": table(300, 1)}


def test_weights_without_gamma_balance_the_classes():
    torch.manual_seed(0)
    y = torch.tensor([0] * 30 + [1] * 10)
    mu = sample_weights(torch.randn(40, 2), y, 0.0)
    assert mu[:30].sum() == pytest.approx(0.5)
    assert mu[30:].sum() == pytest.approx(0.5)
    assert torch.allclose(mu[:30], mu[0].expand(30))


def test_weights_by_hand():
    """p = 1/2 and 3/4 in class 0, 1/4 in class 1; mu ~ exp(-2 p) / n."""
    logits = torch.tensor([[0.0, 0.0], [np.log(3), 0.0], [np.log(3), 0.0]])
    raw = np.array([np.exp(-1.0) / 2, np.exp(-1.5) / 2, np.exp(-0.5)])
    mu = sample_weights(logits, torch.tensor([0, 0, 1]), 2.0)
    assert mu.numpy() == pytest.approx(raw / raw.sum(), rel=1e-6)


def test_it_is_the_plain_script():
    """Gradient descent by hand in numpy, with clipped gradients."""
    afr = Afr(gammas=(4.0,), l2=(0.2,), lr=0.5, steps=30, judge_every=30)
    found = afr.fit(TABLES, SPEC, 0, own=OWN).linear
    x, y = TABLES["target"].x, TABLES["target"].y
    start = np.column_stack([OWN.weight, OWN.bias])
    wide = np.column_stack([x, np.ones(len(x))])

    def softmax(w):
        z = wide @ w.T
        z = np.exp(z - z.max(1, keepdims=True))
        return z / z.sum(1, keepdims=True)

    mu = np.exp(-4.0 * softmax(start)[np.arange(len(y)), y]) / np.bincount(y)[y]
    mu /= mu.sum()
    w = start.copy()
    for _ in range(30):
        error = softmax(w) - np.eye(2)[y]
        gradient = (mu[:, None] * error).T @ wide + 2 * 0.2 * (w - start)
        w -= 0.5 * gradient * min(1.0, 1.0 / np.linalg.norm(gradient))
    assert found.weight == pytest.approx(w[:, :4], abs=1e-5)
    assert found.bias == pytest.approx(w[:, 4], abs=1e-5)


def test_a_strong_penalty_keeps_the_networks_own_layer_and_none_leaves_it():
    moved = []
    for l2 in (100.0, 0.0):
        afr = Afr(gammas=(4.0,), l2=(l2,), lr=1e-3, steps=500, judge_every=500)
        found = afr.fit(TABLES, SPEC, 0, own=OWN).linear
        moved.append(np.abs(found.weight - OWN.weight).max())
    assert moved[0] < 0.05 < 0.2 < moved[1]


def worst(head: Linear, of: FeatureTable) -> float:
    right = head.logits(of.x).argmax(1) == of.y
    return min(right[of.g == g].mean() for g in range(4))


def test_it_repairs_a_head_of_the_attribute_and_reads_no_groups_of_its_data():
    afr = Afr(gammas=(4.0, 8.0), l2=(0.0,), lr=0.1)
    found = afr.fit(TABLES, SPEC, 0, own=OWN)
    assert worst(OWN, TABLES["val"]) < 0.2
    assert worst(found.linear, TABLES["val"]) > 0.7
    hidden = TABLES["target"]
    blind = {**TABLES, "target": FeatureTable(hidden.x, hidden.y, np.zeros_like(hidden.g))}
    again = afr.fit(blind, SPEC, 0, own=OWN)
    assert np.array_equal(found.linear.weight, again.linear.weight)


def test_the_best_on_val_over_all_steps_is_chosen():
    afr = Afr(gammas=(1.0, 8.0), l2=(0.0, 0.5), lr=0.1, steps=50, judge_every=20)
    found = afr.fit(TABLES, SPEC, 0, own=OWN)
    assert [row["epoch"] for row in found.tuning[:3]] == [20, 40, 50]
    assert len(found.tuning) == 12
    best = max(found.tuning, key=lambda row: row["worst"])  # the first of equal ones
    assert found.chosen == {"gamma": best["gamma"], "l2": best["l2"], "step": best["epoch"]}
    assert worst(found.linear, TABLES["val"]) == pytest.approx(best["worst"])


def test_what_it_needs():
    with pytest.raises(RunError, match="not linear"):
        Afr().fit(TABLES, SPEC, 0)
    unknown = GroupSpec(("a", "b"), ("unknown",), known=False)
    with pytest.raises(UserError, match="worst_class needs none"):
        Afr().require(unknown)
    Afr(criterion="worst_class").require(unknown)
    with pytest.raises(UserError, match="target split has no sample of class b"):
        Afr().check({"target": torch.tensor([3, 1, 0, 0])}, SPEC)
    with pytest.raises(ValueError, match="must be lists of at least 0"):
        Afr(gammas=(-1.0,))


QUICK = (
    "backbone=mlp", "backbone.width=8", "tracker=none", "method.epochs=2",
    "dataset.subset_size=200",
    "dfr=afr", "dfr.steps=40", "dataset.target_from=train", "dataset.target_fraction=0.2",
)  # fmt: skip


def test_a_run_is_repaired_on_what_was_held_out_of_its_training(command_line, tmp_path):
    ended = command_line.run("train", *QUICK, f"paths.outputs={tmp_path}", COLUMNS="200")
    assert ended.code == 0, ended.err
    assert "+ AFR target-" in ended.out
    (path,) = tmp_path.glob("runs/*/*/*/*/result.json")
    (part,) = read_result(path.parent)["dfr"].values()
    assert part["repair"] == "AFR"
    assert set(part["chosen"]) == {"gamma", "l2", "step"}
    assert part["val_is"] == "held_out"
    command_line.run("train", "-m", *QUICK, f"paths.outputs={tmp_path}", "sweep=s", "seed=0,1")
    report = (tmp_path / "reports" / "s" / "report.md").read_text()
    assert "erm + AFR" in report


def test_the_networks_own_layer_is_what_its_features_enter(tmp_path):
    from spurcor.runs import build
    from spurcor.runs.repair import _own

    splits, method = build.build(read(*QUICK[:5]))
    method.eval()
    layer = method.backbone.layer(-1)
    x = splits.transform(splits["val"].fetch(torch.arange(20)).x)
    own = _own(method, layer)
    features = method.backbone.features(x, [layer])[layer].detach().double().numpy()
    assert own.logits(features) == pytest.approx(method.predict(x).detach().numpy(), abs=1e-5)
    assert _own(method, "another") is None


@pytest.mark.parametrize("loss", ["mse", "logistic"])
def test_a_head_of_one_output_is_linear_too(loss):
    from spurcor.runs import build
    from spurcor.runs.repair import _own

    splits, method = build.build(read(*QUICK[:5], f"train.loss={loss}"))
    layer = method.backbone.layer(-1)
    x = splits.transform(splits["val"].fetch(torch.arange(20)).x)
    own = _own(method.eval(), layer)
    features = method.backbone.features(x, [layer])[layer].detach().double().numpy()
    assert own.logits(features) == pytest.approx(method.predict(x).detach().numpy(), abs=1e-5)
