"""The equations of the methods, and their optimisers and schedules."""

import copy
import math

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F

from spurcor.backbones.mlp import Mlp
from spurcor.config.nodes import Node
from spurcor.data.groups import Batch, DataInfo, GroupedDataset, GroupSpec, Split
from spurcor.data.splits import Splits
from spurcor.data.transforms import Normalize
from spurcor.methods import masktune
from spurcor.methods.erm import Erm
from spurcor.methods.group_dro import GroupDro
from spurcor.methods.iw import ImportanceWeighting
from spurcor.system.places import CONF
from spurcor.training.method import RunContext, Supervised

SPEC = GroupSpec(("a", "b"), ("x", "y"), aligned=(0, 1))
COUNTS = [7, 2, 1, 10]
OPTIMIZERS = sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml"))
SCHEDULES = sorted(path.stem for path in (CONF / "schedule").glob("*.yaml"))


def make_info(counts=COUNTS):
    return DataInfo(SPEC, (1, 2, 2), torch.tensor(counts))


def make(kind, counts=COUNTS, **options):
    torch.manual_seed(0)
    info = make_info(counts)
    return kind(Mlp(info, width=5, depth=1), info, **{"epochs": 2, **options})


def make_split(counts=COUNTS):
    g = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (len(g), 1, 2, 2), generator=generator, dtype=torch.uint8)
    return GroupedDataset(SPEC, images, g // 2, g % 2, torch.arange(len(g)))


def make_batch(counts=COUNTS):
    split = make_split(counts)
    batch = split.fetch(torch.arange(len(split)))
    return Batch(batch.x / 255, batch.y, batch.a, batch.g, batch.index)


def fake(g):
    """A batch of which only the groups matter."""
    g = torch.tensor(g)
    return Batch(torch.zeros(len(g)), g // 2, g % 2, g, torch.arange(len(g)))


def losses_of(method, batch):
    return F.cross_entropy(method.predict(batch.x), batch.y, reduction="none")


def gradient(method, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, method.weights())])


def group_gradients(method, batch):
    """(G, P): the gradient of the mean loss of every group, 0 for those without a sample."""
    rows = []
    for group in range(4):
        losses = losses_of(method, batch)[batch.g == group]
        rows.append(
            gradient(method, losses.mean() if len(losses) else 0 * losses_of(method, batch).sum())
        )
    return torch.stack(rows)


def node(group, name, **changes):
    tree = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    return Node(group, tree.pop("_target_"), {**tree, **changes})


def make_context(split, optimizer="sgd", schedule="constant", batch_size=None, **changes):
    schedule_node = node("schedule", schedule)

    def build_schedule(opt, epochs):
        total = {"T_max": epochs} if schedule_node.takes("T_max") else {}
        return schedule_node.build(optimizer=opt, **total)

    return RunContext(
        Splits({Split.TRAIN: split}, Normalize((0.0,), (1.0,)), torch.device("cpu")),
        seed=0,
        batch_size=batch_size,
        directory=CONF,
        optimizer=lambda params: node("optimizer", optimizer, **changes).build(params=params),
        schedule=build_schedule,
    )


# --- ERM ------------------------------------------------------------------------------------------


def test_erm_is_the_mean():
    losses = torch.tensor([1.0, 2.0, 6.0])
    assert make(Erm).reduce(losses, fake([0, 1, 1])) == 3


def test_predict_is_the_head_on_the_features():
    method, batch = make(Erm), make_batch()
    expected = method.backbone(batch.x) @ method.head.weight.T + method.head.bias
    torch.testing.assert_close(method.predict(batch.x), expected)
    assert method.predict(batch.x).shape == (20, 2)
    assert len(method.weights()) == 4


# --- importance weighting -------------------------------------------------------------------------


def test_iw_weights_by_hand():
    # N = 20 samples in G = 4 groups
    expected = torch.tensor([20 / 28, 20 / 8, 20 / 4, 20 / 40])
    torch.testing.assert_close(make(ImportanceWeighting).weight, expected)


def test_iw_counts_empty_groups_in_the_number_of_groups():
    weight = make(ImportanceWeighting, [6, 0, 0, 2]).weight
    torch.testing.assert_close(weight, torch.tensor([8 / 24, 0, 0, 8 / 8]))


def test_iw_loss_by_hand():
    losses = torch.tensor([1.0, 2.0, 4.0])
    loss = make(ImportanceWeighting).reduce(losses, fake([0, 1, 3]))
    assert float(loss) == pytest.approx((20 / 28 * 1 + 20 / 8 * 2 + 20 / 40 * 4) / 3)


