"""Sweeps: points checked together, one failure hides nothing, re-issuing runs what is missing."""

import json
import os
import shlex
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from spurcor.sweeps.manifest import manifest

QUICK = ("method.epochs=1", "backbone=mlp", "dfr=none")


def status_of(out: str) -> dict[str, int]:
    words = [line.split("│")[2].split() for line in out.splitlines() if line.count("│") > 4]
    known = {"done", "failed", "held", "running", "interrupted", "missing"}
    found = [cells[0] for cells in words if cells and cells[0] in known]
    return {word: found.count(word) for word in found}


def test_a_sweep_in_one_process_runs_every_point_and_shows_them(command_line, tmp_path):
    ended = command_line.run(
        "train", "-m", f"paths.outputs={tmp_path}", *QUICK, "tracker=none", "seed=0,1",
        "method=erm,iw,group_dro", "sweep=six", COLUMNS="200",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert status_of(ended.out) == {"done": 6}
    entries = [json.loads(line) for line in (tmp_path / "sweeps/six/points.jsonl").open()]
    assert len({entry["directory"] for entry in entries}) == 6
    for entry in entries:
        assert (tmp_path / entry["directory"] / "done").exists()
        assert f"seed={entry['seed']}" in entry["overrides"]


def test_a_failed_point_is_named_and_the_others_are_done(command_line, tmp_path):
    arguments = (
        "-m", f"paths.outputs={tmp_path}", *QUICK, "tracker=none", "sweep=three",
        "optimizer=sgd", "optimizer.lr=0.01,1e30,0.02",
    )  # fmt: skip
    ended = command_line.run("train", *arguments, COLUMNS="200")
    assert ended.code == 1
    assert status_of(ended.out) == {"done": 2, "failed": 1}
    assert "1 of 3 points are not done" in ended.err
    assert "loss is" in ended.out
    (again,) = [line for line in ended.out.splitlines() if "to run what is not done: " in line]
    typed = shlex.split(again.partition("python -m spurcor.train ")[2])
    assert sorted(typed) == sorted(arguments)


def test_a_point_that_cannot_be_built_fails_alone(command_line, tmp_path):
    ended = command_line.run(
        "train", "-m", f"paths.outputs={tmp_path}", *QUICK, "tracker=none",
        "backbone.width=10000000000,16", COLUMNS="200",
    )  # fmt: skip
    assert ended.code == 1
    assert status_of(ended.out) == {"done": 1, "failed": 1}
    assert "spurcor: backbone: " in ended.err


def test_every_point_is_built_as_far_as_is_cheap_before_the_first_starts(command_line, tmp_path):
    outputs = tmp_path / "outputs"
    for bad in ("optimizer.lr=0.1,-1", "dataset.strength=0.9,2", "sweep=a,b"):
        ended = command_line.run(
            "train", "-m", f"paths.outputs={outputs}", *QUICK, "optimizer=sgd", bad
        )
        assert ended.code == 2, ended.err
        assert len(ended.err.strip().splitlines()) == 1
        assert not outputs.exists()


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (
            ("+sweeps=dominoes/main", "method.gate=linear"),
            "method=erm has no key method.gate; to set it, also pass method=scale",
        ),
        (
            ("+sweeps=biased_mnist/masktune", "method.mask=saliency"),
            "method=erm has no key method.mask; to set it, also pass method=masktune",
        ),
        (
            ("method=erm,iw", "backbone.width=16"),
            "backbone=small_cnn has no key backbone.width; to set it, also pass backbone=mlp",
        ),
    ],
)
def test_a_key_that_not_every_point_takes_is_told_with_what_takes_it(
    typed, sentence, command_line, tmp_path
):
    outputs = tmp_path / "outputs"
    ended = command_line.run("train", "-m", f"paths.outputs={outputs}", *typed)
    assert ended.code == 2
    assert len(ended.err.strip().splitlines()) == 1
    assert sentence in ended.err
    assert not outputs.exists()


def test_all_options_of_a_group_are_swept(command_line, tmp_path):
    outputs = tmp_path / "outputs"
    typed = ("-m", f"paths.outputs={outputs}", "schedule=glob(*,exclude=step)", "optimizer.lr=-1")
    ended = command_line.run("train", *typed)
    assert ended.code == 2
    assert "schedule=constant" in ended.err
    assert "optimizer.lr=-1" in ended.err
    assert "(and 2 more)" in ended.err
    assert not outputs.exists()


