"""MLflow mirrors the files: nothing lost, nothing doubled, nothing waited for."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest
from killing import run_of
from mlflow import MlflowClient
from test_resume import interrupt

from spurcor.tracking import Record, Trackers
from spurcor.tracking.mlflow import MlflowTracker

QUICK = ("method.epochs=3", "backbone=mlp")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A store that was created once: its tables take seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(empty_store, tmp_path):
    shutil.copy(empty_store, tmp_path / "mlflow.db")


def client_of(outputs):
    return MlflowClient(f"sqlite:///{outputs}/mlflow.db")


def history(client, run_id):
    """Every stored value of every metric, to find doubled rows."""
    keys = client.get_run(run_id).data.metrics
    return {
        key: [(m.step, m.value) for m in client.get_metric_history(run_id, key)] for key in keys
    }


def only(client, kind):
    experiment = client.get_experiment_by_name("default")
    tag = f"tags.`spurcor.kind` = '{kind}'"
    (run,) = client.search_runs([experiment.experiment_id], tag)
    return run


def assert_mirrored(client, run, directory):
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    stored = history(client, run.info.run_id)
    for key in ("train/loss", "test/worst", "test/group/small/green", "opposite/average"):
        assert stored[key] == [(row["step"], row[key]) for row in rows], key
    assert "opposite/aligned" not in stored  # undefined: no aligned group has a sample


def wait_for_mlflow(started, outputs):
    """Until the run knows its MLflow run."""
    while True:
        files = list(outputs.glob("runs/*/*/*/seed0/mlflow.json"))
        if files and "sqlite" in files[0].read_text():
            return
        assert started.running(), started.text("err")
        time.sleep(0.01)


def test_a_run_and_its_repair_are_mirrored(command_line, tmp_path):
    assert command_line.run("train", *QUICK, f"paths.outputs={tmp_path}").code == 0
    client, directory = client_of(tmp_path), run_of(tmp_path)
    run, dfr = only(client, "run"), only(client, "dfr")
    assert (run.info.status, dfr.info.status) == ("FINISHED", "FINISHED")
    assert run.data.params["method"] == "erm"
    assert run.data.params["seed"] == "0"
    assert run.data.params["optimizer.lr"] == "0.001"
    assert run.data.tags["sweep.default"] == "true"
    assert "train.device" in run.data.tags
    assert dfr.data.tags["mlflow.parentRunId"] == run.info.run_id
    assert dfr.data.params["method"] == "erm+dfr"
    result = json.loads((directory / "result.json").read_text())
    assert run.data.metrics["selected/test/worst"] == result["test"]["worst"]
    (part,) = result["dfr"].values()
    assert dfr.data.metrics["test/worst"] == part["test"]["worst"]
    assert_mirrored(client, run, directory)
    names = [file.path for file in client.list_artifacts(run.info.run_id)]
    assert sorted(names) == ["config.yaml", "result.json"]


@pytest.mark.usefixtures("store")
def test_a_resumed_run_continues_its_mlflow_run_and_no_row_is_doubled(command_line, tmp_path):
    command = ("method.epochs=150", "backbone=mlp", "dfr=none", f"paths.outputs={tmp_path}")
    started = command_line.start("train", *command, "train.checkpoint_seconds=0.1")
    wait_for_mlflow(started, tmp_path)
    time.sleep(0.5)
    started.kill()
    started.wait()
    client, directory = client_of(tmp_path), run_of(tmp_path)
    assert only(client, "run").info.status == "RUNNING"
    ended = command_line.run("train", *command)
    assert ended.code == 0, ended.err
    run = only(client, "run")
    assert run.info.status == "FINISHED"
    assert_mirrored(client, run, directory)


@pytest.mark.usefixtures("store")
def test_a_killed_run_does_not_stay_running(command_line, tmp_path):
    command = ("method.epochs=2000", "backbone=mlp", f"paths.outputs={tmp_path}")
    started = command_line.start("train", *command)
    wait_for_mlflow(started, tmp_path)
    started.kill()
    started.wait()
    assert only(client_of(tmp_path), "run").info.status == "RUNNING"
    another = command_line.run("train", *QUICK, "seed=1", f"paths.outputs={tmp_path}")
    assert another.code == 0, another.err
    client = client_of(tmp_path)
    experiment = client.get_experiment_by_name("default")
    found = client.search_runs([experiment.experiment_id], "tags.`spurcor.kind` = 'run'")
    assert sorted(run.info.status for run in found) == ["FINISHED", "KILLED"]


@pytest.mark.usefixtures("store")
def test_an_interrupted_run_is_closed_at_once(command_line, tmp_path):
    command = ("method.epochs=2000", "backbone=mlp", f"paths.outputs={tmp_path}")
    interrupt(command_line.start("train", *command), tmp_path)
    assert only(client_of(tmp_path), "run").info.status == "KILLED"


@pytest.mark.usefixtures("store")
def test_a_rerun_is_another_mlflow_run(command_line, tmp_path):
    for extra in ("rerun=false", "rerun=true"):
        ended = command_line.run("train", *QUICK, "dfr=none", extra, f"paths.outputs={tmp_path}")
        assert ended.code == 0, ended.err
    client = client_of(tmp_path)
    experiment = client.get_experiment_by_name("default")
    found = client.search_runs([experiment.experiment_id])
    assert len(found) == 2
    assert all(len(history(client, run.info.run_id)["train/loss"]) == 3 for run in found)


@pytest.mark.usefixtures("store")
def test_sync_changes_nothing_that_is_there(command_line, tmp_path):
    assert command_line.run("train", *QUICK, f"paths.outputs={tmp_path}").code == 0
    client = client_of(tmp_path)
    before = {kind: only(client, kind).info for kind in ("run", "dfr")}
    time.sleep(1.1)
    assert command_line.run("sync", f"paths.outputs={tmp_path}").code == 0
    for kind, info in before.items():
        now = only(client, kind).info
        assert (now.run_id, now.start_time, now.end_time, now.status) == (
            info.run_id,
            info.start_time,
            info.end_time,
            "FINISHED",
        )


@pytest.mark.usefixtures("store")
def test_a_run_of_two_sweeps_carries_both_tags_and_sync_goes_by_the_manifest(
    command_line, tmp_path
):
    command = ("train", *QUICK, "dfr=none", f"paths.outputs={tmp_path}")
    assert command_line.run(*command).code == 0
    assert command_line.run(*command, "-m", "seed=0,1", "sweep=second").code == 0
    tags = only(client_of(tmp_path), "run").data.tags
    assert tags["sweep.default"] == tags["sweep.second"] == "true"
    ended = command_line.run("sync", "sweep=second", f"paths.outputs={tmp_path}")
    assert "sent 2 runs" in ended.out


@pytest.mark.usefixtures("store")
def test_a_run_deleted_in_the_page_is_sent_anew(command_line, tmp_path):
    assert command_line.run("train", *QUICK, "dfr=none", f"paths.outputs={tmp_path}").code == 0
    client = client_of(tmp_path)
    first = only(client, "run")
    client.delete_run(first.info.run_id)
    ended = command_line.run("sync", f"paths.outputs={tmp_path}")
    assert ended.code == 0, ended.err
    assert only(client, "run").info.run_id != first.info.run_id
    assert_mirrored(client, only(client, "run"), run_of(tmp_path))


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_a_dead_server_costs_a_warning_and_sync_catches_up(command_line, tmp_path):
    dead = f"http://127.0.0.1:{free_port()}"
    seconds = {}
    for name, tracker in (("without", "tracker=none"), ("dead", f"tracker.mlflow.uri={dead}")):
        outputs = tmp_path / name
        begin = time.monotonic()
        ended = command_line.run("train", *QUICK, tracker, f"paths.outputs={outputs}")
        seconds[name] = time.monotonic() - begin
        assert ended.code == 0, ended.err
    assert f"MLflow at {dead} is not reached" in ended.err
    assert ended.err.count("\n") == 1
    assert seconds["dead"] - seconds["without"] < 2.0
    outputs = tmp_path / "dead"
    for _ in range(2):
        ended = command_line.run("sync", f"paths.outputs={outputs}")
        assert ended.code == 0, ended.err
    client = client_of(outputs)
    assert_mirrored(client, only(client, "run"), run_of(outputs))
    assert only(client, "dfr").info.status == "FINISHED"
    ended = command_line.run("sync", f"paths.outputs={outputs}", f"tracker.mlflow.uri={dead}")
    assert ended.code == 1


def test_a_server_that_never_answers_is_not_waited_for(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        tracker = MlflowTracker(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
        record = Record(tmp_path, "run", "name", "default")
        begin = time.monotonic()
        tracker.start(record)
        tracker.log(record, [{"step": 1, "time": 1, "loss": 0.5}])
        assert time.monotonic() - begin < 0.1
        tracker.close()
        assert not tracker.alive
        assert time.monotonic() - begin < 20


def test_sync_of_a_sweep_that_does_not_exist(command_line, tmp_path):
    (tmp_path / "sweeps" / "here").mkdir(parents=True)
    (tmp_path / "sweeps" / "here" / "points.jsonl").touch()
    ended = command_line.run("sync", "sweep=nowhere", f"paths.outputs={tmp_path}")
    assert ended.code == 2
    assert "here" in ended.err


@pytest.mark.usefixtures("store")
def test_sync_leaves_out_what_is_being_written_and_names_foreign_folders(command_line, tmp_path):
    assert command_line.run("train", *QUICK, "tracker=none", f"paths.outputs={tmp_path}").code == 0
    foreign = tmp_path / "runs" / "digits" / "erm" / "rforeign" / "seed0"
    foreign.mkdir(parents=True)
    ended = command_line.run("sync", f"paths.outputs={tmp_path}")
    assert ended.code == 0, ended.err
    assert "sent 1 runs" in ended.out
    assert f"left out {foreign}" in ended.out


class Broken:
    """A tracker that fails at the call named."""

    def __init__(self, at):
        self.at, self.calls = at, []

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append(name)
            if name == self.at:
                raise RuntimeError("no space")

        return call


def test_a_broken_tracker_is_dropped_and_the_others_go_on(tmp_path, caplog):
    broken, other = Broken(at="log"), Broken(at="never")
    trackers = Trackers([broken, other])
    record = Record(tmp_path, "run", "name", "default")
    trackers.start(record)
    trackers.rows(record, [{"step": 1}])
    trackers.finish(record, "FINISHED")
    assert broken.calls == ["start", "log"]
    assert other.calls == ["start", "log", "finish"]
    assert "Broken is switched off: no space" in caplog.text
    assert not trackers.alive


@pytest.fixture
def server(tmp_path):
    port = free_port()
    folder = tmp_path / "server"
    folder.mkdir()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    uri = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        time.sleep(0.2)
    yield uri
    os.killpg(process.pid, 15)
    process.wait(30)


@pytest.mark.cold
def test_a_server_uri_works_as_well(server, command_line, tmp_path):
    outputs = tmp_path / "outputs"
    ended = command_line.run(
        "train", *QUICK, f"paths.outputs={outputs}", MLFLOW_TRACKING_URI=server
    )
    assert ended.code == 0
    assert ended.err == ""
    assert server in ended.out
    client = MlflowClient(server)
    assert_mirrored(client, only(client, "run"), run_of(outputs))