@pytest.mark.parametrize("counts", [COUNTS, [6, 0, 3, 2]])
def test_iw_at_full_batch_has_the_mean_of_the_group_gradients(counts):
    method, batch = make(ImportanceWeighting, counts), make_batch(counts)
    found = gradient(method, method.reduce(losses_of(method, batch), batch))
    v_inv = group_gradients(method, batch).sum(0) / 4
    torch.testing.assert_close(found, v_inv, atol=1e-6, rtol=1e-5)
    erm = gradient(method, losses_of(method, batch).mean())
    assert not torch.allclose(found, erm, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(ImportanceWeighting, {"by": "sampling"}), (GroupDro, {"sampling": True})],
)
def test_sampling_draws_all_groups_equally_often(kind, options):
    method, split = make(kind, **options), make_split()
    (phase,) = method.phases()
    stream = phase.streams(make_context(split, batch_size=4))["train"]
    batches = stream.start(0)
    g = torch.cat([next(batches).g for _ in range(400 * len(stream))])
    share = torch.bincount(g, minlength=4) / len(g)
    torch.testing.assert_close(share, torch.full((4,), 0.25), atol=0.02, rtol=0)


def test_iw_sampled_batches_have_the_plain_mean():
    losses = torch.tensor([1.0, 2.0, 6.0])
    assert make(ImportanceWeighting, by="sampling").reduce(losses, fake([0, 1, 3])) == 3


@pytest.mark.parametrize("kind", [Erm, ImportanceWeighting, GroupDro])
def test_without_sampling_an_epoch_is_a_permutation(kind):
    split = make_split()
    (phase,) = make(kind).phases()
    stream = phase.streams(make_context(split, batch_size=4))["train"]
    batches = stream.start(0)
    index = torch.cat([next(batches).index for _ in range(len(stream))])
    assert sorted(index.tolist()) == list(range(20))
    assert index.tolist() != list(range(20))


# --- group DRO ------------------------------------------------------------------------------------


def reference(q, losses, g, eta, adjustment=(0, 0, 0, 0), normalize=False):
    """One update of q and the loss that it gives, as published."""
    group_losses = [
        np.mean([loss for loss, group in zip(losses, g, strict=True) if group == k])
        if k in g
        else 0.0
        for k in range(4)
    ]
    adjusted = np.array(group_losses) + np.array(adjustment)
    if normalize:
        adjusted = adjusted / adjusted.sum()
    q = np.array(q) * np.exp(eta * adjusted)
    q = q / q.sum()
    return q, float(np.dot(q, group_losses))


STEPS = [
    ([1.0, 2.0, 0.5, 3.0, 1.5], [0, 1, 2, 3, 0]),
    ([2.5, 0.1, 0.3], [2, 2, 0]),  # no sample of groups 1 and 3
    ([4.0], [1]),
    ([0.2, 0.4, 0.6, 0.8, 1.0, 9.0], [3, 3, 2, 1, 0, 0]),
]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("c", [(0.0,), (2.0,), (1.0, 2.0, 3.0, 4.0)])
@pytest.mark.parametrize("eta", [0.01, 0.5])
def test_group_dro_against_a_reference(eta, c, normalize):
    method = make(GroupDro, eta=eta, adjustments=c, normalize=normalize)
    adjustment = np.broadcast_to(c, 4) / np.sqrt(COUNTS)
    q = np.full(4, 0.25)
    for losses, g in STEPS:
        q, expected = reference(q, losses, g, eta, adjustment, normalize)
        loss = method.reduce(torch.tensor(losses), fake(g))
        assert float(loss) == pytest.approx(expected, rel=1e-5)
        np.testing.assert_allclose(method.q.numpy(), q, rtol=1e-5)


def test_group_dro_first_update_by_hand():
    method = make(GroupDro, eta=1.0)
    losses = torch.tensor([math.log(2), math.log(4), 0.0, math.log(8)])
    loss = method.reduce(losses, fake([0, 1, 2, 3]))
    torch.testing.assert_close(method.q, torch.tensor([2, 4, 1, 8]) / 15)
    # q has moved before it weighs: with the uniform q of before it would be log(64) / 4
    assert float(loss) == pytest.approx((2 * 1 + 4 * 2 + 8 * 3) * math.log(2) / 15)


def test_an_absent_group_loses_mass_by_the_normalisation_only():
    method = make(GroupDro, eta=1.0)
    method.reduce(torch.tensor([math.log(2)]), fake([3]))
    torch.testing.assert_close(method.q, torch.tensor([1, 1, 1, 2]) / 5)


