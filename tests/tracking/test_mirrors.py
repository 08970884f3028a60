"""TensorBoard and W&B mirror the files: nothing lost, nothing doubled, nothing waited for."""

import json
import struct
import subprocess
import sys
import time
from collections import Counter

import pytest
from killing import run_of, wait_for_rows

from spurcor.config.nodes import Node
from spurcor.errors import UserError
from spurcor.tracking import Record, Trackers

QUICK = ("method.epochs=3", "backbone=mlp")
PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 3, 2) + b"\x08\x02\0\0\0"


def rows_of(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def events_of(folder):
    """Every event in a folder, in whichever file it is, so that doubled ones are seen."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    files = sorted(path for path in folder.iterdir() if "tfevents" in path.name)
    return [Event.FromString(raw) for path in files for raw in RawEventFileLoader(str(path)).Load()]


def scalars(folder):
    """(tag, step) -> what is stored of it."""
    found = {}
    for event in events_of(folder):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                entry = (pytest.approx(event.wall_time), pytest.approx(value.simple_value))
                found.setdefault((value.tag, event.step), []).append(entry)
    return found


def assert_in_tensorboard(outputs, directory, sweep="default"):
    label = "-".join(directory.parts[-4:])
    found = scalars(outputs / "tensorboard" / sweep / label)
    assert all(len(values) == 1 for values in found.values())
    rows = rows_of(directory)
    for row in rows:
        for key in ("train/loss", "test/worst", "test/group/small/green"):
            assert found[key, row["step"]] == [(row["time"] / 1000, row[key])]
    assert sum(tag == "train/loss" for tag, _ in found) == len(rows)
    return found


def wandb_records(path):
    """The records of a W&B transaction log, which has the format of LevelDB's."""
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record as Logged

    data, at, whole, records = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no header fits into the rest of the block
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(Logged.FromString(whole))
            whole = b""
    return records


def items(update):
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in update}


def wandb_of(outputs, kind):
    """The one folder of the run or of its repair: its header, its history, its summary."""
    found = []
    for path in (outputs / "wandb").glob("offline-run-*/*.wandb"):
        records = wandb_records(path)
        (run,) = (record.run for record in records if record.HasField("run"))
        if run.job_type == kind:
            history = [items(r.history.item) for r in records if r.HasField("history")]
            parts = [items(r.summary.update) for r in records if r.HasField("summary")]
            found.append((path, run, history, {k: v for part in parts for k, v in part.items()}))
    (one,) = found
    return one


def assert_in_wandb(outputs, directory):
    _, run, history, summary = wandb_of(outputs, "run")
    rows = rows_of(directory)
    assert [entry["_step"] for entry in history] == [row["step"] for row in rows]
    for row, entry in zip(rows, history, strict=True):
        assert entry["_timestamp"] == pytest.approx(row["time"] / 1000)
        for key in ("train/loss", "test/worst", "test/group/small/green"):
            assert entry[key] == pytest.approx(row[key])
    return run, summary


def test_a_run_and_its_repair_are_shown_by_all_three_at_once(command_line, tmp_path):
    command = ("train", *QUICK, "tracker=[mlflow,tensorboard,wandb]", f"paths.outputs={tmp_path}")
    ended = command_line.run(*command)
    assert (ended.code, ended.err) == (0, "")
    directory = run_of(tmp_path)
    result = json.loads((directory / "result.json").read_text())
    (name, part), *_ = result["dfr"].items()
    worst, repaired = result["test"]["worst"], part["test"]["worst"]

    found = assert_in_tensorboard(tmp_path, directory)
    (selected,) = [v for (tag, _), v in found.items() if tag == "selected/test/worst"]
    assert selected[0][1] == worst
    place = tmp_path / "tensorboard" / "default" / "-".join(directory.parts[-4:])
    (dfr,) = [v for (tag, _), v in scalars(place / name).items() if tag == "test/worst"]
    assert dfr[0][1] == repaired

    run, summary = assert_in_wandb(tmp_path, directory)
    assert (run.run_group, run.project) == ("default", "spurcor")
    assert sorted(run.tags) == ["default", "run"]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (config["method"], config["seed"]) == ("erm", "0")
    assert summary["selected/test/worst"] == pytest.approx(worst)
    path, _, _, summary = wandb_of(tmp_path, "dfr")
    assert summary["test/worst"] == pytest.approx(repaired)
    assert (path.parent / "files" / "spurcor" / "result.json").exists()
    assert (tmp_path / "mlflow.db").exists()


