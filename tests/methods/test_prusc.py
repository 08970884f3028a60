"""PruSC: its equations against plain loops, what each phase moves, what it may not read."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from training import SMALLEST, read, rows_of, trainer_of

from spurcor.data.groups import Split
from spurcor.errors import RunError, UserError
from spurcor.methods.prusc import contrast
from spurcor.models import weights
from spurcor.pruning import clusters as clustering
from spurcor.pruning import gates
from spurcor.pruning.debiasing import DebiasingSet, contingency, debiasing_set
from spurcor.pruning.sparsity import layer_of
from spurcor.runs import build, execute
from spurcor.saliency.maps import heat_maps

SMALL = (
    *(*SMALLEST["prusc"], "method=prusc", "method.epochs=2", "train.batch_size=100"),
    *("method.num_clusters=16", "method.retrain_on=train", "method.retrain_lr=0.01"),
)
CNN = (*(one for one in SMALL if not one.startswith("backbone")), "backbone=small_cnn")


# --- the contrastive term -------------------------------------------------------------------------


def reference(z, y, cluster, temperature):
    """Anchor by anchor, pair by pair."""
    rows = [[float(v) for v in row] for row in z.double()]

    def similarity(i, j):
        dot = sum(a * b for a, b in zip(rows[i], rows[j], strict=True))
        lengths = math.sqrt(sum(a * a for a in rows[i]) * sum(b * b for b in rows[j]))
        return dot / lengths / temperature

    losses = []
    for i in range(len(rows)):
        others = [j for j in range(len(rows)) if j != i]
        positives = [j for j in others if y[j] == y[i] and cluster[j] != cluster[i]]
        negatives = [j for j in others if y[j] != y[i] and cluster[j] == cluster[i]]
        if not positives or not negatives:
            losses.append(0.0)
            continue
        total = sum(math.exp(similarity(i, j)) for j in positives + negatives)
        terms = [math.log(math.exp(similarity(i, p)) / total) for p in positives]
        losses.append(-sum(terms) / len(positives))
    return losses


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_the_contrastive_term_is_that_of_the_reference(temperature):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(24, 5, generator=generator)
    y = torch.randint(3, (24,), generator=generator)
    cluster = torch.randint(4, (24,), generator=generator)
    y[0], cluster[0] = 7, 9  # neither positives nor negatives
    y[1], cluster[1] = 0, 8  # no negatives
    y[2], cluster[2] = 6, 1  # no positives
    found = contrast(z, y, cluster, temperature)
    expected = reference(z, y.tolist(), cluster.tolist(), temperature)
    assert [i for i in range(24) if expected[i] == 0][:3] == [0, 1, 2]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_two_anchors_by_hand():
    """cos = 0 to the positive and 1 to the negative: log(1 + e^(1 / T))."""
    z = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    y, cluster = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0])
    expected = [math.log(1 + math.exp(1 / 0.5)), 0.0, 0.0]
    torch.testing.assert_close(contrast(z, y, cluster, 0.5), torch.tensor(expected))


def test_it_falls_as_positives_come_closer_and_is_finite_without_anchors():
    y, cluster = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0])
    losses = [
        float(contrast(torch.tensor([[1.0, 0], [c, 1 - c], [0.5, 0.5]]), y, cluster, 0.07).sum())
        for c in (0.0, 0.3, 0.6, 0.9)
    ]
    assert losses == sorted(losses, reverse=True)
    z = torch.zeros(4, 3, requires_grad=True)
    none = contrast(z, torch.arange(4), torch.arange(4), 0.07)
    assert none.tolist() == [0.0] * 4
    none.sum().backward()
    assert torch.equal(z.grad, torch.zeros(4, 3))


# --- the de-biasing set ---------------------------------------------------------------------------

# Samples of class 0, 1, 2 in four clusters.
COUNTS = torch.tensor([[8, 3, 0], [0, 5, 0], [2, 2, 2], [1, 0, 9]])


def laid_out(counts=COUNTS):
    cells = [(y, c, int(n)) for c, row in enumerate(counts) for y, n in enumerate(row)]
    y = torch.cat([torch.full((n,), y) for y, _, n in cells])
    cluster = torch.cat([torch.full((n,), c) for _, c, n in cells])
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    return y[order], cluster[order]


def drawn_counts(sampling, seed=0, counts=COUNTS):
    y, cluster = laid_out(counts)
    drawn = debiasing_set(y, cluster, sampling, seed)
    assert len(drawn.unique()) == len(drawn)
    assert torch.equal(drawn, drawn.sort()[0])
    return contingency(torch.cat([y[drawn], y]), torch.cat([cluster[drawn], cluster])) - (
        contingency(y, cluster)
    )


def test_a_balanced_set_has_of_each_class_as_many_as_of_the_clusters_rarest():
    two = COUNTS[:, :2]
    assert drawn_counts("balanced", counts=two).tolist() == [[3, 3], [0, 0], [2, 2], [0, 0]]
    # With three classes the clusters give 3+2+1, 3+2 and 2+1, which are thinned out to three each.
    found = drawn_counts("balanced")
    assert found.sum(0).tolist() == [3, 3, 3]
    assert (found <= torch.tensor([[3, 3, 0], [0, 0, 0], [2, 2, 2], [1, 0, 1]])).all()
    assert found[2, 2] == 2
    assert found[3, 2] == 1


def test_a_minority_set_has_what_is_not_the_clusters_largest_class():
    two = torch.tensor([[8, 3], [0, 5], [2, 2], [6, 9]])
    found = drawn_counts("minority", counts=two)  # 2+6 of class 0, 3+2 of class 1
    assert found[:, 1].tolist() == [3, 0, 2, 0]
    assert found[:, 0].sum() == 5
    assert found[0, 0] == found[1, 0] == 0


@pytest.mark.parametrize("sampling", ["balanced", "minority"])
def test_clusters_may_have_any_numbers(sampling):
    torch.manual_seed(3)
    y, clusters = torch.randint(0, 3, (60,)), torch.randint(0, 4, (60,))
    named = torch.tensor([5, 7, 10**13, 10**14])[clusters]
    expected = debiasing_set(y, clusters, sampling, 0)
    assert torch.equal(debiasing_set(y, named, sampling, 0), expected)


def test_a_set_is_a_function_of_the_seed():
    y, cluster = laid_out()
    sets = [debiasing_set(y, cluster, "balanced", seed).tolist() for seed in (0, 0, 1)]
    assert sets[0] == sets[1] != sets[2]


@pytest.mark.parametrize("sampling", ["balanced", "minority"])
def test_clusters_of_one_class_each_give_nothing(sampling):
    y = torch.tensor([0, 1, 0, 1])
    assert len(debiasing_set(y, torch.tensor([0, 1, 2, 1]), sampling, 0)) == 0


# --- phases ---------------------------------------------------------------------------------------


def built(tmp_path, *overrides, small=SMALL):
    """A method and its context."""
    cfg = read(*small, *overrides)
    torch.set_num_threads(1)
    splits, method = build.build(cfg)
    return method, build.context_of(cfg, splits, tmp_path)


def begun(tmp_path, *overrides, small=SMALL):
    """A method in `prune`, as the trainer enters it, and a batch."""
    method, context = built(tmp_path, *overrides, small=small)
    phase = next(phase for phase in method.phases() if phase.name == "prune")
    phase.setup(context)
    method.eval()
    with torch.no_grad():
        phase.begin(context)
    method.train()
    return method, phase, next(phase.streams(context)["prune"].start(0))


def terms_of(phase, batch):
    found = phase.terms(batch, phase.clusters[batch.index], phase.logits)
    return {name: value.detach() for name, value in found.items()}


def logits_of(method):
    return {name: gate.logit.detach().clone() for name, gate in gates.gates_of(method).items()}


@pytest.mark.parametrize("small", [SMALL, CNN], ids=["mlp", "small_cnn"])
@pytest.mark.parametrize("term", ["loss", "loss_sparse", "loss_con"])
def test_each_term_alone_moves_the_gates_in_the_phases_own_step(term, small, tmp_path):
    method, phase, batch = begun(tmp_path, small=small)
    before = logits_of(method)
    terms = phase.terms
    phase.terms = lambda *of: {n: value * (n == term) for n, value in terms(*of).items()}
    phase.step({"prune": batch})
    for name, logit in logits_of(method).items():
        # The representation is what is contrasted: the head has no part in it.
        moves = term != "loss_con" or name != "head.weight"
        assert torch.equal(logit, before[name]) != moves, name
    assert all(weight.grad is None for weight in method.weights())  # no work is done for them


def test_the_terms_of_a_batch_by_hand(tmp_path):
    method, phase, batch = begun(tmp_path, "method.lambda_sparse=0.25", "method.lambda_con=0.5")
    for gate in gates.gates_of(method).values():
        torch.nn.init.constant_(gate.logit, 20.0)  # all open: nothing is drawn
    for gate in gates.gates_of(method).values():
        gate.mask_logit = "raw"
    found = terms_of(phase, batch)
    z = method.backbone(batch.x)
    count = sum(gate.logit.numel() for gate in gates.gates_of(method).values())
    cluster = phase.clusters[batch.index]
    con = reference(z.detach(), batch.y.tolist(), cluster.tolist(), 0.07)
    assert float(found["loss"]) == pytest.approx(
        float(F.cross_entropy(method.head(z).detach(), batch.y))
    )
    assert float(found["loss_sparse"]) == pytest.approx(0.25 * 20.0 * count)
    assert float(found["loss_con"]) == pytest.approx(0.5 * sum(con), rel=1e-3)
    assert sum(value != 0 for value in con) > 50


def test_one_forward_pass_draws_one_number_per_weight(tmp_path, monkeypatch):
    method, phase, batch = begun(tmp_path)
    passes, numbers = [], []
    method.backbone.register_forward_hook(lambda *_: passes.append(1))
    rand_like = torch.rand_like
    monkeypatch.setattr(torch, "rand_like", lambda w: numbers.append(w.numel()) or rand_like(w))
    phase.step({"prune": batch})
    assert len(passes) == 1
    assert sum(numbers) == sum(g.logit.numel() for g in gates.gates_of(method).values())


def watched(method, tmp_path, context):
    """Phases that note weights and logits at their ends, in a trainer's order."""
    phases, seen = method.phases(), {}
    for phase in phases:

        def end(run, phase=phase, end=phase.end):
            end(run)
            seen[phase.name] = {n: v.detach().clone() for n, v in method.state_dict().items()}

        phase.end = end
    method.phases = lambda: phases
    return seen