def test_an_absent_group_still_moves_by_its_adjustment():
    method = make(GroupDro, [4, 4, 1, 1], eta=1.0, adjustments=(2 * math.log(2),))
    method.reduce(torch.tensor([0.0]), fake([0]))
    # exp(C / sqrt(n)) is 2 for n = 4 and 4 for n = 1
    torch.testing.assert_close(method.q, torch.tensor([2, 2, 4, 4]) / 12)


@pytest.mark.parametrize("c", [(1.0, 1.0, 1.0, 0.0), (-1.0,), (5.0, 5.0, -1.0, 5.0), (0.0,)])
def test_adjustments_count_only_if_all_are_positive(c):
    assert make(GroupDro, adjustments=c).adjustment.tolist() == [0, 0, 0, 0]


def test_adjustments_are_divided_by_the_root_of_the_counts():
    method = make(GroupDro, [4, 9, 16, 0], adjustments=(1, 2, 3, 4))
    # A group without a sample has no L_g to be worst by, and must not draw q to itself.
    assert method.adjustment.tolist() == pytest.approx([1 / 2, 2 / 3, 3 / 4, 0])


def test_adjustments_leave_the_gradient_to_the_losses():
    losses = torch.tensor([1.0, 2.0, 0.5, 3.0], requires_grad=True)
    method = make(GroupDro, eta=0.1, adjustments=(5.0,))
    loss = method.reduce(losses, fake([0, 1, 2, 3]))
    assert loss.item() == pytest.approx(float(method.q @ losses.detach()))
    loss.backward()
    torch.testing.assert_close(losses.grad, method.q)


def test_group_dro_gradient_is_the_weighted_sum_of_group_gradients():
    method, batch = make(GroupDro, eta=2.0), make_batch()
    found = gradient(method, method.reduce(losses_of(method, batch), batch))
    assert method.q.std() > 0.01
    expected = method.q @ group_gradients(method, batch)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_backward_may_come_after_the_next_update_of_q():
    method = make(GroupDro, eta=1.0)
    losses = torch.tensor([1.0, 2.0, 0.5, 3.0], requires_grad=True)
    loss = method.reduce(losses, fake([0, 1, 2, 3]))
    q = method.q.clone()
    method.reduce(torch.tensor([9.0]), fake([0]))
    loss.backward()
    torch.testing.assert_close(losses.grad, q)


def test_q_is_saved_with_the_method_and_trained_by_no_optimiser():
    method = make(GroupDro, eta=1.0)
    method.reduce(torch.tensor([1.0]), fake([2]))
    state = method.state_dict()
    other = make(GroupDro, eta=1.0)
    other.load_state_dict(state)
    assert torch.equal(other.q, method.q)
    assert not torch.equal(other.q, make(GroupDro).q)
    assert len(method.weights()) == len(make(Erm).weights())


def test_q_persists_over_epochs():
    method, split = make(GroupDro, eta=0.1), make_split()
    (phase,) = method.phases()
    context = make_context(split)
    phase.setup(context)
    feed = phase.streams(context)["train"].start(0)
    seen = []
    for _ in range(3):
        phase.step({"train": next(feed)})
        phase.end_epoch()
        seen.append(method.q.clone())
    assert not torch.equal(seen[0], seen[1])
    assert (seen[2] - 0.25).abs().max() > (seen[0] - 0.25).abs().max()


@pytest.mark.parametrize("count", [0, 2, 3, 5])
def test_group_dro_refuses_a_wrong_number_of_adjustments(count):
    with pytest.raises(ValueError, match=f"{count} values.* 4 groups"):
        make(GroupDro, adjustments=(1.0,) * count)


@pytest.mark.parametrize("kind", [Erm, ImportanceWeighting, GroupDro])
def test_a_phase_needs_an_epoch(kind):
    with pytest.raises(ValueError, match="epochs=0"):
        make(kind, epochs=0).phases()


