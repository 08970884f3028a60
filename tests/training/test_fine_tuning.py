"""Options for fine-tuning: what is trained, how fast, in how many parts, by which weights."""

import random

import numpy as np
import pytest
import torch
from killing import Battle, Command
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from training import read

from spurcor.data.groups import Batch, DataInfo, GroupSpec
from spurcor.errors import UserError
from spurcor.runs import build
from spurcor.runs.refusals import refuse_split_batches
from spurcor.training.losses import class_weight, sample_losses
from spurcor.training.schedules import Warmup

SGD = ("optimizer=sgd", "optimizer.lr=0.5", "optimizer.momentum=0", "optimizer.weight_decay=0")
CNN = ("backbone=small_cnn", *SGD)


def started(tmp_path, *options, method="erm"):
    """A method and its first phase, ready to make a step, and batches of 32 real digits."""
    config = read(f"method={method}", "train.num_threads=1", f"paths.outputs={tmp_path}", *options)
    splits, made = build.build(config)
    phase = made.phases()[0]
    context = build.context_of(config, splits, tmp_path)
    phase.setup(context)
    made.train()
    batches = {}
    for role, split in (("train", "train"), ("target", "target")):
        raw = splits[split].fetch(torch.arange(32))
        batches[role] = Batch(splits.transform(raw.x), raw.y, raw.a, raw.g, raw.index)
    return made, phase, batches


def stepped(tmp_path, *options, **of):
    """Every tensor of the method before and after one step."""
    made, phase, batches = started(tmp_path, *options, **of)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    phase.step(batches)
    return before, made.state_dict(), made


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


# --- what is trained ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trainable", "kept"),
    [
        ("none", ("backbone.",)),
        ("last_block", ("backbone.block1.",)),
        ("block2", ("backbone.block1.",)),
        ("hidden", ("backbone.block1.", "backbone.block2.")),
        ("block1", ()),
    ],
)
def test_the_rest_is_frozen_with_its_statistics(trainable, kept, tmp_path):
    before, after, made = stepped(tmp_path, *CNN, f"+backbone.trainable={trainable}")
    assert moved(before, after) == {name for name in before if not name.startswith(kept or ("-",))}
    made.eval()
    made.train()
    training = {
        f"backbone.{name}": part.training
        for name, part in made.backbone.named_modules()
        if isinstance(part, nn.BatchNorm2d)
    }
    assert training == {name: not name.startswith(kept or ("-",)) for name in training}
    frozen = [n for n, p in made.named_parameters() if not p.requires_grad]
    assert all(name.startswith(kept or ("-",)) for name in frozen)


def test_every_backbone_knows_its_last_block():
    info = DataInfo(GroupSpec(("a", "b"), ("x",)), (3, 32, 32), torch.ones(2))
    for name, trained in (
        ("resnet18", "layer4."),
        ("resnet32", "layer3."),
        ("vit_b_16", None),
    ):
        node = read(f"backbone={name}", *(["backbone.pretrained=none"] * (name != "resnet32")))
        backbone = node.backbone.build(info=info)
        backbone.trainable = "last_block"
        backbone.freeze(info.shape)
        free = [n for n, p in backbone.named_parameters() if p.requires_grad]
        if trained is None:
            assert all(n.startswith(("blocks.11.", "norm.")) for n in free)
            assert any(n.startswith("blocks.11.") for n in free)
        else:
            assert free
            assert all(n.startswith(trained) for n in free)


def test_an_unknown_layer_to_train_is_told(tmp_path):
    with pytest.raises(UserError, match="layer=block9 does not exist; choose one of block1"):
        started(tmp_path, *CNN, "+backbone.trainable=block9")


# --- how fast -------------------------------------------------------------------------------------


def test_the_backbone_learns_at_its_own_rate(tmp_path):
    mlp = ("backbone=mlp", *SGD)
    before, whole, _ = stepped(tmp_path, *mlp)
    same, tenth, _ = stepped(tmp_path, *mlp, "train.backbone_lr_factor=0.1")
    for name, value in before.items():
        assert torch.equal(value, same[name])
        factor = 0.1 if name.startswith("backbone.") else 1.0
        torch.testing.assert_close(tenth[name] - value, factor * (whole[name] - value))


def test_a_phase_with_a_rate_of_its_own_keeps_the_factor(tmp_path):
    _, phase, _ = started(tmp_path, "backbone=mlp", *SGD, "train.backbone_lr_factor=0.1")
    phase.lr = 0.2
    config = read("backbone=mlp", *SGD, "train.backbone_lr_factor=0.1")
    phase.setup(build.context_of(config, build.build(config)[0], tmp_path))
    assert [group["lr"] for group in phase.optimizer.param_groups] == pytest.approx([0.02, 0.2])


