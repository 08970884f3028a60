"""MLflow mirrors the files: nothing lost, nothing doubled, nothing waited for."""

import json
import math
import random
import shutil
import socket
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow
import pytest
from killing import run_of, wait_for_rows
from mlflow import MlflowClient
from mlflow.utils.validation import _validate_metric
from servers import free_port, http_server, mlflow_server
from test_resume import interrupt
from training import read

from spurcor.config.nodes import Node
from spurcor.config.schema import MACHINE
from spurcor.errors import UserError
from spurcor.system.places import REPO
from spurcor.tracking import Record, Trackers, mlflow_runs, sender
from spurcor.tracking.messenger import Messenger
from spurcor.tracking.mlflow import MlflowTracker
from spurcor.tracking.names import mlflow_name

sys.path.insert(0, str(REPO / "scripts" / "bench"))
import mlflow_load

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


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with mlflow_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@dataclass
class Store:
    """Where a test's runs are mirrored; its sweep, so its experiment, is its own."""

    outputs: Path
    sweep: str
    uri: str | None

    @property
    def options(self):
        """For a command line."""
        uri = "null" if self.uri is None else self.uri
        places = (f"paths.outputs={self.outputs}", f"tracker.mlflow.uri={uri}")
        return *places, f"sweep={self.sweep}"

    @property
    def client(self):
        return MlflowClient(self.uri or f"sqlite:///{self.outputs}/mlflow.db")

    def tracker(self):
        return MlflowTracker(self.outputs, self.uri)

    def found(self, kind):
        experiment = self.client.get_experiment_by_name(self.sweep)
        tag = f"tags.`spurcor.kind` = '{kind}'"
        return list(self.client.search_runs([experiment.experiment_id], tag))

    def only(self, kind):
        (run,) = self.found(kind)
        return run


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.server)])
def anywhere(request, tmp_path):
    """Both kinds of store."""
    if request.param == "server":
        return Store(tmp_path, tmp_path.name, request.getfixturevalue("server").uri)
    request.getfixturevalue("store")
    return Store(tmp_path, tmp_path.name, None)


@pytest.fixture
def local(store, tmp_path):
    return Store(tmp_path, "default", None)


def client_of(outputs):
    return MlflowClient(f"sqlite:///{outputs}/mlflow.db")


def sync(command_line, store):
    places = [option for option in store.options if not option.startswith("sweep=")]
    return command_line.run("sync", *places)


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
        if files and len(json.loads(files[0].read_text())) > 1:
            return
        assert started.running(), started.text("err")
        time.sleep(0.01)


def test_a_run_and_its_repair_are_mirrored(command_line, anywhere):
    ended = command_line.run("train", *QUICK, *anywhere.options)
    assert (ended.code, ended.err) == (0, "")
    client, directory = anywhere.client, run_of(anywhere.outputs)
    run, dfr = anywhere.only("run"), anywhere.only("dfr")
    assert (run.info.status, dfr.info.status) == ("FINISHED", "FINISHED")
    assert run.data.params["method"] == "erm"
    assert run.data.params["seed"] == "0"
    assert run.data.params["optimizer.lr"] == "0.001"
    assert run.data.tags[f"sweep.{anywhere.sweep}"] == "true"
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
    if anywhere.uri is not None:
        assert anywhere.uri in ended.out
        assert "View run" not in ended.out


def test_the_params_of_a_record_are_the_settings_that_move_its_weights(tmp_path):
    images = read("method=group_dro")
    config = read("features=frozen", "features/backbone=small_cnn", "features.normalize=true")
    params, tags = (getattr(Record.of_run(tmp_path, config), kind) for kind in ("params", "tags"))
    assert params["features"] == "frozen"
    assert params["features.normalize"] == "True"
    assert params["features.backbone.padding"] == "1"
    assert Record.of_run(tmp_path, images).params["features"] == "none"
    assert {key: str(value) for key, value in config.settings.items()}.items() <= params.items()
    assert (params["seed"], params["train.batch_size"]) == ("0", "64")
    assert set(MACHINE).isdisjoint(key.removeprefix("train.") for key in params)
    assert {f"train.{key}" for key in MACHINE} <= tags.keys()