def test_pruning_leaves_the_weights_and_retraining_the_masks(tmp_path):
    cfg = read(*CNN, "method.prune_lr=0.3")
    trainer, method = trainer_of(cfg, tmp_path)
    seen = watched(method, tmp_path, trainer.context)
    trainer.fit(method)
    assert list(seen) == ["erm", "prune", "retrain"]
    plain = {weights.plain_name(n): v for n, v in seen["prune"].items()}
    for name, value in seen["erm"].items():
        counted = "running" in name or "num_batches" in name  # batch norm goes on counting
        assert torch.equal(plain[name], value) != counted, name
    moved = [n for n, v in seen["retrain"].items() if not torch.equal(v, seen["prune"][n])]
    assert moved
    assert not any(name.endswith("logit") for name in moved)
    assert any(name.endswith("original") for name in moved)
    assert any(name.endswith("bias") for name in moved)
    method.train()
    for gate in gates.gates_of(method).values():  # nothing is drawn any more
        weight = torch.randn_like(gate.logit)
        assert torch.equal(gate(weight), weight * gate.kept)
    told = json.loads((tmp_path / "gates.json").read_text())
    logits = load_file(tmp_path / "gates.safetensors")
    kept = {name: float((logit >= 0).float().mean()) for name, logit in logits.items()}
    assert 0 < told["kept"] < 1
    for name, share in kept.items():
        assert told["layers"][layer_of(name)]["kept"] == pytest.approx(share)
    count = sum(logit.numel() for logit in logits.values())
    assert told["of"] == count
    open_ = sum(int((logit >= 0).sum()) for logit in logits.values())
    assert told["kept"] == pytest.approx(open_ / count)
    row = rows_of(tmp_path)[-1]
    assert row["phase"] == "retrain"
    assert row["train/kept"] == pytest.approx(told["kept"])
    assert row["train/kept/block1.0"] == pytest.approx(kept["backbone.block1.0.weight"])
    # What a run leaves is the network with zeros, at the sparsity that was told.
    state = weights.snapshot(method)
    assert sum(int((state[name] != 0).sum()) for name in logits) == open_
    assert sorted(state) == sorted(built(tmp_path, small=CNN)[0].state_dict())