def test_warm_up_by_hand():
    weight = nn.Parameter(torch.zeros(1))
    rates = {}
    for then in ("cosine", "constant"):
        optimizer = torch.optim.SGD([weight], lr=1.0)
        schedule = Warmup(optimizer, T_max=6, warmup_epochs=2, then=then)
        rates[then] = []
        for _ in range(6):
            rates[then].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
    half = 2**-0.5 / 2
    assert rates["cosine"] == pytest.approx([1 / 3, 2 / 3, 1.0, 0.5 + half, 0.5, 0.5 - half])
    assert rates["constant"] == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])


def test_the_gradient_is_clipped(tmp_path):
    before, after, _ = stepped(tmp_path, "backbone=mlp", *SGD, "train.clip_norm=0.01")
    step = torch.cat([(after[name] - before[name]).flatten() for name in before])
    assert float(step.norm()) == pytest.approx(0.5 * 0.01, rel=1e-3)


# --- in parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["erm", "iw", "erm_target", "scale"])
@pytest.mark.parametrize("parts", [3, 32, 40])
def test_parts_of_a_batch_make_the_update_of_the_whole(method, parts, tmp_path):
    """Without batch norm, which sees what is computed together."""
    _, whole, _ = stepped(tmp_path, "backbone=mlp", *SGD, method=method)
    _, split, _ = stepped(
        tmp_path, "backbone=mlp", *SGD, f"train.accumulate={parts}", method=method
    )
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["group_dro", "prusc"])
def test_updates_that_need_the_whole_batch_refuse_parts(method, tmp_path):
    config = read(f"method={method}", "backbone=mlp", "train.accumulate=2")
    made = build.build(config)[1]
    with pytest.raises(UserError, match=r"train\.accumulate=2: phase \w+ needs whole batches"):
        refuse_split_batches(config.train, made.phases())


# --- weights of classes ---------------------------------------------------------------------------


def info_of(counts, weights):
    spec = GroupSpec(("a", "b", "c"), ("x", "y"))
    return DataInfo(spec, (3, 8, 8), torch.tensor(counts), class_weights=weights)


def test_balanced_weights_are_those_of_scikit_learn():
    weight = class_weight(info_of([10, 20, 5, 0, 1, 4], "balanced"))
    labels = [0] * 30 + [1] * 5 + [2] * 5
    assert weight.tolist() == pytest.approx(
        compute_class_weight("balanced", classes=np.arange(3), y=labels)
    )
    assert class_weight(info_of([1, 1, 0, 0, 1, 1], "balanced")).tolist() == pytest.approx(
        [2 / 3, 0, 2 / 3]
    )


def test_weights_multiply_the_losses_of_their_class(tmp_path):
    made, _, batches = started(tmp_path, "backbone=mlp", "train.class_weights=[0.5,3]")
    batch = batches["train"]
    logits = made.predict(batch.x)
    plain = sample_losses(logits, batch.y, made.spec, "cross_entropy")
    assert torch.equal(made.losses(logits, batch.y), torch.tensor([0.5, 3.0])[batch.y] * plain)
    assert "class_weight" not in made.state_dict()


def test_weights_of_classes_move_what_is_learnt(tmp_path):
    _, plain, _ = stepped(tmp_path, "backbone=mlp", *SGD)
    _, weighted, _ = stepped(tmp_path, "backbone=mlp", *SGD, "train.class_weights=[1,0]")
    assert moved(plain, weighted) == set(plain)


def test_weights_that_do_not_fit_are_told():
    with pytest.raises(
        UserError, match=r"class_weights=\[1.0, 2.0\] has 2 numbers; .* 3 classes: a"
    ):
        class_weight(info_of([1] * 6, (1.0, 2.0)))
    with pytest.raises(UserError, match=r"train\.class_weights=\[-1.0\] must be"):
        read("train.class_weights=[-1]")


# --- resume ---------------------------------------------------------------------------------------

ALL = (
    "backbone=small_cnn", "+backbone.trainable=block2", "train.backbone_lr_factor=0.1",
    "train.class_weights=balanced", "train.clip_norm=1", "train.accumulate=2", "schedule=warmup",
    "schedule.warmup_epochs=3", "optimizer=adam",
)  # fmt: skip


def test_runs_with_all_of_them_go_on_after_kills_as_if_there_were_none(command_line, tmp_path):
    words = (
        "method=erm", "method.epochs=12", *ALL, "train.checkpoint_seconds=0.1",
        "train.num_threads=1", "tracker=none", "dfr=none", "paths.outputs={place}/outputs",
    )  # fmt: skip
    battle = Battle(command_line, tmp_path, Command("train", words), clock_percent=0)
    battle.make_peace()
    assert battle.fight(random.Random(5), kills=2, latest=0.7) > 0
    assert battle.findings == []


def test_a_phase_whose_own_setup_leaves_out_these_options_takes_whole_batches(tmp_path):
    made, phase, batches = started(tmp_path, *CNN)
    del phase.num_parts, phase.clip_norm  # as if `setup` had been written anew, without super()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    phase.step(batches)
    assert moved(before, made.state_dict())
