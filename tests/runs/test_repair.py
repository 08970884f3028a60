"""Repairs of finished runs: what they leave, what they refuse, several at once."""

import json
import shutil
import time

import numpy as np
import pytest
import torch
from killing import contents, run_of
from safetensors.numpy import load_file
from training import read

from spurcor.data.groups import GroupSpec
from spurcor.errors import UserError
from spurcor.models import weights as checkpoint
from spurcor.repair.dfr import Dfr, Fit
from spurcor.repair.heads import Linear
from spurcor.repair.tuning import draw_tuning
from spurcor.runs import build as runs
from spurcor.runs import lookup, repair
from spurcor.runs.refusals import refuse_impossible_repair
from spurcor.system.files import write_json
from spurcor.system.lock import _identity
from spurcor.training.metrics import apply

QUICK = ("method.epochs=2", "backbone=mlp", "tracker=none")
SPEC = GroupSpec(("a", "b"), ("x", "y"), aligned=(0, 1))


@pytest.fixture(scope="module")
def finished(command_line, tmp_path_factory):
    """A finished run without a repair; tests add theirs."""
    outputs = tmp_path_factory.mktemp("finished")
    ended = command_line.run("train", *QUICK, "dfr=none", f"paths.outputs={outputs}")
    assert ended.code == 0, ended.err
    return run_of(outputs), outputs


def retrain(command_line, finished, *options):
    run, outputs = finished
    command = (f"run={run}", f"paths.outputs={outputs}", "tracker=none", *options)
    return command_line.start("retrain", *command)


def parts(run):
    return json.loads((run / "result.json").read_text())["dfr"]


@pytest.mark.parametrize(
    ("options", "layer", "weights"),
    [
        (("dfr=target",), "layer_2", "last.safetensors"),
        (("dfr=val", "dfr.layer=layer_1"), "layer_1", "last.safetensors"),
        (("dfr=sgd", "dfr.weights=selected"), "layer_2", "model.safetensors"),
        (("dfr=new_repo", "dfr.add_train=true"), "layer_2", "last.safetensors"),
        (("dfr=gradient_flow", "dfr.split=split_from_train"), "layer_2", "last.safetensors"),
    ],
)
def test_the_stored_head_gives_the_stored_predictions(
    command_line, finished, options, layer, weights
):
    run, _ = finished
    before = set(parts(run))
    ended = retrain(command_line, finished, *options).wait()
    assert ended.code == 0, ended.err
    (name,) = set(parts(run)) - before
    part, folder = parts(run)[name], run / "dfr" / name
    assert part["layer"] == layer
    splits, method = runs.build(lookup.read_config(run))
    checkpoint.load_weights(method, run / weights)
    method.eval()
    head = load_file(folder / "weights.safetensors")
    stored = np.load(folder / "predictions.npz")
    for split, data in splits.evaluated.items():
        x = apply(lambda x: method.backbone.features(x, [layer])[layer], data, splits.transform)
        logits = x.double().numpy() @ head["weight"].T + head["bias"]
        np.testing.assert_allclose(stored[f"{split}/logits"], logits, atol=1e-9)
        hit = stored[f"{split}/logits"].argmax(1) == data.y.numpy()
        if split == "test":
            assert part["test"]["average"] == pytest.approx(hit.mean())
    assert (part["val"] is None) == name.startswith("val-")
    assert part["tuning"]
    assert (part["note"] is None) == ("dfr.split=split_from_train" not in options)  # few samples
    assert all(0 <= row["worst"] <= 1 for row in part["tuning"])
    assert (folder / "plots" / "tuning.png").read_bytes().startswith(b"\x89PNG")


def test_a_repair_that_keeps_no_feature_is_made_and_says_so(command_line, finished):
    run, _ = finished
    before = set(parts(run))
    ended = retrain(command_line, finished, "dfr=val", "dfr.c_grid=[1e-9]").wait()
    assert ended.code == 0, ended.err
    assert "every weight is 0" in ended.err
    assert "Warning" not in ended.err  # of a plot with one point
    (name,) = set(parts(run)) - before
    part = json.loads((run / "dfr" / name / "result.json").read_text())
    assert "every weight is 0" in part["note"]
    assert part["test"]["balanced"] == pytest.approx(0.5)  # one class for all of them
    assert not load_file(run / "dfr" / name / "weights.safetensors")["weight"].any()


def test_retrains_of_one_run_at_once_all_succeed(command_line, finished):
    run, _ = finished
    before = set(parts(run))
    started = [
        retrain(command_line, finished, "dfr=target", f"dfr.layer={layer}", f"dfr.max_iter={n}")
        for layer in ("layer_1", "layer_2")
        for n in (90, 91, 92)
    ]
    for one in started:
        ended = one.wait()
        assert ended.code == 0, ended.err
        assert "being worked on" not in ended.out
    made = set(parts(run)) - before
    assert len(made) == 6
    assert sorted(parts(run)) == sorted(p.parent.name for p in run.glob("dfr/*/result.json"))
    assert {parts(run)[name]["layer"] for name in made} == {"layer_1", "layer_2"}
    assert not list(run.glob("dfr/*.lock"))
    assert not list(run.rglob("*.tmp"))