def test_a_resumed_run_continues_its_mlflow_run_and_no_row_is_doubled(command_line, anywhere):
    command = ("method.epochs=150", "backbone=mlp", "dfr=none", *anywhere.options)
    started = command_line.start("train", *command, "train.checkpoint_seconds=0.1")
    wait_for_mlflow(started, anywhere.outputs)
    wait_for_rows(started, anywhere.outputs)
    started.kill()
    started.wait()
    assert anywhere.only("run").info.status == "RUNNING"
    ended = command_line.run("train", *command)
    assert ended.code == 0, ended.err
    run = anywhere.only("run")
    assert run.info.status == "FINISHED"
    assert_mirrored(anywhere.client, run, run_of(anywhere.outputs))


def test_a_killed_run_does_not_stay_running(command_line, anywhere):
    started = command_line.start("train", "method.epochs=2000", "backbone=mlp", *anywhere.options)
    wait_for_mlflow(started, anywhere.outputs)
    started.kill()
    started.wait()
    assert anywhere.only("run").info.status == "RUNNING"
    another = command_line.run("train", *QUICK, "seed=1", *anywhere.options)
    assert another.code == 0, another.err
    assert sorted(run.info.status for run in anywhere.found("run")) == ["FINISHED", "KILLED"]


def test_a_run_that_finishes_while_stale_ones_are_looked_for_stays_finished(local, monkeypatch):
    record = record_of(local, "run0")
    one, other = local.tracker(), local.tracker()
    one.start(record)
    one.close()
    run = local.only("run")

    def finished_meanwhile(path):
        local.client.set_terminated(run.info.run_id, "FINISHED")

    monkeypatch.setattr(mlflow_runs, "holder", finished_meanwhile)
    other.start(record_of(local, "run1"))
    other.close()
    assert local.client.get_run(run.info.run_id).info.status == "FINISHED"


def tracker_is_idle(tracker):
    """Wait until everything was sent."""
    done = threading.Event()
    tracker._sender.put(done.set)
    assert done.wait(60)


def record_of(store, name, kind="run", parent=None):
    directory = store.outputs / "runs" / name
    directory.mkdir(parents=True, exist_ok=True)
    params = {f"option{k}": "1" for k in range(130)}  # more than one request takes
    return Record(directory, kind, name, store.sweep, parent, params)


def test_sweep_run_and_repair_are_one_below_the_other_also_when_requeued(anywhere, tmp_path):
    sweep = Record.of_sweep(tmp_path / "sweeps" / anywhere.sweep)
    sweep.directory.mkdir(parents=True)
    run = record_of(anywhere, "run", parent=sweep.directory)
    dfr = record_of(anywhere, "run/dfr/val", "dfr", run.directory)
    rows = [{"step": k, "time": 1000 + k, "phase": "erm", "loss": 0.5 + k} for k in range(3)]
    for _ in range(2):
        trackers = Trackers([anywhere.tracker()])
        for record in (sweep, run, dfr):
            trackers.start(record)
        for count in (1, 3):
            trackers.rows(run, rows[:count])
        for record in (sweep, run, dfr):
            trackers.finish(record, "FINISHED")
        trackers.close()
        assert trackers.alive
    shown = {kind: anywhere.only(kind) for kind in ("sweep", "run", "dfr")}
    for child, parent in (("run", "sweep"), ("dfr", "run")):
        assert shown[child].data.tags["mlflow.parentRunId"] == shown[parent].info.run_id
    assert len(shown["run"].data.params) == 130
    stored = history(anywhere.client, shown["run"].info.run_id)
    assert stored == {"loss": [(0, 0.5), (1, 1.5), (2, 2.5)]}


def test_the_report_of_a_sweep_is_below_it_and_replaced_by_the_next(anywhere, tmp_path):
    sweep = Record.of_sweep(tmp_path / "sweeps" / anywhere.sweep)
    sweep.directory.mkdir(parents=True)
    for text in ("old", "new"):
        for name in ("report.md", "figure.png"):
            (tmp_path / name).write_text(text)
        trackers = Trackers([anywhere.tracker()])
        trackers.attach(sweep, [tmp_path / "report.md", tmp_path / "figure.png"], "report")
        trackers.close()
        assert trackers.alive
    run = anywhere.only("sweep")
    assert run.info.status == "FINISHED"
    client = anywhere.client
    names = [file.path for file in client.list_artifacts(run.info.run_id, "report")]
    assert sorted(names) == ["report/figure.png", "report/report.md"]
    for name in names:
        file = client.download_artifacts(run.info.run_id, name, str(tmp_path))
        assert Path(file).read_text() == "new"


