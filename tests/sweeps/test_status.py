"""What the state of a point is made of: its files, the lock, and the scheduler's words."""

import json
import os

import pytest

from spurcor.errors import UserError
from spurcor.launchers.points import Points
from spurcor.launchers.slurm_options import SlurmOptions
from spurcor.sweeps import slurm
from spurcor.sweeps.manifest import manifest
from spurcor.sweeps.states import duration, state, states
from spurcor.system.lock import locked

WHO = {"overrides": ["method=erm", "seed=0"], "identity": "r0", "seed": 0, "needs": ["done"]}


@pytest.fixture
def entry(tmp_path):
    return {**WHO, "directory": str(tmp_path / "run"), "job": "7_1", "log": str(tmp_path / "log")}


def job(state, reason="", active=True):
    return slurm.Job("7_1", state, reason, active)


def begin(entry, tmp_path, epoch=2, seconds=30.0):
    run = tmp_path / "run"
    run.mkdir()
    phases = [{"name": "erm", "epochs": 4}, {"name": "tune", "epochs": 2}]
    (run / "phases.json").write_text(json.dumps({"phases": phases}))
    row = {"phase": "erm", "epoch": epoch, "seconds": seconds}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return run


def test_a_point_without_a_trace_is_missing(entry):
    assert state(entry).status == "missing"


def test_a_pending_job_is_queued_for_the_schedulers_reason(entry):
    found = state(entry, job("PENDING", "Resources"))
    assert (found.status, found.message) == ("queued", "Resources")


def test_a_running_job_tells_epochs_and_the_time_left(entry, tmp_path):
    assert state(entry, job("RUNNING")).progress == ""
    begin(entry, tmp_path)
    found = state(entry, job("RUNNING"))
    # 2 of 6 epochs took 30 s, so the other 4 take 60.
    assert (found.status, found.progress) == ("running", "erm 2/4, 60 s left")


def test_files_win_over_the_scheduler(entry, tmp_path):
    run = begin(entry, tmp_path)
    (run / "done").touch()
    assert state(entry, job("RUNNING")).status == "done"


def test_a_requeued_point_is_queued_although_it_failed_before(entry, tmp_path):
    run = begin(entry, tmp_path)
    (run / "failed").write_text("Traceback\nRunError: erm: loss is nan\n")
    assert state(entry, job("PENDING")).status == "queued"
    found = state(entry, job("FAILED", "FAILED, exit code 1:0", active=False))
    assert (found.status, found.message) == ("failed", "RunError: erm: loss is nan")


def test_a_killed_point_says_what_the_scheduler_says(entry, tmp_path):
    begin(entry, tmp_path)
    words = "OUT_OF_MEMORY, exit code 0:125"
    (tmp_path / "log").write_text("erm epoch 1/4\n")
    found = state(entry, job("OUT_OF_MEMORY", words, active=False))
    assert found.status == "failed"
    assert words in found.message
    assert str(tmp_path / "log") in found.message


def test_a_point_refused_before_its_first_file_tells_why(entry, tmp_path):
    (tmp_path / "log").write_text("erm\nspurcor: MNIST is not in /data\nsrun: error: exit code 2\n")
    found = state(entry, job("FAILED", "FAILED, exit code 2:0", active=False))
    assert found.message == "SLURM: FAILED, exit code 2:0: MNIST is not in /data"


def test_a_point_that_another_process_works_on_is_held(entry, tmp_path):
    with locked(tmp_path / "run.lock", tmp_path / "guard"):
        assert state(entry, job("RUNNING")).status == "held"
        assert state({**entry, "job": None}).status == "running"


def test_a_job_knows_its_own_lock():
    owner = {"job": "7", "task": "1"}
    assert slurm.Job("7_1", "RUNNING").owns(owner)
    assert slurm.Job("7", "RUNNING").owns({"job": "7", "task": "0"})
    assert not slurm.Job("7_2", "RUNNING").owns(owner)
    assert not slurm.Job("8_1", "RUNNING").owns(owner)


# --- the scheduler's words ------------------------------------------------------------------------


