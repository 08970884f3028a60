"""Groups that nobody annotated: what is inferred, how well, and that methods train by it."""

import dataclasses
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_contracts import resumes_exactly
from test_sweep import kill_a_point
from torch.nn.functional import cross_entropy
from training import read, rows_of, trainer_of, with_reference

from spurcor.data.grouping import Grouping
from spurcor.data.groups import GroupSpec, Split
from spurcor.errors import UserError
from spurcor.groups.clusters import Clusters, margins
from spurcor.groups.confidence import Confidence, true_losses
from spurcor.groups.contract import Table
from spurcor.groups.eiil import Eiil, scale_derivatives, separate
from spurcor.groups.errors import Errors
from spurcor.groups.file import FromFile
from spurcor.groups.predictions import Predictions
from spurcor.groups.quality import quality
from spurcor.methods.jtt import Jtt
from spurcor.runs import build
from spurcor.runs.grouping import about_groups, write_grouping
from spurcor.runs.prepared import prepare
from spurcor.runs.reference import obtain
from spurcor.runs.results import read_result
from spurcor.tracking import Trackers

TWO = GroupSpec(("a", "b"), ("x", "y"))
THREE = GroupSpec(("a", "b", "c"), ("x",))


def table(logits, y, features=None) -> Table:
    return Table(torch.tensor(y), torch.tensor(logits, dtype=torch.float32), features)


# --- errors, predictions, confidence --------------------------------------------------------------

LOGITS = [[2.0, 1.0], [0.0, 3.0], [1.0, 4.0], [5.0, 0.0]]
Y = [0, 0, 1, 1]  # the second and the fourth are mistakes


def test_errors_are_the_mistakes_of_the_reference():
    found = Errors(epochs=1).infer({"train": table(LOGITS, Y)}, TWO, 0)
    assert found.attribute["train"].tolist() == [0, 1, 0, 1]
    assert found.spec.names == ["a/right", "a/wrong", "b/right", "b/wrong"]


def test_predictions_are_the_classes_that_the_reference_predicts():
    found = Predictions(epochs=1).infer({"train": table(LOGITS, Y)}, TWO, 0)
    assert found.attribute["train"].tolist() == [0, 1, 1, 0]
    assert found.spec.attributes == ("a", "b")


@pytest.mark.parametrize(("of", "fix"), [([0, 1, 1, 0], "fewer"), ([1, 0, 0, 1], "more")])
def test_a_reference_without_mistakes_or_with_nothing_else_is_told(of, fix):
    with pytest.raises(UserError, match=f"train it for {fix} epochs"):
        Errors(epochs=1).infer({"train": table(LOGITS, of)}, TWO, 0)


def test_a_reference_that_predicts_one_class_is_told():
    with pytest.raises(UserError, match="one class for all training samples"):
        Predictions(epochs=1).infer({"train": table([[1.0, 0.0]] * 4, Y)}, TWO, 0)


def test_the_least_trusted_share_of_each_class_is_doubted():
    """By hand: of ten samples of class 0 and five of class 1, the largest 20 % of the losses."""
    margin = torch.cat([torch.arange(10.0), torch.tensor([4.0, 0.0, 3.0, 1.0, 2.0])])
    y = [0] * 10 + [1] * 5
    sign = torch.tensor([1.0] * 10 + [-1.0] * 5)
    logits = torch.stack([sign * margin, torch.zeros(15)], 1)
    of = Table(torch.tensor(y), logits)
    assert torch.allclose(true_losses(of), torch.log1p((-margin.double()).exp()))
    found = Confidence(epochs=1, share=0.2).infer({"train": of}, TWO, 0)
    assert found.attribute["train"].nonzero().squeeze(1).tolist() == [0, 1, 11]


