"""What disks and people do to files: a sentence that names the file, never a traceback."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import CommandLine
from training import read

from spurcor.errors import Damaged, of_system
from spurcor.runs import execute
from spurcor.sweeps.manifest import Point, write_manifest
from spurcor.system.lock import lock_of
from spurcor.system.terminal import Terminal
from spurcor.training.predictions import read_predictions

OPTIONS = ("method.epochs=2", "method=erm", "dfr=val", "tracker=none")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Outputs with a finished run of each of two seeds; no test writes there."""
    outputs = tmp_path_factory.mktemp("sound") / "outputs"
    for seed in (0, 1):
        overrides = (*OPTIONS, f"seed={seed}", f"paths.outputs={outputs}")
        config = read(*overrides)
        point = Point(overrides, config)
        execute.execute(config, Terminal(quiet=True), lambda point=point: write_manifest([point]))
    return outputs


@pytest.fixture
def outputs(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "outputs")


def run_of(outputs, seed=0):
    (directory,) = outputs.glob(f"runs/digits/erm/*/seed{seed}")
    return directory


def commands(outputs):
    run, other = run_of(outputs), run_of(outputs, 1)
    return {
        "train": ("train", *OPTIONS),
        "sweep": ("train", "-m", "seed=0,1", *OPTIONS),
        "retrain": ("retrain", f"run={run}", "dfr=target", "tracker=none"),
        "analyze": ("analyze", f"run={run}", "analysis=selective", "tracker=none"),
        "report": ("report", "sweep=default", "tracker=none", "plots=false"),
        "status": ("status", "sweep=default"),
        "sync": ("sync", "tracker=tensorboard"),
        "explain": ("explain", f"run={run}"),
        "selective": ("selective", f"runs=[{run},{other}]"),
        "clusters": ("clusters", f"run={run}", "num_clusters=2"),
        "prepare": ("prepare", "dataset=digits"),
    }


def told(ended, codes=(0, 1, 2)):
    """All that a command said, which must be no traceback."""
    said = ended.out + ended.err
    assert "Traceback" not in said, said
    assert ended.code in codes, said
    return said


# --- damaged files --------------------------------------------------------------------------------


def write(text):
    return lambda path: path.write_bytes(text.encode())