def shuffled(splits):
    """The same data with other attributes in every split."""
    data = {}
    for name, split in splits.data.items():
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(3))
        other = split.subset(torch.arange(len(split)))
        other.a = split.a[order]
        other.g = split.spec.group(other.y, other.a)
        data[name] = other
    return dataclasses.replace(splits, data=data)


@pytest.mark.parametrize("options", [(), ("method.retrain_on=set",)])
def test_no_attribute_is_read_in_training(options, tmp_path):
    ends = []
    for name, change in (("own", lambda splits: splits), ("others", shuffled)):
        folder = tmp_path / name
        folder.mkdir()
        trainer, method = trainer_of(read(*SMALL, *options), folder)
        trainer.context = dataclasses.replace(
            trainer.context, splits=change(trainer.context.splits)
        )
        trainer.fit(method)
        ends.append((trainer.context.splits[Split.TRAIN].g, method.state_dict(), rows_of(folder)))
    assert not torch.equal(ends[0][0], ends[1][0])
    assert ends[0][2][-1]["val/aligned"] != ends[1][2][-1]["val/aligned"]
    for name, value in ends[0][1].items():
        assert torch.equal(value, ends[1][1][name]), name


def test_a_run_that_stops_in_clustering_goes_on(tmp_path, monkeypatch):
    cfg = read(*SMALL, "train.checkpoint_seconds=0")
    ends = []
    for name in ("whole", "stopped"):
        folder = tmp_path / name
        folder.mkdir()
        if name == "stopped":

            def stop(*_):
                raise KeyboardInterrupt

            with monkeypatch.context() as patch:
                patch.setattr(clustering, "describe", stop)
                trainer, method = trainer_of(cfg, folder)
                with pytest.raises(KeyboardInterrupt):
                    trainer.fit(method)
            assert {row["phase"] for row in rows_of(folder)} == {"erm"}
        trainer, method = trainer_of(cfg, folder)
        trainer.fit(method)
        ends.append((method.state_dict(), (folder / "clusters" / "clusters.csv").read_text()))
    assert ends[0][1] == ends[1][1]
    for name, value in ends[0][0].items():
        assert torch.equal(value, ends[1][0][name]), name


