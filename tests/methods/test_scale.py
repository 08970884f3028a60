"""SCALE against a plain reference: one Python loop over tensors, groups and numbers."""

import copy
import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from training import read, rows_of, trainer_of

from spurcor.data.groups import Batch, DataInfo, GroupSpec, Split
from spurcor.methods.scale import GATES, Scale, combine, cosine
from spurcor.models.backbone import Backbone
from spurcor.runs import build
from spurcor.training.cosines import BINS
from spurcor.training.kernels import Groups

GATE = {
    "linear": lambda c: (c + 1) / 2,
    "relu": lambda c: max(c, 0.0),
    "identity": lambda c: c,
    "step": lambda c: 1.0 if c > 0 else 0.0,
}
SMALL = ("dataset.subset_size=64", "backbone=small_cnn", "train.batch_size=16", "method.epochs=2")


def groups_of(weight, group_size, channels):
    """Slices of the flattened tensor, as section 1.5 of the method's description has them."""
    if weight.dim() <= 2:
        return [slice(0, weight.numel())]
    kernel = weight.shape[2:].numel()
    num_kernels = weight.shape[0] * weight.shape[1]
    size = weight.shape[1] if weight.shape[1] == channels else min(group_size, num_kernels)
    return [
        slice(first * kernel, min(first + size, num_kernels) * kernel)
        for first in range(0, num_kernels, size)
    ]


def cosine_of(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    of_a, of_b = (max(math.sqrt(sum(x * x for x in values)), 1e-8) for values in (a, b))
    return dot / (of_a * of_b)


class Reference:
    """The same network, updated number by number in double precision where sums are taken."""

    def __init__(self, method, gate, group_size, lr, momentum, weight_decay):
        self.method = copy.deepcopy(method)
        self.gate, self.group_size = GATE[gate], group_size
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.buffers = {}

    def step(self, train, target):
        method = self.method
        backbone = dict(method.backbone.named_parameters())
        grads = []
        for batch, head in ((train, method.train_head), (target, method.head)):
            method.zero_grad(set_to_none=True)
            F.cross_entropy(head(method.backbone(batch.x)), batch.y).backward()
            grads.append({name: p.grad.clone() for name, p in backbone.items()})
            for weight in head.parameters():
                self.update(weight, weight.grad)
        means = []
        for name, weight in backbone.items():
            g_tr, g_ta = grads[0][name].flatten(), grads[1][name].flatten()
            d = g_ta.clone()
            cosines = []
            for part in groups_of(weight, self.group_size, 3):
                c = cosine_of(g_tr[part].double().tolist(), g_ta[part].double().tolist())
                cosines.append(c)
                d[part] = self.gate(c) * g_tr[part] + g_ta[part]
            self.update(weight, d.view_as(weight))
            if weight.dim() > 2:
                means.append(sum(cosines) / len(cosines))
        return sum(means) / len(means)

    def update(self, weight, d):
        with torch.no_grad():
            d = d + self.weight_decay * weight
            old = self.buffers.get(id(weight))
            self.buffers[id(weight)] = d if old is None else self.momentum * old + d
            weight -= self.lr * self.buffers[id(weight)]


def phase_of(*overrides):
    """A phase that is set up, and its streams."""
    cfg = read("method=scale", *SMALL, *overrides)
    torch.set_num_threads(1)
    splits, method = build.build(cfg)
    context = build.context_of(cfg, splits, None)
    (phase,) = method.phases()
    phase.setup(context)
    method.train()
    return method, phase, {role: s.start(0) for role, s in phase.streams(context).items()}


class Tiny(Backbone):
    """Two convolutions, batch norm and a linear layer, few enough to be updated one by one."""

    layers = ("hidden",)

    def __init__(self):
        super().__init__()
        self.kinds, self.dims = {"hidden": "vector"}, {"hidden": 6}
        self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.second, self.hidden = nn.Conv2d(4, 5, 3), nn.Linear(5 * 16, 6)

    def activations(self, x, layers):
        z = self.second(self.norm(self.first(x)).relu()).relu()
        return {"hidden": self.hidden(z.flatten(1)).relu()}

    def features(self, x, layers, pooling=None):
        return self.activations(x, layers)  # in double precision, which the others leave


def batch_of(x, y):
    return Batch(x, y, y, y, y)  # no step reads attributes, groups or positions


@pytest.mark.parametrize("group_size", [1, 3, 7, 64])
@pytest.mark.parametrize("gate", GATE)
def test_ten_steps_are_those_of_the_reference(gate, group_size):
    """Convolutions, batch norm and linear layers; momentum and weight decay."""
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
    torch.manual_seed(0)
    info = DataInfo(GroupSpec(("a", "b"), ("x", "y")), (3, 8, 8), torch.ones(4))
    method = Scale(Tiny(), info, epochs=1, gate=gate, group_size=group_size).double().train()
    (phase,) = method.phases()
    run = SimpleNamespace(
        optimizer=lambda weights: torch.optim.SGD(weights, **options),
        schedule=lambda optimizer, epochs: None,
        accumulate=1,
        clip_norm=None,
    )
    phase.setup(run)
    reference = Reference(method, gate, group_size, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        batches = {
            role: batch_of(
                torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64),
                torch.randint(2, (6,), generator=generator),
            )
            for role in ("train", "target")
        }
        expected = reference.step(batches["train"], batches["target"])
        logged = phase.step(batches)
        assert float(logged["cosine"]) == pytest.approx(expected, abs=1e-9)
    found, expected = method.state_dict(), reference.method.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0, msg=name)