def test_parameters_and_end_are_in_hparams(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    record = Record(tmp_path / "run", "run", "n", "s", params={"method": "erm", "seed": "3"})
    trackers = build("tensorboard", tmp_path)
    trackers.start(record)
    trackers.rows(record, [{"step": 1, "time": 1000, "loss": 0.5, "phase": "erm", "worst": None}])
    trackers.finish(record, "FINISHED")
    trackers.close()
    events = events_of(tmp_path / "tensorboard" / "s" / record.label)
    data = [
        HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for event in events
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "hparams"
    ]
    assert [entry.WhichOneof("data") for entry in data] == [
        "session_start_info",
        "session_end_info",
    ]
    shown = data[0].session_start_info.hparams
    assert (shown["method"].string_value, shown["seed"].number_value) == ("erm", 3.0)
    assert data[1].session_end_info.status == STATUS_SUCCESS
    assert list(scalars(tmp_path / "tensorboard" / "s" / record.label)) == [("loss", 1)]


@pytest.mark.parametrize("again", ["resumed", "sync", "rerun"])
def test_what_is_sent_again_is_there_once(again, command_line, tmp_path):
    command = ("backbone=mlp", "dfr=none", "tracker=[tensorboard,wandb]")
    command = ("train", *command, f"paths.outputs={tmp_path}")
    if again == "resumed":
        command = (*command, "method.epochs=150")
        started = command_line.start(*command, "train.checkpoint_seconds=0.1")
        while not list(tmp_path.glob("wandb/offline-run-*/*.wandb")):
            assert started.running(), started.text("err")
            time.sleep(0.01)
        wait_for_rows(started, tmp_path)
        started.kill()
        started.wait()
        assert not (run_of(tmp_path) / "done").exists()
    else:
        command = (*command, "method.epochs=3")
        assert command_line.run(*command).code == 0
    first = {path.name for path in (tmp_path / "wandb").glob("offline-run-*")}
    assert len(first) == 1
    if again == "sync":
        command = ("sync", "tracker=[tensorboard,wandb]", f"paths.outputs={tmp_path}")
    ended = command_line.run(*command, *(["rerun=true"] if again == "rerun" else []))
    assert ended.code == 0, ended.err
    (directory,) = tmp_path.glob("runs/*/*/*/seed0")
    assert_in_tensorboard(tmp_path, directory)
    folders = {path.name for path in (tmp_path / "wandb").glob("offline-run-*")}
    if again == "rerun":  # what was set aside is another run, and stays
        assert len(folders) == 2
        assert first < folders
    else:
        assert len(folders) == 1
        ids = {name.split("-", 3)[3] for name in first | folders}
        assert len(ids) == 1, "another W&B run"
        assert_in_wandb(tmp_path, directory)


def build(tracker, outputs, **arguments):
    target = f"spurcor.tracking.{tracker}.{tracker.capitalize()}Tracker"
    return Trackers.build({tracker: Node(f"tracker.{tracker}", target, arguments)}, outputs)


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_the_report_of_a_sweep_is_replaced_by_the_next(tracker, tmp_path):
    folder = tmp_path / "report"
    folder.mkdir()
    record = Record.of_sweep(tmp_path / "sweeps" / "s")
    record.directory.mkdir(parents=True)
    for text in ("old", "new"):
        (folder / "report.md").write_text(text)
        (folder / "figure.png").write_bytes(PNG)
        (folder / "table.csv").write_text("a,b")
        trackers = build(tracker, tmp_path)
        trackers.attach(record, sorted(folder.iterdir()), "report")
        trackers.close()
        assert trackers.alive
    if tracker == "tensorboard":
        values = [v for e in events_of(tmp_path / "tensorboard" / "s") for v in e.summary.value]
        assert Counter(v.tag for v in values) == {"report/report.md": 1, "report/figure.png": 1}
        shown = {value.tag: value for value in values}
        assert shown["report/report.md"].tensor.string_val == [b"new"]
        image = shown["report/figure.png"].image
        assert (image.width, image.height, image.encoded_image_string) == (3, 2, PNG)
    else:
        (files,) = tmp_path.glob("wandb/offline-run-*/files/spurcor/report")
        assert sorted(path.name for path in files.iterdir()) == [
            "figure.png",
            "report.md",
            "table.csv",
        ]
        assert (files / "report.md").read_text() == "new"


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_file_that_cannot_be_shown_costs_only_itself(tracker, tmp_path, caplog):
    record = Record.of_sweep(tmp_path / "sweeps" / ("long" * 40))
    record.directory.mkdir(parents=True)
    long = f"{'x' * 200}.png"
    (tmp_path / long).write_bytes(PNG)
    trackers = build(tracker, tmp_path)
    trackers.start(record)
    trackers.attach(record, [tmp_path / "missing.png", tmp_path / long], "report")
    trackers.close()
    assert not trackers.alive, "sync must not say that it sent everything"
    warned = [entry for entry in caplog.records if entry.levelname == "WARNING"]
    (told,) = [entry for entry in warned if entry.name.startswith("spurcor")]
    assert "missing.png" in told.getMessage()
    if tracker == "tensorboard":
        events = events_of(tmp_path / "tensorboard" / record.sweep)
        assert [v.tag for e in events for v in e.summary.value] == [f"report/{long}"]
    else:
        assert list(tmp_path.glob(f"wandb/offline-run-*/files/spurcor/report/{long}"))


@pytest.mark.parametrize("sweep", ["short", "long" * 40])
def test_a_name_that_is_too_long_for_wandb_is_cut_and_others_stay(sweep, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    given = {}

    def taken(**options):
        given.update(options)
        raise RuntimeError

    monkeypatch.setattr(wandb, "init", taken)
    (tmp_path / "run").mkdir()
    trackers = build("wandb", tmp_path)
    record = Record(tmp_path / "run", "run", "n", sweep, tags={f"sweep.{sweep}": "true"})
    trackers.rows(record, [{"step": 0, "time": 1, "loss": 0.5}])
    trackers.close()
    assert len(given["group"]) <= 128
    assert max(map(len, given["tags"])) <= 64
    if sweep == "short":
        assert (given["group"], given["tags"]) == ("short", ["run", "short"])


def test_a_sweep_that_is_only_started_keeps_its_report(tmp_path):
    (tmp_path / "report.md").write_text("text")
    record = Record.of_sweep(tmp_path / "sweeps" / "s")
    for attached in (True, False):
        trackers = build("tensorboard", tmp_path)
        if attached:
            trackers.attach(record, [tmp_path / "report.md"], "report")
        else:
            trackers.start(record)
            trackers.finish(record, "FINISHED")
        trackers.close()
    assert sum(len(e.summary.value) for e in events_of(tmp_path / "tensorboard" / "s")) == 1


def test_a_mirror_names_what_opens_it_and_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    assert build("tensorboard", tmp_path).addresses == {
        "TensorBoard": f"tensorboard --logdir {tmp_path}/tensorboard"
    }
    assert build("mlflow", tmp_path).addresses == {
        "MLflow": f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db"
    }
    assert build("mlflow", tmp_path, uri="http://host:5000").addresses == {
        "MLflow": "http://host:5000"
    }
    assert build("wandb", tmp_path).addresses == {
        "W&B": f"wandb sync {tmp_path}/wandb/offline-run-*"
    }
    online = build("wandb", tmp_path, mode="online", entity="me", project="p")
    assert online.addresses == {"W&B": "https://wandb.ai/me/p"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_missing_package_is_told_before_anything_starts(tracker, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, tracker, None)
    sentence = f"tracker={tracker} needs the package {tracker}: pip install 'spurcor"
    with pytest.raises(UserError, match=sentence):
        build(tracker, tmp_path)


def test_a_folder_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "tensorboard").mkdir()
    keep = [path for path in sys.path if "site-packages" not in path]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *keep])
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match="needs the package tensorboard"):
        build("tensorboard", tmp_path)