# --- one supervised phase -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Erm, ImportanceWeighting, GroupDro])
def test_a_step_is_gradient_descent_on_the_reduced_loss(kind):
    split, batch = make_split(), make_batch()
    method, twin = make(kind), make(kind)
    before = torch.cat([w.detach().flatten() for w in method.weights()])
    expected = gradient(twin, twin.reduce(losses_of(twin, batch), batch))
    mean = losses_of(twin, batch).mean()
    (phase,) = method.phases()
    context = make_context(split, lr=0.1, momentum=0.0, weight_decay=0.0)
    phase.setup(context)
    logged = phase.step({"train": next(phase.streams(context)["train"].start(0))})
    after = torch.cat([w.detach().flatten() for w in method.weights()])
    torch.testing.assert_close(after - before, -0.1 * expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(logged, {"loss": mean.detach()})
    assert not logged["loss"].requires_grad


def test_gradients_do_not_add_up_over_steps():
    split, method = make_split(), make(Erm)
    (phase,) = method.phases()
    context = make_context(split, lr=0.0)
    phase.setup(context)
    feed = phase.streams(context)["train"].start(0)
    grads = []
    for _ in range(2):
        phase.step({"train": next(feed)})
        grads.append(method.head.weight.grad.clone())
    torch.testing.assert_close(grads[0], grads[1])


def learning_rates(optimizer, schedule, epochs):
    """The rate of each epoch of a phase, as `Supervised` sets it."""
    split, method = make_split(), make(Erm)
    phase = Supervised("erm", method, epochs, method.reduce)
    context = make_context(split, optimizer, schedule, lr=0.02)
    phase.setup(context)
    feed = phase.streams(context)["train"].start(0)
    rates = []
    for _ in range(epochs):
        phase.step({"train": next(feed)})
        (group,) = phase.optimizer.param_groups
        rates.append(float(group["lr"]))
        phase.end_epoch()
    return rates


EXPECTED = {
    "constant": lambda epoch, epochs: 0.02,
    "cosine": lambda epoch, epochs: 0.01 * (1 + math.cos(math.pi * epoch / epochs)),
    "step": lambda epoch, epochs: 0.02 * 0.5 ** (epoch // 25),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_move_the_rate_of_every_optimiser(schedule, optimizer):
    rates = learning_rates(optimizer, schedule, 60)
    if schedule in EXPECTED:
        assert rates == pytest.approx([EXPECTED[schedule](e, 60) for e in range(60)], abs=1e-9)
    else:
        assert len(set(rates)) > 1


def in_the_first_epoch(kind=Supervised, optimizer="adam"):
    """A phase of four epochs that has made its first step, and another that is to go on with it."""
    context, found = make_context(make_split(), optimizer, "cosine"), []
    for _ in range(2):
        method = make(Erm)
        found.append(kind("erm", method, 4, method.reduce))
        found[-1].setup(context)
    phase, resumed = found
    phase.step({"train": next(phase.streams(context)["train"].start(0))})
    return phase, resumed


def rate_of(phase):
    (group,) = phase.optimizer.param_groups
    return float(group["lr"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_epoch_may_end_first_of_all_after_a_resume(optimizer):
    """Stopped between its last step and its end; torch would warn of a schedule that begins."""
    phase, resumed = in_the_first_epoch(optimizer=optimizer)
    state = copy.deepcopy(phase.state_dict())
    assert state["optimizer"]["state"]
    resumed.load_state_dict(copy.deepcopy(state))
    for one in (phase, resumed):
        one.end_epoch()
    assert rate_of(resumed) == rate_of(phase) < 0.01
    for key, value in state["optimizer"]["state"].items():
        other = resumed.optimizer.state_dict()["state"][key]
        assert all(torch.equal(torch.as_tensor(other[k]), torch.as_tensor(value[k])) for k in value)


@pytest.mark.parametrize("kind", [Supervised, masktune.Erm])
@pytest.mark.parametrize("ended", [False, True])
def test_a_state_of_the_first_release_goes_on_at_the_same_rate(ended, kind):
    """There the schedule stepped when the next epoch began, and `ended` told that it was due."""
    phase, resumed = in_the_first_epoch(kind)
    before = rate_of(phase)
    resumed.load_state_dict(copy.deepcopy(phase.state_dict()) | {"ended": ended})
    assert (rate_of(resumed) < before) == ended
    if not ended:
        resumed.end_epoch()
    phase.end_epoch()
    states = [one.state_dict() for one in (resumed, phase)]
    assert states[0].keys() == states[1].keys() == {"optimizer", "schedule"}
    assert states[0]["schedule"] == states[1]["schedule"]
    assert states[0]["optimizer"]["param_groups"] == states[1]["optimizer"]["param_groups"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_phase_continues_from_its_state(optimizer):
    def start():
        method, context = make(Erm), make_context(make_split(), optimizer, "cosine", batch_size=4)
        phase = Supervised("erm", method, 4, method.reduce)
        phase.setup(context)
        return method, phase, phase.streams(context)["train"]

    def epochs(phase, stream, first, last):
        feed = stream.start(first * len(stream))
        for _ in range(first, last):
            for _ in range(len(stream)):
                phase.step({"train": next(feed)})
            phase.end_epoch()

    method, phase, stream = start()
    epochs(phase, stream, 0, 2)
    other, resumed, other_stream = start()
    other.load_state_dict(method.state_dict())
    resumed.load_state_dict(copy.deepcopy(phase.state_dict()))
    epochs(phase, stream, 2, 4)
    epochs(resumed, other_stream, 2, 4)
    assert all(map(torch.equal, method.weights(), other.weights()))