def half(path):
    os.truncate(path, path.stat().st_size // 2)


def folder(path):
    path.unlink()
    path.mkdir()


def without(*keys):
    """Leave out what a JSON or YAML file holds at a place."""

    def remove(path):
        tree = node = yaml.safe_load(path.read_text())
        for key in keys[:-1]:
            node = node[key]
        del node[keys[-1]]
        path.write_text(json.dumps(tree))  # which is YAML, too

    return remove


def null(*keys):
    def put(path):
        tree = node = yaml.safe_load(path.read_text())
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = None
        path.write_text(json.dumps(tree))

    return put


def garble_rows(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\0{not a row\n" + b"".join(lines[1:]))


def pickled(path):
    np.savez(path, **{"test/y": np.array([{}, None], object)})


def saved(value):
    return lambda path: torch.save(value, path)


DAMAGE = {
    "result.json": [write(""), half, write("{}"), write("[1]"), null("run"), null("test", "groups"),
                    without("run", "splits"), without("dfr"), os.unlink, folder],
    "config.yaml": [write(""), half, write("choices: {}"), without("choices"), folder,
                    without("choices", "dataset"), null("method"), write("- a")],
    "metrics.jsonl": [garble_rows, folder, write('{"epoch": 1}\n'), write("[]\n")],
    "predictions.npz": [write(""), half, pickled, write("text"), os.unlink, folder],
    "last.safetensors": [write(""), half, write("text"), os.unlink, folder],
    "model.safetensors": [half, write("text"), os.unlink, folder],
}  # fmt: skip
# Who reads it, and so must name it where it is damaged.
READERS = {
    "result.json": ("train", "retrain", "analyze", "report", "status", "sync", "selective",
                    "clusters"),
    "config.yaml": ("train", "retrain", "analyze", "sync", "clusters", "explain"),
    "metrics.jsonl": ("report", "sync"),
    "predictions.npz": ("analyze", "selective"),
    "last.safetensors": ("retrain", "clusters"),
    "model.safetensors": ("analyze",),
}  # fmt: skip
# Every way with one of the commands, and every command with one of the ways.
CASES = [
    (number % len(DAMAGE[name]), readers[number % len(readers)], name)
    for name, readers in READERS.items()
    for number in range(max(len(DAMAGE[name]), len(readers)))
]


@pytest.mark.parametrize(("number", "command", "name"), CASES)
def test_a_damaged_file_is_named(outputs, command_line, number, command, name):
    DAMAGE[name][number](run_of(outputs) / name)
    module, *arguments = commands(outputs)[command]
    ended = command_line.run(module, *arguments, f"paths.outputs={outputs}", COLUMNS="500")
    said = told(ended)
    assert name in said
    assert ended.code == {"report": 0, "sync": 0, "status": 1}.get(command, 2), said


def test_a_damaged_run_does_not_take_a_report_or_a_sync_down(outputs, command_line):
    write("{}")(run_of(outputs) / "result.json")
    for command, rest in (("report", "1 of 2"), ("sync", "sent 1 runs")):
        module, *arguments = commands(outputs)[command]
        said = told(command_line.run(module, *arguments, f"paths.outputs={outputs}"), codes=(0,))
        word = {"report": "left out:", "sync": "skipped"}[command]
        assert f"{word} {run_of(outputs)}: " in said
        assert rest in said


def test_a_sweep_tells_the_damaged_point_and_shows_the_others(outputs, command_line):
    half(run_of(outputs) / "result.json")
    module, *arguments = commands(outputs)["sweep"]
    ended = command_line.run(module, *arguments, f"paths.outputs={outputs}", COLUMNS="300")
    said = told(ended, codes=(1,))
    assert "damaged" in said
    assert "1 of 2 points are not done" in said


KEPT = {"done", "config.yaml"}


@pytest.mark.parametrize("command", ["train", "retrain", "analyze", "explain", "selective"])
def test_a_run_of_which_little_is_left(outputs, command_line, command):
    for path in run_of(outputs).iterdir():
        if path.name not in KEPT:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    module, *arguments = commands(outputs)[command]
    ended = command_line.run(module, *arguments, f"paths.outputs={outputs}", *(
        ["dfr=none"] if command == "train" else []
    ))  # fmt: skip
    assert "is missing; pass rerun=true" in told(ended, codes=(2,))


def test_rerun_sets_a_damaged_run_aside(outputs, command_line):
    for name, damages in DAMAGE.items():
        if (path := run_of(outputs) / name).exists():
            damages[0](path)
    ended = command_line.run("train", *OPTIONS, "rerun=true", f"paths.outputs={outputs}")
    assert "test group" in told(ended, codes=(0,))


@pytest.mark.parametrize("field", ["directory", "needs", "overrides", "seed", "log"])
@pytest.mark.parametrize("damage", [null, without])
def test_a_damaged_point_is_named_by_its_line(outputs, command_line, damage, field):
    path = outputs / "sweeps" / "default" / "points.jsonl"
    first, second = path.read_text().splitlines()
    path.write_text(second)
    if not (damage is null and field == "log"):  # most points have none
        damage(field)(path)
        path.write_text(f"{first}\n{path.read_text()}\n")
        for command in ("status", "report"):
            module, *arguments = commands(outputs)[command]
            ended = command_line.run(module, *arguments, f"paths.outputs={outputs}")
            said = told(ended, codes=(2,))
            assert "points.jsonl" in said
            assert field in said
            assert "line 2" in said


@pytest.mark.parametrize("content", [[1, 2], "text", {"progress": {}}, None])
def test_a_checkpoint_that_is_none_is_told(outputs, command_line, content):
    path = run_of(outputs) / "checkpoint.pt"
    (path.parent / "done").unlink()
    half(path) if content is None else torch.save(content, path)
    for command, *arguments in (("train", *OPTIONS), ("sync", "tracker=tensorboard")):
        ended = command_line.run(command, *arguments, f"paths.outputs={outputs}")
        said = told(ended, codes=(2,) if command == "train" else (0,))
        assert "checkpoint.pt is no" in said
        assert "rerun=true" in said


def test_predictions_must_belong_together(tmp_path):
    columns = {"index": np.arange(3), "y": np.zeros(3, int), "a": np.zeros(3, int)}
    sound = {**columns, "logits": np.zeros((3, 2), np.float32)}
    for key, value in (
        ("y", np.zeros(2, int)), ("logits", np.zeros(3)), ("a", np.array(["x"] * 3)),
        ("index", np.int64(3)),
    ):  # fmt: skip
        arrays = {f"test/{name}": array for name, array in (sound | {key: value}).items()}
        np.savez(tmp_path / "predictions.npz", **arrays)
        with pytest.raises(Damaged, match=r"predictions\.npz is damaged .*test"):
            read_predictions(tmp_path)
    np.savez(tmp_path / "predictions.npz", **{f"test/{name}": columns[name] for name in columns})
    with pytest.raises(Damaged, match="lacks columns of test"):
        read_predictions(tmp_path)


@pytest.mark.parametrize("command", ["retrain", "analyze", "explain", "clusters", "selective"])
def test_a_file_in_place_of_a_run_is_told(outputs, command_line, command):
    file = run_of(outputs) / "result.json"
    module, *arguments = commands(outputs)[command]
    arguments = [word.replace(str(run_of(outputs)), str(file)) for word in arguments]
    ended = command_line.run(module, *arguments, f"paths.outputs={outputs}")
    assert f"={file} is a file" in told(ended, codes=(2,))


# --- full disks, and places that are none ---------------------------------------------------------


@pytest.fixture(scope="module")
def cramped(tmp_path_factory):
    """Commands that can write no file beyond a few kilobytes."""
    limit = ("sh", "-c", 'ulimit -f 12 && exec "$@"', "sh")
    line = CommandLine(tmp_path_factory.mktemp("cramped"), limit)
    yield line
    line.close()


WRITES = ("retrain", "analyze", "sync", "explain", "selective", "clusters", "prepare")


@pytest.mark.parametrize("command", WRITES)
def test_a_full_disk_is_a_sentence(outputs, cramped, command):
    """As files may grow no further; see below for a disk that is really full."""
    module, *arguments = commands(outputs)[command]
    said = told(cramped.run(module, *arguments, f"paths.outputs={outputs}"), codes=(0, 1))
    assert "File too large" in said or command == "sync", said


def test_a_run_that_fills_the_disk_fails_in_a_sentence(tmp_path, cramped):
    command = ("train", *OPTIONS, f"paths.outputs={tmp_path}")
    ended = cramped.run(*command)
    said = told(ended, codes=(1,))
    assert "File too large" in said
    assert not list(run_of(tmp_path).glob(".*.tmp"))


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """Commands that see a disk of a few megabytes, and the way to it from here."""
    folder = tmp_path_factory.mktemp("small")
    place = folder / "disk"
    place.mkdir()
    mount = f"mount -t tmpfs -o size=8m none {place}"
    own = ("unshare", "-m", "sh", "-c")
    try:
        tried = subprocess.run((*own, mount), capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mount namespace of one's own: {error}")
    if tried.returncode:
        pytest.skip(f"no mount namespace of one's own: {tried.stderr.strip()}")
    line = CommandLine(folder, (*own, f'{mount} && exec "$@"', "sh"))
    assert line.run("prepare", "--help").code == 0  # so it is mounted
    yield line, place, folder
    line.close()


@pytest.mark.cold
def test_nothing_but_sentences_from_a_disk_without_room(sound, small_disk):
    line, place, _ = small_disk
    seen = f"/proc/{line.process.pid}/root{place}"
    subprocess.run(["cp", "-r", str(sound), f"{seen}/outputs"], check=True)
    room = os.statvfs(seen)
    with pytest.raises(OSError, match="No space left"):
        Path(seen, "filler").write_bytes(bytes(2 * room.f_blocks * room.f_frsize))
    listed = commands(sound)
    listed |= {"another": ("train", *OPTIONS, "seed=7")}
    started = {}
    for name, (module, *arguments) in listed.items():
        moved = [word.replace(str(sound), f"{place}/outputs") for word in arguments]
        started[name] = line.run(module, *moved, f"paths.outputs={place}/outputs")
    reads = {"train", "sweep", "status", "sync"}
    for name, ended in started.items():
        said = told(ended)
        assert "No space left on device" in said or name in reads, (name, said)


@pytest.mark.cold
def test_output_that_nobody_can_take_is_a_sentence(outputs):
    module, *arguments = commands(outputs)["report"]
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [sys.executable, "-m", f"spurcor.{module}", *arguments, f"paths.outputs={outputs}"],
            stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr.startswith("spurcor: No space left on device")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("command", "place"),
    [("report", "reports"), ("explain", "explain"), ("selective", "selective"),
     ("retrain", "runs/digits/erm/ID/seed0/dfr"), ("prepare", "previews"),
     ("train", "sweeps"), ("train", "runs"), ("train", "runs/digits/erm/ID/seed0")],
)  # fmt: skip
def test_a_file_where_a_folder_belongs_is_a_sentence(outputs, command_line, command, place):
    """As is a place that may not be written to, which root may everywhere."""
    path = outputs / place.replace("ID", run_of(outputs).parent.name)
    arguments = commands(outputs)[command]
    shutil.rmtree(path, ignore_errors=True)
    path.write_text("in the way")
    ended = command_line.run(*arguments, f"paths.outputs={outputs}")
    said = told(ended, codes=(2,))
    assert str(path) in said


@pytest.mark.parametrize(("number", "code"), [(28, 1), (13, 2), (5, 1)])
def test_what_the_system_says_is_a_sentence(number, code):
    told = of_system(OSError(number, os.strerror(number), "/a/b"))
    assert str(told).startswith(f"/a/b: {os.strerror(number)}; ")
    assert isinstance(told, ValueError) == (code == 2)


# --- what is left behind, and what is gone --------------------------------------------------------


def test_what_a_kill_after_the_end_leaves_goes_with_the_next_look(outputs, command_line):
    directory = run_of(outputs)
    lock = lock_of(directory)
    (directory / "selected-2.safetensors").touch()
    dead = {"host": "x", "boot": "x", "pid": 1, "started": 1.0, "job": None, "task": None}
    lock.write_text(json.dumps({**dead, "nonce": "x"}))
    os.utime(lock, (0, 0))
    lock.with_name(f".{lock.name}.123.tmp").touch()
    ended = command_line.run("train", *OPTIONS, f"paths.outputs={outputs}")
    told(ended, codes=(0,))
    assert not list(directory.glob("selected-*"))
    assert sorted(path.name for path in directory.parent.iterdir()) == ["seed0", "seed1"]


def test_a_run_that_is_removed_meanwhile_says_so(tmp_path, monkeypatch):
    from spurcor.training.trainer import Trainer

    config = read(*OPTIONS, f"paths.outputs={tmp_path}")
    add = Trainer._add_row

    def remove_and_add(self, *args, **options):
        shutil.rmtree(config.directory)
        add(self, *args, **options)

    monkeypatch.setattr(Trainer, "_add_row", remove_and_add)
    outcome = execute.execute(config, Terminal(quiet=True))
    assert (outcome.status, outcome.exit_code) == ("failed", 1)
    assert "removed during the run" in outcome.message
