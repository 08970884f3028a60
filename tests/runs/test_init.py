"""`method.init`: a run that starts from another's weights, what it is called and keeps of that."""

import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from training import read, trainer_of

from spurcor.config.nodes import plain
from spurcor.errors import UserError
from spurcor.models import weights as checkpoint
from spurcor.reports.runs import read_run
from spurcor.runs import build, execute, train
from spurcor.sweeps import read as sweeps
from spurcor.system.terminal import Terminal
from spurcor.training import predictions
from spurcor.training.metrics import apply


def starting(config, init):
    """The configuration with a method that takes `init`, whatever the method is."""
    arguments = {**config.method.arguments, "init": str(init)}
    return dataclasses.replace(
        config, method=dataclasses.replace(config.method, arguments=arguments)
    )


def finished(tmp_path, seed=0, *options):
    """A finished run of ERM as far as another may start from it, and its method."""
    outputs = f"paths.outputs={tmp_path}"
    config = read("backbone=mlp", "method.epochs=1", f"seed={seed}", outputs, "dfr=none", *options)
    config.directory.mkdir(parents=True)
    trainer, method = trainer_of(config, config.directory)
    trainer.fit(method)
    (config.directory / "config.yaml").write_text(yaml.safe_dump(plain(config)))
    run = {
        "identity": config.identity,
        "seed": seed,
        "splits": trainer.context.splits.fingerprints,
        **{"dataset": "digits", "method": "erm", "config": {"dataset": "digits", "method": "erm"}},
        **{"seconds": 1.0, "images_seen": 1},
    }
    names = ("worst", "average", "adjusted", "aligned", "conflicting")
    report = {**dict.fromkeys(names, 0.5), "groups": {}}
    parts = {"val": report, "test": report, "tests": {}, "dfr": {}}
    selected = {"phase": "erm", "epoch": 1}
    result = {"run": run, "selected": selected, **parts}
    (config.directory / "result.json").write_text(json.dumps(result))
    checkpoint.save_weights(config.directory / "last.safetensors", checkpoint.snapshot(method))
    (config.directory / "done").touch()
    return config, method


def test_a_run_is_named_by_what_it_starts_from_and_not_by_where_that_is(tmp_path):
    config, _ = finished(tmp_path)
    other = read("method.epochs=3", "backbone=mlp", f"paths.outputs={tmp_path}")
    found = [
        sweeps._with_origin(other, reference)
        for reference in (config.identity[:6], f"{config.identity}/seed0", str(config.directory))
    ]
    assert {one.origin for one in found} == {config.identity}
    assert len({one.identity for one in found}) == 1
    assert found[0].identity != other.identity
    assert found[0].settings["method.init"] == config.identity
    moved = starting(other, tmp_path / "elsewhere" / config.identity / "seed0")
    assert moved.identity == found[0].identity
    assert starting(other, tmp_path / "rffff" / "seed0").identity != moved.identity


def test_seeds_that_each_start_from_their_own_share_an_identity(tmp_path):
    first, _ = finished(tmp_path, 0)
    finished(tmp_path, 1)
    of = {
        seed: sweeps._with_origin(
            read("backbone=mlp", f"seed={seed}", f"paths.outputs={tmp_path}"), first.identity
        )
        for seed in (0, 1)
    }
    assert [one.init.name for one in of.values()] == ["seed0", "seed1"]
    assert of[0].identity == of[1].identity
    shared = sweeps._with_origin(
        read("backbone=mlp", "seed=1", f"paths.outputs={tmp_path}"), f"{first.identity}/seed0"
    )
    assert shared.origin == f"{first.identity}/seed0"
    assert shared.identity != of[1].identity


def test_backbone_and_head_are_those_that_were_trained_last(tmp_path):
    config, trained = finished(tmp_path)
    splits, method = build.build(read("backbone=mlp", "method=scale", "seed=5"))
    other = {n: v.clone() for n, v in method.state_dict().items()}
    build.start_from(config.directory, splits, method)
    for name, value in method.state_dict().items():
        expected = other if name.startswith("train_head.") else trained.state_dict()
        assert torch.equal(value, expected[name]), name


def test_what_cannot_be_started_from_is_refused(tmp_path):
    config, _ = finished(tmp_path)
    other = read("backbone=mlp", f"paths.outputs={tmp_path}")
    with pytest.raises(UserError, match=r"method.init=nothing/seed0 "):
        sweeps._with_origin(other, "nothing")
    copied = config.directory.with_name("seed0.old1")
    config.directory.rename(copied)
    with pytest.raises(UserError, match=r"method.init=.* moved from r.*/seed0"):
        sweeps._with_origin(other, str(copied))
    splits, method = build.build(read("backbone=mlp", "dataset.split_seed=1"))
    with pytest.raises(UserError, match="split is not the one"):
        build.start_from(copied, splits, method)
    splits, method = build.build(read("backbone=small_cnn"))
    with pytest.raises(UserError, match="weights of this run"):
        build.start_from(copied, splits, method)
    (copied / "done").unlink()
    with pytest.raises(UserError, match=r"method.init=.* is not finished"):
        sweeps._with_origin(other, str(copied))


# --- what is kept of it ---------------------------------------------------------------------------

SMALL = ("dataset.subset_size=64", "train.batch_size=16", "tracker=none", "dfr=none")
PRUSC = ("dataset.strength=0.7", "method.prune_epochs=1", "method.retrain_epochs=1")


