"""Searches: what is drawn, what is told, that kills lose and double nothing, and bad input."""

import csv
import math
import os
import random
import re
import sys
import threading
import time
from contextlib import ExitStack, suppress
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from conftest import REPO
from hydra.core.override_parser.overrides_parser import OverridesParser
from killing import contents
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from test_sweep import kill_a_point

from spurcor.errors import UserError
from spurcor.launchers import search, slurm, trials
from spurcor.launchers.search import Optuna
from spurcor.sweeps.manifest import manifest
from spurcor.sweeps.pruning import Pruner, best_so_far
from spurcor.sweeps.search_files import parallel_drawing, search_drawing
from spurcor.sweeps.search_options import SearchOptions
from spurcor.sweeps.space import Space, parse_space
from spurcor.sweeps.study import Study, best_value
from spurcor.system.files import read_lines
from spurcor.system.lock import HELD_BY

LR = "tag(log,interval(1e-4,1e-1))"
QUICK = (
    "-m", "hydra/sweeper=optuna", "method.epochs=1", "backbone=mlp", "backbone.width=8",
    "dfr=none", "tracker=none", "dataset.subset_size=40", "train.batch_size=20", "optimizer=sgd",
)  # fmt: skip


def space_of(common, typed=(), **conditional) -> Space:
    parser = OverridesParser.create()
    search = {"common": common, **{k.replace("_", "=", 1): v for k, v in conditional.items()}}
    return parse_space(search, parser.parse_overrides(list(typed)), parser)


# --- spaces ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("interval(0,1)", FloatDistribution(0.0, 1.0)),
        (LR, FloatDistribution(1e-4, 1e-1, log=True)),
        ("int(interval(1,8))", IntDistribution(1, 8)),
        ("tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("range(1,10,3)", IntDistribution(1, 7, step=3)),
        ("range(8,0,-4)", IntDistribution(4, 8, step=4)),
        ("choice(linear,step)", CategoricalDistribution(("linear", "step"))),
        ("null,0.5", CategoricalDistribution(("null", "0.5"))),
        ("[1,2],[3]", CategoricalDistribution(("[1,2]", "[3]"))),
        ("range(0.0,1.0,0.5)", CategoricalDistribution(("0.0", "0.5"))),
    ],
)
def test_a_space_is_written_as_sweeps_are(text, expected):
    assert space_of({"a.b": text}).common == {"a.b": expected}
    assert space_of({}, [f"a.b={text}"]).common == {"a.b": expected}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("interval(1,0)", "swap its ends"),
        ("interval(1,1)", "swap its ends"),
        ("tag(log,interval(0,1))", "must begin above 0"),
        ("tag(log,int(interval(0,8)))", "must begin above 0"),
        ("interval(0,inf)", "two finite ends"),
        ("tag(log,choice(1,2))", "only an interval"),
        ("range(0)", "no values"),
        ("5", "a single value"),
    ],
)
def test_a_space_that_is_none_is_told(text, said):
    for common, typed in (({"a.b": text}, ()), ({}, (f"a.b={text}",) if text != "5" else None)):
        if typed is not None:
            with pytest.raises(UserError, match=said) as told:
                space_of(common, typed)
            assert f"a.b={text}" in str(told.value)


def test_a_typed_key_takes_the_place_of_a_listed_one():
    found = space_of({"a": "1,2", "b": "1,2"}, ["a=3", "b=5,6,7"])
    assert found.common == {"b": CategoricalDistribution(("5", "6", "7"))}
    found = space_of({"a": "1,2", "b": "1,2"}, ["++a=3", "++b=5,6,7"])
    assert found.common == {"++b": CategoricalDistribution(("5", "6", "7"))}


def test_a_choice_brings_its_own_keys():
    space = space_of({"method": "erm,scale"}, method_scale={"gate": "linear,step"})
    assert [dict(one) for one in space.grid({})] == [
        {"method": "erm"},
        {"method": "scale", "gate": "linear"},
        {"method": "scale", "gate": "step"},
    ]
    quoted = space_of({"method": "'erm','scale'"}, method_scale={"gate": "linear,step"})
    assert len(list(quoted.grid({}))) == 3
    fixed = space_of({"lr": "1,2"}, method_scale={"gate": "linear,step"})
    assert len(list(fixed.grid({"method": "scale"}))) == 4
    assert len(list(fixed.grid({"method": "erm"}))) == 2


@pytest.mark.parametrize(
    ("common", "conditional", "said"),
    [
        ({"method": "erm,iw"}, {"method=irm": {"a": "1,2"}}, "irm is not among the values"),
        ({"a": "1,2"}, {"method=erm": {"a": "1,2"}}, "a stands under both common and method=erm"),
        ({"a": "1,2"}, {"method=erm": {"+a": "1,2"}}, "a stands under both common and method=erm"),
        ({}, {"width=8": {"a": "1,2"}}, "width is neither searched nor a config group"),
        ({}, {"method=erm": {"a": {"b": "1,2"}}}, "write its keys with dots"),
        ({}, {5: {"a": "1,2"}}, "5 is not a section"),
    ],
)
def test_a_section_that_cannot_be_is_told(common, conditional, said):
    with pytest.raises(UserError, match=re.escape(said)):
        list(
            parse_space({"common": common, **conditional}, [], OverridesParser.create()).probes(
                {"method": "erm"}
            )
        )