@pytest.mark.cold
def test_a_messenger_shows_files_once_it_is_told_of_them(local, tmp_path):
    sweep = tmp_path / "sweeps" / local.sweep
    sweep.mkdir(parents=True)
    target = "spurcor.tracking.mlflow.MlflowTracker"
    tracker = {"mlflow": Node("tracker.mlflow", target, {"uri": local.uri, "patience": 5.0})}
    with Messenger(local.sweep, tracker, local.outputs):
        pass  # a report that was refused
    assert not list(sweep.iterdir())
    (tmp_path / "report.md").write_text("new")
    with Messenger(local.sweep, tracker, local.outputs) as messenger:
        messenger.attach([tmp_path / "report.md"], "report")
        messenger.finish()
    files = local.client.list_artifacts(local.only("sweep").info.run_id, "report")
    assert [file.path for file in files] == ["report/report.md"]


@pytest.mark.cold
def test_a_messenger_that_fails_stops_no_report(local, capfd, caplog):
    with Messenger(local.sweep, {}, local.outputs) as messenger:
        messenger.tell({"nothing": "it knows"})
        messenger.finish()
    assert "exit code 1" in caplog.text
    assert "KeyError" in capfd.readouterr().err


def test_many_that_need_an_experiment_at_once_share_it(anywhere):
    trackers = [anywhere.tracker() for _ in range(8)]
    for k, tracker in enumerate(trackers):
        tracker.start(record_of(anywhere, f"run{k}"))
    for tracker in trackers:
        tracker.close()
        assert tracker.alive
    assert len(anywhere.found("run")) == 8
    names = [experiment.name for experiment in anywhere.client.search_experiments()]
    assert names.count(anywhere.sweep) == 1


def test_rows_go_in_batches(local, monkeypatch):
    sent = []
    plain = MlflowClient.log_batch

    def counted(self, run_id, metrics=(), **others):
        sent.append(len(metrics))
        return plain(self, run_id, metrics=metrics, **others)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", counted)
    tracker, record = local.tracker(), record_of(local, "run")
    tracker.start(record)
    for step in range(50):
        tracker.log(record, [{"step": step, "time": step, "loss": 1.0}])
    tracker.close()
    batches = [count for count in sent if count]
    assert sum(batches) == 50
    assert len(batches) <= 2, "the first at once, the others together"
    assert len(history(local.client, local.only("run").info.run_id)["loss"]) == 50


def test_a_locked_database_is_tried_again(local, monkeypatch, caplog):
    failures = iter(range(3))
    plain = MlflowClient.log_batch

    def locked(self, *arguments, **others):
        if next(failures, None) is not None:
            raise mlflow.MlflowException("(sqlite3.OperationalError) database is locked")
        return plain(self, *arguments, **others)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", locked)
    tracker, record = local.tracker(), record_of(local, "run")
    tracker.start(record)
    tracker.log(record, [{"step": 1, "time": 1, "loss": 1.0}])
    tracker.close()
    assert tracker.alive
    assert caplog.text == ""
    assert history(local.client, local.only("run").info.run_id) == {"loss": [(1, 1.0)]}


@pytest.mark.parametrize("carried_out", ["before", "after", "never"])
def test_a_creation_of_unknown_outcome_makes_one_run(carried_out, local, monkeypatch):
    """The request is repeated; the first was carried out before that, after it, or never."""
    plain, calls = MlflowClient.create_run, []

    def doubtful(self, *arguments):
        calls.append(arguments)
        if len(calls) == 1:
            if carried_out == "before":
                plain(self, *arguments)
            raise mlflow.MlflowException("database is locked")
        if carried_out == "after":
            plain(self, *arguments)
        return plain(self, *arguments)

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", doubtful)
    tracker, record = local.tracker(), record_of(local, "run")
    tracker.start(record)
    tracker.log(record, [{"step": 1, "time": 1, "loss": 1.0}])
    tracker.finish(record, "FINISHED")
    tracker.close()
    assert tracker.alive
    run = local.only("run")
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"loss": 1.0}


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