def executed(outputs, *overrides, terminal=None):
    cfg = read(*SMALL, f"paths.outputs={outputs}", *overrides)
    outcome = execute.execute(cfg, terminal or Terminal(quiet=True))
    assert outcome.status == "done", outcome.message
    return cfg, outcome.result


def accuracy(cfg, weights):
    """Of a run's network on TEST, and its logits."""
    splits, method = build.build(cfg)
    checkpoint.load_weights(method.eval(), cfg.directory / weights)
    logits = apply(method.predict, splits["test"], splits.transform)
    return float((logits.argmax(1) == splits["test"].y).double().mean()), logits


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("masktune", ("backbone=small_cnn",)),
        ("prusc", (*SMALL, *PRUSC, "train.selection=val/group/large/red")),
    ],
)
def test_the_run_started_from_stands_before_it_with_its_last_weights(method, options, tmp_path):
    common = [one for one in options if not one.startswith("method")]
    start = ("method=erm", "method.epochs=4", "optimizer.lr=0.2", *common)
    erm, before = executed(tmp_path, *start)
    assert before["selected"]["epoch"] < 4, "the last weights are not the selected ones"
    shown = io.StringIO()
    terminal = Terminal(Console(file=shown, width=120, highlight=False))
    init = f"method.init={erm.identity}"
    cfg, result = executed(tmp_path, f"method={method}", *options, init, terminal=terminal)
    assert next(iter(result["phases"])) == "erm"
    part = result["phases"]["erm"]
    last, logits = accuracy(erm, "last.safetensors")
    assert part["test"]["average"] == pytest.approx(last)
    assert part["selected"] == before["selected"]
    assert part["origin"]["identity"] == erm.identity
    stored = np.load(cfg.directory / "phases" / "erm" / "predictions.npz", allow_pickle=False)
    assert torch.allclose(torch.from_numpy(stored["test/logits"]), logits, atol=1e-5)
    heading, average = (
        next(line for line in shown.getvalue().splitlines() if word in line)
        for word in ("test group", "average")
    )
    assert "erm" in heading
    assert f"{100 * last:.1f}" in average
    # The cost of a start is the run's that was started from, and stays told apart.
    seen = before["run"]["images_seen"]
    assert result["run"]["origin_images_seen"] == seen
    assert "origin_images_seen" not in before["run"]
    assert read_run(cfg.directory).images == result["run"]["images_seen"] + seen
    # Nobody needs that run any more.
    shutil.rmtree(erm.directory)
    config = dataclasses.replace(cfg, analysis=read("analysis=selective").analysis)
    asked = execute.analyze(cfg.directory, config, Terminal(quiet=True))
    (found,) = asked.result["analysis"].values()
    assert list(found["rules"]) == ["erm", method, "product", "agreement"]
    assert asked.result["phases"] == result["phases"]


def test_the_run_started_from_reads_as_the_phase_whose_place_it_takes(tmp_path):
    options = ("backbone=small_cnn", "method.epochs=2")
    erm, _ = executed(tmp_path, "method=erm", *options)
    init = ("backbone=small_cnn", "method=masktune", f"method.init={erm.identity}")
    cfg, started = executed(tmp_path, *init)
    whole, straight = executed(tmp_path, "method=masktune", *options)
    for split in ("val", "test", "tests"):
        assert started["phases"]["erm"][split] == straight["phases"]["erm"][split]
    again, twice = executed(tmp_path, *init[:2], f"method.init={cfg.identity}")
    assert list(twice["phases"]) == [f"{cfg.identity}-seed0"]  # of the same method as itself
    assert again.identity not in (cfg.identity, whole.identity)
    expected = sum(started["run"][key] for key in ("images_seen", "origin_images_seen"))
    assert twice["run"]["origin_images_seen"] == expected


@pytest.mark.parametrize("at", ["predictions.npz", "result.json", "training"])
def test_a_kill_leaves_nothing_half_of_it(at, tmp_path, monkeypatch):
    options = ("backbone=small_cnn", "method=masktune")
    erm, _ = executed(tmp_path, "method=erm", "method.epochs=2", "backbone=small_cnn")
    cfg, straight = executed(tmp_path, *options, f"method.init={erm.identity}")
    kept = (cfg.directory / "phases" / "erm" / "predictions.npz").read_bytes()
    execute.set_aside(cfg.directory)

    def dying(*arguments, **others):
        raise KeyboardInterrupt

    place = {
        "predictions.npz": (predictions.np, "savez_compressed"),
        "result.json": (predictions, "write_json"),
        "training": (train, "_write_down"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*place[at], dying)
        with pytest.raises(KeyboardInterrupt):
            execute.execute(read(*SMALL, *options, f"method.init={erm.directory}",
                              f"paths.outputs={tmp_path}"), Terminal(quiet=True))  # fmt: skip
    folder = cfg.directory / "phases" / "erm"
    assert (folder / "predictions.npz").exists() == (at != "predictions.npz")
    assert (folder / "result.json").exists() == (at == "training")
    _, resumed = executed(tmp_path, *options, f"method.init={erm.identity}")
    assert resumed["phases"] == straight["phases"]
    assert (folder / "predictions.npz").read_bytes() == kept
    assert {path.name for path in folder.iterdir()} == {"predictions.npz", "result.json"}