@pytest.mark.parametrize(
    ("typed", "word"),
    [
        ("seed=glob(*)", "seed=glob(*) "),
        ("seed=range(0)", "seed=range(0) "),
        ("seed=range(0,3,0)", "seed=range(0,3,0)"),
        ("seed=range(1000000000000)", "seed=range(1000000000000)"),
        ("optimizer.lr=range(0.0,inf)", "optimizer.lr=range(0.0,inf)"),
        ("seed=shuffle(range(1000000000000))", "seed=shuffle(range(1000000000000))"),
        ("hydra.sweeper.points=[5]", "hydra.sweeper.points: 5 "),
        ("hydra.sweeper.points=text", "hydra.sweeper.points=text"),
        ("hydra.sweeper.params=5", "hydra.sweeper.params=5"),
        ("""hydra.sweeper.points=["seed='1"]""", "hydra.sweeper.points: seed='1 "),
        ("hydra.sweeper.points=[seed]", "seed has no value"),
        ("hydra.sweeper.params={seed: 'range(0)'}", "seed=range(0) "),
        ("hydra.sweeper.points=[hydra.run.dir=x]", "hydra.run.dir=x"),
        ("hydra.sweeper.points=['seed=range(0)']", "seed=range(0) "),
        ("+sweeps=spaces/scale", "also pass hydra/sweeper=optuna"),
        ("hydra.sweeper.zip=text", "hydra.sweeper.zip=text"),
        ("hydra.sweeper.zip=[5]", "hydra.sweeper.zip: 5 "),
        ("hydra.sweeper.zip=['seed=1,2 optimizer.lr=1,2,3']", "(seed has 2, optimizer.lr has 3)"),
    ],
)
def test_a_sweep_that_is_none_is_told(typed, word, command_line, tmp_path):
    outputs = tmp_path / "outputs"
    ended = command_line.run("train", "-m", f"paths.outputs={outputs}", typed)
    assert ended.code == 2, ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert word in ended.err
    assert not outputs.exists()


def points_of(command_line, outputs, *words) -> list[list[str]]:
    """The overrides of the points of a sweep, from its dry run, which writes nothing."""
    ended = command_line.run(
        "train", "-m", *QUICK, f"paths.outputs={outputs}", "dry=true", *words, COLUMNS="300"
    )
    assert ended.code == 0, ended.err
    assert not (outputs / "sweeps").exists()
    return [row.split("│")[1].split() for row in ended.out.splitlines() if row.startswith("│")]


def test_a_point_may_list_values_of_its_own(command_line, tmp_path):
    listed = ("method=erm optimizer.lr=0.1,0.2", "method=scale method.gate=linear,step")
    points = f"hydra.sweeper.points={json.dumps(listed)}"
    found = points_of(command_line, tmp_path, points, "seed=0,1")
    assert found == [
        [method, setting, f"seed={seed}"]
        for method, settings in (
            ("method=erm", ("optimizer.lr=0.1", "optimizer.lr=0.2")),
            ("method=scale", ("method.gate=linear", "method.gate=step")),
        )
        for setting in settings
        for seed in (0, 1)
    ]
    assert len(points_of(command_line, tmp_path, points, "optimizer.lr=0.3", "seed=0,1")) == 6


def test_keys_are_paired(command_line, tmp_path):
    zipped = 'hydra.sweeper.zip=["optimizer.lr=0.1,0.2 train.batch_size=16,32"]'
    found = points_of(command_line, tmp_path, zipped, "method=erm,iw")
    pairs = [
        ["optimizer.lr=0.1", "train.batch_size=16"],
        ["optimizer.lr=0.2", "train.batch_size=32"],
    ]
    assert found == [[*pair, f"method={method}"] for pair in pairs for method in ("erm", "iw")]
    two = 'hydra.sweeper.zip=["optimizer.lr=0.1,0.2 train.batch_size=16,32","seed=1,2,3"]'
    assert len(points_of(command_line, tmp_path, two)) == 6


