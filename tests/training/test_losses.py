"""Losses of single samples, the heads they are of, and what a run makes of `train.loss`."""

import math

import pytest
import torch
from test_methods import make_batch, make_context, make_split
from torch.nn import functional as F
from training import read, rows_of, trainer_of

from spurcor.backbones.mlp import Mlp
from spurcor.config.check import check
from spurcor.data.groups import DataInfo, GroupSpec
from spurcor.errors import UserError
from spurcor.methods.erm import Erm
from spurcor.methods.group_dro import GroupDro
from spurcor.methods.iw import ImportanceWeighting
from spurcor.models.losses import ScalarHead, make_head
from spurcor.runs import build
from spurcor.training.losses import sample_losses

LOSSES = ("cross_entropy", "logistic", "mse")
TWO = GroupSpec(("a", "b"), ("x", "y"), aligned=(0, 1))
LABELS = GroupSpec(("a", "b"), (), task="multilabel")


def make_info(loss, spec=TWO):
    counts = torch.full((spec.num_groups,), 5)
    return DataInfo(spec, (1, 2, 2), counts, loss)


def make(kind, loss, **options):
    torch.manual_seed(0)
    info = make_info(loss)
    return kind(Mlp(info, width=5, depth=1, **options), info, epochs=2)


def test_losses_by_hand():
    f = [3.0, -0.5, 0.25]
    logits, y = torch.tensor([[-v / 2, v / 2] for v in f]), torch.tensor([0, 1, 1])
    signs = [-1, 1, 1]
    logistic = [math.log(1 + math.exp(-s * v)) for s, v in zip(signs, f, strict=True)]
    mse = [(v - s) ** 2 for s, v in zip(signs, f, strict=True)]
    assert sample_losses(logits, y, TWO, "logistic").tolist() == pytest.approx(logistic)
    assert sample_losses(logits, y, TWO, "cross_entropy").tolist() == pytest.approx(logistic)
    assert sample_losses(logits, y, TWO, "mse").tolist() == pytest.approx(mse)
    free = torch.tensor([[1.0, 3.0], [0.0, -1.0]])
    expected = [math.log(1 + math.exp(2)), math.log(1 + math.exp(1))]
    found = sample_losses(free, torch.tensor([0, 1]), TWO, "cross_entropy")
    assert found.tolist() == pytest.approx(expected)
    assert sample_losses(free, torch.tensor([0, 1]), TWO, "mse").tolist() == [9.0, 4.0]