# --- groups ---------------------------------------------------------------------------------------


def cosines(groups, g_tr, g_ta):
    """Of every group."""
    return torch.cat(
        [cosine(*pair) for pair in zip(groups.parts(g_tr), groups.parts(g_ta), strict=True)]
    )


def weighted(groups, g_tr, g_ta, gate):
    """The weight of every group, and the gradient that is followed."""
    d = g_ta.clone()
    pairs = zip(groups.parts(g_tr), groups.parts(d), strict=True)
    return torch.cat([gate(combine(*pair, gate)) for pair in pairs]), d


@pytest.mark.parametrize(
    ("shape", "group_size", "lengths"),
    [
        ((8, 4, 3, 3), 4, [36] * 8),
        ((8, 4, 3, 3), 5, [45] * 6 + [18]),  # 32 kernels: six groups of five, two left over
        ((8, 4, 3, 3), 1, [9] * 32),
        ((8, 4, 3, 3), 32, [288]),
        ((8, 4, 3, 3), 64, [288]),  # larger than the tensor
        ((6, 3, 5, 5), 64, [75] * 6),  # the first layer: a group is a filter
        ((8, 4, 1, 1), 4, [4] * 8),
        ((10, 7), 4, [70]),
        ((10,), 4, [10]),
    ],
)
def test_groups_by_hand(shape, group_size, lengths):
    weight = torch.zeros(shape)
    groups = Groups(weight, group_size, channels=3)
    assert groups.total == len(lengths)
    # A gradient that agrees with itself in one group only tells where that group is.
    begin = 0
    for i, length in enumerate(lengths):
        g = torch.zeros(weight.numel())
        g[begin : begin + length] = 1.0
        c = cosines(groups, g.view(shape), torch.ones(shape))
        assert [round(float(value), 5) for value in c] == [
            float(j == i) for j in range(len(lengths))
        ]
        begin += length
    assert begin == weight.numel()
    assert groups.too_large == (shape == (8, 4, 3, 3) and group_size == 64)


def test_a_cosine_by_hand():
    groups = Groups(torch.zeros(2, 2, 1, 2), 2, channels=3)
    g_tr = torch.tensor([[3.0, 4, 0, 0], [1, 2, 2, 0]]).view(2, 2, 1, 2)
    g_ta = torch.tensor([[4.0, 3, 0, 0], [-1, -2, -2, 0]]).view(2, 2, 1, 2)
    torch.testing.assert_close(cosines(groups, g_tr, g_ta), torch.tensor([24 / 25, -1.0]))
    _, combined = weighted(groups, g_tr, g_ta, lambda c: torch.tensor([0.5, 2.0]))
    expected = torch.tensor([[5.5, 5, 0, 0], [1, 2, 2, 0]]).view(2, 2, 1, 2)
    torch.testing.assert_close(combined, expected)


@pytest.mark.parametrize("lengths", [(1.0, 1.0), (1e-3, 1e-6), (1e-7, 1e-7), (1e-9, 1.0)])
def test_cosines_of_short_gradients_are_those_of_torch(lengths):
    """As its authors' code has them: a gradient counts as short only by itself."""
    shape, generator = (4, 2, 3, 3), torch.Generator().manual_seed(2)
    rows = torch.randn(4, 18, generator=generator)
    other = rows + torch.randn(4, 18, generator=generator)
    g_tr, g_ta = (n * F.normalize(g) for n, g in zip(lengths, (rows, other), strict=True))
    groups = Groups(torch.zeros(shape), 2, channels=3)
    found = cosines(groups, g_tr.view(shape), g_ta.view(shape))
    torch.testing.assert_close(found, nn.CosineSimilarity(dim=1)(g_tr, g_ta))
    assert found.max() > (0.05 if min(lengths) < 1e-8 else 0.5)


