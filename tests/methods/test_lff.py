"""Learning from Failure: averages, weights, both losses, and a plain script."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy
from training import read, rows_of, trainer_of

from spurcor.methods.lff import TwoNetworks
from spurcor.runs import build

QUICK = (
    "method=lff", "backbone=mlp", "backbone.width=8", "dfr=none", "tracker=none",
    "method.epochs=2", "dataset.subset_size=200", "train.batch_size=50",
)  # fmt: skip


def averages(y) -> TwoNetworks:
    """A phase with empty averages over samples of these classes."""
    phase = object.__new__(TwoNetworks)
    phase.method = SimpleNamespace(alpha=0.7, spec=SimpleNamespace(num_classes=2))
    phase.y = torch.tensor(y)
    phase.average_b, phase.average_d = torch.zeros(len(y)), torch.zeros(len(y))
    phase.visited = torch.zeros(len(y), dtype=torch.bool)
    return phase


def of(phase, index):
    index = torch.tensor(index)
    return SimpleNamespace(index=index, y=phase.y[index])


def test_averages_begin_with_the_first_loss_and_then_move_by_three_tenths():
    phase = averages([0, 0, 1])
    phase.weights(torch.tensor([2.0]), torch.tensor([1.0]), of(phase, [0]))
    phase.weights(torch.tensor([4.0]), torch.tensor([3.0]), of(phase, [0]))
    assert phase.average_b.tolist() == pytest.approx([2.6, 0, 0])
    assert phase.average_d.tolist() == pytest.approx([1.6, 0, 0])
    assert phase.visited.tolist() == [True, False, False]


def test_weights_by_hand():
    """Class 0: B has 2 and 4, D has 3 and 1, of which the largest are 4 and 3."""
    phase = averages([0, 0, 1])
    found = phase.weights(
        torch.tensor([2.0, 4.0, 5.0]), torch.tensor([3.0, 1.0, 7.0]), of(phase, [0, 1, 2])
    )
    assert found.tolist() == pytest.approx([0.5 / 1.5, 1 / (1 + 1 / 3), 0.5])
    assert not found.requires_grad


def test_weights_do_not_depend_on_the_scale_of_a_class():
    torch.manual_seed(0)
    y = [0] * 6 + [1] * 6
    one, two = torch.rand(12), torch.rand(12)
    doubled = torch.tensor([2.0] * 6 + [1.0] * 6)
    everything = list(range(12))
    first, second = averages(y), averages(y)
    plain = first.weights(one, two, of(first, everything))
    assert torch.allclose(
        plain, second.weights(doubled * one, doubled * two, of(second, everything))
    )
    assert (plain >= 0).all()
    assert (plain <= 1).all()


def test_samples_seen_before_count_in_the_largest():
    phase = averages([0, 0])
    phase.weights(torch.tensor([8.0]), torch.tensor([1.0]), of(phase, [1]))
    found = phase.weights(torch.tensor([2.0]), torch.tensor([1.0]), of(phase, [0]))
    assert found.tolist() == pytest.approx([0.25 / 1.25])


def stepped(tmp_path, *words):
    """A phase that has been set up, and a batch."""
    cfg = read(*QUICK, *words)
    splits, method = build.build(cfg)
    context = build.context_of(cfg, splits, tmp_path)
    (phase,) = method.phases()
    phase.setup(context)
    method.train()
    return phase, next(phase.streams(context)["train"].start(0))


def test_each_network_follows_its_own_loss_only(tmp_path):
    """The gradients, against those of each loss alone; B's is q times that of (1 - p^q) / q."""
    phase, batch = stepped(tmp_path)
    expected = []
    for network in (phase.biased, phase.method):
        logits = network.predict(batch.x)
        p = logits.softmax(1).gather(1, batch.y[:, None]).squeeze(1)
        if network is phase.biased:
            loss = 0.7 * ((1 - p**0.7) / 0.7).mean()
        else:
            losses = cross_entropy(logits, batch.y, reduction="none")
            with torch.no_grad():
                other = cross_entropy(phase.biased.predict(batch.x), batch.y, reduction="none")
                shares = []
                for values in (other, losses):
                    largest = torch.stack([values[batch.y == c].max() for c in (0, 1)])
                    shares.append(values / largest[batch.y])
                weight = shares[0] / (shares[0] + shares[1])
            loss = (weight * losses).mean()
        expected.append(torch.autograd.grad(loss, list(network.parameters())))
    phase.step({"train": batch})
    for network, gradients in zip((phase.biased, phase.method), expected, strict=True):
        for weight, gradient in zip(network.parameters(), gradients, strict=True):
            assert torch.allclose(weight.grad, gradient, atol=1e-6)