@pytest.mark.parametrize("options", [("train.precision=bf16",), ("train.channels_last=true",)])
def test_precision_and_memory_format(options, tmp_path):
    cfg = read(*CNN, *options)
    trainer, method = trainer_of(cfg, tmp_path)
    trainer.fit(method)
    assert math.isfinite(rows_of(tmp_path)[-1]["train/loss"])


def test_a_compiled_backbone_is_pruned_like_another(tmp_path, monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **_: compile_(f, backend="eager"))
    ends = []
    for compiled in ("false", "true"):
        folder = tmp_path / compiled
        folder.mkdir()
        trainer, method = trainer_of(read(*SMALL, f"train.compile={compiled}"), folder)
        assert (method.backbone._compiled_call_impl is not None) == (compiled == "true")
        trainer.fit(method)
        ends.append(weights.snapshot(method))
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, msg=name)


def test_a_layer_without_a_weight_is_told(tmp_path, caplog):
    method, phase, _ = begun(tmp_path)
    context = built(tmp_path)[1]
    phase.end(context)
    assert "is kept" not in caplog.text
    torch.nn.init.constant_(gates.gates_of(method)["backbone.hidden.1.weight"].logit, -1.0)
    phase.end(context)
    assert "all weights of hidden.1 are pruned" in caplog.text
    assert "hidden.0" not in caplog.text