def test_sync_changes_nothing_that_is_there(command_line, anywhere):
    assert command_line.run("train", *QUICK, *anywhere.options).code == 0
    before = {kind: anywhere.only(kind).info for kind in ("run", "dfr")}
    stored = history(anywhere.client, before["run"].run_id)
    time.sleep(1.1)
    for _ in range(2):
        ended = sync(command_line, anywhere)
        assert ended.code == 0, ended.err
    for kind, info in before.items():
        now = anywhere.only(kind).info
        assert (now.run_id, now.start_time, now.end_time, now.status) == (
            info.run_id,
            info.start_time,
            info.end_time,
            "FINISHED",
        )
    assert history(anywhere.client, before["run"].run_id) == stored


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


def test_a_dead_server_is_not_waited_for(tmp_path, caplog, monkeypatch):
    """However patient: this test would never end."""
    monkeypatch.setattr(sender, "CLOSE_PATIENCE", math.inf)
    draws = random.getstate()
    store = Store(tmp_path, "default", f"http://127.0.0.1:{free_port()}")
    tracker, record = store.tracker(), record_of(store, "run")
    tracker._sender.patience = math.inf
    tracker.start(record)
    tracker.log(record, [{"step": 1, "time": 1, "loss": 0.5}])
    tracker.finish(record, "FINISHED")
    tracker.close()
    assert not tracker.alive
    assert caplog.text.count("is not reached (") == 1
    assert "Connection refused" in caplog.text
    assert random.getstate() == draws, "the mirror took from training's random numbers"


def test_a_dead_server_costs_a_warning_and_sync_catches_up(command_line, tmp_path):
    dead, outputs = f"http://127.0.0.1:{free_port()}", tmp_path / "outputs"
    places = (f"tracker.mlflow.uri={dead}", f"paths.outputs={outputs}")
    ended = command_line.run("train", *QUICK, *places)
    assert ended.code == 0, ended.err
    assert f"MLflow at {dead} is not reached" in ended.err
    assert ended.err.count("\n") == 1
    for _ in range(2):
        ended = command_line.run("sync", f"paths.outputs={outputs}")
        assert ended.code == 0, ended.err
    client = client_of(outputs)
    assert_mirrored(client, only(client, "run"), run_of(outputs))
    assert only(client, "dfr").info.status == "FINISHED"
    ended = command_line.run("sync", f"paths.outputs={outputs}", f"tracker.mlflow.uri={dead}")
    assert ended.code == 1


