"""The scripts that look for faults see the faults that are put before them."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from killing import comparable, everything

from scripts.battery import __main__, fuzz, kills
from spurcor.errors import UserError


def refuse(root):
    raise UserError(f"{root} is not what it should be; replace it")


def stumble(root):
    raise KeyError("x")


def outside(root):
    (root.parent / "outside" / "evil").write_text("x")


def remove_outside(root):
    (root.parent / "outside" / "file").unlink()


def link_out(root):
    (root / "link").symlink_to(root.parent)


def half(root):
    (root / ".store.json.1234-56.tmp").write_text("half of i")


def run_program(root):
    subprocess.run(["true"])


def die(root):
    os._exit(3)


def fill_memory(root):
    bytearray(fuzz.MEMORY * 2)


def two_lines(root):
    raise UserError("one\ntwo")


DEEDS = {
    refuse: ("refused", "replace it"),
    lambda root: (root / "store").write_text("x"): ("read", ""),
    stumble: ("wrong", "KeyError"),
    outside: ("wrong", "outside/evil"),
    remove_outside: ("wrong", "os.remove"),
    link_out: ("wrong", "leads to"),
    half: ("wrong", "left behind"),
    run_program: ("wrong", "subprocess.Popen"),
    die: ("wrong", "a crash (3)"),
    fill_memory: ("wrong", "MemoryError"),
    two_lines: ("wrong", "one"),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_what_must_not_happen_is_seen(deed, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    verdict = fuzz.examine(fuzz.Case("", lambda: deed(root)), root)
    outcome, text = DEEDS[deed]
    assert verdict.outcome == outcome, verdict.text
    assert text in verdict.text


def test_what_has_no_end_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "HANGS", 0.2)
    root = tmp_path / "data"
    os.mkfifo(tmp_path / "pipe")
    root.mkdir()
    verdict = fuzz.examine(fuzz.Case("", (tmp_path / "pipe").read_bytes), root)
    assert (verdict.outcome, verdict.kind[:6]) == ("wrong", "no end")


def test_clocks_are_all_that_two_runs_may_differ_in(tmp_path):
    row = {"epoch": 1, "seconds": 2.5, "val/worst": 0.5}
    files = []
    for changes in ({}, {"seconds": 3.5}, {"val/worst": 0.25}):
        files.append(tmp_path / f"{len(files)}" / "metrics.jsonl")
        files[-1].parent.mkdir()
        files[-1].write_text(json.dumps({**row, **changes}) + "\n")
    first, later, other = map(comparable, files)
    assert first == later != other
    assert set(everything(files[0].parent)) == {"metrics.jsonl"}


def test_every_script_is_run():
    folder = Path(fuzz.__file__).parent
    known = {"__init__", "__main__", "fuzz", "runner"}
    assert set(__main__.scripts()) == {path.stem for path in folder.glob("*.py")} - known


def test_the_method_that_is_typed_is_killed_and_can_be_again():
    scene = kills.typed_scene(["method=erm", "method.epochs=3"])
    assert "method=erm" in scene.command.words
    assert scene.command.words.index("method.epochs=3") > scene.command.words.index("method=erm")
    assert " method=erm method.epochs=3 " in f"{kills.again(scene, 4)} "
    assert "--only train-erm" in kills.again(kills.Scene("train-erm", scene.command), 4)
    with pytest.raises(SystemExit, match="method=<name>"):
        kills.typed_scene(["jtt"])