def test_a_dry_run_says_what_is_done_and_starts_nothing(command_line, tmp_path):
    words = ("-m", f"paths.outputs={tmp_path}", *QUICK, "tracker=none", "seed=0,1", "method=erm,iw")
    assert command_line.run("train", *words[:-2], "seed=0", "method=erm").code == 0
    before = sorted(tmp_path.rglob("*"))
    ended = command_line.run("train", *words, "dry=true", COLUMNS="200")
    assert ended.code == 0, ended.err
    states = [row.split("│")[3].strip() for row in ended.out.splitlines() if row.startswith("│")]
    assert states == ["done", "missing", "missing", "missing"]
    last = ended.out.strip().splitlines()[-1]
    assert last.startswith("4 points, 4 runs, 3 of them not done; about 0 s on one process;")
    assert "no finished run of their data set and method tells how long 2 take" in last
    one = command_line.run("train", *words[1:-2], "seed=1", "method=erm", "dry=true")
    assert one.code == 0
    assert one.out.startswith(f"not done: {tmp_path}/runs/digits/erm/")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.cold
def test_a_pool_survives_the_kill_of_a_point_and_runs_just_that_one_again(command_line, tmp_path):
    """Six points, two at a time, on a fresh sqlite store; cold processes, as users have them."""
    arguments = (
        "-m", "hydra/launcher=local_pool", "hydra.launcher.n_jobs=2", "sweep=pool",
        f"paths.outputs={tmp_path}", *QUICK, "seed=0,1,2", "method=erm,iw",
    )  # fmt: skip
    started = command_line.start("train", *arguments, COLUMNS="200")
    victim = kill_a_point(started, tmp_path)
    ended = started.wait(300)
    assert ended.code == 1, ended.out + ended.err
    assert status_of(ended.out)["done"] == 5
    assert "killed by signal 9" in ended.out
    entries = manifest(tmp_path, "pool")
    missing = [e for e in entries if not (Path(e["directory"]) / "done").exists()]
    assert [Path(e["log"]).stem for e in missing] == [victim]
    stamps = {e["directory"]: stamp(e) for e in entries if e not in missing}

    ended = command_line.run("train", *arguments, COLUMNS="200")
    assert ended.code == 0, ended.out + ended.err
    assert status_of(ended.out) == {"done": 6}
    again = {e["directory"]: stamp(e) for e in entries if e not in missing}
    assert again == stamps

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("pool")
    runs = client.search_runs([experiment.experiment_id])
    kinds = [run.data.tags["spurcor.kind"] for run in runs]
    assert sorted(kinds) == ["run"] * 6 + ["sweep"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    parent = next(run for run in runs if run.data.tags["spurcor.kind"] == "sweep")
    for run in runs:
        if run is not parent:
            assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
            assert run.data.metrics["selected/test/worst"] >= 0


def kill_a_point(started, outputs: Path, after: float = 0.0) -> str:
    """SIGKILL the first point process that has taken its lock; returns the name of its point.

    This is done `after` seconds, if it still runs then.
    """
    while started.running():
        for lock in outputs.glob("runs/*/*/*/*.lock"):
            try:
                pid = json.loads(lock.read_text())["pid"]
                command = psutil.Process(pid).cmdline()
            except (OSError, ValueError, psutil.NoSuchProcess):
                continue
            if not command:  # it has ended, and its parent does not know yet
                continue
            time.sleep(after)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                named = [word for word in command if word.startswith("point=")]
                return Path("".join(named).removeprefix("point=").strip('[]"')).stem
        time.sleep(0.005)
    raise AssertionError(started.text("err"))


def stamp(entry: dict) -> int:
    return (Path(entry["directory"]) / "done").stat().st_mtime_ns


def test_points_run_from_a_frozen_copy(tmp_path):
    from training import read

    from spurcor.sweeps.freeze import copy_code, write_point
    from spurcor.sweeps.manifest import Point, sweep_folder

    cfg = read(f"paths.outputs={tmp_path}", "seed=3")
    code = copy_code(sweep_folder(cfg))
    assert (code / "conf" / "sweeps" / "digits" / "main.yaml").exists()
    assert (code / "spurcor" / "train.py").exists()
    assert not list(code.rglob("__pycache__"))
    assert copy_code(sweep_folder(cfg)) == code
    path = write_point(Point(("seed=3",), cfg))
    assert "seed: 3" in path.read_text()


def test_a_point_that_another_process_has_is_told_whatever_stands_in_its_log(tmp_path, monkeypatch):
    """An orphan of a killed command writes into the same log, where its own words may be last."""
    from training import read

    from spurcor.launchers import local_pool
    from spurcor.sweeps.manifest import Point
    from spurcor.system.lock import HELD_BY

    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(local_pool.sys, "executable", str(script))
    config = read(f"paths.outputs={tmp_path / 'outputs'}")
    message = local_pool.LocalPool(1)._run_process([Point((), config)], tmp_path)
    assert HELD_BY in message