# --- studies --------------------------------------------------------------------------------------


def study_in(folder: Path, sampler: str = "tpe", n_trials: int = 14, **options) -> Study:
    space = space_of(
        {"lr": LR, "method": "erm,scale"}, method_scale={"gate": "linear,step", "k": "range(1,9)"}
    )
    chosen = SearchOptions(sampler=sampler, n_trials=n_trials, **options)
    return Study(folder, space, chosen, ("r1", ["x=1"]), {})


def trained(values) -> list[list[dict]]:
    """The rows of two seeds, which depend on the values alone."""
    scores = (1 - abs(values["lr"] - 0.01), 0.5 + 0.1 * (values["method"] == "scale"))
    return [[{"phase": "a", "epoch": 1, "val/worst": score}] for score in scores]


def finish(study: Study, die=lambda: False) -> list:
    """Carry out all trials, some of which die."""
    while True:
        with ExitStack() as stack:
            trial = study.take(stack)
            if trial is None:
                return [(t.number, t.values, t.value, t.scores) for t in study.trials()]
            if not die():
                study.tell(trial, trained(trial.values))


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "qmc"])
def test_an_interrupted_search_draws_what_a_whole_one_does(sampler, tmp_path):
    whole = finish(study_in(tmp_path / "whole", sampler))
    assert [number for number, *_ in whole] == list(range(14))
    assert len({values["lr"] for _, values, *_ in whole}) == 14
    draws = random.Random(1)
    folder = tmp_path / "parts"
    for n_trials in (3, 3, 11, 14):  # each time another process's view of the study
        parts = finish(study_in(folder, sampler, n_trials), lambda: draws.random() < 0.3)
    assert parts == whole
    other = finish(study_in(tmp_path / "other", sampler, seed=1))
    assert [values for _, values, *_ in other] != [values for _, values, *_ in whole]


def test_the_value_of_a_trial_is_the_mean_over_its_seeds(tmp_path):
    (number, values, value, scores) = finish(study_in(tmp_path / "a", n_trials=1))[0]
    assert (number, list(scores)) == (0, [rows[0]["val/worst"] for rows in trained(values)])
    assert value == pytest.approx(sum(scores) / 2)


def test_a_grid_is_drawn_once_each(tmp_path):
    space = space_of({"a": "1,2", "b": "range(3)"})
    study = Study(tmp_path / "g", space, SearchOptions("grid", n_trials=50), ("r1", []), {})
    drawn = []
    while True:
        with ExitStack() as stack:
            if (trial := study.take(stack)) is None:
                break
            drawn.append((trial.values["a"], trial.values["b"]))
            study.give_up(trial, "diverged")
    assert drawn == [(a, b) for a in ("1", "2") for b in (0, 1, 2)]
    assert {trial.state for trial in study.trials()} == {"failed"}
    assert {trial.message for trial in study.trials()} == {"diverged"}


def test_losses_are_minimised(tmp_path):
    study = study_in(tmp_path / "a", "random", 3, metric="val/loss")
    for value in (0.5, 0.2, 0.9):
        with ExitStack() as stack:
            study.tell(study.take(stack), [[{"phase": "a", "epoch": 1, "val/loss": value}]])
    assert [trial.value for trial in study.ranked()] == [0.2, 0.5, 0.9]


def test_a_torn_line_and_a_lock_left_behind_are_removed(tmp_path):
    folder = tmp_path / "a"
    finish(study_in(folder, n_trials=2))
    with (folder / "study.log").open("ab") as file:
        file.write(b'{"op_code": 4, "wor')
    (folder / "study.log.lock").touch()
    before = time.monotonic()
    assert len(finish(study_in(folder, n_trials=4))) == 4
    assert time.monotonic() - before < 20  # Optuna itself would wait for the lock


def test_another_search_under_the_same_name_is_refused(tmp_path):
    folder = tmp_path / "tune"
    finish(study_in(folder, n_trials=1))
    before = (folder / "study.log").read_bytes()
    with pytest.raises(UserError, match=r"sweep=tune: .* hydra.sweeper.metric .*val/average"):
        study_in(folder, metric="val/average")
    for key, value in {"seeds": (0, 1), "sampler": "random", "seed": 1, "pruner": "asha"}.items():
        with pytest.raises(UserError, match=f"hydra.sweeper.{key} "):
            study_in(folder, **{key: value})
    space = study_in(folder, n_trials=1).space
    with pytest.raises(UserError, match=r"the other settings \(were x=1, are now x=2 y=3\)"):
        Study(folder, space, SearchOptions(), ("r2", ["x=2", "y=3"]), {})
    other = space_of({"lr": "interval(0,1)"})
    with pytest.raises(UserError, match=r"hydra.sweeper.search.*choose another name"):
        Study(folder, other, SearchOptions(), ("r1", ["x=1"]), {})
    assert (folder / "study.log").read_bytes() == before