# --- the invariants of the update -----------------------------------------------------------------


def combined(g_tr, g_ta, gate, group_size=2):
    return weighted(Groups(g_ta, group_size, channels=3), g_tr, g_ta, GATES[gate])


G = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("gate", GATE)
def test_equal_gradients_add_up(gate):
    w, d = combined(G, G, gate)
    torch.testing.assert_close(w, torch.ones(4))
    torch.testing.assert_close(d, 2 * G)


@pytest.mark.parametrize(("gate", "weight"), list(zip(GATE, [0.0, 0.0, -1.0, 0.0], strict=True)))
def test_opposed_gradients(gate, weight):
    w, d = combined(-G, G, gate)
    torch.testing.assert_close(w, torch.full((4,), weight), atol=1e-6, rtol=0)
    torch.testing.assert_close(d, (1 - weight) * G, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("gate", "weight"), list(zip(GATE, [0.5, 0.0, 0.0, 0.0], strict=True)))
def test_orthogonal_gradients(gate, weight):
    g_tr, g_ta = torch.zeros(4, 2, 1, 1), torch.zeros(4, 2, 1, 1)
    g_tr[:, 0], g_ta[:, 1] = 3.0, 5.0
    w, d = combined(g_tr, g_ta, gate)
    torch.testing.assert_close(w, torch.full((4,), weight))
    torch.testing.assert_close(d, weight * g_tr + g_ta)


@pytest.mark.parametrize("gate", GATE)
def test_without_a_train_gradient_the_target_is_followed(gate):
    groups = Groups(G, 2, channels=3)
    assert cosines(groups, torch.zeros_like(G), G).tolist() == [0.0] * 4
    _, d = combined(torch.zeros_like(G), G, gate)
    assert torch.equal(d, G)


def test_the_group_size_goes_from_kernels_to_tensors():
    g_tr = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    kernels, _ = combined(g_tr, G, "linear", group_size=1)
    expected = (F.cosine_similarity(g_tr.view(8, -1), G.view(8, -1), dim=1) + 1) / 2
    torch.testing.assert_close(kernels, expected)
    tensor, _ = combined(g_tr, G, "linear", group_size=8)
    expected = (F.cosine_similarity(g_tr.flatten(), G.flatten(), dim=0) + 1) / 2
    torch.testing.assert_close(tensor, expected[None])


# --- the phase ------------------------------------------------------------------------------------


def test_every_loss_moves_what_it_is_for():
    """The train head learns from TRAIN alone, the target head from TARGET alone."""
    method, phase, feeds = phase_of("method.gate=step", "optimizer=sgd", "optimizer.momentum=0")
    batches = {role: next(feed) for role, feed in feeds.items()}
    start = copy.deepcopy(method)
    phase.step(batches)
    for head, role in (("train_head", "train"), ("head", "target")):
        one = copy.deepcopy(start).train()
        batch = batches[role]
        other = {"train": "target", "target": "train"}[role]
        one.backbone(batches[other].x) if role == "target" else None
        loss = F.cross_entropy(getattr(one, head)(one.backbone(batch.x)), batch.y)
        (grad,) = torch.autograd.grad(loss, [getattr(one, head).weight])
        moved = getattr(method, head).weight - getattr(start, head).weight
        scale = float(((moved * grad).sum() / grad.square().sum()).detach())
        assert scale < 0
        decay = moved - scale * grad  # weight decay, if any
        assert decay.norm() < 0.2 * moved.norm()
    assert not torch.equal(method.head.weight, method.train_head.weight)