def test_what_a_set_cannot_teach_is_told(tmp_path, caplog):
    begun(tmp_path, "method.sampling=minority")
    assert "no cluster of the de-biasing set contains two classes" in caplog.text
    caplog.clear()
    begun(tmp_path)
    assert caplog.text == ""
    split = read_train()
    split.y = split.y + (torch.arange(len(split)) % 9 == 0) * 2  # two more classes, each apart
    split.spec = dataclasses.replace(split.spec, classes=("small", "large", "third", "fourth"))
    clusters = torch.where(split.y > 1, split.y, 0)
    drawn = debiasing_set(split.y, clusters, "balanced", 0)
    DebiasingSet(None, 3, "balanced")._warn(split, clusters, drawn, len(drawn))
    assert "no sample of third, fourth: no cluster mixes it with another" in caplog.text
    assert "fewer than a batch" not in caplog.text
    DebiasingSet(None, 3, "balanced")._warn(split, clusters, drawn, len(drawn) + 1)
    assert f"has {len(drawn)} images, fewer than a batch of {len(drawn) + 1}" in caplog.text


# --- options --------------------------------------------------------------------------------------


def phases_of(tmp_path, *overrides):
    return [phase.name for phase in built(tmp_path, *overrides)[0].phases()]


def test_the_controls(tmp_path):
    assert phases_of(tmp_path) == ["erm", "prune", "retrain"]
    method, phase, batch = begun(tmp_path, "method.control=no_contrast")
    assert float(terms_of(phase, batch)["loss_con"]) == 0.0
    assert phases_of(tmp_path, "method.control=no_contrast") == ["erm", "prune", "retrain"]
    alone = ("method.control=retrain_alone", "method.retrain_on=set")
    assert phases_of(tmp_path, *alone) == ["erm", "retrain"]
    method, context = built(tmp_path, *alone)
    retrain = method.phases()[-1]
    retrain.setup(context)
    with torch.no_grad():
        retrain.begin(context)
    stream = retrain.streams(context)["train"]
    drawn = clustering.read_drawn(tmp_path / "clusters")
    assert 0 < len(drawn) == stream.size < len(context.splits[Split.TRAIN])
    assert torch.equal(stream.dataset.source, context.splits[Split.TRAIN].source[drawn])
    assert gates.gates_of(method) == {}
    assert retrain.optimizer.param_groups[0]["lr"] == retrain.lr == 0.01
    with pytest.raises(UserError, match="retrain_alone trains on the de-biasing set"):
        built(tmp_path, "method.control=retrain_alone")
    with pytest.raises(UserError, match=r"method.temperature=0.0 must be positive"):
        built(tmp_path, "method.temperature=0")
    for name in ("lambda_con", "lambda_sparse"):
        with pytest.raises(UserError, match=rf"method.{name}=-1.* at least 0"):
            built(tmp_path, f"method.{name}=-1")
    for name in ("lambda_con", "lambda_sparse", "temperature", "prune_lr", "retrain_lr"):
        for value in ("nan", "inf"):
            with pytest.raises(UserError, match=rf"method.{name}={value} is not finite"):
                built(tmp_path, f"method.{name}={value}")
    with pytest.raises(UserError, match=r"method.retrain_epochs=0 must be positive"):
        built(tmp_path, "method.retrain_epochs=0")