def take_many(folder: str) -> list[int]:
    study = study_in(Path(folder), "random", 48)
    mine = []
    while True:
        with ExitStack() as stack:
            if (trial := study.take(stack)) is None:
                return mine
            mine.append(trial.number)
            study.tell(trial, trained(trial.values))


@pytest.mark.cold
def test_sixteen_processes_share_a_study(tmp_path):
    with get_context("spawn").Pool(16) as pool:
        taken = pool.map(take_many, [str(tmp_path / "a")] * 16, chunksize=1)
    assert sorted(number for one in taken for number in one) == list(range(48))
    trials = study_in(tmp_path / "a", "random", 48).trials()
    assert [trial.number for trial in trials] == list(range(48))
    assert {trial.state for trial in trials} == {"done"}
    alone = finish(study_in(tmp_path / "b", "random", 48))
    assert [trial.values for trial in trials] == [values for _, values, *_ in alone]


def test_no_value_of_test_decides():
    rows = [
        {"phase": "a", "epoch": 1, "val/worst": 1.0, "val/loss": 0.1, "test/worst": 0.0},
        {"phase": "b", "epoch": 1, "val/worst": 0.2, "val/loss": 0.7, "test/worst": 0.9},
        {"phase": "b", "epoch": 2, "val/worst": 0.4, "val/loss": 0.9, "test/worst": 0.1},
        {"phase": "b", "epoch": 3, "val/worst": None, "val/loss": 0.8, "test/worst": 1.0},
    ]
    assert best_value(rows, "val/worst") == 0.4  # of the last phase only
    assert best_value(rows, "val/loss") == 0.7
    assert best_value(rows[-1:], "val/worst") is None
    for row in rows:
        row.update({"test/worst": 5.0, "test/loss": -1.0})
    assert (best_value(rows, "val/worst"), best_value(rows, "val/loss")) == (0.4, 0.7)
    with pytest.raises(ValueError, match="may not select"):
        best_value(rows, "test/worst")
    with pytest.raises(ValueError, match="not a validation metric"):
        SearchOptions(metric="test/worst")


# --- commands -------------------------------------------------------------------------------------


def trials_of(outputs: Path, name: str = "tune") -> list[tuple]:
    lines = read_lines(outputs / "sweeps" / name / "study.log")
    fixed = next(line["user_attr"]["search"] for line in lines if "search" in str(line))
    assert fixed["seeds"]
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(outputs / "sweeps" / name / "study.log")))
    study = optuna.load_study(study_name=name, storage=storage)
    return [(t.number, t.state.name, t.params, t.value) for t in study.trials]