def test_a_server_that_never_answers_is_not_waited_for(tmp_path, monkeypatch):
    """Neither by the calls, which would never return, nor for long at the end."""
    monkeypatch.setattr(sender, "FIRST_ANSWER_SECONDS", 2.0)
    monkeypatch.setattr(sender, "CLOSE_SECONDS", math.inf)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        tracker = MlflowTracker(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
        record = Record(tmp_path, "run", "name", "default")
        tracker.start(record)
        tracker.log(record, [{"step": 1, "time": 1, "loss": 0.5}])
        assert tracker.alive
        tracker.close()
        assert not tracker.alive


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
    assert f"skipped {foreign}" in ended.out


NAMES = ["a", "x:1", "x_1", "x?1", "a//b", "/a", "a/", "..", "../up", "..up", ".", "a/./b", "", "é"]
NAMES += ["y" * 250, "y" * 251, "y" * 252, "a\nb", "group/small, green"]


def test_names_that_mlflow_takes_stay_and_others_are_changed_each_into_its_own():
    changed = {name: mlflow_name(name) for name in NAMES}
    assert len(set(changed.values())) == len(NAMES)
    for name in ("a", "x_1", "é", "y" * 250):
        assert changed[name] == name
    for name in changed.values():
        _validate_metric("" + name, 1.0, 0, 0)
    assert mlflow_name("a:b", also=":") == "a:b"


def test_every_metric_has_its_own_series_and_every_parameter_its_place(local, caplog):
    tracker, record = local.tracker(), record_of(local, "run")
    odd = {f"group/{name}": str(k) for k, name in enumerate(NAMES)}
    record = replace(record, params=odd, tags={**odd, "long": "z" * 9000})
    tracker.start(record)
    row = {f"test/group/{name}": float(k) for k, name in enumerate(NAMES)}
    tracker.log(record, [{"step": 1, "time": 1, **row}])
    tracker.close()
    assert (tracker.alive, caplog.text) == (True, "")
    data = local.only("run").data
    assert sorted(data.metrics.values()) == [float(k) for k in range(len(NAMES))]
    assert sorted(data.params.values(), key=int) == [str(k) for k in range(len(NAMES))]
    assert data.tags["long"].startswith("z" * 7000)
    assert {str(k) for k in range(len(NAMES))} <= set(data.tags.values())


def refusing(monkeypatch, word):
    """A store that refuses what has `word` in its name."""
    plain, plain_file = MlflowClient.log_batch, MlflowClient.log_artifact

    def log_batch(self, run_id, metrics=(), params=(), tags=()):
        if any(word in entity.key for entity in (*metrics, *params, *tags)):
            raise mlflow.MlflowException(f"{word} is no name")
        return plain(self, run_id, metrics=metrics, params=params, tags=tags)

    def log_artifact(self, run_id, path, folder):
        if word in path:
            raise mlflow.MlflowException(f"{word} is no file")
        return plain_file(self, run_id, path, folder)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", log_batch)
    monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", log_artifact)


def test_what_mlflow_refuses_costs_only_itself(local, monkeypatch, caplog, tmp_path):
    refusing(monkeypatch, "bad")
    tracker, record = local.tracker(), record_of(local, "run")
    record = replace(record, params={"bad": "1", "good": "1"}, tags={"bad": "1", "fine": "1"})
    tracker.start(record)
    for step in (1, 2):
        tracker.log(record, [{"step": step, "time": step, "loss": 0.5, "bad/loss": 0.5}])
        tracker_is_idle(tracker)
    for name in ("bad.png", "good.png", "missing.png"):
        if name != "missing.png":
            (tmp_path / name).write_text("x")
        tracker.artifact(record, tmp_path / name)
    tracker.finish(record, "FINISHED")
    tracker.close()
    run = local.only("run")
    assert run.info.status == "FINISHED"
    assert history(local.client, run.info.run_id) == {"loss": [(1, 0.5), (2, 0.5)]}
    assert run.data.params == {"good": "1"}
    assert run.data.tags["fine"] == "1"
    (file,) = local.client.list_artifacts(run.info.run_id)
    assert file.path == "good.png"
    assert not tracker.alive, "sync must not say that it sent everything"
    told = [record.getMessage() for record in caplog.records]
    for lost in ("parameter bad", "tag bad", "metric bad/loss", "file bad.png", "file missing.png"):
        assert sum(f" refuses {lost} (" in line for line in told) == 1, lost
    assert len(told) == 5


def test_a_store_that_refuses_everything_is_told_as_that(local, monkeypatch, caplog):
    refusing(monkeypatch, "o")
    tracker, record = local.tracker(), record_of(local, "run")
    tracker.start(record)
    tracker.log(record, [{"step": 1, "time": 1, "loss": 0.5}])
    tracker.close()
    assert not tracker.alive
    assert "is refused (o is no name)" in caplog.text
    assert "not reached" not in caplog.text


def test_a_server_that_answers_with_a_refusal_is_told_as_that(tmp_path, caplog):
    with http_server(403) as (uri, _):
        tracker = MlflowTracker(tmp_path, uri)
        tracker.start(Record(tmp_path, "run", "name", "default"))
        tracker.close()
    assert not tracker.alive
    assert "is refused (" in caplog.text
    assert "not reached" not in caplog.text


@pytest.mark.parametrize(
    "uri",
    ["localhost:5000", "myhost:5000/x", "u:secret@host:5000", "[::1]:5000", "mlflow.site.org"],
)
@pytest.mark.parametrize("key", ["tracker.mlflow.uri", "MLFLOW_TRACKING_URI"])
def test_a_server_without_a_scheme_is_refused(command_line, tmp_path, uri, key):
    given = {key: uri} if key.isupper() else {}
    typed = [] if given else [f"{key}='{uri}'"]
    ended = command_line.run("train", *typed, f"paths.outputs={tmp_path}", **given)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert f"spurcor: {key}={uri.replace('secret', '***')} " in ended.err
    assert "http://" in ended.err
    assert "secret" not in ended.err
    swept = command_line.run(
        "train", "-m", "seed=0,1", *typed, f"paths.outputs={tmp_path}", **given
    )
    assert swept.code == 2
    assert "secret" not in swept.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("uri", ["http://host:99999", "http://host:port"])
def test_an_address_that_is_none_is_refused(uri, tmp_path):
    with pytest.raises(UserError, match=r"tracker\.mlflow\.uri="):
        MlflowTracker(tmp_path, uri)


@pytest.mark.parametrize(
    "uri", ["http://h", "sqlite:///a.b/x.db", "databricks", "./mlruns", "/a:1/b"]
)
def test_addresses_of_mlflow_are_taken(uri, tmp_path):
    assert MlflowTracker(tmp_path, uri).uri == uri


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
def own_server(tmp_path):
    """A server that the test may take down."""
    with mlflow_server(tmp_path / "server") as running:
        yield running


@pytest.mark.server
def test_a_server_that_is_away_for_a_while_costs_a_warning(command_line, own_server, tmp_path):
    store = Store(tmp_path / "outputs", "default", own_server.uri)
    command = ("train", "method.epochs=200", "backbone=mlp", "dfr=none", *store.options)
    impatient = ("train.checkpoint_seconds=0.2", "tracker.mlflow.patience=1")
    started = command_line.start(*command, *impatient)
    wait_for_mlflow(started, store.outputs)
    own_server.stop()
    while "is not reached" not in started.text("err"):
        assert started.running(), started.text("err")
        time.sleep(0.05)
    own_server.start()
    ended = started.wait()
    assert ended.code == 0, ended.err
    assert ended.err.count("\n") == 1
    run, directory = store.only("run"), run_of(store.outputs)
    assert run.info.status == "RUNNING", "the mirror was given up"
    for _ in range(2):
        ended = sync(command_line, store)
        assert ended.code == 0, ended.err
    assert store.only("run").info.run_id == run.info.run_id
    assert store.only("run").info.status == "FINISHED"
    assert_mirrored(store.client, run, directory)


@pytest.mark.server
def test_a_server_that_restarts_costs_nothing(own_server, tmp_path, caplog):
    store = Store(tmp_path / "outputs", "default", own_server.uri)
    tracker, record = store.tracker(), record_of(store, "run")
    tracker.start(record)
    rows = [{"step": k, "time": k, "loss": float(k)} for k in range(3)]
    tracker.log(record, rows[:1])
    tracker_is_idle(tracker)
    own_server.stop()
    tracker.log(record, rows[1:2])
    tracker.artifact(record, store.outputs / "runs" / "run" / "mlflow.json")
    time.sleep(1.0)
    own_server.start()
    tracker.log(record, rows[2:])
    tracker.finish(record, "FINISHED")
    tracker.close()
    assert tracker.alive
    assert caplog.text == ""
    run = store.only("run")
    assert run.info.status == "FINISHED"
    assert history(store.client, run.info.run_id)["loss"] == [(k, float(k)) for k in range(3)]
    (artifact,) = store.client.list_artifacts(run.info.run_id)
    assert artifact.path == "mlflow.json"


def many_writers(outputs, uri, database):
    """Twelve runs at once, in processes without torch; each row nearly a request of its own."""
    size = {"processes": 2, "threads": 6, "rows": 6, "metrics": 10}
    load = mlflow_load.Load(outputs, uri, database, **size, interval=0.2, pause=0.1)
    return mlflow_load.measure(load)


@pytest.mark.cold
@pytest.mark.usefixtures("store")
def test_many_writers_at_once_on_one_file(tmp_path, capfd):
    assert many_writers(tmp_path, None, tmp_path / "mlflow.db"), capfd.readouterr()
    assert capfd.readouterr().err == ""


@pytest.mark.server
def test_many_writers_at_once_on_one_server(server, tmp_path, capfd):
    assert many_writers(tmp_path, server.uri, server.database), capfd.readouterr()
    assert capfd.readouterr().err == ""