def test_labels_have_the_mean_of_their_binary_losses():
    logits, y = torch.tensor([[2.0, -1.0]]), torch.tensor([[1, 1]])
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    assert float(sample_losses(logits, y, LABELS, "cross_entropy")) == pytest.approx(expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_head_of_a_loss(loss):
    method, batch = make(Erm, loss), make_batch()
    logits, z = method.predict(batch.x), method.backbone(batch.x)
    assert logits.shape == (20, 2)
    if loss == "cross_entropy":
        torch.testing.assert_close(logits, z @ method.head.weight.T + method.head.bias)
        return
    assert isinstance(method.head, ScalarHead)
    f = (z @ method.head.last.weight.T + method.head.last.bias)[:, 0]
    assert method.head.last.weight.shape == (1, 5)
    torch.testing.assert_close(logits[:, 1] - logits[:, 0], f)
    torch.testing.assert_close(logits.sum(1), torch.zeros(20))
    y = 2.0 * batch.y - 1
    expected = F.softplus(-y * f) if loss == "logistic" else (f - y) ** 2
    torch.testing.assert_close(method.losses(logits, batch.y), expected)


@pytest.mark.parametrize("parametrization", ["standard", "mup", "ntp"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", [Erm, ImportanceWeighting, GroupDro])
def test_a_loss_moves_every_weight_by_its_gradient_and_falls(kind, loss, parametrization):
    batch = make_batch()
    method = make(kind, loss, parametrization=parametrization)
    twin = make(kind, loss, parametrization=parametrization)
    y = 2.0 * batch.y - 1

    def by_hand(net):
        logits = net.predict(batch.x)
        f = logits[:, 1] - logits[:, 0]
        return {
            "cross_entropy": lambda: -logits.log_softmax(1)[range(20), batch.y],
            "logistic": lambda: torch.log1p((-y * f).exp()),
            "mse": lambda: f**2 - 2 * y * f + 1,
        }[loss]()

    grads = torch.autograd.grad(twin.reduce(by_hand(twin), batch), twin.weights())
    expected = [w - 0.01 * g for w, g in zip(twin.weights(), grads, strict=True)]
    before = by_hand(method).mean().item()
    (phase,) = method.phases()
    context = make_context(make_split(), lr=0.01, momentum=0.0, weight_decay=0.0)
    phase.setup(context)
    feed = phase.streams(context)["train"].start(0)
    logged = phase.step({"train": next(feed)})
    assert float(logged["loss"]) == pytest.approx(before, rel=1e-5)
    for weight, other, first in zip(method.weights(), expected, twin.weights(), strict=True):
        torch.testing.assert_close(weight.detach(), other, atol=1e-6, rtol=1e-4)
        assert not torch.equal(weight, first)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_fixed_final_layer_is_not_trained(loss):
    method = make(Erm, loss, parametrization="mup", fix_final_layer=True)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    (phase,) = method.phases()
    context = make_context(make_split(), lr=0.1, momentum=0.0, weight_decay=0.1)
    phase.setup(context)
    phase.step({"train": next(phase.streams(context)["train"].start(0))})
    changed = {n for n, v in method.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"backbone.hidden.0.weight"}


@pytest.mark.parametrize("loss", ["logistic", "mse"])
def test_more_than_two_classes_are_refused(loss):
    three = GroupSpec(("a", "b", "c"), ("x",))
    ten = GroupSpec(tuple("abcdefghij"), (), task="multilabel")
    for spec, what in ((three, "3 classes"), (ten, "10 labels"), (LABELS, "2 labels")):
        info = make_info(loss, spec)
        match = rf"train\.loss={loss} .* {what}; .*train\.loss=cross_entropy"
        with pytest.raises(UserError, match=match):
            make_head(Mlp(info, 4, 1), info)
        info = make_info("cross_entropy", spec)
        assert make_head(Mlp(info, 4, 1), info).out_features == spec.num_classes


@pytest.mark.parametrize("loss", ["logistic", "mse"])
def test_a_run_trains_and_evaluates_by_its_loss(loss, tmp_path):
    cfg = read("backbone=mlp", "method.epochs=2", f"train.loss={loss}", "dataset.tint=0")
    trainer, method = trainer_of(cfg, tmp_path)
    assert method.loss == loss
    assert isinstance(method.head, ScalarHead)
    trainer.fit(method)
    row = rows_of(tmp_path)[-1]
    split = trainer.context.splits["val"]
    with torch.no_grad():
        x = trainer.context.splits.transform(split.fetch(torch.arange(len(split))).x)
        logits = method.eval().predict(x)
    f, y = logits[:, 1] - logits[:, 0], 2.0 * split.y - 1
    expected = F.softplus(-y * f) if loss == "logistic" else (f - y) ** 2
    assert row["val/loss"] == pytest.approx(float(expected.mean()), rel=1e-4)
    assert row["train/loss"] < rows_of(tmp_path)[0]["train/loss"]


def test_the_loss_is_part_of_a_run_s_identity_unless_it_is_the_default():
    runs_ = [read("backbone=mlp", *extra) for extra in ([], ["train.loss=cross_entropy"])]
    assert runs_[0].identity == runs_[1].identity
    others = {read("backbone=mlp", f"train.loss={loss}").identity for loss in LOSSES}
    assert len(others) == 3
    assert runs_[0].settings["train.loss"] == "cross_entropy"


def test_a_run_of_before_there_were_losses_still_opens(tmp_path):
    from spurcor.config.nodes import plain
    from spurcor.config.schema import TrainConfig

    cfg = read("backbone=mlp")
    tree = plain(cfg)
    del tree["train"]["loss"]
    assert check(tree, TrainConfig).identity == cfg.identity


def test_an_unknown_loss_is_told():
    with pytest.raises(UserError, match=r"train\.loss=logistics .*did you mean logistic\?"):
        read("train.loss=logistics")


def test_ten_classes_are_told_when_a_run_is_built():
    info = make_info("mse", GroupSpec(("a", "b", "c"), ("x",)))
    with pytest.raises(UserError, match=r"train\.loss=mse "):
        Erm(Mlp(info, 4, 1), info, epochs=1)
    assert build.build(read("backbone=mlp", "train.loss=mse"))[1].loss == "mse"