@pytest.fixture
def scheduler(tmp_path, monkeypatch):
    """Stands for squeue and sacct: prints what a test says, with its exit code."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def says(command, out="", err="", code=0):
        script = folder / command
        script.write_text(f"#!/bin/sh\ncat <<'E'\n{out}\nE\ncat >&2 <<'E'\n{err}\nE\nexit {code}\n")
        script.chmod(0o755)

    return says


def test_queue_and_accounts_together_tell_of_every_job(scheduler):
    scheduler("squeue", "7_0|RUNNING|None\n7_2|PENDING|Resources")
    accounts = ["7_0|RUNNING|0:0", "7_1|FAILED|1:0", "7_1.batch|FAILED|1:0"]
    accounts += ["7_1.0|OUT_OF_MEMORY|0:125", "7_[2-4%2]|PENDING|0:0", "8|CANCELLED by 0|0:0"]
    scheduler("sacct", "\n".join(accounts))
    found = slurm.query(["7_0", "7_1", "7_2", "8", "9"])
    assert {name: (j.state, j.active) for name, j in found.items()} == {
        "7_0": ("RUNNING", True),
        "7_1": ("OUT_OF_MEMORY", False),
        "7_2": ("PENDING", True),
        "8": ("CANCELLED", False),
        "9": ("", False),
    }
    assert found["7_2"].reason == "Resources"
    assert found["7_1"].ending == "SLURM: OUT_OF_MEMORY, exit code 0:125"
    assert found["9"].ending == ""


def test_tasks_that_accounting_shows_as_one_are_taken_apart(scheduler):
    scheduler("squeue")
    scheduler("sacct", "7_[0,2-3,9%4]|CANCELLED by 0|0:0")
    found = slurm.query([f"7_{i}" for i in range(10)])
    cancelled = [name for name, one in found.items() if one.state == "CANCELLED"]
    assert sorted(cancelled) == ["7_0", "7_2", "7_3", "7_9"]


def test_a_scheduler_that_is_away_is_no_answer(scheduler):
    scheduler("squeue", err="slurm_load_jobs error: Unable to contact slurm controller", code=1)
    with pytest.raises(slurm.Unanswered, match="Unable to contact"):
        slurm.query(["7"])


def test_a_job_that_the_scheduler_has_forgotten_is_an_answer(scheduler):
    scheduler("squeue", err="slurm_load_jobs error: Invalid job id specified", code=1)
    scheduler("sacct", err="Slurm accounting storage is disabled", code=1)
    assert slurm.query(["7"]) == {"7": slurm.Job("7", "")}


def test_only_jobs_of_unfinished_points_are_asked_for(scheduler, tmp_path):
    scheduler("squeue", err="must not be asked", code=1)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "done").touch()
    (tmp_path / "sweeps" / "one").mkdir(parents=True)
    line = json.dumps({**WHO, "directory": "runs/a", "job": "7", "log": None})
    (tmp_path / "sweeps" / "one" / "points.jsonl").write_text(line + "\n")
    assert [one.status for one in states(tmp_path, "one")] == ["done"]


# --- the manifest and the points ------------------------------------------------------------------


def test_a_later_line_updates_a_point_and_another_repair_is_another_point(tmp_path):
    folder = tmp_path / "sweeps" / "one"
    folder.mkdir(parents=True)
    first = {**WHO, "directory": "runs/a", "job": None, "log": None}
    lines = [first, {**first, "needs": ["done", "dfr/x/result.json"]}, {**first, "job": "8"}]
    (folder / "points.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [entry["job"] for entry in manifest(tmp_path, "one")] == ["8", None]


def test_a_manifest_with_a_foreign_line_is_named(tmp_path):
    folder = tmp_path / "sweeps" / "one"
    folder.mkdir(parents=True)
    (folder / "points.jsonl").write_text('{"overrides": []}\n')
    with pytest.raises(UserError, match=r"points\.jsonl .*line 1"):
        manifest(tmp_path, "one")


def test_points_times_products_and_what_is_typed_wins():
    points = Points(["a=1 b=2", "a=3 b=4"], {"seed": "0,1"})
    assert points.expand([]) == [
        ["a=1", "b=2", "seed=0"],
        ["a=1", "b=2", "seed=1"],
        ["a=3", "b=4", "seed=0"],
        ["a=3", "b=4", "seed=1"],
    ]
    assert points.expand(["seed=7", "b=9"]) == [["a=1", "seed=7", "b=9"], ["a=3", "seed=7", "b=9"]]
    assert Points().expand(["x=1,2"]) == [["x=1"], ["x=2"]]


def test_what_is_null_is_left_to_the_cluster():
    options = SlurmOptions(gpus_per_node=0, mem_gb=None, partition="low", setup=("module load x",))
    assert options.submitit == {
        "time": 240,
        "setup": ["module load x"],
        "partition": "low",
        "cpus_per_task": 4,
        "array_parallelism": 64,
        "signal_delay_s": 120,
        "additional_parameters": {},
    }
    assert SlurmOptions(mem_gb=1.5).submitit["mem"] == "1536M"
    with pytest.raises(ValueError, match="must be less than the 2 minutes"):
        SlurmOptions(timeout_min=2, signal_delay_s=120)


@pytest.mark.parametrize(
    ("seconds", "text"), [(5.4, "5 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
