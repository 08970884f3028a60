"""A signal ends any command with a sentence, and the same command finishes the work."""

import os
import signal
import sys
import threading
from pathlib import Path

import pytest
from killing import contents, run_of
from training import SMALL, read

from spurcor import cli, train
from spurcor.launchers import local_pool
from spurcor.runs import execute, prepared
from spurcor.system.signals import Interrupted, handled, interrupting
from spurcor.training import predictions

COMMAND = (*SMALL, "method.epochs=2", "analysis=[output_moments]")


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    return cli.run(train.main, "train")


def signalled_in(monkeypatch, owner, name, number=signal.SIGTERM):
    """The process gets a signal when it comes to a function."""
    original = getattr(owner, name)

    def hit(*args, **options):
        os.kill(os.getpid(), number)
        return original(*args, **options)

    monkeypatch.setattr(owner, name, hit)


PLACES = {
    "before anything": (prepared, "build"),
    "the final evaluation": (predictions, "predict_all"),
    "the repair": (execute, "repair"),
    "the analyses of a finished run": (execute, "analyze_stored"),
    "the table at the end": (execute, "_report"),
}


@pytest.mark.parametrize("place", PLACES)
def test_outside_the_loop_too_a_signal_is_told_and_nothing_is_lost(
    place, monkeypatch, tmp_path, capfd
):
    command = (*COMMAND, "tracker=none", f"paths.outputs={tmp_path / 'outputs'}")
    with monkeypatch.context() as patch:
        signalled_in(patch, *PLACES[place])
        assert run(patch, *command) == 128 + signal.SIGTERM
    err = capfd.readouterr().err
    assert "SIGTERM" in err
    assert "run the same command again" in err
    assert "Traceback" not in err
    assert not list((tmp_path / "outputs").rglob("*.lock"))
    assert not list((tmp_path / "outputs").rglob(".*.tmp"))
    assert run(monkeypatch, *command) == 0
    peace = tmp_path / "peace"
    assert run(monkeypatch, *COMMAND, "tracker=none", f"paths.outputs={peace}") == 0
    assert contents(run_of(tmp_path / "outputs")) == contents(run_of(peace))


def test_mlflow_is_told_of_a_run_that_is_stopped_in_its_last_evaluation(monkeypatch, tmp_path):
    from mlflow import MlflowClient

    with monkeypatch.context() as patch:
        signalled_in(patch, predictions, "predict_all")
        assert run(patch, *COMMAND, f"paths.outputs={tmp_path}") == 128 + signal.SIGTERM
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    kinds = client.search_runs(experiments, "tags.`spurcor.kind` = 'run'")
    assert [found.info.status for found in kinds] == ["KILLED"]


def test_a_sweep_stops_at_a_signal(monkeypatch, tmp_path, capfd):
    signalled_in(monkeypatch, predictions, "predict_all", signal.SIGUSR1)
    command = (*COMMAND, "tracker=none", f"paths.outputs={tmp_path}")
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "-m", "seed=0,1", *command)
    assert ended.value.code == 128 + signal.SIGUSR1
    assert not (read(*command, "seed=1").directory).exists()


class Sleeper:
    """A command that ends when it is asked to, in the place of a point's."""

    def __init__(self, folder: Path) -> None:
        self.script = folder / "python"
        self.script.write_text(
            f"#!/bin/sh\ntrap 'touch {folder}/saved-$$; exit 143' TERM\ntouch {folder}/began-$$\n"
            "while :; do sleep 0.01; done\n"
        )
        self.script.chmod(0o755)


def test_a_pool_that_is_stopped_stops_its_processes_and_starts_no_other(monkeypatch, tmp_path):
    script = Sleeper(tmp_path).script
    monkeypatch.setattr(local_pool.sys, "executable", str(script))
    configs = [read(f"seed={seed}", f"paths.outputs={tmp_path}") for seed in range(4)]
    points = [local_pool.Point((f"seed={config.seed}",), config) for config in configs]
    watch = threading.Event()

    def stop():
        while len(list(tmp_path.glob("began-*"))) < 2 and not watch.wait(0.005):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop, daemon=True)
    with interrupting(), pytest.raises(Interrupted):  # noqa: PT012 - the thread must start inside
        thread.start()
        local_pool.LocalPool(n_jobs=2).run(points)
    watch.set()
    assert len(list(tmp_path.glob("began-*"))) == 2
    assert len(list(tmp_path.glob("saved-*"))) == 2


def test_a_second_ctrl_c_ends_the_cleaning_up():
    with interrupting():
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # the first one is being obeyed
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_what_a_signal_left_in_the_middle_and_fails_is_not_told_in_its_place():
    """Hydra and OmegaConf wrap, or put back in order, what they were at."""

    def fail_at(number):
        try:
            os.kill(os.getpid(), number)
        finally:
            raise AttributeError("'NoneType' object has no attribute")

    with pytest.raises(Interrupted) as caught, interrupting():
        fail_at(signal.SIGINT)
    assert caught.value.exit_code == 130
    with pytest.raises(AttributeError), interrupting():
        fail_at(0)


def test_handlers_are_those_of_before_in_the_end():
    before = signal.getsignal(signal.SIGTERM)
    with interrupting(), handled(lambda number: None):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_nohup_stays_in_force():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupting():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_forked_child_is_ended_by_a_signal_as_any_process():
    with interrupting():
        pid = os.fork()
        if pid == 0:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
