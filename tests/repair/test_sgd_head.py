"""The head trained by Adam against a loop written out."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from spurcor.data.groups import GroupSpec
from spurcor.repair.dfr import Dfr
from spurcor.repair.heads import FeatureTable
from spurcor.repair.sgd_head import SgdOptions, fit_sgd

SPEC = GroupSpec(("a", "b"), ("x", "y"), aligned=(0, 1))
CPU = torch.device("cpu")


def table(n, seed):
    rng = np.random.default_rng(seed)
    g = rng.permutation(np.arange(n) % 4)
    x = rng.normal(size=(n, 5))
    x[:, 0] += 2 * (g // 2)
    return FeatureTable(x, g // 2, g)


def by_hand(fitted, judged, options, seed):
    """Weights and loss after each epoch, of Adam as its paper states it."""
    torch.manual_seed(seed)
    layer = torch.nn.Linear(5, 2)
    w, b = layer.weight.detach().clone(), layer.bias.detach().clone()
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.tensor(fitted.x).float(), torch.tensor(fitted.y)
    moments = [[torch.zeros_like(p), torch.zeros_like(p)] for p in (w, b)]
    step, found = 0, []
    for _ in range(options.epochs):
        for rows in torch.randperm(len(y), generator=generator).split(options.batch_size):
            step += 1
            error = (x[rows] @ w.T + b).softmax(1) - F.one_hot(y[rows], 2)
            gradients = [error.T @ x[rows] / len(rows), error.mean(0)]
            for p, gradient, (m, v) in zip((w, b), gradients, moments, strict=True):
                gradient = gradient + options.weight_decay * p
                m.mul_(0.9).add_(0.1 * gradient)
                v.mul_(0.999).add_(0.001 * gradient**2)
                p -= options.lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        logits = torch.tensor(judged.x).float() @ w.T + b
        loss = F.cross_entropy(logits, torch.tensor(judged.y))
        found.append((w.clone(), b.clone(), float(loss)))
    return found


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_it_is_adam_on_cross_entropy(weight_decay):
    fitted, judged = table(50, 0), table(40, 1)
    options = SgdOptions(epochs=4, lr=0.02, weight_decay=weight_decay, batch_size=16)
    head, curve = fit_sgd(fitted, judged, SPEC, options, 7, CPU)
    expected = by_hand(fitted, judged, options, 7)
    losses = [loss for _, _, loss in expected]
    np.testing.assert_allclose([row["loss"] for row in curve], losses, atol=1e-5)
    w, b, _ = expected[int(np.argmin(losses))]
    np.testing.assert_allclose(head.weight, w, atol=1e-5)
    np.testing.assert_allclose(head.bias, b, atol=1e-5)
    hit = head.logits(judged.x).argmax(1) == judged.y
    best = min(curve, key=lambda row: row["loss"])
    assert best["worst"] == min(hit[judged.g == g].mean() for g in range(4))


def test_the_best_epoch_is_kept_and_patience_ends_it():
    fitted, judged = table(40, 2), table(40, 3)
    judged = FeatureTable(judged.x, 1 - judged.y, judged.g)  # the better fitted, the worse judged
    options = SgdOptions(epochs=50, lr=0.1, patience=3)
    head, curve = fit_sgd(fitted, judged, SPEC, options, 0, CPU)
    losses = [row["loss"] for row in curve]
    best = int(np.argmin(losses))
    assert len(curve) == best + 1 + 3 < 50
    w, _, _ = by_hand(fitted, judged, options, 0)[best]
    np.testing.assert_allclose(head.weight, w, atol=1e-4)


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    fitted, judged, options = table(40, 2), table(40, 3), SgdOptions(epochs=2)
    state = torch.get_rng_state()
    one, _ = fit_sgd(fitted, judged, SPEC, options, 1, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again, _ = fit_sgd(fitted, judged, SPEC, options, 1, CPU)
    other, _ = fit_sgd(fitted, judged, SPEC, options, 2, CPU)
    assert np.array_equal(one.weight, again.weight)
    assert not np.array_equal(one.weight, other.weight)


def test_dfr_trains_balanced_heads_and_averages_them(monkeypatch):
    seen = []

    def spy(fitted, judged, *rest):
        head, curve = fit_sgd(fitted, judged, *rest)
        seen.append((fitted, judged, head))
        return head, curve

    monkeypatch.setattr("spurcor.repair.fitting.fit_sgd", spy)
    target = table(80, 4)
    keep = np.r_[np.flatnonzero(target.g != 1), np.flatnonzero(target.g == 1)[:7]]
    tables = {"target": target.take(keep), "val": table(40, 5), "train": table(40, 6)}
    options = {"penalty": "none", "head": "sgd", "sgd": SgdOptions(epochs=2)}
    fit = Dfr("target", "val", scaler="train", num_retrains=3, **options).fit(tables, SPEC, 0)
    mean, std = tables["train"].x.mean(0), tables["train"].x.std(0)
    for fitted, judged, _ in seen:
        assert np.bincount(fitted.g).tolist() == [7] * 4
        np.testing.assert_allclose(judged.x, (tables["val"].x - mean) / std, atol=1e-9)
    assert len({fitted.x.tobytes() for fitted, _, _ in seen}) == 3
    expected = np.mean([h.logits((target.x - mean) / std) for _, _, h in seen], axis=0)
    np.testing.assert_allclose(fit.linear.logits(target.x), expected, atol=1e-9)
    assert (fit.c, fit.class_weight) == (None, None)
    assert [(row["fit"], row["epoch"]) for row in fit.tuning] == [
        (i, epoch) for i in range(3) for epoch in (1, 2)
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"epochs": 0}, "epochs=0"), ({"patience": 0}, "patience=0"), ({"lr": 0.0}, "lr=0.0")],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        SgdOptions(**options)