def test_layers_one_after_the_other_by_one_command(command_line, finished, tmp_path):
    run, outputs = finished
    before = set(parts(run))
    command = (f"run={run}", f"paths.outputs={outputs}", "tracker=none", "dfr=target")
    ended = command_line.run(
        "retrain", *command, "dfr.num_retrains=2", "-m", "dfr.layer=layer_1,layer_2", cwd=tmp_path
    )
    assert ended.code == 0, ended.err
    made = {name: part for name, part in parts(run).items() if name not in before}
    assert {part["layer"] for part in made.values()} == {"layer_1", "layer_2"}
    assert list(tmp_path.iterdir()) == []  # Hydra owns no folder


def hold(path):
    """A lock as a live process, this one, would have it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**_identity(), "nonce": "x"})


def test_the_same_repair_is_made_once(command_line, finished):
    run, _ = finished
    options = ("dfr=target", "dfr.num_retrains=7")
    started = [retrain(command_line, finished, *options) for _ in range(2)]
    ended = [one.wait() for one in started]
    assert [one.code for one in ended] == [0, 0]
    made = [p for p in parts(run).values() if p["options"]["num_retrains"] == 7]
    assert len(made) == 1
    assert not list(run.glob("dfr/*.lock"))


def test_a_repair_under_way_is_held_and_keeps_the_run_from_being_set_aside(command_line, finished):
    run, outputs = finished
    options = ("dfr=target", "dfr.num_retrains=6")
    assert retrain(command_line, finished, *options).wait().code == 0
    (name,) = [n for n, part in parts(run).items() if part["options"]["num_retrains"] == 6]
    (run / "dfr" / name / "result.json").unlink()
    lock = run / "dfr" / f"{name}.lock"
    hold(lock)
    try:
        ended = retrain(command_line, finished, *options).wait()
        assert ended.code == 0
        assert f"{name} is being worked on by process" in ended.out
        command = (*QUICK, "dfr=none", f"paths.outputs={outputs}", "rerun=true")
        ended = command_line.run("train", *command)
        assert "is being worked on by process" in ended.out
        assert (run / "done").exists()
        assert not run.with_name("seed0.old1").exists()
        train = command_line.run(
            "train", *QUICK, *options, f"paths.outputs={outputs}"
        )  # the run is finished; only this repair is asked for
        assert "is being worked on by process" in train.out
        assert not (run / "failed").exists()
    finally:
        lock.unlink()
    assert retrain(command_line, finished, *options).wait().code == 0
    assert name in parts(run)


def test_a_repair_does_not_wait_for_whoever_holds_the_run(command_line, finished):
    run, _ = finished
    lock = run.with_name("seed0.lock")
    hold(lock)
    try:
        ended = retrain(command_line, finished, "dfr=target", "dfr.num_retrains=5").wait()
    finally:
        lock.unlink()
    assert ended.code == 0
    assert "being worked on" not in ended.out
    assert any(part["options"]["num_retrains"] == 5 for part in parts(run).values())


def test_a_repair_leaves_the_run_as_it_is(command_line, finished):
    run, _ = finished
    before = contents(run)
    assert retrain(command_line, finished, "dfr=target", "dfr.max_iter=77").wait().code == 0
    after = contents(run)
    for key in ("rows", "last.safetensors", "model.safetensors"):
        assert before[key] == after[key]


# --- refusals -------------------------------------------------------------------------------------


def build(*overrides):
    config = read(*QUICK, *overrides)
    return (config, *runs.build(config))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("dfr=val", "dfr.pooling=max"),
            "pooling=max does not fit layer=layer_2; its output is a vector",
        ),
        (("dfr=val", "dfr.layer=5"), "layer=5 does not exist"),
        (("dfr=train", "dataset.drop_groups=[small/red]"), None),
    ],
)
def test_what_cannot_be_repaired_is_refused_before_training(options, words):
    config, splits, method = build(*options[:1], *[o for o in options[1:] if "drop" not in o])
    if words is None:
        names = splits.info.spec.names
        config, splits, method = build(options[0], f"dataset.drop_groups=[{names[1]}]")
        words = f"the train split has no sample of group {names[1]}, and test has"
    with pytest.raises(UserError, match=words):
        refuse_impossible_repair(config.dfr.build(), splits, method)


class Pooled:
    """A backbone that can pool as it is told."""

    def features(self, x, layers, pooling=None):
        return {layer: x.amax(dim=1) if pooling == "max" else x.mean(dim=1) for layer in layers}


def test_pooling_is_handed_to_a_backbone_that_takes_it():
    x = torch.tensor([[[1.0, 2.0], [3.0, 0.0]]])
    for pooling, expected in ((None, [[2.0, 1.0]]), ("max", [[3.0, 2.0]])):
        features = repair._features(Dfr(pooling=pooling), Pooled(), "z")
        assert features(x).tolist() == expected


# --- the plot -------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    """The drawings asked for."""
    import spurcor.presentation.plots as plots

    seen, draw = [], plots.draw
    monkeypatch.setattr(plots, "draw", lambda drawing: seen.append(drawing) or draw(drawing))
    return seen


LINEAR = Linear(np.zeros((2, 1)), np.zeros(2))


def test_the_plot_shows_the_tuning(drawn, tmp_path):
    rows = [
        {"c": c, "class_weight": side, "worst": worst}
        for c, side, worst in [
            (1.0, [1, 3], 0.5), (0.1, [1, 3], 0.6), (1.0, [3, 1], 0.7), (0.1, [3, 1], None),
        ]
    ]  # fmt: skip
    path = tmp_path / "plots" / "tuning.png"
    draw_tuning(path, Fit(LINEAR, 1.0, (3, 1), rows), SPEC)
    assert path.exists()
    (panel,) = drawn[0]["panels"]
    assert panel["mark"] == 1.0
    lines = [(line["label"], line["x"], line["y"]) for line in panel["series"]]
    assert lines == [("a 1, b 3", [0.1, 1.0], [60.0, 50.0]), ("a 3, b 1", [1.0], [70.0])]


def test_the_plot_of_epochs(drawn, tmp_path):
    rows = [{"fit": 0, "epoch": e, "loss": 1.0, "worst": e / 10} for e in (1, 2)]
    draw_tuning(tmp_path / "tuning.png", Fit(LINEAR, tuning=rows), SPEC)
    assert drawn[0]["x"] == "epoch"
    assert drawn[0]["panels"][0]["series"][0]["y"] == [10.0, 20.0]
    draw_tuning(tmp_path / "none.png", Fit(LINEAR, tuning=[{"c": None, "worst": 0.5}]), SPEC)
    assert not (tmp_path / "none.png").exists()


def test_a_missing_run_is_no_repair(tmp_path):
    assert list(repair.repairing(tmp_path)) == []
    hold(tmp_path / "dfr" / "val-1.lock")
    (held,) = repair.repairing(tmp_path)
    assert held.path.name == "val-1.lock"
    assert time.time() - held.path.stat().st_mtime < 60


def test_nested_options_are_columns_of_reports():
    from spurcor.reports.runs import _repairs

    report = {"worst": 0.5, "groups": {}}
    part = {"options": {"head": "sgd", "sgd": {"lr": 0.1}}, "val": report, "test": report}
    ((_, (options, _)),) = _repairs({"target-1": part})
    assert options == {"dfr.head": "sgd", "dfr.sgd.lr": 0.1}


def test_a_repair_that_cannot_be_fitted_leaves_the_run_in_its_tables(
    command_line, tmp_path, monkeypatch
):
    """Its half of 3 images has one class: told, recorded, and no reason to hide the run."""
    outputs = tmp_path / "outputs"
    impossible = ("dfr=val", "dataset.num_val=4", "dfr.balance=none")
    command = (*QUICK, "sweep=told", *impossible, "train.selection=val/average", "seed=0")
    ended = command_line.run("train", *command, f"paths.outputs={outputs}")
    assert ended.code == 0, ended.err
    assert "cannot be fitted" in ended.err
    run = run_of(outputs)
    ((name, part),) = parts(run).items()
    assert part["test"] is None
    assert "no sample of class" in part["note"]
    again = command_line.run("train", *command, f"paths.outputs={outputs}")
    assert again.code == 0
    assert "was done before" in again.out
    status = command_line.run("status", "sweep=told", f"paths.outputs={outputs}")
    assert "done" in status.out
    report = command_line.run("report", "sweep=told", f"paths.outputs={outputs}")
    assert report.code == 0, report.err
    written = (outputs / "reports" / "told" / "report.md").read_text()
    assert name in written
    assert "no sample of class" in written
    result = json.loads((run / "result.json").read_text())
    assert f"{100 * result['test']['worst']:.1f}" in written


def test_the_lock_of_one_killed_just_after_it_was_done_goes(command_line, finished, tmp_path):
    """Of repairs and analyses: nobody takes it any more, since what it was for is there."""
    repaired_by_others, outputs = finished
    run = shutil.copytree(repaired_by_others, tmp_path / repaired_by_others.relative_to(outputs))
    shutil.rmtree(run / "dfr", ignore_errors=True)
    finished = run, tmp_path
    assert retrain(command_line, finished, "dfr=target").wait().code == 0
    (folder,) = (path for path in run.glob("dfr/target-*") if path.is_dir())
    dead, alive = {**_identity(), "pid": 2**22 + 1}, _identity()
    for lock in (folder.with_name(f"{folder.name}.lock"), run / "analysis.lock"):
        write_json(lock, {**dead, "nonce": "x"})
    write_json(run / "dfr" / "other.lock", {**alive, "nonce": "x"})
    ended = retrain(command_line, finished, "dfr=target").wait()
    assert "this repair was done before" in ended.out
    assert [path.name for path in run.rglob("*.lock")] == ["other.lock"]
