"""Reports from made-up files: what is chosen, by what, and what is left out."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from spurcor.errors import UserError
from spurcor.reports import write_report
from spurcor.reports.options import Options
from spurcor.reports.selection import STANDARD, judge
from spurcor.reports.trials import collect

GROUPS = ("land/land", "land/water", "water/land", "water/water")


def row(epoch, val, test, phase="erm"):
    """A row whose figures are all `val` or all `test`."""
    names = ("worst", "average", "worst_class", "aligned", "conflicting")
    return {
        "phase": phase, "epoch": epoch, "step": epoch, "time": epoch, "seconds": float(epoch),
        **{f"val/{name}": val for name in names}, **{f"test/{name}": test for name in names},
        **{f"test/group/{group}": test for group in GROUPS},
    }  # fmt: skip


def make(outputs, method, seed, rows, sweep="one", lr=0.1, splits="s", dfr=None, dataset="birds"):
    """A finished run as its files would be, and its line in the manifest."""
    identity = f"r{method}{lr}{splits}"
    directory = outputs / "runs" / dataset / method / identity / f"seed{seed}"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    figure = {name: rows[-1][f"test/{name}"] for name in ("worst", "average", "worst_class")}
    figure |= {"aligned": 0.9, "conflicting": 0.1, "groups": {}}
    config = {"dataset": dataset, "method": method, "backbone": "mlp", "optimizer.lr": lr}
    run = {
        "identity": identity, "seed": seed, "config": config, "splits": {"test": splits},
        "images_seen": 100, "seconds": 2.0, "commit": "abc", "moved": False,
    }  # fmt: skip
    selected = {"criterion": "val/worst", "phase": rows[-1]["phase"], "epoch": rows[-1]["epoch"]}
    parts = {"run": run, "selected": selected, "val": figure, "test": figure, "tests": {}}
    (directory / "result.json").write_text(json.dumps({**parts, "dfr": dfr or {}}))
    (directory / "done").touch()
    plan(outputs, directory, identity, seed, f"method={method}", sweep)
    return directory


def plan(outputs, directory, identity, seed, override, sweep="one"):
    """A line of the manifest."""
    entry = {
        "overrides": [override, f"seed={seed}"], "identity": identity, "seed": seed,
        "needs": ["done"], "job": None, "log": None,
        "directory": str(directory.relative_to(outputs)),
    }  # fmt: skip
    folder = outputs / "sweeps" / sweep
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "points.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


def report(outputs, *sweeps, **options):
    return write_report(outputs, sweeps or ("one",), Options(plots=False, **options))


def records(found, name):
    return list(csv.DictReader((found.folder / f"{name}.csv").open()))


class Blind(Mapping):
    """A row that raises where anything but training or validation is read."""

    def __init__(self, values):
        self.values_ = values

    def __getitem__(self, key):
        assert not key.startswith(("test/", "opposite/")), f"{key} was read"
        return self.values_[key]

    def __iter__(self):
        return iter(self.values_)

    def __len__(self):
        return len(self.values_)


def test_no_criterion_but_oracle_reads_test_data(tmp_path):
    for lr in (0.1, 0.2):
        make(tmp_path, "erm", 0, [row(1, 0.5, 0.4), row(2, 0.6, 0.3)], lr=lr)
    trials = collect(tmp_path, ["one"]).trials
    for trial in trials:
        object.__setattr__(trial, "rows", [Blind(one) for one in trial.rows])
    for criterion in STANDARD:
        if criterion != "oracle":
            assert judge(trials, criterion)
    with pytest.raises(AssertionError, match="test/worst was read"):
        judge(trials, "oracle")
    with pytest.raises(ValueError, match="selects on validation data"):
        judge(trials, "opposite/worst")


def test_each_criterion_picks_its_epoch_and_setting(tmp_path):
    """lr 0.1: validation best at epoch 2, test best at 1; lr 0.2: worse on val, best on test."""
    for seed in (0, 1):
        make(tmp_path, "erm", seed, [row(1, 0.5, 0.9), row(2, 0.8, 0.6), row(3, 0.7, 0.5)])
        make(tmp_path, "erm", seed, [row(1, 0.4, 0.95), row(2, 0.75, 0.1)], lr=0.2)
    found = {one["criterion"]: one for one in records(report(tmp_path), "criteria")}
    assert float(found["val/worst"]["worst_mean"]) == pytest.approx(60)
    assert "lr=0.1" in found["val/worst"]["setting"]
    assert float(found["last"]["worst_mean"]) == pytest.approx(10)  # 0.75 beats 0.7 at the last epochs
    assert "lr=0.2" in found["last"]["setting"]
    (oracle,) = (one for name, one in found.items() if "oracle" in name)
    assert "reads test" in oracle["criterion"]
    assert float(oracle["worst_mean"]) == pytest.approx(95)


def test_a_tie_goes_to_the_first_epoch(tmp_path):
    make(tmp_path, "erm", 0, [row(1, 0.8, 0.3), row(2, 0.8, 0.7)])
    (found,) = records(report(tmp_path), "methods")
    assert float(found["worst_mean"]) == pytest.approx(30)


def test_only_the_last_phase_counts(tmp_path):
    make(tmp_path, "erm", 0, [row(1, 0.9, 0.9, "first"), row(1, 0.5, 0.4, "second")])
    (found,) = records(report(tmp_path), "methods")
    assert float(found["worst_mean"]) == pytest.approx(40)


def test_means_over_seeds_and_paired_differences(tmp_path):
    for seed, (erm, dro) in enumerate([(0.40, 0.60), (0.50, 0.65), (0.45, 0.70)]):
        make(tmp_path, "erm", seed, [row(1, 0.5, erm)])
        make(tmp_path, "group_dro", seed, [row(1, 0.5, dro)])
    found = report(tmp_path)
    erm, dro = records(found, "methods")
    assert (erm["method"], float(erm["worst_mean"])) == ("erm", pytest.approx(45))
    assert float(erm["worst_std"]) == pytest.approx(5)
    assert float(dro["worst_mean"]) == pytest.approx(65)
    (pair,) = records(found, "comparison")
    assert (pair["method"], pair["against"]) == ("group_dro", "erm")
    assert float(pair["difference in worst_mean"]) == pytest.approx(20)  # 20, 15, 25
    assert float(pair["p"]) == 2 / 8
    text = (found.folder / "report.md").read_text()
    assert "With 3 shared seeds no p can be below 0.25" in text
    assert r"\toprule" in (found.folder / "methods.tex").read_text()


def test_a_repair_is_a_method_of_its_own_and_null_selects_nothing(tmp_path):
    figure = {"worst": 0.8, "average": 0.9, "worst_class": 0.8, "aligned": 0.9, "conflicting": 0.8}
    figure["groups"] = {}
    repairs = {
        f"val-{scaler}": {
            "options": {"split": "val", "scaler": scaler}, "val": None, "val_is": "none",
            "test": {**figure, "worst": worst}, "tests": {},
        }
        for scaler, worst in (("train", 0.8), ("none", 0.7))
    }  # fmt: skip
    make(tmp_path, "erm", 0, [row(1, 0.5, 0.4)], dfr=repairs)
    found = [one for one in records(report(tmp_path), "methods") if one["method"] == "erm + DFR"]
    assert sorted(float(one["worst_mean"]) for one in found) == pytest.approx([70, 80])
    assert all("unselected" in one["setting"] for one in found)


def test_other_splits_share_no_row_and_no_pair(tmp_path):
    make(tmp_path, "erm", 0, [row(1, 0.5, 0.4)], splits="a")
    make(tmp_path, "erm", 1, [row(1, 0.5, 0.6)], splits="b")
    found = report(tmp_path)
    assert sorted(float(one["worst_mean"]) for one in records(found, "methods")) == [40, 60]
    assert not (found.folder / "comparison.csv").exists()
    assert "share no row" in (found.folder / "report.md").read_text()


def test_several_sweeps_count_a_run_once(tmp_path):
    directory = make(tmp_path, "erm", 0, [row(1, 0.5, 0.4)])
    make(tmp_path, "erm", 1, [row(1, 0.5, 0.6)], sweep="two")
    plan(tmp_path, directory, "rerm0.1s", 0, "method=erm", sweep="two")
    found = report(tmp_path, "one", "two")
    assert found.folder.name == "one+two"
    (one,) = records(found, "methods")
    assert float(one["worst_mean"]) == pytest.approx(50)


def test_missing_failed_and_broken_runs_are_named_and_counted(tmp_path):
    make(tmp_path, "erm", 0, [row(1, 0.5, 0.4)])
    plan(tmp_path, tmp_path / "runs/birds/erm/rerm0.1s/seed1", "rerm0.1s", 1, "method=erm")
    failed = tmp_path / "runs/birds/erm/rerm0.1s/seed2"
    failed.mkdir()
    (failed / "failed").write_text("Traceback\nRunError: erm: loss is nan\n")
    plan(tmp_path, failed, "rerm0.1s", 2, "method=erm")
    broken = make(tmp_path, "erm", 3, [row(1, 0.5, 0.4)])
    (broken / "result.json").write_bytes(b"\x00\xff{")
    cut = make(tmp_path, "erm", 4, [row(1, 0.5, 0.4)])
    (cut / "metrics.jsonl").write_text('{"phase": "erm", "ep')
    old = make(tmp_path, "erm", 5, [row(1, 0.5, 0.4)])
    result = json.loads((old / "result.json").read_text())
    del result["run"]["config"]
    (old / "result.json").write_text(json.dumps(result))
    found = report(tmp_path)
    assert [one.status for one in found.missing] == ["missing", "failed"]
    assert "loss is nan" in found.missing[1].message
    assert sorted(found.skipped) == sorted(map(str, (broken, cut, old)))
    (one,) = records(found, "methods")
    assert float(one["worst_mean"]) == pytest.approx(40)
    text = (found.folder / "report.md").read_text()
    assert all(str(path) in text for path in (broken, cut, old))


def test_a_table_of_two_keys(tmp_path):
    for method, lr, worst in [("erm", 0.1, 0.4), ("erm", 0.2, 0.5), ("iw", 0.1, 0.6)]:
        for seed in (0, 1):
            make(tmp_path, method, seed, [row(1, 0.5, worst)], lr=lr)
    found = report(tmp_path, rows=("method",), columns=("optimizer.lr",), metrics=("worst",))
    erm, iw = records(found, "table")
    cells = {key: value for key, value in erm.items() if "0.1" in key or "0.2" in key}
    means = [float(value) for key, value in cells.items() if key.endswith("_mean")]
    assert means == pytest.approx([40, 50])
    assert iw["method"] == "iw"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": ("methd",)}, "did you mean method"),
        ({"metrics": ("wurst",)}, "did you mean worst"),
        ({"criterion": "test/worst"}, "criterion=test/worst"),
        ({"baseline": "irm"}, "baseline=irm"),
        ({"keep": {"method": "irm"}}, "keep.method=irm"),
    ],
)
def test_what_no_run_has_is_told(tmp_path, options, words):
    make(tmp_path, "erm", 0, [row(1, 0.5, 0.4)])
    with pytest.raises(UserError, match=words):
        report(tmp_path, **options)


def test_a_sweep_that_does_not_exist_lists_those_that_do(tmp_path, command_line):
    make(tmp_path, "erm", 0, [row(1, 0.5, 0.4)])
    for module in ("report", "status"):
        ended = command_line.run(module, f"paths.outputs={tmp_path}", "sweep=other")
        assert ended.code == 2
        assert "sweep=other does not exist" in ended.err
        assert "there is one" in ended.err


def test_the_command_prints_a_markdown_table_and_writes_the_figures(tmp_path, command_line):
    for seed in (0, 1):
        make(tmp_path, "erm", seed, [row(1, 0.5, 0.4), row(2, 0.6, 0.5)])
    ended = command_line.run("report", f"paths.outputs={tmp_path}", "sweep=one", "tracker=none")
    assert ended.code == 0, ended.err
    assert "| data set" in ended.out
    assert "50.0" in ended.out
    folder = Path(tmp_path / "reports" / "one")
    for name in ("worst_vs_average.png", "learning_curves_birds.png", "learning_curves_birds.pdf"):
        assert (folder / name).stat().st_size > 1000
