"""The gradient-flow quantities against direct computations, in float64 and float32."""

import dataclasses
import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from training import read, rows_of, trainer_of

from spurcor.analysis import statistics
from spurcor.analysis.contract import FinishedRun, Series
from spurcor.analysis.gap_dynamics import GapDynamics, term_weights
from spurcor.analysis.gradient_basis import GradientBasis
from spurcor.analysis.groups import flow_rate, pairs_of
from spurcor.analysis.jacobian_norm import JacobianNorm
from spurcor.analysis.output_moments import OutputMoments
from spurcor.analysis.static_dynamic import StaticDynamic
from spurcor.analysis.statistics import Request, collect, collect_one
from spurcor.data.groups import GroupSpec
from spurcor.errors import UserError
from spurcor.models import weights as checkpoint
from spurcor.pruning import gates
from spurcor.runs import build
from spurcor.runs import execute as runs
from spurcor.system.files import read_json
from spurcor.system.terminal import Terminal
from spurcor.training.moments import Moment

Y, A = (-1, -1, 1, 1), (-1, 1, -1, 1)
NAMES = ["small/red", "small/green", "large/red", "large/green"]
MINORITIES = {"small/green-small/red": (1, 0), "large/red-large/green": (2, 3)}
EXACT = {torch.float64: 1e-8, torch.float32: 1e-4}
ALL = "analysis=[gradient_basis,gap_dynamics,jacobian_norm,static_dynamic,output_moments]"
FLOW = (
    "optimizer=sgd", "optimizer.momentum=0", "optimizer.weight_decay=0", "optimizer.lr=0.01",
    "train.batch_size=null",
)  # fmt: skip

PRUSC = (
    "method=prusc", "method.epochs=1", "method.prune_epochs=1", "method.retrain_epochs=2",
    "method.num_clusters=16", "dataset.strength=0.7", "train.batch_size=100",
)  # fmt: skip


class Cast:
    """A transform in another precision."""

    def __init__(self, inner, dtype):
        self.inner, self.dtype = inner, dtype

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, x, parameters=None):
        return self.inner(x, parameters).to(self.dtype)


def setting(*options, dtype=torch.float64, loss="logistic", train=0):
    """Data and a small network in a precision, `train` steps from its initialisation."""
    torch.set_num_threads(1)
    network = ("backbone=mlp", "backbone.width=12", "backbone.activation=softplus")
    cfg = read(*network, f"train.loss={loss}", "dataset.num_train=150", *options)
    splits, method = build.build(cfg)
    splits = dataclasses.replace(splits, transform=Cast(splits.transform, dtype))
    method, last = method.to(dtype), method.backbone.layers[-1]
    # Features are float32 by contract, whatever the network computes in.
    method.backbone.forward = lambda x: method.backbone.activations(x, [last])[last]
    optimizer = torch.optim.SGD(method.weights(), 0.01 if loss == "mse" else 0.5)
    x, y, _ = everything(splits)
    for _ in range(train):
        optimizer.zero_grad()
        method.losses(method.predict(x), y).mean().backward()
        optimizer.step()
    return splits, method.eval()


def everything(splits, name="train"):
    data = splits[name]
    batch = data.fetch(torch.arange(len(data)))
    return splits.transform(batch.x), batch.y, batch.g


def flat_gradient(method, value):
    found = torch.autograd.grad(value, method.weights())
    return torch.cat([gradient.flatten() for gradient in found]).double()


def direct(splits, method):
    """Group gradients (4, P), mean Jacobians (4, P) and losses (4,), a group at a time."""
    x, y, g = everything(splits)
    gradients, jacobians, losses = [], [], []
    for group in range(4):
        logits = method.predict(x[g == group])
        loss = method.losses(logits, y[g == group]).mean()
        f = logits[:, 1] - logits[:, 0]
        gradients.append(flat_gradient(method, loss))
        jacobians.append(flat_gradient(method, method.predict(x[g == group]).diff().mean()))
        losses.append(float(loss.detach()))
        assert torch.allclose(f, method.predict(x[g == group]).diff().squeeze(1))
    return torch.stack(gradients), torch.stack(jacobians), losses


def erm_gradient(splits, method):
    x, y, _ = everything(splits)
    return flat_gradient(method, method.losses(method.predict(x), y).mean())


