"""Sweeps on a real SLURM cluster; scripts/slurm/cluster starts one."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from ordeal import Size, withstand
from test_search import trials_of
from test_sweep import kill_a_point

from spurcor.sweeps import states

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module", autouse=True)
def cluster():
    if shutil.which("sbatch") is None:
        pytest.skip("there is no sbatch here; scripts/slurm/cluster makes a cluster")
    if subprocess.run(["sinfo"], capture_output=True).returncode != 0:
        pytest.skip("no SLURM controller answers; scripts/slurm/cluster up, then source its env")


def test_a_sweep_survives_all_that_a_cluster_does_to_it(tmp_path):
    """Requeue, time limit, SIGKILL, restart of the controller, no MLflow server, edited files."""
    sweep = ("method=erm,iw,group_dro", "seed=0,1", "method.epochs=300")
    withstand(tmp_path, Size(sweep, limit_min=1, server_seconds=20))


QUICK = ("backbone=mlp", "dfr=none", "tracker=none", "train.num_threads=1", "site.cpus_per_task=1")


def points_of(outputs, name="default"):
    return states.states(outputs, name)


def test_a_preempted_point_saves_is_requeued_and_goes_on(command_line, tmp_path):
    ended = command_line.run(
        "train", "-m", "hydra/launcher=slurm", "hydra.launcher.wait=false", "site.partition=low",
        "site.mem_gb=2", f"paths.outputs={tmp_path}", *QUICK, "method.epochs=400",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    while not points_of(tmp_path)[0].progress:
        assert points_of(tmp_path)[0].status in states.UNDER_WAY
        time.sleep(0.5)
    wanted = ("--partition=high", "--exclusive", "--wrap=true", f"--output={tmp_path}/high")
    subprocess.run(["sbatch", *wanted], check=True)
    while points_of(tmp_path)[0].status in states.UNDER_WAY:
        time.sleep(0.5)
    (point,) = points_of(tmp_path)
    assert point.status == "done", point
    assert "resumed after" in (Path(point.entry["directory"]) / "train.log").read_text()


def test_a_point_without_memory_fails_and_goes_on_with_more(command_line, tmp_path):
    command = (
        "train", "-m", "hydra/launcher=slurm", f"paths.outputs={tmp_path}", *QUICK,
        "method.epochs=1",
    )  # fmt: skip
    ended = command_line.run(*command, "site.mem_gb=0.1", COLUMNS="300")
    assert ended.code == 1, ended.out
    (point,) = points_of(tmp_path)
    assert point.status == "failed"
    assert "SLURM: OUT_OF_MEMORY" in point.message or "SLURM: FAILED" in point.message
    assert "SLURM:" in ended.out
    ended = command_line.run("status", f"paths.outputs={tmp_path}", "sweep=default")
    assert ended.code == 1
    ended = command_line.run(*command, "site.mem_gb=3")
    assert ended.code == 0, ended.out + ended.err
    assert points_of(tmp_path)[0].status == "done"


def test_what_slurm_refuses_is_told_once_in_its_words_and_leaves_nothing(command_line, tmp_path):
    outputs = tmp_path / "outputs"
    ended = command_line.run(
        "train", "-m", "hydra/launcher=slurm", f"paths.outputs={outputs}", *QUICK,
        "site.partition=nowhere", "site.mem_gb=1",
    )  # fmt: skip
    assert ended.code == 2
    assert len(ended.err.strip().splitlines()) == 1
    assert "invalid partition specified: nowhere" in ended.err
    assert not outputs.exists()


def test_the_stock_launcher_stays_usable(command_line, tmp_path):
    command = (
        "train", "-m", "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=20",
        "hydra.launcher.mem_gb=2", f"paths.outputs={tmp_path}", *QUICK, "method.epochs=1",
    )  # fmt: skip
    ended = command_line.run(*command, "seed=0,1")
    assert ended.code == 0, ended.err
    assert {point.status for point in points_of(tmp_path)} == {"done"}
    ended = command_line.run(*command, "optimizer.lr=1e30")
    assert ended.code == 1, "a failed job must not look completed"


def test_a_search_on_a_cluster_survives_kills_of_its_controller_and_a_point(command_line, tmp_path):
    words = (
        "train", "-m", "hydra/sweeper=optuna", *QUICK, "method.epochs=30", "sweep=tune",
        "optimizer.lr=tag(log,interval(1e-4,1e-2))", "hydra.sweeper.n_trials=4",
        "hydra.sweeper.sampler=random",
    )  # fmt: skip
    cluster = (*words, "hydra/launcher=slurm", "site.mem_gb=2", "site.array_parallelism=2")
    started = command_line.start(*cluster, f"paths.outputs={tmp_path / 'cluster'}")
    while not (tmp_path / "cluster").exists() or not list(tmp_path.glob("cluster/runs/*/*/*/*/*")):
        assert started.running(), started.text("err")
        time.sleep(0.2)
    started.kill()
    started = command_line.start(*cluster, f"paths.outputs={tmp_path / 'cluster'}")
    kill_a_point(started, tmp_path / "cluster", 1.0)
    ended = started.wait(300)
    assert ended.code == 0, ended.out + ended.err
    alone = command_line.run(*words, f"paths.outputs={tmp_path / 'alone'}")
    assert alone.code == 0, alone.err
    assert trials_of(tmp_path / "cluster") == trials_of(tmp_path / "alone")
    entries = points_of(tmp_path / "cluster", "tune")
    assert len(entries) == 4
    assert all(point.entry["job"] for point in entries)


def test_a_search_goes_on_by_itself_when_its_command_has_gone(command_line, tmp_path):
    """Two jobs at a time, two seeds a trial, and a chain of jobs that draw the next."""
    words = (
        "train", "-m", "hydra/sweeper=optuna", *QUICK, "method.epochs=2", "sweep=tune",
        "optimizer.lr=tag(log,interval(1e-4,1e-2))", "hydra.sweeper.n_trials=3",
        "hydra.sweeper.sampler=random", "hydra.sweeper.seeds=[0,1]", f"paths.outputs={tmp_path}",
        "hydra/launcher=slurm", "site.mem_gb=2", "site.array_parallelism=2",
        "hydra.launcher.wait=false",
    )  # fmt: skip
    ended = command_line.run(*words)
    assert ended.code == 0, ended.err
    assert "the search goes on as job" in ended.out
    assert len(trials_of(tmp_path)) == 1  # its two runs are as many jobs as are allowed
    report = tmp_path / "reports" / "tune" / "report.md"
    patience = time.monotonic() + 240
    while not report.exists():
        assert time.monotonic() < patience, [p.read_text() for p in tmp_path.rglob("*log.out")]
        time.sleep(1)
    trials = trials_of(tmp_path)
    assert [state for _, state, *_ in trials] == ["COMPLETE"] * 3
    assert all(
        point.status == "done" and point.entry["job"] for point in points_of(tmp_path, "tune")
    )
    assert len(points_of(tmp_path, "tune")) == 6
    again = command_line.run(*words)
    assert again.code == 0, again.err
    assert "the search goes on" not in again.out


def test_a_cancelled_trial_stays_so_until_the_command_is_repeated(command_line, tmp_path):
    words = (
        "train", "-m", "hydra/sweeper=optuna", *QUICK, "method.epochs=3000", "sweep=cancelled",
        "optimizer.lr=tag(log,interval(1e-4,1e-2))", "hydra.sweeper.n_trials=1",
        f"paths.outputs={tmp_path}", "hydra/launcher=slurm", "site.mem_gb=2",
        "site.array_parallelism=1", "hydra.launcher.wait=false",
    )  # fmt: skip
    assert command_line.run(*words).code == 0
    (point,) = points_of(tmp_path, "cancelled")
    while points_of(tmp_path, "cancelled")[0].status != "running":
        time.sleep(0.5)
    subprocess.run(["scancel", "--name=spurcor-cancelled", "--state=RUNNING"], check=True)
    patience = time.monotonic() + 120
    while subprocess.run(
        ["squeue", "--noheader", "--name=spurcor-cancelled"], capture_output=True
    ).stdout:
        assert time.monotonic() < patience
        time.sleep(1)
    (after,) = points_of(tmp_path, "cancelled")
    assert after.entry["job"] == point.entry["job"]
    ended = command_line.run(*words)
    assert ended.code == 0, ended.err
    (again,) = points_of(tmp_path, "cancelled")
    assert again.entry["job"] != point.entry["job"]
    subprocess.run(["scancel", "--name=spurcor-cancelled"], check=True)


def test_a_point_starts_when_the_one_that_it_starts_from_has_ended(command_line, tmp_path):
    """Within a command, and after one that is still under way."""
    start = "method=prusc method.init=@erm method.prune_epochs=1 method.retrain_epochs=1"
    command = (
        "train", "-m", "hydra/launcher=slurm", f"paths.outputs={tmp_path}", *QUICK,
        "site.mem_gb=2", "dataset.subset_size=64", "dataset.strength=0.7", "method.epochs=3",
    )  # fmt: skip
    points = f'hydra.sweeper.points=["{start}", "method=erm"]'
    ended = command_line.run(*command, points, "hydra.launcher.wait=false")
    assert ended.code == 0, ended.err
    more = f'hydra.sweeper.points=["{start} method.num_clusters=3", "method=erm"]'
    ended = command_line.run(*command, more, COLUMNS="300")
    assert ended.code == 0, ended.out + ended.err
    while any(point.status in states.UNDER_WAY for point in points_of(tmp_path)):
        time.sleep(0.5)
    assert [point.status for point in points_of(tmp_path)] == ["done"] * 3
    ran = [len(list(tmp_path.glob(f"runs/*/{method}/*/*/done"))) for method in ("erm", "prusc")]
    assert ran == [1, 2]
