"""One process at a time in a run directory."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from spurcor import lock
from spurcor.lock import Held, holder, locked


def write(path, **changes):
    """A lock as somebody else would have left it."""
    owner = {**lock._identity(), "nonce": "theirs", **changes}
    path.write_text(json.dumps(owner))
    return owner


@pytest.fixture
def place(tmp_path):
    return tmp_path / "run" / "seed0.lock", tmp_path / ".guard"


def test_a_lock_is_exclusive_and_gone_afterwards(place):
    path, guard = place
    with locked(path, guard):
        assert holder(path)["pid"] == os.getpid()
        with pytest.raises(Held, match=f"process {os.getpid()} on "), locked(path, guard):
            pass
        assert path.exists()
    assert not path.exists()


def test_a_dead_process_holds_nothing(place):
    path, guard = place
    path.parent.mkdir()
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    write(path, pid=child.pid)
    assert holder(path) is None
    with locked(path, guard):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_process_number_used_again_holds_nothing(place):
    path, _ = place
    path.parent.mkdir()
    write(path, started=time.time() - 1e6)
    assert holder(path) is None


def test_another_host_holds_until_its_heart_stops(place):
    path, _ = place
    path.parent.mkdir()
    write(path, host="elsewhere", boot="other")
    assert holder(path)["host"] == "elsewhere"
    old = time.time() - lock.STALE_SECONDS - 1
    os.utime(path, (old, old))
    assert holder(path) is None


def test_a_requeued_task_owns_its_lock_and_a_sibling_does_not(place, monkeypatch):
    path, _ = place
    path.parent.mkdir()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    write(path, host="elsewhere", boot="other")
    assert holder(path) is None
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    assert holder(path)["task"] == "3"


@pytest.mark.parametrize(
    ("answer", "stale"), [("RUNNING", False), ("", True), ("PENDING", True), (None, False)]
)
def test_a_job_that_the_scheduler_no_longer_runs_holds_nothing(
    place, tmp_path, monkeypatch, answer, stale
):
    path, _ = place
    path.parent.mkdir()
    if answer is not None:
        fake = tmp_path / "bin" / "squeue"
        fake.parent.mkdir()
        fake.write_text(f"#!/bin/sh\necho {answer}\n")
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    write(path, host="elsewhere", boot="other", job="77", task="3")
    assert (holder(path) is None) == stale


def test_of_many_takers_of_a_stale_lock_one_wins(place):
    path, guard = place
    path.parent.mkdir()
    write(path, pid=2**22 + 1)
    winners, losers, ready = [], [], threading.Barrier(8)

    def take():
        ready.wait()
        try:
            with locked(path, guard):
                winners.append(1)
                time.sleep(0.5)
        except Held:
            losers.append(1)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(winners), len(losers)) == (1, 7)


def test_a_heart_beats(place, monkeypatch):
    path, guard = place
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.02)
    with locked(path, guard):
        os.utime(path, (0, 0))
        time.sleep(0.3)
        assert time.time() - path.stat().st_mtime < 5


def test_two_processes_started_at_once(command_line, tmp_path):
    command = ("method.epochs=60", "backbone=mlp", "tracker=none", f"paths.outputs={tmp_path}")
    pair = [command_line.start("train", *command) for _ in range(2)]
    ended = [started.wait() for started in pair]
    assert [one.code for one in ended] == [0, 0]
    held = [one for one in ended if "is being worked on by process" in one.out]
    assert len(held) == 1
    assert f"process {pair[1 - ended.index(held[0])].pid} on " in held[0].out
    (run,) = tmp_path.glob("runs/*/*/*/seed0")
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 60
    assert "test group" not in held[0].out


def test_two_processes_of_one_job_exclude_each_other(place, monkeypatch):
    path, guard = place
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with locked(path, guard), pytest.raises(Held), locked(path, guard):
        pass