def measured(analysis, splits, method):
    """What an analysis says of TRAIN, by quantity."""
    values = analysis.measure(method, splits, collect(analysis.requests(), method, splits))
    return {key.removesuffix("/train"): value for key, value in values.items()}


def cosine(u, v):
    return float(F.cosine_similarity(u, v, dim=0))


def close(value, expected, dtype=torch.float64):
    """To the precision promised, relative to what the number is of."""
    assert float(value) == pytest.approx(float(expected), rel=EXACT[dtype], abs=EXACT[dtype])


def signed(vectors, signs):
    return sum(s * v for s, v in zip(signs, vectors, strict=True)) / 4


NETWORKS = [
    (),
    ("backbone.parametrization=mup", "backbone.depth=3"),
    ("backbone.parametrization=ntp", "backbone.fix_final_layer=true"),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("loss", ["logistic", "mse", "cross_entropy"])
@pytest.mark.parametrize("options", NETWORKS, ids=["standard", "mup", "ntp"])
def test_all_quantities_against_their_definitions(options, loss, dtype):
    splits, method = setting(*options, loss=loss, dtype=dtype, train=5)
    gradients, m, losses = direct(splits, method)
    share = splits["train"].group_counts.double() / len(splits["train"])
    label, attribute = (float(share @ torch.tensor(s).double()) for s in (Y, A))
    product = [y * a for y, a in zip(Y, A, strict=True)]
    both = float(share @ torch.tensor(product).double())
    rho = both - label * attribute
    v = {
        name: signed(gradients, signs)
        for name, signs in (("inv", (1,) * 4), ("Y", Y), ("A", A), ("AY", product))
    }

    basis = measured(GradientBasis(), splits, method)
    for name, vector in v.items():
        close(basis[f"norm_{name}"], vector.norm(), dtype)
    for one, other in itertools.combinations(v, 2):
        close(basis[f"cos_{one}_{other}"], cosine(v[one], v[other]), dtype)
    erm = erm_gradient(splits, method)
    expansion = v["inv"] + label * v["Y"] + attribute * v["A"] + both * v["AY"]
    assert torch.allclose(erm, expansion, atol=EXACT[dtype])

    gaps = measured(GapDynamics(), splits, method)
    assert {k.split("/", 1)[1] for k in gaps if k.startswith("total/")} == {
        *MINORITIES, "small/green-large/green", "large/red-small/red"
    }  # fmt: skip
    for pair, (one, other) in pairs_of(splits["train"].spec, None, same_class=False).items():
        delta = gradients[other] - gradients[one]
        marginal = label * v["Y"] + attribute * v["A"] + label * attribute * v["AY"]
        close(gaps[f"uniform/{pair}"], delta @ v["inv"], dtype)
        close(gaps[f"marginals/{pair}"], delta @ marginal, dtype)
        close(gaps[f"correlation/{pair}"], rho * (delta @ v["AY"]), dtype)
        close(gaps[f"total/{pair}"], delta @ erm, dtype)
        terms = sum(gaps[f"{term}/{pair}"] for term in ("uniform", "marginals", "correlation"))
        close(terms, delta @ erm, dtype)

    geometry = measured(JacobianNorm(), splits, method)
    for (g, one), (h, other) in itertools.combinations(enumerate(NAMES), 2):
        close(geometry[f"norm2/{one}"], m[g] @ m[g], dtype)
        close(geometry[f"dot/{one}-{other}"], m[g] @ m[h], dtype)
        close(geometry[f"cos/{one}-{other}"], cosine(m[g], m[h]), dtype)
        close(geometry[f"distance2/{one}-{other}"], (m[g] - m[h]).square().sum(), dtype)
    s = (m[3] - m[2] + m[1] - m[0]) / 2
    lab = (m[3] + m[2] - m[1] - m[0]) / 2
    close(geometry["norm_S"], s.norm(), dtype)
    close(geometry["norm_L"], lab.norm(), dtype)
    close(geometry["ratio_S_L"], s.norm() / lab.norm(), dtype)
    close(geometry["dot_S_L"], s @ lab, dtype)
    close(geometry["cos_S_L"], cosine(s, lab), dtype)
    close(geometry["norm2_m_A"], signed(m, A).square().sum(), dtype)
    close(geometry["norm2_m_Y"], signed(m, Y).square().sum(), dtype)
    close(geometry["dot_m_A_m_Y"], signed(m, A) @ signed(m, Y), dtype)

    split = measured(StaticDynamic(), splits, method)
    c_0 = torch.tensor([-2.0 * y if loss == "mse" else -y / 2 for y in Y]).double()
    static = c_0[:, None] * m
    dynamic = gradients - static
    t_s, t_d = share @ static, share @ dynamic
    for pair, (minority, majority) in MINORITIES.items():
        d_s, d_d = static[majority] - static[minority], dynamic[majority] - dynamic[minority]
        close(split[f"A/{pair}"], d_s @ t_s, dtype)
        close(split[f"B/{pair}"], d_s @ t_d + d_d @ t_s, dtype)
        close(split[f"Delta_s_T_d/{pair}"], d_s @ t_d, dtype)
        close(split[f"Delta_d_T_s/{pair}"], d_d @ t_s, dtype)
        close(split[f"C/{pair}"], d_d @ t_d, dtype)
        delta = gradients[majority] - gradients[minority]
        close(split[f"A/{pair}"] + split[f"B/{pair}"] + split[f"C/{pair}"], delta @ erm, dtype)
        close(split[f"total/{pair}"], delta @ erm, dtype)

    moments = measured(OutputMoments(), splits, method)
    x, _, g = everything(splits)
    f = method.predict(x).detach().diff().squeeze(1).double().numpy()
    for group, name in enumerate(NAMES):
        of_group = f[g.numpy() == group]
        close(moments[f"mean/{name}"], of_group.mean(), dtype)
        close(moments[f"std/{name}"], of_group.std(ddof=1), dtype)
        close(moments[f"loss/{name}"], losses[group], dtype)
    usual, other = (dict(zip(NAMES, losses, strict=True))[f"small/{a}"] for a in ("red", "green"))
    close(moments["gap/small"], other - usual, dtype)


def gram_of(splits, method):
    return collect_one(Request("train", None, 64, True, True), method, splits)


def test_parseval_and_the_inverse_transform():
    splits, method = setting(train=3)
    s = gram_of(splits, method)
    basis = measured(GradientBasis(), splits, method)
    squares = sum(basis[f"norm_{name}"] ** 2 for name in ("inv", "Y", "A", "AY"))
    units = torch.eye(4)
    close(sum(s.norm(s.gradient(unit)) ** 2 for unit in units) / 4, squares)
    y, a = torch.tensor(Y).double(), torch.tensor(A).double()
    signs = torch.stack([torch.ones(4).double(), y, a, y * a])
    for g in range(4):
        back = sum(signs[k, g] * s.gradient(signs[k] / 4) for k in range(4))
        assert torch.allclose(back, s.gradient(units[g]))


@pytest.mark.parametrize("loss", ["logistic", "mse"])
def test_the_terms_predict_a_small_full_batch_step(loss):
    """The gap's difference along the step, centred: what the terms say to second order."""
    splits, method = setting("backbone.parametrization=mup", loss=loss, train=3)
    gaps = measured(GapDynamics(), splits, method)
    gradient, step = erm_gradient(splits, method), 1e-5
    start = torch.nn.utils.parameters_to_vector(method.weights()).detach()

    def losses(at):
        torch.nn.utils.vector_to_parameters(at, method.weights())
        return np.array(direct(splits, method)[2])

    rates = (losses(start - step * gradient) - losses(start + step * gradient)) / (2 * step)
    for pair, (one, other) in MINORITIES.items():
        assert float(gaps[f"total/{pair}"]) == pytest.approx(rates[one] - rates[other], rel=1e-8)


def test_a_linear_model_has_the_mean_input_as_its_mean_jacobian():
    splits, method = setting("backbone.depth=0")
    x, _, g = everything(splits)
    means = torch.stack([x[g == group].flatten(1).mean(0) for group in range(4)])
    with_bias = torch.cat([means, torch.ones(4, 1)], dim=1)
    s = gram_of(splits, method)
    assert torch.allclose(s.gram[4:, 4:], with_bias @ with_bias.T, rtol=1e-10)


def test_the_gradient_of_the_squared_error_is_that_of_its_residuals():
    splits, method = setting(loss="mse", train=2)
    x, y, g = everything(splits)
    expected = torch.zeros(4, sum(w.numel() for w in method.weights()), dtype=torch.float64)
    for i in range(len(y)):
        f = method.predict(x[i : i + 1]).diff().squeeze()
        residual = 2 * (float(f.detach()) - (2 * int(y[i]) - 1))
        expected[g[i]] += residual * flat_gradient(method, f) / int((g == g[i]).sum())
    s = gram_of(splits, method)
    assert torch.allclose(s.gram[:4, :4], expected @ expected.T, rtol=1e-8)


def test_at_the_start_of_a_network_that_says_nothing_all_is_static():
    splits, method = setting()
    with torch.no_grad():
        method.head.last.weight.zero_()
        method.head.last.bias.zero_()
    found = measured(StaticDynamic(), splits, method)
    for pair in MINORITIES:
        assert float(found[f"A/{pair}"]) == pytest.approx(float(found[f"total/{pair}"]))
        assert abs(float(found[f"B/{pair}"])) < 1e-12
        assert abs(float(found[f"C/{pair}"])) < 1e-12


@pytest.mark.parametrize("loss", ["logistic", "mse", "cross_entropy"])
def test_one_backward_pass_over_linear_layers_gives_what_two_give(loss, monkeypatch):
    splits, method = setting("backbone.skip=true", "backbone.depth=3", loss=loss, train=2)
    served = []
    add = statistics._Vectors.add_products
    monkeypatch.setattr(
        statistics._Vectors,
        "add_products",
        lambda *arguments: served.append(1) or add(*arguments),
    )
    one = gram_of(splits, method)
    assert len(served) == sum(-(-int(n) // 64) for n in splits["train"].group_counts)
    monkeypatch.setattr(statistics.LinearLayers, "of", lambda self, weights: [])
    two = gram_of(splits, method)
    assert torch.allclose(one.gram, two.gram, rtol=1e-10)


def test_networks_of_other_layers_have_their_own_gradients():
    """Convolutions, batch norm: the weights are not all those of linear layers."""
    cfg = read("dataset.num_train=60", "train.loss=logistic")
    splits, method = build.build(cfg)
    method.eval()
    gradients, m, _ = direct(splits, method)
    s = gram_of(splits, method)
    vectors = torch.cat([gradients, m])
    scale = torch.outer(vectors.norm(dim=1), vectors.norm(dim=1))
    assert float(((s.gram - vectors @ vectors.T) / scale).abs().max()) < 1e-5


def test_a_weight_that_is_used_twice_is_not_a_layer_of_its_own():
    splits, method = setting("backbone.depth=3", train=1)
    method.backbone.hidden[2].weight = method.backbone.hidden[1].weight
    gradients, m, _ = direct(splits, method)
    s, vectors = gram_of(splits, method), torch.cat([gradients, m])
    assert torch.allclose(s.gram, vectors @ vectors.T, rtol=1e-8)


def test_a_weight_that_is_used_elsewhere_too_is_not_that_of_a_layer_alone():
    splits, method = setting(train=1)
    last = method.backbone.layers[-1]

    def forward(x):
        z = method.backbone.activations(x, [last])[last]
        return z * method.backbone.hidden[0].weight.square().mean()

    method.backbone.forward = forward
    gradients, m, _ = direct(splits, method)
    s, vectors = gram_of(splits, method), torch.cat([gradients, m])
    assert torch.allclose(s.gram, vectors @ vectors.T, rtol=1e-8)


def test_chunks_do_not_matter_and_requests_of_the_same_samples_are_one_pass():
    splits, method = setting(train=2)
    whole = gram_of(splits, method)
    in_parts = collect_one(Request("train", None, 7, True, True), method, splits)
    assert torch.allclose(whole.gram, in_parts.gram, rtol=1e-10)
    calls = []
    predict = method.predict
    method.predict = lambda x: calls.append(len(x)) or predict(x)
    wanted = [*GradientBasis().requests(), *JacobianNorm().requests(), *OutputMoments().requests()]
    (found,) = collect(wanted, method, splits).values()
    assert sum(calls) == len(splits["train"])
    assert torch.allclose(whole.gram, found.gram, rtol=1e-10)


def test_an_analysis_keeps_the_products_of_its_own_vectors_whatever_others_ask_for():
    splits, method = setting(train=2)
    chosen = (GradientBasis(), JacobianNorm(), StaticDynamic())
    found = collect([r for one in chosen for r in one.requests()], method, splits)
    together = [one.measure(method, splits, found)["gram/train"] for one in chosen]
    whole = gram_of(splits, method).gram
    for gram, rows in zip(together, (slice(4), slice(4, 8), slice(8)), strict=True):
        assert torch.allclose(gram, whole[rows, rows], rtol=1e-10)
    alone = [measured(one, splits, method)["gram"] for one in chosen]
    assert all(map(torch.allclose, together, alone))


def test_large_images_are_read_a_few_at_a_time(monkeypatch):
    splits, method = setting()
    sizes = []
    predict = method.predict
    method.predict = lambda x: sizes.append(x.shape[0]) or predict(x)
    (request,) = OutputMoments().requests()
    whole = splits["train"].group_counts.tolist()
    collect_one(request, method, splits)
    assert sizes == whole
    sizes.clear()
    image = everything(splits)[0][0].numel()
    monkeypatch.setattr(statistics, "VALUES", 10 * image + 1)
    collect_one(request, method, splits)
    assert max(sizes) == 10
    assert sum(sizes) == sum(whole)
    sizes.clear()
    monkeypatch.setattr(statistics, "VALUES", image - 1)
    collect_one(request, method, splits)
    assert sizes == [1] * sum(whole)


def test_a_part_of_the_samples_is_the_same_part_every_time():
    splits, method = setting(train=2)
    request = Request("train", 5, 64, True, False)
    calls = []
    predict = method.predict
    method.predict = lambda x: calls.append(x) or predict(x)
    first, second = (collect_one(request, method, splits) for _ in range(2))
    assert [len(x) for x in calls[:4]] == [5, 3, 3, 5]
    assert torch.equal(first.gram, second.gram)
    assert torch.equal(first.count, splits["train"].group_counts)  # pi is of the whole split
    torch.manual_seed(1)
    assert torch.equal(collect_one(request, method, splits).gram, first.gram)


def test_the_terms_of_more_classes_and_attributes_add_up():
    torch.set_num_threads(1)
    spec = GroupSpec(("a", "b", "c"), ("x", "y"), (0, 1, 0))
    share = torch.tensor([0.4, 0.1, 0.05, 0.2, 0.05, 0.2]).double()
    uniform, marginals, correlation = term_weights(spec, share)
    assert torch.allclose(uniform + marginals + correlation, share)
    assert torch.allclose(uniform, torch.full((6,), 1 / 6).double())
    # pi_a = 0.5, pi_x = 0.5
    assert float(marginals[0]) == pytest.approx(0.25 - 1 / 6)
    assert float(correlation[0]) == pytest.approx(0.4 - 0.25)
    assert pairs_of(spec, None, same_class=False) == {
        "a/y-a/x": (1, 0), "b/x-b/y": (2, 3), "c/y-c/x": (5, 4)
    }  # fmt: skip


def many_classes(small_root):
    cfg = read(
        "dataset=dominoes", "dataset.pool_size=100", "backbone=mlp", "backbone.width=8",
        f"paths.data={small_root}",
    )  # fmt: skip
    return build.build(cfg)


def test_more_than_two_classes(small_root):
    """Norms and rates hold; what needs a scalar f says so."""
    splits, method = many_classes(small_root)
    basis = measured(GradientBasis(chunk_size=1000), splits, method)
    s = collect_one(Request("train", None, 1000, True, False), method, splits)
    if bool((s.count > 0).all()):
        squares = sum(basis[f"norm_{name}"] ** 2 for name in ("inv", "Y", "A", "AY"))
        mean = sum(float(s.gram[g, g]) for g in range(len(s.count))) / len(s.count)
        assert float(squares) == pytest.approx(mean, rel=1e-6)
    assert "cos_inv_Y" not in basis
    gaps = measured(GapDynamics(chunk_size=1000), splits, method)
    for key, total in gaps.items():
        if key.startswith("total/") and torch.isfinite(total):
            terms = [gaps[key.replace("total", t)] for t in ("uniform", "marginals", "correlation")]
            if all(torch.isfinite(term) for term in terms):
                assert float(sum(terms)) == pytest.approx(float(total), rel=1e-4, abs=1e-9)
    for analysis in (JacobianNorm(), StaticDynamic(), OutputMoments()):
        with pytest.raises(ValueError, match="two classes, but this data set has"):
            analysis.check(method, splits)
    GradientBasis().check(method, splits)


def test_an_empty_group_is_nan_and_named(caplog):
    splits, method = setting("dataset.drop_groups=[small/green]", dtype=torch.float64)
    with caplog.at_level(logging.WARNING, "spurcor"):
        GapDynamics().check(method, splits)
    assert "small/green in train; " in caplog.text
    gaps = measured(GapDynamics(), splits, method)
    assert torch.isnan(gaps["total/small/green-small/red"])
    assert torch.isfinite(gaps["total/large/red-large/green"])  # of groups that are there
    assert torch.isnan(gaps["uniform/large/red-large/green"])
    x, y, g = everything(splits)
    losses = [method.losses(method.predict(x[g == k]), y[g == k]).mean() for k in (2, 3)]
    delta = flat_gradient(method, losses[1]) - flat_gradient(method, losses[0])
    close(gaps["total/large/red-large/green"], delta @ erm_gradient(splits, method))
    moments = measured(OutputMoments(), splits, method)
    assert torch.isnan(moments["mean/small/green"])
    assert torch.isnan(moments["gap/small"])
    assert torch.isfinite(moments["gap/large"])
    assert torch.isfinite(moments["mean/small/red"])


def test_what_is_asked_wrongly_is_told(caplog):
    splits, method = setting()
    with caplog.at_level(logging.WARNING, "spurcor"):
        GradientBasis(epochs=(10, 60, 70)).check(method, splits)
    assert "GradientBasis: epochs=[60, 70] " in caplog.text
    with pytest.raises(UserError, match="pairs: small/blue "):
        GapDynamics(pairs=(("small/red", "small/blue"),)).check(method, splits)
    with pytest.raises(UserError, match="pairs: small/red and large/red "):
        StaticDynamic(pairs=(("small/red", "large/red"),)).check(method, splits)
    with pytest.raises(UserError, match="no other split"):
        GradientBasis(splits=("other split",)).check(method, splits)
    with pytest.raises(UserError, match=r"epochs=\[2, -1\] must not be negative"):
        build.validate(read("analysis=output_moments", "analysis.output_moments.epochs=[2,-1]"))
    with pytest.raises(ValueError, match="every=0"):
        GradientBasis(every=0)
    assert not GradientBasis(epochs=()).measures
    assert [e for e in range(8) if GradientBasis(every=3).due(e)] == [0, 3, 6]
    assert [e for e in range(8) if GradientBasis(epochs=(2, 5)).due(e)] == [2, 5]


# --- in runs --------------------------------------------------------------------------------------


def execute(tmp_path, *options):
    cfg = read("backbone=mlp", "tracker=none", "dfr=none", f"paths.outputs={tmp_path}", *options)
    assert runs.execute(cfg, Terminal()).status == "done"
    return cfg


def stored(cfg, name):
    (path,) = cfg.directory.glob(f"analysis/{name}-*/arrays.npz")
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.parametrize(("method", "term"), [("erm", "total"), ("iw", "uniform")])
def test_a_gap_moves_as_the_terms_say(method, term, tmp_path):
    """Under ERM by their sum; importance weighting at full batch is the flow of v_inv."""
    cfg = execute(
        tmp_path, f"method={method}", *FLOW, "train.loss=logistic", "method.epochs=6",
        "analysis=gap_dynamics",
    )  # fmt: skip
    found = stored(cfg, "gap_dynamics")
    assert found["epoch"].tolist() == list(range(7))
    for pair, (one, other) in MINORITIES.items():
        gap = found["loss/train"][:, one] - found["loss/train"][:, other]
        rate = np.diff(gap) / 0.01
        between = (found[f"{term}/{pair}/train"][1:] + found[f"{term}/{pair}/train"][:-1]) / 2
        np.testing.assert_allclose(rate, between, rtol=2e-2)
        other_term = "uniform" if term == "total" else "total"
        assert not np.allclose(rate, found[f"{other_term}/{pair}/train"][1:], rtol=0.2)


def test_stored_weights_give_the_numbers_of_training(tmp_path):
    options = ("method.epochs=3", "train.keep_epochs=[1,2]", "dataset.num_train=150")
    during = execute(tmp_path, *options, ALL, "train.selection=val/loss")
    after = execute(tmp_path / "again", *options, "train.selection=val/loss")
    assert not list(after.directory.glob("analysis/*"))
    execute(tmp_path / "again", *options, ALL, "train.selection=val/loss")
    for name in during.analysis:
        first, second = stored(during, name), stored(after, name)
        assert second["epoch"].tolist() == [1, 2, 3]
        assert second["step"].tolist() == first["step"].tolist()[1:]
        for key, values in second.items():
            np.testing.assert_array_equal(values, first[key][1:])
        assert list(during.directory.glob(f"analysis/{name}-*/plots/{name}-train.png"))
    last = rows_of(during.directory)[-1]
    (part,) = (
        p for n, p in read_json(after.directory / "result.json")["analysis"].items()
        if n.startswith("gradient_basis")
    )  # fmt: skip
    assert part["last"]["values"]["norm_inv/train"] == last["gradient_basis/norm_inv/train"]


def test_stored_weights_are_differentiated_under_the_masks_that_they_were_trained_under(tmp_path):
    options = (*PRUSC, "method.prune_lr=2", "method.lambda_sparse=0", "train.keep_epochs=[1]")
    during = execute(tmp_path, *options, "analysis=[gap_dynamics,jacobian_norm]")
    assert read_json(during.directory / "gates.json")["kept"] < 0.99
    after = execute(tmp_path / "again", *options)
    execute(tmp_path / "again", *options, "analysis=[gap_dynamics,jacobian_norm]")
    for name in during.analysis:
        first, second = stored(during, name), stored(after, name)
        assert second["epoch"].tolist() == [1, 2]
        assert first["phase"][-2:].tolist() == ["retrain", "retrain"]
        for key, values in second.items():
            np.testing.assert_array_equal(values, first[key][-2:], err_msg=key)


def test_weights_that_other_masks_left_are_refused(tmp_path):
    net = torch.nn.Linear(3, 2)
    gates.attach(net, "raw")
    (gate,) = gates.gates_of(net).values()
    torch.nn.init.constant_(gate.logit[0], -1.0)
    net.eval()
    checkpoint.save_weights(tmp_path / "w.safetensors", checkpoint.snapshot(net))
    before = net.weight.detach().clone()
    torch.nn.init.zeros_(net.parametrizations.weight.original)
    checkpoint.load_under(net, tmp_path / "w.safetensors")
    assert torch.equal(net.weight, before)
    torch.nn.init.constant_(gate.logit[1], -1.0)
    with pytest.raises(UserError, match="masks"):
        checkpoint.load_under(net, tmp_path / "w.safetensors")


NAMED = ("gradient_basis", "gap_dynamics", "jacobian_norm", "static_dynamic", "output_moments")
BOTH = (ALL, *(f"analysis.{name}.splits=[train,val]" for name in NAMED))


@pytest.mark.parametrize("network", ["mlp", "small_cnn"])  # of linear layers alone, and not
def test_a_compiled_network_has_the_numbers_of_another(network, tmp_path, monkeypatch):
    torch._dynamo.reset()
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **_: compile_(f, backend="eager"))
    found = []
    for compiled in ("false", "true"):
        cfg = read(
            f"backbone={network}", "dataset.num_train=150", "method.epochs=2", *FLOW,
            f"train.compile={compiled}", "analysis=static_dynamic",
        )  # fmt: skip
        folder = tmp_path / compiled
        folder.mkdir()
        trainer, method = trainer_of(cfg, folder)
        assert (method.backbone._compiled_call_impl is not None) == (compiled == "true")
        tried = torch._dynamo.utils.counters["frames"]["total"]
        collect(StaticDynamic().requests(), method.eval(), trainer.context.splits)
        assert (
            torch._dynamo.utils.counters["frames"]["total"] == tried
        )  # nothing is compiled for it
        trainer.fit(method)
        (series,) = trainer.analyses.series.values()
        found.append(series.stacked())
    assert found[0]["A/large/red-large/green/train"].shape == (3,)
    for key, values in found[0].items():
        torch.testing.assert_close(found[1][key], values, rtol=1e-4, atol=1e-6)


def test_nothing_is_said_of_val_in_a_phase_that_trains_on_it(tmp_path, caplog):
    options = (*PRUSC, "method.retrain_epochs=1", "method.retrain_on=val")
    with caplog.at_level(logging.WARNING, "spurcor"):
        during = execute(tmp_path, *options, *BOTH)
    assert "retrain trains on val; GradientBasis " in caplog.text
    after = execute(tmp_path / "again", *options)
    execute(tmp_path / "again", *options, *BOTH)
    for name in during.analysis:
        first, second = stored(during, name), stored(after, name)
        assert second["phase"].tolist() == ["retrain"]
        for key, values in first.items():
            _, _, split = key.rpartition("/")
            if split in ("train", "val") and not key.startswith("count"):
                told = [p != "retrain" or split == "train" for p in first["phase"]]
                finite = np.isfinite(values).reshape(len(told), -1)
                assert finite.any(axis=1).tolist() == told
                assert finite.all(axis=1).tolist() == told
            np.testing.assert_array_equal(second[key], values[-1:], err_msg=key)
    rows = [row["gradient_basis/norm_inv/val"] for row in rows_of(during.directory)]
    assert [row is None for row in rows[-3:]] == [False, True, True]


def test_the_command_analyses_a_finished_run(command_line, tmp_path):
    cfg = execute(tmp_path, "method.epochs=2")
    command = (f"run={cfg.directory}", f"paths.outputs={tmp_path}", "tracker=none")
    ended = command_line.run("analyze", *command, "analysis=[jacobian_norm,output_moments]")
    assert ended.code == 0, ended.err
    assert stored(cfg, "jacobian_norm")["epoch"].tolist()[-1] == 2
    again = command_line.run("analyze", *command, "analysis=[jacobian_norm,output_moments]")
    assert "this analysis was done before" in again.out
    nothing = command_line.run("analyze", *command)
    assert nothing.code == 2
    assert "analysis=none " in nothing.err


def flow_of(moments, values, *options):
    """What is measured beside the terms, at moments (phase, epoch, step)."""
    cfg = read("backbone=mlp", *options)
    _, method = build.build(cfg)
    series = Series()
    series.moments = [Moment(*moment) for moment in moments]
    ended = FinishedRun(Path(), Path(), cfg, {}, method, series)
    return flow_rate(ended, torch.tensor(values, dtype=torch.float64))


ERM = [("erm", 0, 0), ("erm", 1, 1), ("erm", 3, 3)]


def test_only_plain_gradient_descent_is_compared_with_the_flow():
    found = flow_of(ERM, [1.0, 1.5, 0.5], *FLOW)
    assert found == ([0.5, 2.0], [pytest.approx(50.0), pytest.approx(-50.0)])
    assert flow_of(ERM[:1], [1.0], *FLOW) is None
    for other in ("train.batch_size=64", "optimizer.momentum=0.9", "optimizer.weight_decay=0.1"):
        assert flow_of(ERM, [1.0, 1.5, 0.5], *FLOW, other) is None
    assert flow_of(ERM, [1.0, 1.5, 0.5]) is None  # Adam, in batches
    scale = [("scale", epoch, step) for _, epoch, step in ERM]
    assert flow_of(scale, [1.0, 1.5, 0.5], *FLOW, "method=scale") == found


def test_phases_at_a_rate_of_their_own_are_not_compared_with_the_flow():
    """Gates are learnt by Adam, and nothing is trained between the last epoch and the next's 0."""
    later = [("prune", 0, 3), ("prune", 1, 4), ("retrain", 0, 4), ("retrain", 1, 5)]
    values = [1.0, 1.5, 0.5, 0.5, 9.0, 9.0, 7.0]
    found = flow_of([*ERM, *later], values, *FLOW, "method=prusc")
    assert found == ([0.5, 2.0], [pytest.approx(50.0), pytest.approx(-50.0)])
    assert flow_of(later, values[3:], *FLOW, "method=prusc") is None
    finetune = [("erm", 0, 0), ("erm", 1, 1), ("finetune", 0, 1), ("finetune", 1, 2)]
    options = (*FLOW, "method=masktune", "method.finetune_lr=0.1", "backbone=small_cnn")
    assert flow_of(finetune, values[:4], *options) == ([0.5], [pytest.approx(50.0)])