def test_class_weights_are_no_part_of_the_probability(tmp_path):
    phase, batch = stepped(tmp_path, "train.class_weights=[1,5]")
    logits = phase.biased.predict(batch.x)
    p = logits.detach().softmax(1).gather(1, batch.y[:, None]).squeeze(1)
    weight = torch.tensor([1.0, 5.0])[batch.y]
    losses = weight * cross_entropy(logits, batch.y, reduction="none")
    weights = list(phase.biased.parameters())
    expected = torch.autograd.grad((0.7 * p**0.7 * losses).mean(), weights)
    phase.step({"train": batch})
    for one, gradient in zip(weights, expected, strict=True):
        assert torch.allclose(one.grad, gradient, atol=1e-6)


def test_both_networks_are_clipped(tmp_path):
    phase, batch = stepped(tmp_path, "train.clip_norm=1e-3")
    phase.step({"train": batch})
    for network in (phase.biased, phase.method):
        norm = torch.stack([one.grad.norm() for one in network.parameters()]).norm()
        assert norm == pytest.approx(1e-3, rel=1e-3)


def test_the_networks_begin_from_different_weights_and_one_is_kept(tmp_path):
    phase, batch = stepped(tmp_path)
    pairs = list(zip(phase.biased.parameters(), phase.method.parameters(), strict=True))
    assert any(not torch.equal(one, other) for one, other in pairs)
    before = [(one.clone(), other.clone()) for one, other in pairs]
    phase.step({"train": batch})
    for (one, other), (b, d) in zip(before, pairs, strict=True):
        assert not torch.equal(one, b)
        assert not torch.equal(other, d)
    assert not any("biased" in name for name in phase.method.state_dict())


def test_the_rows_are_those_of_a_plain_script(tmp_path):
    cfg = read(*QUICK)
    trainer, trained = trainer_of(cfg, tmp_path)
    trainer.fit(trained)
    rows = rows_of(tmp_path)

    splits, network = build.build(cfg)
    context = build.context_of(cfg, splits, tmp_path)
    biased = context.untrained(1).train()
    network.train()
    optimizers = [cfg.optimizer.build(params=n.parameters()) for n in (biased, network)]
    tables = torch.zeros(2, 200, dtype=torch.float64)
    seen, logged, y = set(), [], splits["train"].y
    stream = context.stream("train")
    for batch in itertools.islice(stream.start(0), 2 * len(stream)):
        losses = [
            cross_entropy(n.predict(batch.x), batch.y, reduction="none") for n in (biased, network)
        ]
        for table, values in zip(tables, losses, strict=True):
            for i, value in zip(batch.index.tolist(), values.tolist(), strict=True):
                table[i] = 0.7 * table[i] + 0.3 * value if i in seen else value
        seen |= set(batch.index.tolist())
        shares = []
        for table in tables:
            largest = [max(table[i] for i in range(200) if y[i] == c) for c in (0, 1)]
            shares.append([float(table[i] / largest[y[i]]) for i in batch.index.tolist()])
        weight = torch.tensor([b / (b + d + 1e-8) for b, d in zip(*shares, strict=True)])
        p = (-losses[0].detach()).exp()
        for optimizer in optimizers:
            optimizer.zero_grad()
        ((0.7 * p**0.7 * losses[0]).mean() + (weight * losses[1]).mean()).backward()
        for optimizer in optimizers:
            optimizer.step()
        logged.append((float(losses[1].detach().mean()), float(weight.mean())))
    for number, row in enumerate(rows):
        part = logged[number * len(stream) : (number + 1) * len(stream)]
        assert row["train/loss"] == pytest.approx(sum(a for a, _ in part) / len(part), abs=1e-6)
        assert row["train/weight"] == pytest.approx(sum(b for _, b in part) / len(part), abs=1e-6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train.loss=mse",), "method=lff needs train.loss=cross_entropy, not mse"),
        (("method.q=1.5",), "method.q=1.5 must be between 0 and 1"),
        (("method.alpha=0",), "method.alpha=0.0 must be between 0 and 1"),
    ],
)
def test_what_does_not_fit_is_told(words, said, command_line, tmp_path):
    ended = command_line.run("train", *QUICK, *words, f"paths.outputs={tmp_path}")
    assert ended.code == 2
    assert said in ended.err