def test_val_is_divided_at_the_quantiles_of_train():
    train = table([[float(i), 0.0] for i in range(10)], [0] * 10)
    val = table([[0.5, 0.0], [2.5, 0.0], [-3.0, 0.0]], [0, 0, 0])
    found = Confidence(epochs=1, share=0.2, on=("train", "val")).infer(
        {"train": train, "val": val}, TWO, 0
    )
    assert found.attribute["val"].tolist() == [1, 0, 1]


# --- EIIL -----------------------------------------------------------------------------------------


def test_the_derivative_in_the_scale_is_that_of_the_loss():
    torch.manual_seed(0)
    logits, y = torch.randn(20, 3, dtype=torch.float64), torch.randint(3, (20,))
    scale = torch.ones(20, dtype=torch.float64, requires_grad=True)
    cross_entropy(scale[:, None] * logits, y, reduction="sum").backward()
    assert torch.allclose(scale_derivatives(logits, y), scale.grad, atol=1e-12)


def test_environments_of_two_classes_are_the_mistakes():
    """All but those so close to the border that they keep the side of their start value."""
    torch.manual_seed(1)
    logits, y = 3 * torch.randn(400, 2), torch.randint(2, (400,))
    of = {"train": Table(y, logits)}
    wrong = (logits.argmax(1) != y).long()
    for seed in range(4):  # whichever way round it began
        eiil = Eiil(epochs=1, env_lr=0.05, steps=3000)
        found = eiil.infer(of, TWO, seed).attribute["train"]
        assert float((found == wrong).double().mean()) > 0.97


def test_separation_raises_the_penalty_and_ends_at_the_signs():
    """Independently computed: the optimum of a convex function of sigma is at its corners."""
    torch.manual_seed(2)
    d = torch.randn(200, dtype=torch.float64)
    start = separate(d, 0.05, 0, torch.Generator().manual_seed(3))
    end = separate(d, 0.05, 4000, torch.Generator().manual_seed(3))

    def penalty(sigma):
        return float(((sigma * d).mean() ** 2 + ((1 - sigma) * d).mean() ** 2) / 2)

    best = (d.clamp(min=0).mean() ** 2 + d.clamp(max=0).mean() ** 2) / 2
    assert penalty(start) < penalty(end) <= float(best) + 1e-12
    assert penalty(end) == pytest.approx(float(best), rel=1e-2)


def test_separation_does_not_depend_on_the_order_of_the_samples():
    """A plain script: gradient of the objective by hand, Adam by hand."""
    torch.manual_seed(4)
    d = torch.randn(50, dtype=torch.float64).numpy()
    w = torch.randn(50, generator=torch.Generator().manual_seed(5), dtype=torch.float64).numpy()
    m, v = np.zeros(50), np.zeros(50)
    for t in range(1, 201):
        sigma = 1 / (1 + np.exp(-w))
        one, two = (sigma * d).mean(), ((1 - sigma) * d).mean()
        gradient = -(one * d - two * d) / 50 * sigma * (1 - sigma)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        w = w - 0.05 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    generator = torch.Generator().manual_seed(5)
    found = separate(torch.from_numpy(d), 0.05, 200, generator)
    assert np.allclose(found.numpy(), 1 / (1 + np.exp(-w)), atol=1e-6)


# --- clusters -------------------------------------------------------------------------------------


def blobs() -> tuple[Table, torch.Tensor]:
    """Two blobs of 60 and 20 in class 0, two of 30 and 50 in class 1; and which is which."""
    torch.manual_seed(0)
    sizes, centres = (60, 20, 30, 50), ((0, 0), (8, 0), (0, 8), (8, 8))
    parts = [torch.randn(n, 2) + torch.tensor(c) for n, c in zip(sizes, centres, strict=True)]
    features = torch.cat(parts)
    y = torch.tensor([0] * 80 + [1] * 80)
    blob = torch.repeat_interleave(torch.tensor([0, 1, 1, 0]), torch.tensor(sizes))
    return Table(y, features, features), blob


