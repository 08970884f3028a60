"""Runs that are killed and go on: nothing in the end tells them from runs left in peace."""

import json
import random
import shutil
import signal

import pytest
from killing import Battle, Command, contents, run_of
from test_contracts import METHODS
from training import smallest

from spurcor.training import checkpoint

# Checkpoints all the time, so that kills fall inside their writing too.
OFTEN = (
    "train.checkpoint_seconds=0.1",
    "train.num_threads=1",
    "tracker=none",
    "paths.outputs={place}/outputs",
)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_twice_ends_like_one_left_in_peace(method, command_line, tmp_path):
    words = (f"method={method}", "method.epochs=40", *smallest(method), *OFTEN)
    battle = Battle(command_line, tmp_path, Command("train", words), clock_percent=0)
    battle.make_peace()
    assert battle.fight(random.Random(3), kills=2, latest=0.7) > 0
    assert battle.findings == []


def interrupt(started, outputs):
    """Send the scheduler's signal after the first row."""
    while not list(outputs.glob("runs/*/*/*/seed0/metrics.jsonl")):
        assert started.running(), started.text("err")
    started.kill(signal.SIGUSR2)
    return started.wait()


def test_a_signal_of_the_scheduler_saves_and_stops(command_line, tmp_path):
    command = ("method.epochs=400", "backbone=mlp", "tracker=none", f"paths.outputs={tmp_path}")
    ended = interrupt(command_line.start("train", *command), tmp_path)
    assert ended.code == 128 + signal.SIGUSR2
    assert "run the same command again" in ended.err
    run = run_of(tmp_path)
    assert (run / "checkpoint.pt").exists()
    assert not (run / "done").exists()
    assert not run.with_name("seed0.lock").exists()


def test_what_is_missing_is_added_and_nothing_else_is_done(command_line, tmp_path):
    command = ("method.epochs=2", "backbone=mlp", "tracker=none", f"paths.outputs={tmp_path}")
    assert command_line.run("train", *command, "dfr=none").code == 0
    run = run_of(tmp_path)
    before = contents(run)
    assert before["result"]["dfr"] == {}
    stamps = {name: (run / name).stat().st_mtime_ns for name in ("checkpoint.pt", "done")}
    ended = command_line.run("train", *command, "dfr=target")
    assert ended.code == 0, ended.err
    after = contents(run)
    assert list(after["result"]["dfr"]) == [path.name for path in (run / "dfr").iterdir()]
    assert {name: (run / name).stat().st_mtime_ns for name in stamps} == stamps
    for key in ("rows", "last.safetensors", "model.safetensors"):
        assert before[key] == after[key]
    again = command_line.run("train", *command, "dfr=target")
    assert "was done before" in again.out
    assert contents(run) == after
    elsewhere = command_line.run("train", *command, "dfr=target", "sweep=another")
    assert "was done before" in elsewhere.out
    (line,) = (tmp_path / "sweeps" / "another" / "points.jsonl").read_text().splitlines()
    assert json.loads(line)["directory"] == str(run.relative_to(tmp_path))


def test_retrain_repairs_like_train_does_and_reads_the_runs_own_config(command_line, tmp_path):
    options = ("method.epochs=2", "backbone=mlp", "tracker=none", "dataset.strength=0.9")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    command_line.run("train", *options, f"paths.outputs={whole}", "dfr=target")
    command_line.run("train", *options, f"paths.outputs={parts}", "dfr=none")
    identity = run_of(parts).parent.name
    ended = command_line.run(
        "retrain", f"run={identity[:6]}", f"paths.outputs={parts}", "tracker=none", "dfr=target"
    )
    assert ended.code == 0, ended.err
    assert contents(run_of(whole)) == contents(run_of(parts))


def test_other_splits_are_refused_because_they_would_leak(command_line, tmp_path):
    options = ("method.epochs=1", "backbone=mlp", "tracker=none", f"paths.outputs={tmp_path}")
    assert command_line.run("train", *options, "dfr=none").code == 0
    run = run_of(tmp_path)
    result = json.loads((run / "result.json").read_text())
    result["run"]["splits"]["target"] = "0" * 16  # as if the data had changed since
    (run / "result.json").write_text(json.dumps(result))
    ended = command_line.run(
        "retrain", f"run={run}", f"paths.outputs={tmp_path}", "tracker=none", "dfr=target"
    )
    assert ended.code == 2
    assert "target split is not the one" in ended.err
    assert "restore the original data" in ended.err
    assert not (run / "dfr").exists()


def test_resuming_under_other_threads_is_marked(command_line, tmp_path):
    options = ("method.epochs=40", "backbone=mlp", "tracker=none", f"paths.outputs={tmp_path}")
    interrupt(command_line.start("train", *options, "train.num_threads=1"), tmp_path)
    run = run_of(tmp_path)
    ended = command_line.run("train", *options, "train.num_threads=2")
    assert ended.code == 0, ended.err
    assert "may differ in the last digits" in ended.err
    assert json.loads((run / "result.json").read_text())["run"]["moved"] is True


OTHER_VERSIONS = {
    "KeyError: 'best'": lambda state: state["progress"].pop("best"),
    "TypeError": lambda state: state["progress"].update(best={"rank": 1}),
    "RuntimeError": lambda state: state["method"].pop("head.weight"),
    "KeyError: 'optimizer'": lambda state: state["phase"].pop("optimizer"),
}


def test_a_checkpoint_of_another_version_is_told_and_kept(command_line, tmp_path):
    options = ("method.epochs=40", "backbone=mlp", "tracker=none", f"paths.outputs={tmp_path}")
    interrupt(command_line.start("train", *options), tmp_path)
    path = run_of(tmp_path) / "checkpoint.pt"
    own = path.read_bytes()
    for sentence, change in OTHER_VERSIONS.items():
        state = checkpoint.load(path)
        change(state)
        checkpoint.save(path, state)
        before = path.read_bytes()
        ended = command_line.run("train", *options)
        assert ended.code == 2, sentence
        assert f"does not fit this version of the code ({sentence}" in ended.err
        assert "Traceback" not in ended.err
        assert path.read_bytes() == before
        path.write_bytes(own)
    assert command_line.run("train", *options).code == 0


def test_rerun_sets_the_old_run_aside(command_line, tmp_path):
    options = ("method.epochs=1", "backbone=mlp", "tracker=none", f"paths.outputs={tmp_path}")
    assert command_line.run("train", *options).code == 0
    run = run_of(tmp_path)
    first = contents(run)
    assert command_line.run("train", *options, "rerun=true").code == 0
    assert contents(run) == first  # the same command, the same numbers
    assert contents(run.with_name("seed0.old1")) == first
    shutil.rmtree(run.with_name("seed0.old1"))