def test_retraining_on_val_leaves_no_figure_of_val(command_line, tmp_path):
    options = (*SMALL, "method.retrain_on=val", "dfr=none", "tracker=none", "sweep=on_val")
    ended = command_line.run("train", *options, f"paths.outputs={tmp_path}")
    assert ended.code == 0, ended.err
    (run,) = tmp_path.glob("runs/digits/prusc/*/seed0")
    result = json.loads((run / "result.json").read_text())
    assert result["val"] is None
    assert result["test"]["worst"] is not None
    rows = rows_of(run)
    has = {row["phase"]: any(key.startswith("val/") for key in row) for row in rows}
    assert has == {"erm": True, "prune": True, "retrain": False}
    assert result["selected"] == {"criterion": None, "phase": "retrain", "epoch": 2}
    assert rows[-1]["epoch"] == 2
    with np.load(run / "predictions.npz") as arrays:
        assert {name.partition("/")[0] for name in arrays} == {"test", "opposite"}
    ended = command_line.run("report", "sweep=on_val", f"paths.outputs={tmp_path}", "plots=false")
    assert ended.code == 0, ended.err
    stopping = "train.early_stopping={patience: 1}"
    ended = command_line.run("train", *options, stopping, f"paths.outputs={tmp_path}")
    assert ended.code == 2
    assert "retrain trains on val" in ended.err


def test_nothing_is_fitted_or_selected_on_a_split_that_was_trained_on(command_line, tmp_path):
    outputs = (f"paths.outputs={tmp_path}", "tracker=none")
    on_val = (*SMALL, "method.retrain_on=val", *outputs)
    assert command_line.run("train", *on_val, "dfr=target").code == 0
    (run,) = tmp_path.glob("runs/digits/prusc/*/seed0")
    (part,) = json.loads((run / "result.json").read_text())["dfr"].values()
    assert (part["val"], part["val_is"]) == (None, "none")
    assert part["test"]["worst"] is not None
    here = [one for one in SMALL if not one.startswith("method=")]
    for command, message in (
        (("train", *on_val, "dfr=val"), "dfr reads val, "),
        (("train", *on_val, "dfr=train"), "dfr reads val, "),
        (("retrain", f"run={run}", "dfr=val", *outputs), "dfr reads val, "),
        (("train", *on_val, "dfr=none", "analysis=selective"), "trained on val"),
        (("train", *here, "method=prusc", f"method.init={run}", *outputs), f"method.init={run} "),
        (("selective", f"runs=[{run},{run}]", outputs[0]), f"runs: {run} has no results"),
    ):
        ended = command_line.run(*command)
        assert ended.code == 2, (command, ended.err)
        assert message in ended.err


def test_a_run_that_starts_from_another_ends_like_one_that_trained_itself(command_line, tmp_path):
    base = [one for one in SMALL if not one.startswith("method")]
    base += [f"paths.outputs={tmp_path}", "tracker=none", "dfr=target"]
    assert command_line.run("train", *base, "method=erm", "method.epochs=2").code == 0
    (erm,) = tmp_path.glob("runs/digits/erm/*/seed0")
    whole = command_line.run("train", *SMALL, *base)
    assert whole.code == 0, whole.err
    started = command_line.run("train", *SMALL, *base, f"method.init={erm.parent.name[:6]}")
    assert started.code == 0, started.err
    first, second = sorted(
        tmp_path.glob("runs/digits/prusc/*/seed0"),
        key=lambda run: len(json.loads((run / "phases.json").read_text())["phases"]),
    )
    names = [phase["name"] for phase in json.loads((first / "phases.json").read_text())["phases"]]
    assert names == ["prune", "retrain"]
    assert (first / "plots" / "clusters.png").read_bytes().startswith(b"\x89PNG")
    for name in ("last.safetensors", "gates.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert (first / "clusters/clusters.csv").read_text() == (
        second / "clusters/clusters.csv"
    ).read_text()
    result = json.loads((first / "result.json").read_text())
    assert result["run"]["config"]["method.init"] == erm.parent.name
    again = command_line.run("train", *SMALL, *base, f"method.init={erm}")
    assert "was done before" in again.out
    # Repairs and readers see the masked network.
    logits = load_file(first / "gates.safetensors")
    state = load_file(first / "last.safetensors")
    for name, logit in logits.items():
        assert (state[name][logit < 0] == 0).all()
    (part,) = (first / "dfr").glob("target-*/result.json")
    assert json.loads(part.read_text())["test"]["worst"] is not None