@pytest.mark.parametrize("by", ["kmeans", "mixture"])
@pytest.mark.parametrize("k", [2, None])
def test_clusters_within_classes_are_found_and_numbered_by_size(by, k):
    of, blob = blobs()
    found = Clusters(epochs=1, k=k, max_k=4, by=by).infer({"train": of}, TWO, 0)
    assert found.spec.attributes == ("cluster 1", "cluster 2")
    assert torch.equal(found.attribute["train"], blob)


def test_a_class_of_fewer_clusters_leaves_groups_empty_and_val_joins_those_of_train():
    of, blob = blobs()
    third = torch.randn(10, 2) + torch.tensor([-9.0, 9.0])
    features = torch.cat([of.features, third])
    y = torch.cat([of.y, torch.ones(10, dtype=torch.int64)])
    train = Table(y, features, features)
    val = Table(torch.tensor([1, 0]), features[[165, 70]], features[[165, 70]])
    clusters = Clusters(epochs=1, k=None, max_k=5, on=("train", "val"))
    found = clusters.infer({"train": train, "val": val}, TWO, 0)
    assert found.attribute["train"].tolist() == [*blob.tolist(), *[2] * 10]
    assert found.attribute["val"].tolist() == [2, 1]
    assert len(found.spec.names) == 6
    assert torch.bincount(found.spec.group(y, found.attribute["train"]), minlength=6)[2] == 0


def test_hardness_is_the_coordinate_along_the_difference_of_the_heads_weights():
    """Of two classes, up to the bias and the length of that difference."""
    torch.manual_seed(3)
    features, head = torch.randn(30, 5), torch.nn.Linear(5, 2)
    with torch.no_grad():
        logits = head(features)
        along = features @ (head.weight[1] - head.weight[0])
        bias = head.bias[1] - head.bias[0]
    y = torch.randint(2, (30,))
    sign = 2 * y - 1
    assert torch.allclose(margins(Table(y, logits)), sign * (along + bias), atol=1e-5)


def test_more_clusters_than_samples_are_told():
    of = table(LOGITS, [0, 1, 1, 1])
    with pytest.raises(UserError, match=r"groups.k=3: class a has 1 training samples"):
        Clusters(epochs=1, of="logits", k=3).infer({"train": of}, TWO, 0)


# --- quality --------------------------------------------------------------------------------------


def test_quality_by_hand():
    """Class a: of a minority of 2, 1 is found among 3; class b: all of it, under another name."""
    true = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 0])
    a = torch.tensor([0, 0, 1, 1, 1, 0, 0, 0, 0, 1])
    y = torch.tensor([0] * 6 + [1] * 4)
    found = quality(a, true, y, TWO)
    assert found["sizes"] == {"a": [3, 3], "b": [3, 1]}
    one, two = found["classes"]["a"], found["classes"]["b"]
    assert (one["precision"], one["recall"]) == (pytest.approx(1 / 3), 0.5)
    assert one["f1"] == pytest.approx(0.4)
    assert (two["precision"], two["recall"], two["f1"], two["ami"]) == (1, 1, 1, 1)
    assert found["precision"] == pytest.approx((1 / 3 + 1) / 2)
    assert found["f1"] == pytest.approx(0.7)


def test_names_and_order_of_inferred_groups_do_not_count():
    torch.manual_seed(0)
    true, y = torch.randint(2, (200,)), torch.randint(2, (200,))
    a = torch.where(torch.rand(200) < 0.1, 1 - true, true)
    assert quality(a, true, y, TWO)["ami"] == pytest.approx(quality(1 - a, true, y, TWO)["ami"])
    of_chance = quality(torch.randint(2, (200,)), true, y, TWO)["ami"]
    assert abs(of_chance) < 0.05


def test_without_annotation_only_sizes_are_known():
    assert quality(torch.tensor([0, 1]), None, torch.tensor([0, 0]), TWO) == {
        "sizes": {"a": [1, 1], "b": [0, 0]}
    }


