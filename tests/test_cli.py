"""Bad input: one sentence, exit code 2, nothing left behind."""

import importlib
import os
import subprocess
import sys

import pytest
import yaml
from conftest import REPO

from spurcor import cli

QUICK = ("method.epochs=1", "tracker=none", "dfr=none")

BAD = {
    "wrong type": (["optimizer.lr=abc"], ["optimizer.lr=abc is not a number"]),
    "unknown method key": (["method.lrr=1"], ["key method.lrr;"]),
    "key of another method": (
        ["method.gate=step"],
        ["method=erm has no key method.gate; to set it, also pass method=scale"],
    ),
    "near optimizer key": (["optimizer.lrr=1"], ["key optimizer.lrr;", "optimizer.lr?"]),
    "added optimizer key": (["+optimizer.lrr=1"], ["key optimizer.lrr;", "optimizer.lr?"]),
    "sweep for sweeps": (["+sweep=digits/main"], ["sweep=digits/main", "+sweeps=digits/main"]),
    "unknown root key": (["+learning_rate=1"], ["key learning_rate;"]),
    "near root key": (["sede=1"], ["key sede;", "seed?"]),
    "unknown dataset": (["dataset=nosuch"], ["dataset=nosuch", "digits", "dominoes"]),
    "one unknown analysis": (
        ["analysis=[gap_dynamics,foo]"],
        ["analysis=foo does not exist", "gap_dynamics, gradient_basis"],
    ),
    "unknown sweep file": (
        ["+sweeps=nope/x"],
        ["sweeps=nope/x does not exist", "digits/main, digits"],
    ),
    "range": (["method.epochs=0"], ["method.epochs=0"]),
    "negative learning rate": (["optimizer.lr=-1"], ["optimizer", "learning rate"]),
    "number for list": (
        ["analysis=output_moments", "analysis.output_moments.epochs=5"],
        ["analysis.output_moments.epochs=5 ", "integers or null"],
    ),
    "text in lists of lists": (
        ["analysis=gap_dynamics", "analysis.gap_dynamics.pairs=[small]"],
        ["analysis.gap_dynamics.pairs=", "lists of strings or null"],
    ),
    "group that is none": (
        ["analysis=gap_dynamics", "analysis.gap_dynamics.pairs=[[small/blue,small/red]]"],
        ["analysis.gap_dynamics: pairs: small/blue ", "small/red"],
    ),
    "switch for number": (["method.epochs=true"], ["method.epochs=True ", "integer"]),
    "bad choice": (["train.precision=fp8"], ["train.precision=fp8", "fp32", "bf16"]),
    "selection on test": (["train.selection=test/worst"], ["train.selection=test/worst ", "val/"]),
    "absent device": (["train.device=cuda:7"], ["train.device=cuda:7"]),
    "broken override": (["method.epochs=[1"], ["method.epochs=[1"]),
    "missing data": (["dataset=dominoes", "backbone=small_cnn"], ["MNIST", "put"]),
    "misspelt selection": (["train.selection=val/wrost"], ["val/wrost", "val/worst?"]),
    "repair of no layer": (["dfr=target", "dfr.layer=nosuch"], ["layer=nosuch", "hidden"]),
    "endless seed": (["seed=99999999999999999999"], ["seed=99999999999999999999"]),
    "no folder": (["paths.outputs=/dev/null/x"], ["paths.outputs=/dev/null/x"]),
    "clashing switches": (
        ["+optimizer.fused=true", "+optimizer.foreach=true"],
        ["optimizer: "],
    ),
    "another role": (["method._target_=torch.nn.Linear"], ["method._target_=torch.nn.Linear"]),
    "binary point": (["point=/bin/ls"], ["point=/bin/ls"]),
    "no data set": (["dataset=null"], ["dataset"]),
    "several seeds without -m": (["seed=0,1"], ["seed=0,1", "add -m"]),
    "all options without -m": (["method=glob(*)"], ["method=glob(*)", "add -m"]),
    "letters to quote": (["paths.data=/café"], ["/café", " at é", """ 'paths.data="/café"'"""]),
    "brackets to quote": (["sweep=a]"], ["sweep=a]", " at ]", """ 'sweep="a]"'"""]),
    "line end of Windows": (["seed=1\r"], ["seed=1\\r", "Windows"]),
    "no value": (["seed"], ["seed has no value", "seed=..."]),
    "device without values": (["train.device=meta"], ["train.device=meta", "cpu or auto"]),
    "device of others": (["train.device=mkldnn"], ["train.device=mkldnn", "cpu or auto"]),
    "group that val has not": (
        ["train.selection=val/group/small/rad"],
        ["train.selection=val/group/small/rad", "val/group/small/red?"],
    ),
    "stopping by no group": (
        ["train.early_stopping={patience: 1, metric: val/group/nope}"],
        ["train.early_stopping.metric=val/group/nope", "small/red, small/green"],
    ),
    "launcher of others": (
        ["-m", "hydra.launcher._target_=os.system"],
        ["hydra.launcher._target_=os.system", "hydra/launcher="],
    ),
    "no number of processes": (
        ["-m", "hydra/launcher=local_pool", "hydra.launcher.n_jobs=many"],
        ["hydra.launcher.n_jobs=many"],
    ),
    "all of Hydra": (["hydra=null"], ["hydra=null"]),
    "mode": (["hydra.mode=odd"], ["hydra.mode=odd", "RUN, MULTIRUN"]),
    "two modes": (["-m", "--cfg", "hydra"], ["--multirun, --cfg"]),
    "options of nothing": (["--resolve"], ["--resolve"]),
    "completion of nothing": (["--shell-completion"], ["install", "uninstall", "query"]),
    "package of nothing": (["--cfg", "job", "--package", "nosuch"], ["nosuch"]),
    "another file": (["--config-name", "nosuch"], ["nosuch"]),
    "foreign point": (["point=/nowhere.yaml"], ["point=/nowhere.yaml"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_one_sentence_and_leaves_nothing(case, command_line, tmp_path):
    overrides, words = BAD[case]
    outputs, data = tmp_path / "outputs", tmp_path / "data"
    ended = command_line.run(
        "train", f"paths.outputs={outputs}", f"paths.data={data}", *QUICK, *overrides
    )
    assert ended.code == 2, ended.err
    lines = ended.err.strip().splitlines()
    assert len(lines) == 1, ended.err
    for word in words:
        assert word in lines[0]
    assert not outputs.exists()
    assert not data.exists()


@pytest.mark.parametrize("launcher", ["slurm", "submitit_slurm"])
@pytest.mark.parametrize("there", [(), ("sbatch",), ("sbatch", "srun")])
def test_a_sweep_where_no_cluster_answers_is_refused(launcher, there, command_line, tmp_path):
    """SLURM's programs may be absent, or installed on a machine that belongs to no cluster."""
    programs, outputs = tmp_path / "programs", tmp_path / "outputs"
    programs.mkdir()
    for name in there:
        (programs / name).write_text("#!/bin/sh\necho 'sbatch: error: no controller' >&2; exit 1\n")
        (programs / name).chmod(0o755)
    (programs / "sh").symlink_to("/bin/sh")
    ended = command_line.run(
        "train", "-m", f"hydra/launcher={launcher}", f"paths.outputs={outputs}", *QUICK,
        PATH=str(programs),
    )  # fmt: skip
    assert ended.code == 2, ended.err
    (line,) = ended.err.strip().splitlines()
    if len(there) == 2:
        assert line == "spurcor: SLURM rejected the jobs: sbatch: error: no controller"
    else:
        absent = "srun" if there else "sbatch and srun"
        assert f"hydra/launcher={launcher} needs {absent}, which this machine does not have" in line
    assert not outputs.exists()


ENTRIES = (
    "train", "retrain", "analyze", "report", "status",
    "sync", "explain", "selective", "clusters", "prepare",
)  # fmt: skip
ROOTS = {
    **{entry: ("paths",) for entry in ENTRIES},
    "train": ("paths", "train", "method", "dataset", "point"),
    "retrain": ("paths", "dfr", "tracker"),
    "analyze": ("paths", "analysis"),
    "report": ("paths", "layout", "rows", "tracker"),
    "selective": ("paths", "runs", "analysis"),
    "prepare": ("paths", "dataset"),
}
GIVEN = {
    "retrain": ["run=r0"], "analyze": ["run=r0"], "explain": ["run=r0"], "clusters": ["run=r0"],
    "report": ["sweep=nosuch"], "status": ["sweep=nosuch"], "selective": ["runs=[r0,r1]"],
}  # fmt: skip


def run_here(monkeypatch, entry, *arguments):
    """The exit code of a command line that is refused before anything is done."""
    monkeypatch.setattr(sys, "argv", [f"{entry}.py", *arguments])
    return cli.run(importlib.import_module(f"spurcor.{entry}").main, entry)


@pytest.mark.parametrize("entry", ENTRIES)
def test_no_entry_point_ends_in_a_traceback_over_a_root_group(entry, monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    odd = ["null", "5", "[1]", "odd", "{a: 1}"]
    for override in (f"{root}={value}" for root in ROOTS[entry] for value in odd):
        # Of two overrides the second counts.
        typed = [f"paths.outputs={tmp_path}", *GIVEN.get(entry, ()), override]
        if entry == "train":
            typed += ["method.epochs=0"] * (not override.startswith("method"))
        if override.startswith("paths"):
            typed = typed[1:]
        code = run_here(monkeypatch, entry, *typed)
        said = capfd.readouterr().err
        assert code == 2, (override, said)
        assert said.startswith("spurcor: "), (override, said)
        assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("entry", ENTRIES)
def test_what_hydra_shows_of_itself_is_shown(entry, monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    for flags in (["--cfg", "job"], ["--cfg", "hydra"], ["--cfg", "all"], ["--hydra-help"],
                  ["--info", "defaults"], ["--info", "searchpath"]):  # fmt: skip
        try:
            code = run_here(monkeypatch, entry, *flags)
        except SystemExit as ended:
            code = ended.code
        said = capfd.readouterr()
        assert code == 0, (flags, said.err)
        assert said.out
    assert not list(tmp_path.iterdir())


@pytest.mark.cold
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_ends_nothing(closed, tmp_path):
    typed = f"-m spurcor.status sweep=nosuch paths.outputs={tmp_path}"
    shell = f"exec {sys.executable} {typed} {closed}"
    ended = subprocess.run(["bash", "-c", shell], cwd=REPO, capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.cold
def test_letters_that_a_terminal_lacks_end_nothing():
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    typed = ["--cfg", "job", 'sweep="é"']
    ended = subprocess.run(
        [sys.executable, "-m", "spurcor.sync", *typed],
        cwd=REPO, capture_output=True, env={**os.environ, **plain},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert b"sweep: " in ended.stdout


def test_all_problems_are_told_at_once(command_line, tmp_path):
    ended = command_line.run(
        "train", f"paths.outputs={tmp_path}/o", "optimizer.lr=abc", "+method.colour=red", "seed=x"
    )
    assert ended.code == 2
    for key in ("optimizer.lr", "method.colour", "seed"):
        assert key in ended.err


def test_one_bad_point_stops_a_sweep_before_it_starts(command_line, tmp_path):
    outputs = tmp_path / "outputs"
    ended = command_line.run("train", "-m", f"paths.outputs={outputs}", "optimizer.lr=0.1,abc")
    assert ended.code == 2
    assert ended.err.strip().count("\n") == 0
    assert "optimizer.lr=abc" in ended.err
    assert not outputs.exists()


def test_a_mistake_of_many_points_is_told_once(command_line, tmp_path):
    swept = ("optimizer.lr=0.1,abc,xyz", "seed=0,1,2", f"paths.outputs={tmp_path / 'outputs'}")
    ended = command_line.run("train", "-m", *swept)
    assert ended.code == 2
    first, second = ended.err.strip().splitlines()
    assert "optimizer.lr=abc seed=0" in first
    assert first.endswith("optimizer.lr=abc is not a number (and 2 more)")
    assert second.endswith("optimizer.lr=xyz is not a number (and 2 more)")


def test_overrides_may_stand_on_both_sides_of_a_flag(command_line, tmp_path):
    ended = command_line.run("train", f"paths.outputs={tmp_path}", *QUICK, "-m", "seed=0,1")
    assert ended.code == 0, ended.err
    assert len(list(tmp_path.glob("runs/digits/erm/*/seed?/done"))) == 2


def test_retrain_of_what_is_no_run(command_line, tmp_path):
    (tmp_path / "empty").mkdir()
    for reference in ("rffff", str(tmp_path / "empty")):
        ended = command_line.run("retrain", f"run={reference}", f"paths.outputs={tmp_path}")
        assert ended.code == 2
        assert len(ended.err.strip().splitlines()) == 1
        assert f"run={reference}" in ended.err
    missing = command_line.run("retrain")
    assert missing.code == 2
    assert "run" in missing.err


@pytest.fixture(scope="module")
def finished(command_line, tmp_path_factory):
    outputs = tmp_path_factory.mktemp("finished")
    assert command_line.run("train", f"paths.outputs={outputs}", *QUICK).code == 0
    return next(outputs.glob("runs/*/*/*/seed0"))


@pytest.mark.parametrize("target", ["torch.hub.load", "os.system", "builtins.eval", "torch.load"])
def test_a_saved_config_builds_no_foreign_code(target, finished, command_line, tmp_path):
    run = tmp_path / "seed0"
    run.mkdir()
    tree = yaml.safe_load((finished / "config.yaml").read_text())
    tree["dataset"] = {"_target_": target, "repo_or_dir": str(tmp_path), "model": "evil"}
    (tmp_path / "hubconf.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    (run / "done").touch()
    ended = command_line.run("retrain", f"run={run}", f"paths.outputs={tmp_path}")
    assert ended.code == 2
    assert target in ended.err
    assert not (tmp_path / "executed").exists()


def test_a_corrupt_checkpoint_is_left_for_its_owner(command_line, tmp_path):
    arguments = (f"paths.outputs={tmp_path}", *QUICK)
    assert command_line.run("train", *arguments).code == 0
    run = next(tmp_path.glob("runs/*/*/*/seed0"))
    (run / "done").unlink()
    (run / "checkpoint.pt").write_bytes(b"PK\x03\x04 broken")
    before = {path: path.read_bytes() for path in run.iterdir() if path.name != "train.log"}
    ended = command_line.run("train", *arguments)
    assert ended.code == 2
    assert "checkpoint.pt" in ended.err
    assert "rerun=true" in ended.err
    after = {path: path.read_bytes() for path in run.iterdir() if path.name != "train.log"}
    assert after == before
    assert command_line.run("train", *arguments, "rerun=true").code == 0
    assert (run / "done").exists()
    assert (run.with_name("seed0.old1") / "checkpoint.pt").read_bytes() == b"PK\x03\x04 broken"


def test_a_nan_loss_fails_the_run_with_its_step(command_line, tmp_path):
    ended = command_line.run(
        "train", f"paths.outputs={tmp_path}", *QUICK, "optimizer=sgd", "optimizer.lr=1e30"
    )
    assert ended.code == 1
    assert "epoch 1, step" in ended.err
    run = next(tmp_path.glob("runs/*/*/*/seed0"))
    assert "RunError" in (run / "failed").read_text()
    assert not (run / "done").exists()


@pytest.mark.cold
def test_help_imports_nothing_slow():
    code = (
        "import sys; sys.argv = ['train', '--help']\n"
        "from spurcor import cli, train\n"
        "cli.run(train.main, 'train')\n"
        "slow = {'torch', 'torchvision', 'mlflow', 'sklearn', 'pydantic'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "  method: erm, " in ended.stdout