class Reads(TorchDispatchMode):
    """Counts the numbers that are read off a tensor, for which a device would be waited."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **kwargs or {})


def test_a_step_waits_for_no_device():
    _, phase, feeds = phase_of("optimizer=sgd")
    for _ in range(2):
        batches = {role: next(feed) for role, feed in feeds.items()}
        with Reads() as reads:
            phase.step(batches)
        assert reads.count == 0
    with Reads() as reads:
        float(torch.ones(1))
    assert reads.count == 1


def test_prediction_uses_the_head_of_the_target():
    method, _, feeds = phase_of()
    x = next(feeds["target"]).x
    method.eval()
    expected = method.head(method.backbone(x))
    assert torch.equal(method.predict(x), expected)
    nn.init.zeros_(method.train_head.weight)
    assert torch.equal(method.predict(x), expected)


def test_batch_norm_sees_both_streams():
    method, phase, feeds = phase_of()
    norm = next(m for m in method.modules() if isinstance(m, nn.BatchNorm2d))
    seen = []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].mean().item()))
    before = int(norm.num_batches_tracked)
    phase.step({role: next(feed) for role, feed in feeds.items()})
    assert int(norm.num_batches_tracked) == before + 2
    assert len(seen) == 2
    assert seen[0] != seen[1]


def test_target_batches_are_draws_of_their_own_without_repetition():
    _, _, feeds = phase_of("dataset.subset_size=null", "train.batch_size=64")
    drawn = [next(feeds["target"]).index for _ in range(60)]
    assert all(len(index.unique()) == 64 for index in drawn)
    counts = torch.bincount(torch.cat(drawn), minlength=300)
    assert counts.min() > 0
    assert counts.max() > 60 * 64 / 300 + 3  # an epoch-wise order would even them out


def test_the_schedule_reaches_the_backbone(tmp_path):
    cfg = read("method=scale", *SMALL, "optimizer=sgd", "schedule=step", "schedule.step_size=1")
    trainer, method = trainer_of(cfg, tmp_path)
    phases = method.phases()
    method.phases = lambda: phases
    trainer.fit(method)
    groups = phases[0].optimizer.param_groups
    held = {id(p) for group in groups for p in group["params"]}
    assert {id(p) for p in method.backbone.parameters()} <= held
    assert all(group["lr"] < group["initial_lr"] for group in groups)


def test_cosines_are_counted_and_drawn(tmp_path):
    cfg = read("method=scale", *SMALL)
    trainer, method = trainer_of(cfg, tmp_path)
    phases = method.phases()
    method.phases = lambda: phases
    trainer.fit(method)
    (phase,) = phases
    steps = 4
    layers, counts = phase.cosines.layers, phase.cosines.counts
    for i, name in enumerate(layers):
        total = phase.shared.groups[name].total
        assert counts[:, i].sum(1).tolist() == [steps * total] * 2, name
    assert counts.shape == (2, 4, BINS)
    row = rows_of(tmp_path)[-1]
    means = [row[f"train/cosine/{name}"] for name in layers]
    assert row["train/cosine"] == pytest.approx(sum(means) / len(means), abs=1e-6)
    assert all(-1 <= value <= 1 for value in means)
    told = json.loads((tmp_path / "cosines.json").read_text())
    assert (len(told["edges"]), told["edges"][0], told["edges"][-1]) == (BINS + 1, -1, 1)
    assert told["layers"] == {n: counts[:, i].tolist() for i, n in enumerate(layers)}
    for name, (_, last) in told["layers"].items():  # the last epoch's, of whole batches
        below = sum(last[: BINS // 2]) / sum(last)
        assert row[f"train/opposed/{name}"] == pytest.approx(below, abs=0.05)
    assert (tmp_path / "plots" / "cosines.png").read_bytes().startswith(b"\x89PNG")


def test_a_full_bin_counts_on():
    """At 2 ** 24 a float no longer takes one more."""
    _, phase, feeds = phase_of()
    phase.cosines.counts += 2**24
    before = phase.cosines.counts.sum()
    phase.step({role: next(feed) for role, feed in feeds.items()})
    assert phase.cosines.counts.sum() - before == phase.cosines.totals.sum()


def test_the_memory_format_changes_no_group():
    steps = []
    for channels_last in (False, True):
        method, phase, feeds = phase_of("optimizer=sgd", f"train.channels_last={channels_last}")
        for _ in range(3):
            logged = phase.step({role: next(feed) for role, feed in feeds.items()})
        steps.append((float(logged["cosine"]), method.state_dict()))
    assert steps[0][0] == pytest.approx(steps[1][0], abs=1e-3)
    for name, value in steps[0][1].items():
        torch.testing.assert_close(value, steps[1][1][name], atol=1e-4, rtol=1e-3, msg=name)


def test_it_trains_in_bf16(tmp_path):
    cfg = read("method=scale", *SMALL, "train.precision=bf16", "train.channels_last=true")
    trainer, method = trainer_of(cfg, tmp_path)
    trainer.fit(method)
    first, last = rows_of(tmp_path)
    assert last["train/loss_train"] < first["train/loss_train"]
    assert all(weight.dtype == torch.float32 for weight in method.parameters())


def test_a_weight_that_takes_no_part_is_left_alone_and_half_a_part_is_a_zero():
    """A parameter that neither stream uses, and one that TRAIN alone uses."""

    class Spare(Tiny):
        def __init__(self):
            super().__init__()
            self.unused, self.shift = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(6))
            self.in_train = False

        def features(self, x, layers, pooling=None):
            z = self.activations(x, layers)["hidden"]
            return {"hidden": z + self.shift if self.in_train else z}

    torch.manual_seed(0)
    info = DataInfo(GroupSpec(("a", "b"), ("x", "y")), (3, 8, 8), torch.ones(4))
    method = Scale(Spare(), info, epochs=1).double().train()
    (phase,) = method.phases()
    phase.setup(
        SimpleNamespace(
            optimizer=lambda weights: torch.optim.SGD(weights, lr=0.5, weight_decay=0.1),
            schedule=lambda optimizer, epochs: None,
            accumulate=1,
            clip_norm=None,
        )
    )
    x, y = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.arange(6) % 2
    backbone = method.backbone
    backbone.in_train = True
    alone = copy.deepcopy(backbone)
    loss = F.cross_entropy(method.train_head(alone(x)), y)
    (g_tr,) = torch.autograd.grad(loss, [alone.shift])
    forward = phase._backward

    def backward(batch, head):
        backbone.in_train = head is method.train_head
        return forward(batch, head)

    phase._backward = backward
    batch = batch_of(x, y)
    phase.step({"train": batch, "target": batch})
    assert torch.equal(backbone.unused, torch.ones(2, dtype=torch.float64))
    # The cosine with nothing is 0, and the linear gate of 0 is one half.
    torch.testing.assert_close(backbone.shift.detach(), -0.5 * 0.5 * g_tr)


def test_losses_of_both_streams_are_logged(tmp_path):
    cfg = read("method=scale", *SMALL)
    trainer, method = trainer_of(cfg, tmp_path)
    trainer.fit(method)
    first, last = rows_of(tmp_path)
    assert {"train/loss", "train/loss_train"} <= first.keys()
    assert last["train/loss_train"] < first["train/loss_train"]


def test_a_linear_network_has_no_convolutions_to_count(tmp_path):
    cfg = read("method=scale", *SMALL[:1], "backbone=mlp", *SMALL[2:])
    trainer, method = trainer_of(cfg, tmp_path)
    trainer.fit(method)
    assert -1 <= rows_of(tmp_path)[-1]["train/cosine"] <= 1


def test_erm_target_trains_on_the_target_alone(tmp_path):
    cfg = read("method=erm_target", *SMALL)
    trainer, method = trainer_of(cfg, tmp_path)
    (phase,) = method.phases()
    phase.setup(trainer.context)
    stream = phase.streams(trainer.context)["train"]
    assert stream.dataset is trainer.context.splits[Split.TARGET]
    trainer.fit(method)
    assert rows_of(tmp_path)[-1]["step"] == 2 * len(stream)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("dataset=biased_mnist",), "no target split; set dataset.target_fraction "),
        (("train.batch_size=301",), "train.batch_size=301 is more than the 300 samples of target"),
        (("backbone=linear",), "this one has no weights; choose another backbone"),
        (("method.gate=relux",), "did you mean relu?"),
        (("method.group_size=0",), "group_size=0 must be at least 1"),
        (("method.epochs=0",), "method.epochs=0 must be at least 1"),
    ],
)
def test_bad_input(options, sentence, command_line, tmp_path, small_root):
    places = (f"paths.outputs={tmp_path}", f"paths.data={small_root}", "tracker=none", "dfr=none")
    typed = ("method=scale", "train.selection=val/average", "backbone=small_cnn", *options)
    if "dataset=biased_mnist" in options:
        typed += ("dataset.val_size=200",)
    ended = command_line.run("train", *typed, *places)
    assert ended.code == 2, ended.out
    assert sentence in ended.err
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_group_larger_than_a_tensor_is_said_once(caplog):
    phase_of("method.group_size=300")
    said = [r.getMessage() for r in caplog.records if "group_size" in r.getMessage()]
    assert len(said) == 1
    assert "method.group_size=300 is more kernels than block1.3 has" in said[0]