# --- training by them -----------------------------------------------------------------------------

QUICK = (
    "backbone=mlp", "backbone.width=8", "dfr=none", "tracker=none", "method.epochs=2",
    "dataset.subset_size=200", "train.batch_size=50",
)  # fmt: skip
ALL = ("none", "errors", "predictions", "confidence", "eiil", "clusters")


def inferred(tmp_path, *words):
    cfg = with_reference(read(*QUICK, *words), tmp_path)
    return cfg, *build.build(cfg)


def test_annotated_groups_are_no_part_of_the_identity():
    assert read(*QUICK, "groups=annotated").identity == read(*QUICK).identity
    assert "groups" not in read(*QUICK).settings
    others = {read(*QUICK, f"groups={name}").identity for name in ALL}
    assert len(others | {read(*QUICK).identity}) == len(ALL) + 1


def test_streams_and_methods_see_inferred_groups_and_all_else_the_annotated_ones(tmp_path):
    cfg, splits, method = inferred(tmp_path, "groups=errors", "method=group_dro")
    plain, _ = build.build(read(*QUICK))
    assert splits.fingerprints == plain.fingerprints
    assert torch.equal(splits["train"].a, plain["train"].a)
    trained = splits.trained(Split.TRAIN)
    assert trained.spec.attributes == ("right", "wrong")
    context = build.context_of(cfg, splits, tmp_path)
    batch = next(context.stream(Split.TRAIN).start(0))
    assert torch.equal(batch.g, trained.g[batch.index])
    assert method.spec == splits.spec == plain.spec
    assert splits.info.spec == trained.spec
    assert torch.equal(splits.info.group_counts, torch.bincount(trained.g, minlength=4))


@pytest.mark.parametrize("groups", ALL)
def test_a_run_resumes_exactly_with_every_kind_of_groups(groups, tmp_path):
    method = "erm" if groups == "none" else "group_dro"
    words = (*QUICK, f"groups={groups}", f"method={method}", "train.checkpoint_seconds=0")
    small = ("dataset.subset_size=100", "train.batch_size=50")
    resumes_exactly(read(*words, *small), tmp_path)


def test_balanced_sampling_goes_by_inferred_groups(tmp_path):
    cfg, splits, method = inferred(tmp_path, "groups=errors", "method.sampling=balanced")
    (phase,) = method.phases()
    context = build.context_of(cfg, splits, tmp_path)
    batch = next(phase.streams(context)["train"].start(0))
    present = splits.trained(Split.TRAIN).g.unique()
    counts = torch.bincount(batch.g)[present]
    assert counts.max() - counts.min() <= 1


def epoch_of(stream, number):
    batches = itertools.islice(stream.start(number * len(stream)), len(stream))
    return torch.cat([batch.index for batch in batches])


def test_jtt_repeats_mistakes_and_starts_from_fresh_weights(tmp_path):
    cfg, splits, method = inferred(tmp_path, "method=jtt", "method.upweight=7")
    _, fresh = build.build(read(*QUICK))
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, method.state_dict()[name]), name
    mistakes = splits.trained(Split.TRAIN).a.bool()
    (phase,) = method.phases()
    stream = phase.streams(build.context_of(cfg, splits, tmp_path))["train"]
    assert stream.size == len(mistakes) + 7 * int(mistakes.sum())
    seen = epoch_of(stream, 0)
    assert torch.equal(torch.bincount(seen), 1 + 7 * mistakes.long())
    again = epoch_of(stream, 1)  # the next epoch has the same
    assert torch.equal(seen.sort()[0], again.sort()[0])