def test_a_search_runs_its_trials_and_goes_on(command_line, tmp_path):
    words = (*QUICK, f"paths.outputs={tmp_path}", "sweep=tune", f"optimizer.lr={LR}")
    first = command_line.run(
        "train", *words, "hydra.sweeper.n_trials=2", "hydra.sweeper.seeds=[0,3]", COLUMNS="200"
    )
    assert first.code == 0, first.err
    found = trials_of(tmp_path)
    assert [state for _, state, *_ in found] == ["COMPLETE", "COMPLETE"]
    entries = manifest(tmp_path, "tune")
    assert sorted(entry["seed"] for entry in entries) == [0, 0, 3, 3]
    for (_, _, params, value), pair in zip(found, (entries[:2], entries[2:]), strict=True):
        rows = [read_lines(Path(entry["directory"]) / "metrics.jsonl") for entry in pair]
        assert value == pytest.approx(sum(row[-1]["val/worst"] for row in rows) / 2)
        assert all(f"optimizer.lr={params['optimizer.lr']}" in e["overrides"] for e in pair)
    assert "trial 1 (2 of 2): val/worst" in first.out
    assert (tmp_path / "reports" / "tune" / "report.md").exists()
    with (tmp_path / "sweeps" / "tune" / "trials.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["val/worst"]) for row in table] == [value for *_, value in found]
    assert [float(row["optimizer.lr"]) for row in table] == [
        p["optimizer.lr"] for *_, p, _ in found
    ]
    assert (tmp_path / "sweeps" / "tune" / "search.png").stat().st_size > 10_000

    stamps = {e["directory"]: (Path(e["directory"]) / "done").stat().st_mtime_ns for e in entries}
    again = command_line.run(
        "train", *words, "hydra.sweeper.n_trials=3", "hydra.sweeper.seeds=[0,3]"
    )
    assert again.code == 0, again.err
    assert trials_of(tmp_path)[:2] == found
    assert len(trials_of(tmp_path)) == 3
    assert stamps == {d: (Path(d) / "done").stat().st_mtime_ns for d in stamps}


def test_parameters_drawn_twice_are_one_run(command_line, tmp_path):
    ended = command_line.run(
        "train", *QUICK, f"paths.outputs={tmp_path}", "sweep=tune", "optimizer.lr=0.1,0.2",
        "hydra.sweeper.n_trials=6", "hydra.sweeper.sampler=random",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    found = trials_of(tmp_path)
    values = {
        params["optimizer.lr"]: {v for *_, p, v in found if p == params} for *_, params, _ in found
    }
    assert all(len(seen) == 1 for seen in values.values())
    assert len(list(tmp_path.glob("runs/*/*/*/seed0/done"))) == len(values) == 2


def test_a_trial_that_diverges_fails_alone(command_line, tmp_path):
    ended = command_line.run(
        "train", *QUICK, f"paths.outputs={tmp_path}", "sweep=tune", "optimizer.lr=0.1,1e30",
        "hydra.sweeper.n_trials=2", "hydra.sweeper.sampler=grid", COLUMNS="200",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert [state for _, state, *_ in trials_of(tmp_path)] == ["COMPLETE", "FAIL"]
    assert "loss is" in ended.out


@pytest.mark.cold
def test_a_pool_carries_out_several_trials_at_a_time(command_line, tmp_path):
    ended = command_line.run(
        "train", *QUICK, f"paths.outputs={tmp_path}", "sweep=tune", f"optimizer.lr={LR}",
        "hydra/launcher=local_pool", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_trials=4",
        "hydra.sweeper.sampler=random",
    )  # fmt: skip
    assert ended.code == 0, ended.out + ended.err
    assert [state for _, state, *_ in trials_of(tmp_path)] == ["COMPLETE"] * 4
    alone = command_line.run(
        "train", *QUICK, f"paths.outputs={tmp_path}", "sweep=alone", f"optimizer.lr={LR}",
        "hydra.sweeper.n_trials=4", "hydra.sweeper.sampler=random",
    )  # fmt: skip
    assert alone.code == 0, alone.err
    assert trials_of(tmp_path, "alone") == trials_of(tmp_path)
    assert len(list(tmp_path.glob("runs/*/*/*/seed0/done"))) == 4  # shared by both searches


def test_kills_of_the_controller_lose_and_double_nothing(command_line, tmp_path):
    words = (
        *QUICK, "sweep=tune", f"optimizer.lr={LR}", "hydra.sweeper.n_trials=8",
        "hydra.sweeper.seeds=[0,1]",
    )  # fmt: skip
    whole = command_line.run("train", *words, f"paths.outputs={tmp_path / 'whole'}")
    assert whole.code == 0, whole.err
    draws = random.Random(0)
    for _ in range(10):
        started = command_line.start("train", *words, f"paths.outputs={tmp_path / 'parts'}")
        end = time.monotonic() + draws.uniform(0.3, 2.0)
        while started.running() and time.monotonic() < end:
            time.sleep(0.01)
        if started.running():
            started.kill()
            with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
                psutil.Process(started.pid).wait(10)
    ended = command_line.run("train", *words, f"paths.outputs={tmp_path / 'parts'}")
    assert ended.code == 0, ended.out + ended.err
    assert trials_of(tmp_path / "parts") == trials_of(tmp_path / "whole")


@pytest.mark.cold
def test_kills_of_a_pool_and_its_points_lose_and_double_nothing(command_line, tmp_path):
    """Two points at random moments, then the controller; SPURCOR_ROUNDS asks for more of it."""
    words = (
        *QUICK, "method.epochs=40", "train.checkpoint_seconds=0", "sweep=tune",
        f"optimizer.lr={LR}", "hydra.sweeper.n_trials=8", "hydra.sweeper.sampler=random",
    )  # fmt: skip
    whole = command_line.run("train", *words, f"paths.outputs={tmp_path / 'whole'}")
    assert whole.code == 0, whole.err
    pool = (*words, "hydra/launcher=local_pool", f"paths.outputs={tmp_path / 'parts'}")
    draws = random.Random(0)
    killed = 0
    for _ in range(int(os.environ.get("SPURCOR_ROUNDS", "1"))):
        started = command_line.start("train", *pool)
        for _ in range(2):
            with suppress(AssertionError):  # all is done
                kill_a_point(started, tmp_path / "parts", draws.uniform(0, 1.5))
                killed += 1
        time.sleep(draws.uniform(0, 1.5))
        with suppress(ProcessLookupError, psutil.NoSuchProcess, psutil.TimeoutExpired):
            started.kill()
            psutil.Process(started.pid).wait(10)
    assert killed > 1
    ended = command_line.run("train", *pool)
    assert ended.code == 0, ended.out + ended.err
    assert trials_of(tmp_path / "parts") == trials_of(tmp_path / "whole")
    assert len(list(tmp_path.glob("parts/runs/*/*/*/*/done"))) == 8


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("optimizer.lr=interval(1,0)",), "optimizer.lr=interval(1,0): the interval must end"),
        (("optimizer.lr=tag(log,interval(0,1))",), "must begin above 0"),
        (("optimizer.rate=interval(0,1)",), "optimizer.rate"),
        (("train.device=cpu,auto",), "train.device has no effect on training"),
        (("dataset.workers=0,1",), "dataset.workers has no effect on training"),
        (("dataset.workers=0,1,2",), "dataset.workers has no effect on training"),
        (("method=erm,scal,iw", "optimizer.lr=1,2"), "scal"),
        (("optimizer.lr=0.1,-1,0.2",), "optimizer.lr=-1"),
        (("optimizer.lr=interval(-1,1)",), "optimizer.lr=-1"),
        (("optimizer.lr=1,2", "seed=3"), "seed=3: the seeds of a search"),
        (("optimizer.lr=1,2", "++seed=3"), "seed=3: the seeds of a search"),
        (("optimizer.lr=1,2", "rerun=true"), "rerun=true would train a run again"),
        (("optimizer.lr=tag(lgo,interval(1,2))",), "there is no tag lgo"),
        (("+sweeps=digits/main",), "lists points, and a search draws its own"),
        (("hydra.sweeper.search={common: {optimizer: {lr: '1,2'}}}",), "write its keys with dots"),
        (("seed=0,1",), "seed"),
        ((), "hydra.sweeper.search is empty"),
        (
            ("optimizer.lr=1,2", "hydra.sweeper.metric=test/worst"),
            "hydra.sweeper.metric=test/worst",
        ),
        (("optimizer.lr=1,2", "hydra.sweeper.sampler=cmaes"), "pickle"),
        (("optimizer.lr=1,2", "hydra.sweeper.sampler=tpee"), "hydra.sweeper.sampler=tpee"),
        (("optimizer.lr=1,2", "hydra.sweeper.n_trials=0"), "hydra.sweeper.n_trials=0"),
        (("optimizer.lr=1,2", "hydra.sweeper.seeds=[]"), "hydra.sweeper.seeds=[]"),
        (("optimizer.lr=1,2", "hydra.sweeper.seeds=[1,1]"), "hydra.sweeper.seeds=[1, 1]"),
        (("optimizer.lr=1,2", "hydra.sweeper.trials=3"), "hydra.sweeper.trials"),
        (
            (f"optimizer.lr={LR}", "hydra.sweeper.sampler=grid"),
            "hydra.sweeper.sampler=grid needs a list of values for optimizer.lr",
        ),
        (("hydra.sweeper.search={lr: '1,2'}",), "hydra.sweeper.search.lr is not a section"),
        (
            ("optimizer.lr=1,2", "hydra/launcher=basic"),
            "hydra/launcher=in_process, local_pool or slurm",
        ),
    ],
)
def test_a_search_that_cannot_be_is_told(typed, said, command_line, tmp_path):
    outputs = tmp_path / "outputs"
    ended = command_line.run("train", *QUICK, f"paths.outputs={outputs}", "sweep=tune", *typed)
    assert ended.code == 2, ended.out + ended.err
    assert len(ended.err.strip().splitlines()) == 1, ended.err
    assert said in ended.err
    assert not outputs.exists()


