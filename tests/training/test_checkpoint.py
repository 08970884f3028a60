"""Files that are whole, and checkpoints that load what was saved and execute nothing."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from spurcor.config.nodes import Node
from spurcor.data.splits import Splits
from spurcor.datasets.digits import Digits
from spurcor.errors import Damaged, UserError
from spurcor.models import weights
from spurcor.system.files import (
    CHUNK,
    append_line,
    keep_lines,
    read_json,
    read_lines,
    replacing,
    replacing_folder,
    write_json,
    write_text,
)
from spurcor.system.places import CONF
from spurcor.training import checkpoint

OPTIMIZERS = sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml"))
SCHEDULES = sorted(path.stem for path in (CONF / "schedule").glob("*.yaml"))
STATE = {
    "step": 3,
    "lr": 0.1,
    "name": "erm",
    "on": True,
    "none": None,
    "tensors": {"w": torch.arange(6.0).view(2, 3), "long": torch.tensor([2**40])},
    "list": [1, (2, {"deep": torch.ones(2, dtype=torch.uint8)})],
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pt"


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and all(map(equal, one, other))
    return type(one) is type(other) and one == other


# --- whole files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [None, "old"])
def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, old):
    path = tmp_path / "file"
    if old:
        path.write_text(old)

    def write():
        with replacing(path) as beside:
            beside.write_text("half")
            assert path.exists() == bool(old)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert [p.name for p in tmp_path.iterdir()] == (["file"] if old else [])
    assert not old or path.read_text() == old
    write_text(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_appears_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder"

    def write(fail):
        with replacing_folder(path) as beside:
            (beside / "part").write_text("x")
            if fail:
                raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write(fail=True)
    assert list(tmp_path.iterdir()) == []
    write(fail=False)
    assert [p.name for p in path.iterdir()] == ["part"]


def test_the_first_of_two_writers_of_a_folder_wins(tmp_path):
    path = tmp_path / "folder"
    with replacing_folder(path) as beside:
        (beside / "mine").touch()
        path.mkdir()
        (path / "theirs").touch()
    assert [p.name for p in path.iterdir()] == ["theirs"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_json_has_no_nan(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": 1}
    path.write_text("[1]")
    with pytest.raises(ValueError, match="JSON object"):
        read_json(path)


# --- rows -----------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for i in range(3):
        append_line(path, {"row": i, "name": "ä"})
    return path


def numbers(path):
    return [row["row"] for row in read_lines(path)]


def test_rows_are_read_as_written(rows):
    assert read_lines(rows) == [{"row": i, "name": "ä"} for i in range(3)]
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_line(rows, {"row": float("nan")})
    assert numbers(rows) == [0, 1, 2]


def test_a_last_row_that_was_cut_off_is_left_out(rows):
    whole = rows.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for cut in range(2, last + 1):
        rows.write_bytes(whole[:-cut])
        assert numbers(rows) == [0, 1]
    rows.write_bytes(whole[:-1])  # it lacks nothing but its end
    assert numbers(rows) == [0, 1, 2]
    rows.write_bytes(whole + '{"row": 3, "name": "ä'.encode()[:-1])
    assert numbers(rows) == [0, 1, 2]


def test_a_broken_row_in_the_middle_is_no_cut_off(rows):
    lines = rows.read_text().splitlines(keepends=True)
    rows.write_text(lines[0] + "{broken\n" + lines[2])
    with pytest.raises(Damaged, match=r"metrics\.jsonl .*line 2"):
        read_lines(rows)
    rows.write_text(lines[0] + "3\n" + lines[2])
    with pytest.raises(Damaged, match=r"JSON object, line 2"):
        read_lines(rows)


def test_a_row_cut_off_in_its_writing_does_not_join_with_the_next(rows):
    """Wherever a process was killed, and however long the row is."""
    whole = rows.read_bytes()
    long = json.dumps({"row": 3, "text": "ä" * CHUNK}, ensure_ascii=False).encode() + b"\n"
    for size in (0, 1, 9, 10, CHUNK - 1, CHUNK, CHUNK + 1, len(long) - 2, len(long) - 1):
        rows.write_bytes(whole + long[:size])
        append_line(rows, {"row": 9})
        assert numbers(rows) == [0, 1, 2, *([3] if size == len(long) - 1 else []), 9]
        assert rows.read_bytes().startswith(whole)
    rows.write_bytes(long[:20])
    append_line(rows, {"row": 9})
    assert numbers(rows) == [9]


def test_rows_of_several_processes_do_not_mix(tmp_path):
    path, count = tmp_path / "points.jsonl", 50
    code = (
        "import sys; from pathlib import Path; from spurcor.system.files import append_lines\n"
        f"for i in range({count}):\n"
        "    append_lines(Path(sys.argv[1]), [{'row': i, 'text': 'x' * 70_000}] * 2)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert sorted(numbers(path)) == sorted(6 * list(range(count)))


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_rows_are_cut_back(rows, count):
    with rows.open("a") as file:
        file.write('{"row": 3, "na')
    keep_lines(rows, count)
    assert numbers(rows) == list(range(count))
    append_line(rows, {"row": 9})
    assert numbers(rows) == [*range(count), 9]


def test_no_rows(tmp_path):
    assert read_lines(tmp_path / "none.jsonl") == []
    keep_lines(tmp_path / "none.jsonl", 0)
    assert list(tmp_path.iterdir()) == []


# --- checkpoints ----------------------------------------------------------------------------------


def test_what_was_saved_is_loaded(path):
    checkpoint.save(path, STATE)
    assert equal(checkpoint.load(path), STATE)


def test_a_failed_save_leaves_the_old_checkpoint(path, monkeypatch):
    checkpoint.save(path, {"step": 1})

    def write_half(state, beside):
        beside.write(b"PK half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, {"step": 2})
    assert checkpoint.load(path) == {"step": 1}
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"phase": {"q": np.zeros(2)}}, r"checkpoint\.phase\.q is a ndarray"),
        ({"rows": [{}, {"loss": np.float64(1)}]}, r"checkpoint\.rows\[1\]\.loss is a float64"),
        ({"n": np.int64(1)}, r"checkpoint\.n is a int64"),
        ({"t": (1, {2})}, r"checkpoint\.t\[1\] is a set"),
        ({"g": np.random.default_rng(0)}, r"checkpoint\.g is a Generator"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(path, state, where):
    checkpoint.save(path, STATE)
    with pytest.raises(TypeError, match=where):
        checkpoint.save(path, state)
    assert equal(checkpoint.load(path), STATE)


def test_the_state_of_a_numpy_generator_can_be_saved(path):
    generator = np.random.default_rng(3)
    generator.random(5)
    checkpoint.save(path, {"generator": generator.bit_generator.state})
    other = np.random.default_rng(0)
    other.bit_generator.state = checkpoint.load(path)["generator"]
    assert other.random() == generator.random()


def test_fingerprints_of_splits_can_be_saved(path, tmp_path):
    splits = Splits.load(Digits(), tmp_path, torch.device("cpu"))
    checkpoint.save(path, {"fingerprints": splits.fingerprints})
    assert checkpoint.load(path)["fingerprints"] == splits.fingerprints


@pytest.mark.parametrize("key", [np.int64(1), np.str_("train"), np.float64(0.5)])
def test_keys_that_could_not_be_loaded_are_not_saved(path, key):
    with pytest.raises(TypeError, match="checkpoint"):
        checkpoint.save(path, {"outer": {key: 1}})
    assert not path.exists()


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_refused_and_not_executed(path, tmp_path, legacy):
    victim = tmp_path / "executed"
    state = {"step": 1, "method": Payload(victim)}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"checkpoint\.pt is not a readable checkpoint"):
        checkpoint.load(path)
    assert not victim.exists()
    torch.load(path, weights_only=False)["method"].close()
    assert victim.exists()  # so the payload was a live one


def test_a_truncated_checkpoint_is_refused(path):
    checkpoint.save(path, STATE)
    whole = path.read_bytes()
    for size in (0, 1, 10, 100, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="rerun=true"):
            checkpoint.load(path)


@pytest.mark.parametrize("content", [[1, 2], "text", torch.ones(2), {"step": 1}])
def test_what_is_no_checkpoint_of_a_run_is_refused(path, content):
    torch.save(content, path)
    with pytest.raises(Damaged, match=r"checkpoint\.pt is not a checkpoint.*rerun=true"):
        checkpoint.load(path, ("step", "method"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"hello", b"\x80\x04N.", b"PK\x03\x04", b"\0" * 2000])
def test_a_file_of_something_else_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a readable checkpoint"):
        checkpoint.load(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_checkpoint_is_refused_or_loaded_but_never_another_error(path):
    checkpoint.save(path, {"a": torch.arange(100.0), "b": {"c": [1, 2.0, "x", None, True]}})
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(1000):
        damaged = np.frombuffer(whole, np.uint8).copy()
        where = rng.integers(len(damaged), size=3)
        damaged[where] = rng.integers(256, size=3)
        path.write_bytes(damaged.tobytes())
        try:
            checkpoint.load(path)
        except UserError:
            refused += 1
    assert refused > 300


def test_a_missing_checkpoint_is_refused(path):
    with pytest.raises(UserError, match="not a readable checkpoint"):
        checkpoint.load(path)


def test_a_full_device_is_not_another_version(path):
    full = torch.cuda.OutOfMemoryError("CUDA out of memory")
    for error, told in ((full, type(full)), (RuntimeError("size mismatch\nof many"), UserError)):
        with (
            pytest.raises(told, match=str(error).splitlines()[0]),
            checkpoint.of_this_version(path),
        ):
            raise error


def node(group, name):
    tree = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    return Node(group, tree.pop("_target_"), tree)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_optimizers_and_schedules_go_through_a_checkpoint(path, optimizer, schedule):
    def start():
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 2)
        chosen = node("optimizer", optimizer).build(params=list(module.parameters()))
        tree = node("schedule", schedule)
        total = {"T_max": 30} if tree.takes("T_max") else {}
        return module, chosen, tree.build(optimizer=chosen, **total)

    def train(module, chosen, plan, epochs):
        for _ in range(epochs):
            chosen.zero_grad()
            module(torch.ones(4, 3)).square().sum().backward()
            chosen.step()
            plan.step()

    module, chosen, plan = start()
    train(module, chosen, plan, 24)
    state = {
        "module": module.state_dict(),
        "optimizer": chosen.state_dict(),
        "schedule": plan.state_dict(),
    }
    checkpoint.save(path, state)
    loaded = checkpoint.load(path)
    assert equal(loaded["optimizer"], copy.deepcopy(chosen.state_dict()))
    other, other_chosen, other_plan = start()
    other.load_state_dict(loaded["module"])
    other_chosen.load_state_dict(loaded["optimizer"])
    other_plan.load_state_dict(loaded["schedule"])
    train(module, chosen, plan, 4)
    train(other, other_chosen, other_plan, 4)
    assert equal(dict(module.state_dict()), dict(other.state_dict()))
    assert plan.get_last_lr() == other_plan.get_last_lr()


# --- weights --------------------------------------------------------------------------------------


def test_weights_go_through_a_file(tmp_path):
    path, module = tmp_path / "model.safetensors", torch.nn.BatchNorm1d(4)
    module(torch.randn(8, 4))
    weights.save_weights(path, weights.snapshot(module))
    other = torch.nn.BatchNorm1d(4)
    weights.load_weights(other, path)
    assert equal(dict(other.state_dict()), dict(module.state_dict()))
    assert other.num_batches_tracked == 1


def test_transposed_weights_can_be_saved(tmp_path):
    weight = torch.arange(6.0).view(2, 3).t()
    weights.save_weights(tmp_path / "w.safetensors", {"weight": weight})
    module = torch.nn.Linear(2, 3, bias=False)
    weights.load_weights(module, tmp_path / "w.safetensors")
    assert torch.equal(module.weight, weight)


@pytest.mark.parametrize("content", ["missing", "empty", "text", "other"])
def test_weights_that_do_not_fit_are_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    if content == "other":
        weights.save_weights(path, torch.nn.Linear(3, 3).state_dict())
    elif content != "missing":
        path.write_bytes(b"" if content == "empty" else b"hello, these are no weights")
    says = {"missing": "is missing", "other": "does not contain the weights"}
    with pytest.raises(Damaged, match=rf"model\.safetensors {says.get(content, 'is damaged')}"):
        weights.load_weights(torch.nn.Linear(2, 2), path)


def test_a_snapshot_is_a_copy():
    module = torch.nn.Linear(2, 2)
    snapshot = weights.snapshot(module)
    before = snapshot["weight"].clone()
    with torch.no_grad():
        module.weight += 1
    assert torch.equal(snapshot["weight"], before)
    assert not snapshot["weight"].requires_grad


def test_the_random_state_goes_through_a_checkpoint(path):
    torch.manual_seed(4)
    torch.rand(3)
    checkpoint.save(path, {"random": checkpoint.random_state()})
    expected = torch.rand(5)
    torch.manual_seed(0)
    checkpoint.restore_random_state(checkpoint.load(path)["random"])
    assert torch.equal(torch.rand(5), expected)


KILLED = """
import os, sys
from pathlib import Path
from spurcor.system.files import replacing
with replacing(Path(sys.argv[1])) as beside:
    beside.write_text("half")
    os.kill(os.getpid(), 9)
"""


def test_a_kill_in_the_middle_of_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    process = subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert process.returncode == -9
    assert path.read_text() == "old"