@pytest.mark.parametrize(("mistakes", "copies"), [(10, 8), (20, 3), (60, 0)])
def test_minus_one_balances_mistakes_and_the_rest(mistakes, copies):
    """int((N - |E|) / |E|) - 1 copies of 100 samples, and no negative number of them."""
    method = object.__new__(Jtt)
    method.__dict__["upweight"] = -1
    wrong = torch.arange(100) < mistakes
    assert method.repeats(wrong).tolist() == [1 + copies] * mistakes + [1] * (100 - mistakes)


def test_jtt_is_the_plain_script(tmp_path):
    """Two networks and a list of indices, without spurcor's loop; the same rows to 1e-6."""
    cfg, splits, _ = inferred(tmp_path, "method=jtt", "method.upweight=3")
    folder = tmp_path / "run"
    folder.mkdir()
    trainer, trained = trainer_of(cfg, folder)
    trainer.fit(trained)
    rows = rows_of(folder)

    def trained_on(network, repeats, epochs, splits):
        optimizer = cfg.optimizer.build(params=network.parameters())
        losses = []
        stream = build.context_of(cfg, splits, tmp_path).stream("train", repeats=repeats)
        for batch in itertools.islice(stream.start(0), epochs * len(stream)):
            loss = cross_entropy(network.predict(batch.x), batch.y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses += [float(loss.detach())] * len(batch.y)
        return losses

    plain, first = build.build(read(*QUICK))
    x, y = splits.transform(plain["train"].fetch(torch.arange(200)).x), plain["train"].y
    ones = torch.ones(200, dtype=torch.int64)
    trained_on(first.train(), ones, 1, plain)
    wrong = first.eval().predict(x).argmax(1) != y
    _, second = build.build(read(*QUICK))
    losses = trained_on(second.train(), 1 + 3 * wrong.long(), 2, plain)
    half = len(losses) // 2
    assert rows[0]["train/loss"] == pytest.approx(np.mean(losses[:half]), abs=1e-6)
    assert rows[1]["train/loss"] == pytest.approx(np.mean(losses[half:]), abs=1e-6)
    for name, value in second.state_dict().items():
        assert torch.allclose(value, trained.state_dict()[name], atol=1e-6), name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("method=jtt", "groups=annotated"), "method=jtt repeats mistakes; choose groups=errors"),
        (("method=group_dro", "groups=none"), "method=group_dro needs groups"),
        (("groups=none", "train.selection=val/worst"), "train.selection=val/worst .*needs groups"),
        (("train.selection=val/worst_inferred",), "no groups are inferred on val"),
        (("groups=errors", "train.selection=val/worst_inferred"), "no groups are inferred on val"),
        (("groups=errors", "groups.on=[val]"), r"groups.on=\['val'\] must contain train"),
        (("groups=errors", "groups.epochs=0"), "groups.epochs=0 must be at least 1"),
        (("groups=errors", "groups.run=nothing"), "groups.run=nothing"),
        (("groups=errors", "dfr=train"), "do not share; infer them on both with groups.on"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_trained(words, said, command_line, tmp_path):
    reference = ("train", *QUICK, "method.epochs=1", f"paths.outputs={tmp_path}")
    assert command_line.run(*reference).code == 0
    before = sorted(tmp_path.rglob("*"))
    ended = command_line.run("train", *QUICK, f"paths.outputs={tmp_path}", *words)
    assert ended.code == 2, ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert re.search(said, ended.err), ended.err
    assert sorted(tmp_path.rglob("*")) == before


def test_hidden_groups_are_reported_and_select_by_class(command_line, tmp_path):
    words = (*(word for word in QUICK if word != "dfr=none"), f"paths.outputs={tmp_path}")
    ended = command_line.run("train", *words, "groups=none")
    assert ended.code == 0, ended.err
    (result,) = tmp_path.glob("runs/*/*/*/*/result.json")
    found = read_result(result.parent)
    assert found["selected"]["criterion"] == "val/worst_class"
    assert found["test"]["worst"] is not None
    assert found["dfr"] == {}


def test_the_reference_run_is_shared_counted_and_an_ordinary_run(command_line, tmp_path):
    words = (*QUICK, f"paths.outputs={tmp_path}", "-m", "method.upweight=2,5", "method=jtt")
    ended = command_line.run(
        "train",
        *words,
        "train.selection=val/worst_inferred",
        "groups.on=[train,val]",
        COLUMNS="200",
    )
    assert ended.code == 0, ended.out + ended.err
    (reference,) = tmp_path.glob("runs/digits/erm/*/seed0")
    before = read_result(reference)["run"]
    assert (
        before["identity"]
        == read(*QUICK, "method.epochs=1", "train.selection=val/average").identity
    )
    runs = [read_result(path.parent) for path in tmp_path.glob("runs/digits/jtt/*/*/result.json")]
    assert len(runs) == 2
    for result in runs:
        assert result["run"]["reference"]["images_seen"] == before["images_seen"] == 200
        assert result["selected"]["criterion"] == "val/worst_inferred"
        assert set(result["groups"]) == {"train", "val"}
        assert 0 <= result["groups"]["train"]["f1"] <= 1
    again = command_line.run(
        "train",
        *words,
        "train.selection=val/worst_inferred",
        "groups.on=[train,val]",
        COLUMNS="200",
    )
    assert again.code == 0
    assert read_result(reference)["run"] == before


def test_a_finished_run_may_be_the_reference(command_line, tmp_path):
    words = (*QUICK, f"paths.outputs={tmp_path}")
    assert command_line.run("train", *words, "method.epochs=1").code == 0
    (reference,) = tmp_path.glob("runs/digits/erm/*/seed0")
    identity = reference.parent.name
    ended = command_line.run("train", *words, "method=jtt", f"groups.run={identity}")
    assert ended.code == 0, ended.err
    (run,) = tmp_path.glob("runs/digits/jtt/*/seed0")
    assert read_result(run)["run"]["config"]["groups.run"] == str(reference)
    assert len(list(tmp_path.glob("runs/digits/erm/*"))) == 1
    assert (run / "plots" / "groups.png").exists()
    listed = (run / "groups" / "groups.csv").read_text().splitlines()
    assert listed[0] == "split,index,class,inferred,annotated"
    assert len(listed) == 201


def test_groups_stay_those_that_training_began_with(command_line, tmp_path):
    """Also where the reference run is gone, as for a repair years later."""
    words = (*QUICK, f"paths.outputs={tmp_path}", "groups=errors", "groups.on=[train,val]")
    assert command_line.run("train", *words).code == 0
    (run,) = tmp_path.glob("runs/digits/erm/*/seed0/groups")
    others = [path for path in tmp_path.glob("runs/digits/erm/*") if path != run.parents[1]]
    for path in others:
        shutil.rmtree(path)
    ended = command_line.run(
        "retrain", f"run={run.parent}", f"paths.outputs={tmp_path}", "dfr=train", "tracker=none"
    )
    assert ended.code == 0, ended.out + ended.err
    about = json.loads((run / "groups.json").read_text())
    assert about["attributes"] == ["right", "wrong"]


def test_a_grouping_of_other_samples_is_refused():
    split = dataclasses.make_dataclass("Split", ["y"])(torch.zeros(3))
    grouping = Grouping(TWO, {"train": torch.zeros(3, dtype=torch.int64)})
    assert grouping.of("val", split) is split


def test_a_moved_run_has_its_own_groups_and_needs_no_reference(command_line, tmp_path):
    words = (*QUICK, f"paths.outputs={tmp_path / 'a'}", "groups=errors", "groups.on=[train,val]")
    assert command_line.run("train", *words).code == 0
    (run,) = (tmp_path / "a").glob("runs/digits/erm/*/seed0/groups")
    shutil.copytree(run.parent, tmp_path / "copied")
    shutil.rmtree(tmp_path / "a")
    ended = command_line.run(
        "retrain", f"run={tmp_path / 'copied'}", f"paths.outputs={tmp_path / 'b'}", "dfr=train",
        "tracker=none",
    )  # fmt: skip
    assert ended.code == 0, ended.out + ended.err


def test_the_cost_of_the_reference_is_kept_from_the_start(tmp_path):
    """A run ends as it began, though the reference run is gone by then."""
    cfg = with_reference(read(*QUICK, "groups=errors"), tmp_path)
    (reference,) = tmp_path.glob("runs/digits/erm/*/seed0")
    prepared = prepare(cfg, Trackers([]))
    prepared.directory.mkdir(parents=True)
    write_grouping(prepared.directory, cfg, prepared.splits)
    shutil.rmtree(reference)
    cost = about_groups(prepared.directory)["cost"]["reference"]
    assert cost["images_seen"] == 200
    obtain(cfg, lambda reference: pytest.fail("it is not needed any more"))
    again = prepare(cfg, Trackers([]))
    assert torch.equal(again.splits.trained("train").a, prepared.splits.trained("train").a)


def test_a_run_that_trained_by_inferred_groups_may_be_the_reference(command_line, tmp_path):
    words = (*QUICK, f"paths.outputs={tmp_path}")
    assert command_line.run("train", *words, "method=jtt").code == 0
    (first,) = tmp_path.glob("runs/digits/jtt/*/seed0")
    options = ("method=group_dro", "groups=clusters", "groups.k=3", f"groups.run={first}")
    ended = command_line.run("train", *words, *options)
    assert ended.code == 0, ended.err
    (second,) = tmp_path.glob("runs/digits/group_dro/*/seed0")
    ended = command_line.run("train", *words, "groups=predictions", f"groups.run={second}")
    assert ended.code == 0, ended.err


def test_options_of_a_reference_that_is_not_trained_make_no_other_run(command_line, tmp_path):
    words = (*QUICK, f"paths.outputs={tmp_path}")
    assert command_line.run("train", *words, "method.epochs=1").code == 0
    (reference,) = tmp_path.glob("runs/digits/erm/*/seed0")
    named = (*words, "groups=errors", f"groups.run={reference}")
    assert read(*named).identity == read(*named, "groups.epochs=3", "groups.lr=1").identity
    assert read(*named).identity != read(*words, "groups=errors").identity
    assert command_line.run("train", *named).code == 0
    again = command_line.run("train", *named, "groups.epochs=3")
    assert "was done before" in again.out


def test_a_class_too_small_for_clusters_and_a_reference_that_trusts_all_are_told():
    with pytest.raises(UserError, match=r"groups.k=null: class a has 2 training samples"):
        Clusters(epochs=1, of="logits", k=None).infer({"train": table(LOGITS, Y)}, TWO, 0)
    with pytest.raises(ValueError, match="k=0 must be at least 2"):
        Clusters(epochs=1, k=0)
    alike = table([[9.0, -9.0]] * 5 + [[-9.0, 9.0]] * 5, [0] * 5 + [1] * 5)
    with pytest.raises(UserError, match="trusts all training samples of a class alike"):
        Confidence(epochs=1).infer({"train": alike}, TWO, 0)


def test_no_mistake_has_no_copies():
    method = object.__new__(Jtt)
    method.__dict__["upweight"] = -1
    assert method.repeats(torch.zeros(5, dtype=torch.bool)).tolist() == [1] * 5


def test_a_repair_on_train_that_reads_no_groups_shares_the_annotated_ones_of_val(tmp_path):
    options = ("groups=errors", "dfr=afr", "dfr.split=train", "dfr.steps=5")
    cfg = with_reference(read(*(w for w in QUICK if w != "dfr=none"), *options), tmp_path)
    assert prepare(cfg, Trackers([])).repair.name.startswith("train-")


@pytest.mark.cold
def test_a_pool_trains_the_reference_once_though_it_is_killed(command_line, tmp_path):
    """Two processes need it at the same time; the one that trains it is killed midway."""
    words = (
        "train", "-m", *QUICK, "method=jtt", "method.upweight=2,5", "groups.epochs=60",
        "hydra/launcher=local_pool", "hydra.launcher.n_jobs=2", f"paths.outputs={tmp_path}",
    )  # fmt: skip
    started = command_line.start(*words, COLUMNS="200")
    kill_a_point(started, tmp_path)
    started.wait(300)
    ended = command_line.run(*words, COLUMNS="200")
    assert ended.code == 0, ended.out + ended.err
    (reference,) = tmp_path.glob("runs/digits/erm/*/seed0")
    epochs = [row["epoch"] for row in rows_of(Path(reference))]
    assert epochs == list(range(1, 61))
    assert len(list(tmp_path.glob("runs/digits/jtt/*/seed0/done"))) == 2


# --- a table --------------------------------------------------------------------------------------

TABLE = "split,index,class,inferred\ntrain,2,a,sea\ntrain,0,a,land\nval,0,b,sky\ntrain,1,b,sea\n"


def from_file(path, on=("train",), attribute="inferred"):
    tables = {"train": table([], [0, 1, 0]), "val": table([], [1])}
    inference = FromFile(path, attribute, on)
    return inference.infer({name: tables[name] for name in on}, TWO, 0)


def test_a_table_gives_each_sample_its_value(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_text(TABLE)
    found = from_file(path)
    assert found.spec.attributes == ("land", "sea")
    assert found.attribute["train"].tolist() == [0, 1, 1]
    both = from_file(path, ("train", "val"))
    assert both.spec.attributes == ("land", "sea", "sky")
    assert both.attribute["val"].tolist() == [2]
    by_class = from_file(path, attribute="class")
    assert by_class.attribute["train"].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TABLE.replace("train,1,b,sea\n", ""), "has no line for 1 of the 3 samples of train"),
        (TABLE + "train,1,b,sea\n", "sample 1 of train, twice"),
        (TABLE + "train,3,b,sea\n", "sample 3 of train, which has fewer samples"),
        (TABLE.replace("land", ""), "inferred is empty in 1 of 4 rows"),
        (TABLE.replace("train,0", "train,x"), "index is not an integer of at least 0"),
        (TABLE.replace("inferred", "guess"), "lacks the columns inferred"),
    ],
)
def test_a_table_that_does_not_fit_the_samples_is_told(text, said, tmp_path):
    path = tmp_path / "groups.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        from_file(path)
    with pytest.raises(UserError, match=r"nothing\.csv does not exist"):
        from_file(tmp_path / "nothing.csv")


def test_the_table_of_a_run_corrected_by_hand_is_another_runs_groups(command_line, tmp_path):
    words = ("train", *QUICK, f"paths.outputs={tmp_path}")
    assert command_line.run(*words, "groups=errors").code == 0
    (listed,) = tmp_path.glob("runs/*/*/*/*/groups/groups.csv")
    mine = tmp_path / "mine.csv"
    lines = listed.read_text().splitlines()
    mine.write_text("\n".join([lines[0], lines[1].replace("right", "odd"), *lines[2:]]) + "\n")
    ended = command_line.run(*words, "method=group_dro", "groups=file", f"groups.csv={mine}")
    assert ended.code == 0, ended.err
    (run,) = tmp_path.glob("runs/*/group_dro/*/*/groups/groups.json")
    assert json.loads(run.read_text())["attributes"] == ["odd", "right", "wrong"]
    config = read(*QUICK, "groups=file", f"groups.csv={mine}")
    before = config.identity
    mine.write_text(listed.read_text())
    assert read(*QUICK, "groups=file", f"groups.csv={mine}").identity != before
    lost = command_line.run(*words, "groups=file")
    assert lost.code == 2
    assert "groups.csv has no value; set groups.csv=..." in lost.err