def test_maps_features_and_predictions_are_those_of_the_masked_network(tmp_path):
    """What explains, repairs and analyses sees zeros in place of the weights that are not kept."""
    method, _, batch = begun(tmp_path, small=CNN)
    plain, _ = built(tmp_path, small=CNN)
    dense, _ = built(tmp_path, small=CNN)
    generator = torch.Generator().manual_seed(3)
    state = plain.state_dict()
    for name, gate in gates.gates_of(method).items():
        gate.logit.data.copy_(torch.randn(gate.logit.shape, generator=generator) + 1)
        state[name].mul_(gate.logit.detach() >= 0)
    layer, seen = method.backbone.spatial(), []
    for net in (method, plain, dense):
        net.eval()
        maps = heat_maps(net, batch.x, layer)
        with torch.no_grad():
            features = net.backbone.features(batch.x, net.backbone.layers)
            seen.append([net.predict(batch.x), maps, *features.values()])
    for masked, zeros, whole in zip(*seen, strict=True):
        torch.testing.assert_close(masked, zeros)
        assert not torch.allclose(masked, whole, atol=1e-4)


def test_a_loss_that_is_no_number_names_the_rate_of_its_phase(tmp_path):
    trainer, method = trainer_of(read(*SMALL, "method.lambda_sparse=1e38"), tmp_path)
    with pytest.raises(RunError, match=r"prune: loss_sparse is inf .*\(method.prune_lr\)"):
        trainer.fit(method)


# --- clusters on files ----------------------------------------------------------------------------


def test_clusters_of_a_finished_run_are_those_that_pruning_makes(command_line, tmp_path):
    base = [one for one in SMALL if not one.startswith("method")]
    base += [f"paths.outputs={tmp_path}", "tracker=none", "dfr=none"]
    assert command_line.run("train", *base, "method=erm", "method.epochs=2").code == 0
    (erm,) = tmp_path.glob("runs/digits/erm/*/seed0")
    ended = command_line.run("clusters", f"run={erm.parent.name}", f"paths.outputs={tmp_path}")
    assert ended.code == 0, ended.err
    assert "attribute" in ended.out
    folder = erm / "clusters-16-seed0"
    made = (folder / "clusters.csv").read_text()
    whole = command_line.run("train", *SMALL, *base)
    assert whole.code == 0, whole.err
    (run,) = tmp_path.glob("runs/digits/prusc/*/seed0")
    lines = (run / "clusters" / "clusters.csv").read_text().splitlines()
    assert [line.rpartition(",")[0] for line in lines[1:]] == made.splitlines()[1:]
    reused = command_line.run("train", *SMALL, *base, f"method.clusters={folder}/clusters.csv")
    assert reused.code == 0, reused.err
    one, other = tmp_path.glob("runs/digits/prusc/*/seed0")
    assert one.parent.name != other.parent.name
    assert (one / "last.safetensors").read_bytes() == (other / "last.safetensors").read_bytes()
    assert (folder / "clusters.png").read_bytes().startswith(b"\x89PNG")
    for arguments, message in (
        (("num_clusters=100000",), "num_clusters=100000 is more than the 797 samples"),
        (("num_clusters=0",), "num_clusters=0 must be at least 1"),
    ):
        refused = command_line.run(
            "clusters", f"run={erm}", f"paths.outputs={tmp_path}", *arguments
        )
        assert refused.code == 2
        assert message in refused.err


def test_the_table_of_clusters_by_hand(tmp_path):
    split = read_train()
    clusters = torch.where(split.y == 1, 2, torch.where(split.a == 1, 1, 0))
    x = torch.randn(len(split), 4, generator=torch.Generator().manual_seed(0))
    found = clustering.describe(tmp_path, tmp_path / "c.png", x, split, clusters)
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert lines[0] == "cluster,size,class small,class large,attribute red,attribute green"
    counts = split.group_counts.tolist()  # small/red, small/green, large/red, large/green
    assert lines[1] == f"0,{counts[0]},{counts[0]},0,{counts[0]},0"
    assert lines[2] == f"1,{counts[1]},{counts[1]},0,0,{counts[1]}"
    assert (
        lines[3] == f"2,{counts[2] + counts[3]},0,{counts[2] + counts[3]},{counts[2]},{counts[3]}"
    )
    assert found["class"]["purity"] == 1.0
    n = sum(counts)
    purity = (counts[0] + counts[1] + max(counts[2], counts[3])) / n
    assert found["attribute"]["purity"] == pytest.approx(purity)
    p = [(counts[0] + counts[1]) / n, (counts[2] + counts[3]) / n]
    entropy = -sum(share * math.log(share) for share in p)
    assert found["class"]["mutual_information"] == pytest.approx(entropy)
    assert json.loads((tmp_path / "clusters.json").read_text()) == found


