"""`method.init`: a run that starts from another's weights, and what it is called."""

import dataclasses
import json

import pytest
import torch
from training import read, trainer_of

from spurcor import checkpoint, runs, sweeps
from spurcor.errors import UserError


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
    (config.directory / "config.yaml").write_text(json.dumps({}))
    run = {
        "identity": config.identity,
        "seed": seed,
        "splits": trainer.context.splits.fingerprints,
    }
    (config.directory / "result.json").write_text(json.dumps({"run": run, "val": {}}))
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
    splits, method = runs.build(read("backbone=mlp", "method=scale", "seed=5"))
    other = {n: v.clone() for n, v in method.state_dict().items()}
    runs.start_from(config.directory, splits, method)
    for name, value in method.state_dict().items():
        expected = other if name.startswith("train_head.") else trained.state_dict()
        assert torch.equal(value, expected[name]), name


def test_what_cannot_be_started_from_is_refused(tmp_path):
    config, _ = finished(tmp_path)
    other = read("backbone=mlp", f"paths.outputs={tmp_path}")
    with pytest.raises(UserError, match=r"method.init=nothing/seed0 is no directory and no run"):
        sweeps._with_origin(other, "nothing")
    copied = config.directory.with_name("seed0.old1")
    config.directory.rename(copied)
    with pytest.raises(UserError, match=r"no longer at its place, which is r.*/seed0"):
        sweeps._with_origin(other, str(copied))
    splits, method = runs.build(read("backbone=mlp", "dataset.split_seed=1"))
    with pytest.raises(UserError, match="split is not the one"):
        runs.start_from(copied, splits, method)
    splits, method = runs.build(read("backbone=small_cnn"))
    with pytest.raises(UserError, match="does not hold the weights"):
        runs.start_from(copied, splits, method)
    (copied / "done").unlink()
    with pytest.raises(UserError, match=r"method.init=.* is not finished"):
        sweeps._with_origin(other, str(copied))