def test_a_search_without_optuna_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'spurcor\[tune\]'"):
        Optuna()


@pytest.mark.cold
def test_a_point_that_is_killed_is_run_again_before_the_next_is_drawn(command_line, tmp_path):
    words = (*QUICK, "sweep=tune", f"optimizer.lr={LR}", "hydra.sweeper.n_trials=3")
    whole = command_line.run("train", *words, f"paths.outputs={tmp_path / 'whole'}")
    assert whole.code == 0, whole.err
    started = command_line.start(
        "train", *words, f"paths.outputs={tmp_path / 'parts'}", "hydra/launcher=local_pool",
        "hydra.launcher.n_jobs=1",
    )  # fmt: skip
    kill_a_point(started, tmp_path / "parts")
    ended = started.wait(300)
    assert ended.code == 0, ended.out + ended.err
    assert trials_of(tmp_path / "parts") == trials_of(tmp_path / "whole")


def test_a_dry_search_says_what_it_would_draw_and_writes_nothing(command_line, tmp_path):
    outputs = tmp_path / "outputs"
    ended = command_line.run(
        "train", *QUICK, f"paths.outputs={outputs}", "dry=true", f"optimizer.lr={LR}",
        "train.batch_size=10,20", "hydra.sweeper.seeds=[0,1]", "hydra.sweeper.n_trials=7",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert ended.out.splitlines() == [
        "optimizer.lr: 0.0001 to 0.1, logarithmic",
        "train.batch_size: 10, 20",
        "7 trials, 14 runs, judged by val/worst",
    ]
    assert not outputs.exists()


# --- pruning --------------------------------------------------------------------------------------


def rows_of(*values, phase="train"):
    return [
        {"phase": phase, "epoch": epoch, "val/worst": value, "test/worst": 1 - value}
        for epoch, value in enumerate(values, 1)
    ]


def test_the_best_so_far_is_counted_over_phases():
    rows = [*rows_of(0.3, 0.2, phase="a"), *rows_of(0.1, 0.4, 0.2, phase="b")]
    assert list(best_so_far(rows, "val/worst")) == [
        (1, 0.3), (2, 0.3), (3, 0.1), (4, 0.4), (5, 0.4),
    ]  # fmt: skip
    losses = [{"phase": "a", "epoch": e, "val/loss": v} for e, v in ((1, 2.0), (2, 1.0), (3, 3.0))]
    assert list(best_so_far(losses, "val/loss")) == [(1, 2.0), (2, 1.0), (3, 1.0)]


def test_median_and_asha_stop_the_trials_that_are_behind(tmp_path):
    """By hand: after five whole trials the median at epoch 1 is 0.5; ASHA keeps the best third."""
    study = study_in(tmp_path / "m", "random", 7, pruner="median")
    for best in (0.3, 0.4, 0.5, 0.6, 0.7):
        with ExitStack() as stack:
            trial = study.take(stack)
            assert not Pruner(tmp_path / "m", trial.number)(rows_of(best))
            study.tell(trial, [rows_of(best, best)])
    for value, expected in ((0.49, True), (0.51, False)):
        with ExitStack() as stack:
            trial = study.take(stack)
            ask = Pruner(tmp_path / "m", trial.number)
            assert ask(rows_of(value)) is expected
            if expected:
                study.prune(trial)
                assert ask(rows_of(value)) is False  # of a trial that has ended
            else:
                study.tell(trial, [rows_of(value)])
    assert [trial.state for trial in study.trials()] == ["done"] * 5 + ["pruned", "done"]
    assert study.trials()[5].value is None

    study = study_in(tmp_path / "a", "random", 4, pruner="asha")
    for value, expected in ((0.5, False), (0.4, True), (0.6, False), (0.55, True)):
        with ExitStack() as stack:
            trial = study.take(stack)
            assert Pruner(tmp_path / "a", trial.number)(rows_of(value)) is expected, value
            if expected:
                study.prune(trial)
            else:
                study.tell(trial, [rows_of(value, value)])


def test_values_of_test_change_no_decision(tmp_path):
    answers = []
    for worst in (0.0, 1.0):
        folder = tmp_path / str(worst)
        study = study_in(folder, "random", 8, pruner="median")
        for value in (0.3, 0.4, 0.5, 0.6, 0.7, 0.1, 0.45, 0.9):
            rows = [
                {**row, "test/worst": worst, "test/average": worst} for row in rows_of(value, value)
            ]
            with ExitStack() as stack:
                trial = study.take(stack)
                stopped = Pruner(folder, trial.number)(rows[:1])
                answers.append((worst, stopped))
                study.prune(trial) if stopped else study.tell(trial, [rows])
        answers.append((worst, [(t.values, t.value) for t in study.ranked()]))
    first, second = ([what for of, what in answers if of == worst] for worst in (0.0, 1.0))
    assert first == second
    assert True in first


def test_pruned_runs_keep_their_checkpoint_and_go_on_exactly(command_line, tmp_path):
    words = (
        *QUICK[2:], "optimizer.lr=0.1,1e-6,2e-6,0.05", "method.epochs=6", "-m", "sweep=tune",
        "hydra/sweeper=optuna", "hydra.sweeper.sampler=grid", "hydra.sweeper.pruner=asha",
        "hydra.sweeper.seeds=[0,1]", "hydra.sweeper.n_trials=4", "train.checkpoint_seconds=1000",
        "hydra.sweeper.metric=val/average", "dataset.subset_size=400",
    )  # fmt: skip
    ended = command_line.run("train", *words, f"paths.outputs={tmp_path / 'a'}", COLUMNS="200")
    assert ended.code == 0, ended.out + ended.err
    states = [state for _, state, *_ in trials_of(tmp_path / "a")]
    assert states[0] == "COMPLETE"
    assert "PRUNED" in states
    pruned = list(tmp_path.glob("a/runs/*/*/*/*/pruned"))
    assert {path.parent.name for path in pruned} == {"seed0"}  # the others were not started
    assert len(pruned) == states.count("PRUNED")
    rate = next(p["optimizer.lr"] for _, s, p, _ in trials_of(tmp_path / "a") if s == "PRUNED")
    (folder,) = (
        Path(entry["directory"])
        for entry in manifest(tmp_path / "a", "tune")
        if f"optimizer.lr={rate}" in entry["overrides"] and entry["seed"] == 0
    )
    assert not (folder / "done").exists()
    seen = [row["epoch"] for row in read_lines(folder / "metrics.jsonl")]
    assert 1 <= len(seen) < 6
    report = (tmp_path / "a" / "reports" / "tune" / "report.md").read_text()
    assert folder.parent.name not in report

    status = command_line.run(
        "status", "sweep=tune", f"paths.outputs={tmp_path / 'a'}", COLUMNS="200"
    )
    assert status.code == 0
    assert f"{len(pruned)} pruned" in status.out

    single = [word for word in words if not word.startswith(("hydra", "optimizer.lr", "-m"))]
    for outputs in ("a", "whole"):
        ended = command_line.run(
            "train", *single, f"optimizer.lr={rate}", f"paths.outputs={tmp_path / outputs}"
        )
        assert ended.code == 0, ended.err
    whole = tmp_path / "whole" / folder.relative_to(tmp_path / "a")
    assert contents(folder) == contents(whole)
    assert "resumed after" in (folder / "train.log").read_text()


def test_a_killed_search_prunes_what_a_whole_one_does(command_line, tmp_path):
    words = (
        *QUICK, f"optimizer.lr={LR}", "method.epochs=4", "sweep=tune", "hydra.sweeper.seeds=[0,1]",
        "hydra.sweeper.pruner=median", "hydra.sweeper.n_trials=9", "train.checkpoint_seconds=0",
        "hydra.sweeper.metric=val/average", "dataset.subset_size=400",
    )  # fmt: skip
    whole = command_line.run("train", *words, f"paths.outputs={tmp_path / 'whole'}")
    assert whole.code == 0, whole.err
    assert "PRUNED" in [state for _, state, *_ in trials_of(tmp_path / "whole")]
    draws = random.Random(3)
    for _ in range(6):
        started = command_line.start("train", *words, f"paths.outputs={tmp_path / 'parts'}")
        end = time.monotonic() + draws.uniform(0.5, 2.5)
        while started.running() and time.monotonic() < end:
            time.sleep(0.01)
        if started.running():
            started.kill()
            with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
                psutil.Process(started.pid).wait(10)
    ended = command_line.run("train", *words, f"paths.outputs={tmp_path / 'parts'}")
    assert ended.code == 0, ended.out + ended.err
    assert trials_of(tmp_path / "parts") == trials_of(tmp_path / "whole")


METHODS = sorted({path.stem for path in (REPO / "conf" / "method").glob("*.yaml")} - {"frozen"})


@pytest.mark.parametrize("method", METHODS)
def test_each_method_that_trains_has_a_space(method, command_line, tmp_path):
    """Both ends of each key are composed, and make other runs."""
    outputs = tmp_path / "outputs"
    ended = command_line.run(
        "train", "-m", "hydra/sweeper=optuna", f"+sweeps=spaces/{method}", "backbone=small_cnn",
        "dfr=none", "dry=true", f"paths.outputs={outputs}",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "optimizer.lr: 0.0001 to 0.01, logarithmic" in ended.out
    assert not outputs.exists()


def test_the_key_that_matters_has_the_importance(tmp_path):
    space = space_of({"matters": "interval(0,1)", "idle": "interval(0,1)"})
    study = Study(tmp_path / "a", space, SearchOptions("random", n_trials=30), ("r1", []), {})
    assert study.importances() == {}
    while True:
        with ExitStack() as stack:
            if (trial := study.take(stack)) is None:
                break
            study.tell(trial, [rows_of(trial.values["matters"])])
    found = study.importances()
    assert found["matters"] > 0.9
    assert sum(found.values()) == pytest.approx(1)
    drawing = search_drawing(study, study.trials(), found)
    assert [panel.title.partition(",")[0] for panel in drawing.panels] == [
        "best so far", "matters", "idle",
    ]  # fmt: skip
    best = drawing.panels[0].series[1].y
    assert list(best) == sorted(best)
    assert best[-1] == max(trial.value for trial in study.trials())


def test_parallel_coordinates_show_each_trial_from_its_lowest_to_its_highest(tmp_path):
    space = space_of({"rate": LR, "gate": "linear,step"}, method_erm={"rare": "interval(0,1)"})
    options = SearchOptions(sampler="random", n_trials=4)
    study = Study(tmp_path, space, options, ("base", []), {"method": "erm"})
    assert not parallel_drawing(study, {}).panels
    for value in (0.1, 0.4, 0.2, 0.3):
        with ExitStack() as stack:
            study.tell(study.take(stack), [rows_of(value)])
    (panel,) = parallel_drawing(study, {"gate": 0.6, "rate": 0.3, "rare": 0.1}).panels
    assert list(panel.ticks) == ["gate", "rate", "rare", "val/worst"]
    best, *_, worst = reversed(panel.series)
    assert (best.label, worst.label) == ("best quarter", "worst")
    assert [best.y[3], worst.y[3]] == [1, 0]
    rates = [math.log(trial.values["rate"]) for trial in study.ranked()]
    expected = [(rate - min(rates)) / (max(rates) - min(rates)) for rate in rates]
    drawn = [series.y[1] for series in reversed(panel.series)]
    assert drawn == pytest.approx(expected)


def test_mlflow_shows_the_best_so_far_of_a_search(command_line, tmp_path):
    from mlflow import MlflowClient

    words = [word for word in QUICK if word != "tracker=none"]
    ended = command_line.run(
        "train", *words, f"paths.outputs={tmp_path}", "sweep=tune", "hydra.sweeper.sampler=grid",
        "optimizer.lr=0.1,0.001,0.2", "hydra.sweeper.n_trials=3",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("tune").experiment_id])
    (sweep,) = (run for run in runs if run.data.tags["spurcor.kind"] == "sweep")
    values = [value for *_, value in trials_of(tmp_path)]
    told = client.get_metric_history(sweep.info.run_id, "search/best/val/worst")
    assert [one.step for one in told] == [0, 1, 2]
    assert [one.value for one in told] == [max(values[: i + 1]) for i in range(3)]
    names = [file.path for file in client.list_artifacts(sweep.info.run_id, "report")]
    assert {"report/search.png", "report/trials.csv"} <= set(names)
    trained = [run for run in runs if run.data.tags["spurcor.kind"] == "run"]
    assert {run.info.status for run in trained} == {"FINISHED"}
    shown = sorted(
        (run.data.tags["trial.tune"], run.data.tags["trial.tune.value"]) for run in trained
    )
    assert shown == [(str(number), f"{value:.6g}") for number, value in enumerate(values)]


def test_a_run_that_another_command_has_is_waited_for(tmp_path, monkeypatch):
    """Neither what it says nor a mark that the other search leaves ends this trial."""
    monkeypatch.setattr(trials, "PATIENCE", 0.0)
    study = study_in(tmp_path / "a", "random", 1)
    carried = trials.Trials(study, lambda values, seeds: [])
    directory = tmp_path / "run"
    directory.mkdir()
    point = SimpleNamespace(done=False, config=SimpleNamespace(directory=directory))
    with ExitStack() as stack:
        trial = study.take(stack)
        for _ in range(5):
            carried._judge(trial, [point], {directory: f"{directory} {HELD_BY} process 1"})
        (directory / "pruned").touch()
        carried._judge(trial, [point], {directory: f"{directory} {HELD_BY} process 1"})
        assert study.trials()[0].state == "running"
        for expected in ("running", "running", "failed"):
            carried._judge(trial, [point], {directory: "killed by signal 15, see log"})
            assert study.trials()[0].state == expected


def test_each_choice_is_composed_before_the_first_trial(command_line, tmp_path):
    """An option that does not exist is not found halfway, when the study is begun."""
    folder = tmp_path / "conf" / "sweeps"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(
        "# @package _global_\nhydra: {sweeper: {search: {common: {method: 'erm,iww'},"
        " 'method=erm': {train.batch_size: '16,20'}}}}\n"
    )
    words = [word for word in QUICK if not word.startswith("train.batch_size")]
    ended = command_line.run(
        "train", *words, "--config-dir", str(tmp_path / "conf"), "+sweeps=mine",
        f"paths.outputs={tmp_path / 'outputs'}",
    )  # fmt: skip
    assert ended.code == 2
    assert "method=iww does not exist" in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


def test_a_trial_of_no_search_is_told(command_line, tmp_path):
    words = [word for word in QUICK if word not in ("-m", "hydra/sweeper=optuna")]
    outputs = tmp_path / "outputs"
    ended = command_line.run("train", *words, f"paths.outputs={outputs}", "trial=3")
    assert ended.code == 2
    assert "trial=3: " in ended.err
    assert "leave trial to hydra/sweeper=optuna" in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert not outputs.exists()


def test_the_trials_of_a_search_share_a_look_at_slurm_but_none_gets_one_twice(monkeypatch):
    """A requeued job briefly leaves the queue, so that a point has ended only after two looks."""
    looks = iter(range(10))
    monkeypatch.setattr(slurm, "_states", lambda folder: [next(looks)])
    launcher = object.__new__(slurm.Slurm)
    launcher._polling, launcher._polled = threading.Lock(), (-math.inf, [])
    began = time.monotonic()
    first, seen = launcher._look(None, began)
    assert seen == [0]
    assert launcher._look(None, began) == (first, [0])  # another trial, which began as early
    second, seen = launcher._look(None, first)
    assert (seen, second > first) == ([1], True)
    assert launcher._look(None, time.monotonic())[1] == [2]  # submitted after the last look


def test_what_a_search_on_a_cluster_stores_of_its_command_has_no_password(tmp_path, monkeypatch):
    """And its paths are where this command's are, not beside the copy of the code."""
    from training import read

    typed = ["-m", "paths.outputs=mine", "tracker.mlflow.uri=https://me:secret@host/x"]
    monkeypatch.setattr(sys, "argv", ["train", *typed, "hydra.launcher.wait=false"])
    monkeypatch.setenv("SPURCOR_ADDRESSES", "")
    words = search._continuing(read(f"paths.outputs={tmp_path}"))
    assert "secret" not in " ".join(words)
    assert "secret" in os.environ["SPURCOR_ADDRESSES"]  # which the job inherits
    assert f"paths.outputs={tmp_path}" in words
    assert not any(word == "paths.outputs=mine" for word in words)
    assert words.count("hydra.sweeper.continues=true") == 1