def read_train():
    splits, _ = build.build(read("dataset.strength=0.7", "backbone=mlp"))
    return splits[Split.TRAIN]


def test_clusters_are_read_as_they_were_written_or_as_upstream_writes_them(tmp_path):
    split = read_train()
    clusters = torch.arange(len(split)) % 5
    drawn = torch.tensor([3, 17, 200])
    clustering.write_clusters(tmp_path, split, clusters, drawn)
    path = tmp_path / "clusters.csv"
    assert torch.equal(clustering.read_clusters(path, split), clusters)
    assert torch.equal(clustering.read_drawn(tmp_path), drawn)
    order = torch.randperm(len(split)).tolist()
    rows = [f"{k},{i},{int(split.y[i])},{int(clusters[i])}" for k, i in enumerate(order)]
    path.write_text("\n".join([",index,label,cluster_assign", *rows]) + "\n")
    assert torch.equal(clustering.read_clusters(path, split), clusters)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: ["# fingerprint of the split: 0123", *lines[1:]], "other training data"),
        (lambda lines: lines[:-3], "lacks 3 of the indices 0 to 796 of TRAIN .the first is 794"),
        (lambda lines: [*lines, lines[2]], "repeats 1 of the indices"),
        (lambda lines: [*lines, "900,0,1"], "has beyond the end 1 of the indices"),
        (lambda lines: [*lines[:2], flipped(lines[2]), *lines[3:]], "disagree on the class of 1"),
        (lambda lines: [*lines[:5], f"{lines[5]}.5", *lines[6:]], "not an integer"),
        (lambda lines: ["index,label", *lines[2:]], "cannot be read|lacks the columns"),
        (lambda lines: [lines[0], "index,label,cluster", *(one_class(li) for li in lines[2:])],
         "each of the 2 clusters contains a single class.*a file of fewer clusters"),
    ],
)  # fmt: skip
def test_clusters_that_do_not_fit_are_refused_before_anything_is_written(change, message, tmp_path):
    split = read_train()
    clustering.write_clusters(tmp_path, split, torch.arange(len(split)) % 5)
    path = tmp_path / "clusters.csv"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    cfg = read(*SMALL, f"method.clusters={path}", f"paths.outputs={tmp_path}/outputs")
    with pytest.raises(UserError, match=message):
        execute.execute(cfg, None)
    assert not (tmp_path / "outputs").exists()


def flipped(line):
    index, label, cluster = line.split(",")
    return f"{index},{1 - int(label)},{cluster}"


def one_class(line):
    index, label, _ = line.split(",")
    return f"{index},{label},{label}"


def test_what_cannot_be_pruned_is_refused(tmp_path):
    cfg = read(*SMALL, "method.num_clusters=100000", f"paths.outputs={tmp_path}/outputs")
    with pytest.raises(UserError, match="num_clusters=100000 is more than the 797 samples"):
        execute.execute(cfg, None)
    assert not (tmp_path / "outputs").exists()
    cfg = read(*SMALL, f"method.clusters={tmp_path}/nothing.csv")
    with pytest.raises(UserError, match=r"method.clusters=.*nothing.csv cannot be read"):
        execute.execute(cfg, None)


def test_a_network_that_parts_the_classes_everywhere_says_what_to_try(tmp_path, monkeypatch):
    trainer, method = trainer_of(read(*SMALL), tmp_path)
    y = trainer.context.splits[Split.TRAIN].y
    monkeypatch.setattr(clustering, "cluster", lambda *_: y.clone())
    with pytest.raises(RunError, match="there is nothing to balance; try a smaller"):
        trainer.fit(method)