@pytest.mark.cold
def test_a_missing_package_ends_the_command_with_one_sentence(tmp_path):
    code = "import sys; sys.modules['tensorboard'] = None; from spurcor import cli, train;"
    code += "sys.exit(cli.run(train.main, 'train'))"
    command = [sys.executable, "-c", code, "tracker=tensorboard", f"paths.outputs={tmp_path}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == (
        "spurcor: tracker=tensorboard needs the package tensorboard:"
        " pip install 'spurcor[tensorboard]'\n"
    )
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_wandb_that_fails_is_told_once_and_stops_nothing(tmp_path, caplog):
    record = Record(tmp_path / "run", "run", "n", "s")  # a folder that is not there
    trackers = build("wandb", tmp_path)
    for step in range(3):
        trackers.rows(record, [{"step": k, "time": 1, "loss": 0.5} for k in range(step + 1)])
    trackers.finish(record, "FINISHED")
    trackers.close()
    assert not trackers.alive
    assert caplog.text.count("W&B fails") == 1


def test_the_trackers_import_no_package_before_they_are_used():
    code = (
        "import sys, spurcor.tracking.mlflow, spurcor.tracking.tensorboard, spurcor.tracking.wandb;"
        "print({'torch', 'mlflow', 'tensorboard', 'wandb'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"
