"""One process at a time in a run directory."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from spurcor.system import lock
from spurcor.system.lock import Held, holder, locked


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
    write(path, started=time.time() - 1e6, ticks=1)
    assert holder(path) is None


@pytest.mark.parametrize("version", ["this", "an earlier"])
def test_a_clock_that_is_set_ends_no_lock(place, monkeypatch, version):
    path, guard = place
    plain = psutil.Process.create_time
    with locked(path, guard):
        if version == "an earlier":
            newer = ("ticks", "space", "restarts")
            owner = {k: v for k, v in json.loads(path.read_text()).items() if k not in newer}
            path.write_text(json.dumps(owner))
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: plain(self) + 7200)
        assert holder(path)["pid"] == os.getpid()


def test_an_earlier_version_reads_a_lock_of_this(place):
    path, guard = place
    with locked(path, guard):
        owner = json.loads(path.read_text())
    assert owner.keys() >= {"host", "boot", "pid", "started", "job", "task", "nonce"}
    assert owner["started"] == psutil.Process().create_time()


def apart(*flags):
    """A command's beginning that gives it namespaces of its own, where this process may do that."""
    command = ["unshare", *flags]
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare")
    tried = subprocess.run([*command, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"{' '.join(command)}: {tried.stderr.strip()}")
    return command


def test_a_process_that_began_before_the_clock_was_set_holds_its_lock(place, tmp_path):
    path, guard = place
    command = apart("--mount")
    if not (stat := Path("/proc/stat")).exists():
        pytest.skip("there is no /proc/stat")
    lines = stat.read_text().splitlines()
    later = [f"btime {int(x.split()[1]) + 60}" if x.startswith("btime") else x for x in lines]
    (tmp_path / "stat").write_text("\n".join(later) + "\n")
    code = "import sys, spurcor.system.lock as lock; from pathlib import Path;"
    code += "print(lock.holder(Path(sys.argv[1]))['pid'])"
    mount = 'mount --bind "$0" /proc/stat && exec "$@"'
    look = ["sh", "-c", mount, tmp_path / "stat", sys.executable, "-c", code, path]
    with locked(path, guard):
        ended = subprocess.run([*command, *look], capture_output=True, text=True)
    assert (ended.stdout, ended.returncode) == (f"{os.getpid()}\n", 0), ended.stderr


def test_a_process_number_of_another_namespace_means_nothing(place):
    path, guard = place
    code = "import sys, spurcor.system.lock as lock; from pathlib import Path\n"
    code += "with lock.locked(Path(sys.argv[1]), Path(sys.argv[2])):\n"
    code += "    print('holds', flush=True); sys.stdin.read()"
    command = [*apart("--pid", "--fork", "--mount-proc"), sys.executable, "-c", code, path, guard]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "holds\n"
        owner = holder(path)
        with pytest.raises(Held), locked(path, guard):
            pass
        assert owner["pid"] == 1, "the number that it has in its own namespace"
        old = time.time() - lock.STALE_SECONDS - 1
        os.utime(path, (old, old))
        assert holder(path) is None
        other.stdin.close()


def test_a_container_that_runs_again_goes_by_the_heart(place):
    path, _ = place
    path.parent.mkdir()
    write(path, space="pid:[1]")
    assert holder(path)["pid"] == os.getpid()
    for age in (1, -1):  # a clock that was put back leaves a heart in the future
        when = time.time() - age * (lock.STALE_SECONDS + 60)
        os.utime(path, (when, when))
        assert holder(path) is None


@pytest.mark.parametrize("beats", [True, False])
def test_a_heart_that_is_late_by_the_clock_is_listened_to(place, monkeypatch, beats):
    path, guard = place
    path.parent.mkdir()
    write(path, host="elsewhere", boot="other")
    os.utime(path, (0, 0))
    monkeypatch.setattr(time, "sleep", lambda _: os.utime(path, (60, 60)) if beats else None)
    if beats:
        with pytest.raises(Held, match="elsewhere"), locked(path, guard):
            pass
    else:
        with locked(path, guard):
            assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_process_of_another_user_that_is_not_shown_goes_by_the_heart(place, monkeypatch):
    path, _ = place
    path.parent.mkdir()
    owner = write(path, pid=2**22 + 1)

    def refused(pid, number):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refused)
    assert holder(path) == owner
    os.utime(path, (0, 0))
    assert holder(path) is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"pid": 1}', "\x00"])
def test_a_file_that_names_no_owner_holds_nothing(place, text):
    path, guard = place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert holder(path) is None
    with locked(path, guard):
        assert holder(path) is not None


def test_a_fork_leaves_the_lock_to_its_parent(place):
    path, guard = place
    code = "import os, sys, spurcor.system.lock as lock; from pathlib import Path\n"
    code += "path = Path(sys.argv[1])\n"
    code += "with lock.locked(path, Path(sys.argv[2])):\n"
    code += "    child = os.fork()\n"
    code += "    if child == 0: sys.exit()\n"
    code += "    os.waitpid(child, 0); print(path.exists())"
    ended = subprocess.run(
        [sys.executable, "-c", code, path, guard], capture_output=True, text=True
    )
    assert ended.stdout == "True\n", ended.stderr
    assert not path.exists()


def test_a_process_whose_lock_was_taken_over_ends_without_another_word(place):
    path, guard = place
    code = "import sys, json, spurcor.system.lock as lock; from pathlib import Path\n"
    code += "lock.HEARTBEAT_SECONDS = 0.01; path = Path(sys.argv[1])\n"
    code += "with lock.locked(path, Path(sys.argv[2])):\n"
    code += "    path.write_text(json.dumps({**json.loads(path.read_text()), 'nonce': 'theirs'}))\n"
    code += "    sys.stdin.read(); print('goes on')"
    command = [sys.executable, "-c", code, path, guard]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.wait(60) == 1
        assert "was taken over by process" in process.stderr.read()
        assert process.stdout.read() == ""
    assert json.loads(path.read_text())["nonce"] == "theirs"


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


def test_two_containers_of_one_task_exclude_each_other_until_it_is_requeued(place, monkeypatch):
    path, _ = place
    path.parent.mkdir()
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    write(path, space="pid:[1]")
    assert holder(path)["job"] == "77"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert holder(path) is None


@pytest.mark.parametrize(
    ("answer", "stale"),
    [("RUNNING", False), ("SUSPENDED", False), ("", True), ("PENDING", True), (None, False)],
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
