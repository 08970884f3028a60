"""Reports from made-up files: what is read, what is left out, and what is told."""

import copy
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO
from hydra import compose, initialize_config_dir

from spurcor.config.check import check
from spurcor.config.resolvers import register
from spurcor.errors import UserError
from spurcor.report import ReportConfig
from spurcor.reports import write_report
from spurcor.reports.collection import collect
from spurcor.reports.options import Options
from spurcor.reports.runs import Run, read_run
from spurcor.reports.selection import STANDARD, judge
from spurcor.reports.tables import Metric, methods
from spurcor.reports.trials import Trial, with_settings
from spurcor.system.places import CONF

CONFIG = {"dataset": "birds", "method": "erm", "backbone": "mlp", "optimizer": "sgd"}
QUIET = Options(plots=False)


def trial(identity="r1", seed=0, rows=(), method="erm", repair=None, dataset="birds", **options):
    """A trial without files; `lr=1` is an option of the optimizer."""
    flat = {key if "." in key else f"optimizer.{key}": value for key, value in options.items()}
    config = {**CONFIG, "method": method, "dataset": dataset, **flat}
    own = identity.partition("/")[0]
    directory = Path(dataset, method, own, str(seed))
    made = Run(directory, own, seed, config, {}, (), rows, {}, {}, 10, 1.0, "abc", False)
    name = method if repair is None else f"{method} + DFR"
    return Trial(made, dataset, name, identity, config, rows, repair)


def report(worst, **others):
    """An M of result.json."""
    names = ("average", "adjusted", "balanced", "worst_class", "aligned", "conflicting")
    groups = {"land/land": {"accuracy": worst, "count": 3}, "land/sea": {"accuracy": 1, "count": 0}}
    return {"worst": worst, **dict.fromkeys(names, worst), **others, "groups": groups}


def make(
    outputs, seed=0, epochs=((0.3, 0.2), (0.5, 0.4)), sweep="made", identity=None, splits="a",
    dfr=None, done=True, analysis=None, **options,
):  # fmt: skip
    """Write a finished run with (validation, test) per epoch; returns its directory."""
    config = {**CONFIG, **options}
    name = identity or "r" + "-".join(str(value) for value in options.values()).replace("/", "")
    place = f"runs/{config['dataset']}/{config['method']}/{name}/seed{seed}"
    directory = outputs / place
    directory.mkdir(parents=True, exist_ok=True)
    entry = {
        "overrides": [f"{key}={value}" for key, value in options.items()] + [f"seed={seed}"],
        "identity": name, "seed": seed, "directory": place, "job": None, "log": None,
        "needs": ["done", *(f"dfr/val-{number}/result.json" for number in range(len(dfr or ()))),
                  *(f"analysis/{folder}/result.json" for folder in analysis or ())],
    }  # fmt: skip
    manifest = outputs / "sweeps" / sweep / "points.jsonl"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    with manifest.open("a") as file:
        file.write(json.dumps(entry) + "\n")
    if not done:
        return directory
    rows = []
    for epoch, (val, test) in enumerate(epochs, 1):
        row = {"phase": "erm", "epoch": epoch, "train/loss": 1.0}
        for split, value in (("val", val), ("test", test), ("clean", test)):
            metrics = report(value)
            groups = metrics.pop("groups")
            row |= {f"{split}/{key}": figure for key, figure in metrics.items()}
            row |= {f"{split}/group/{key}": group["accuracy"] for key, group in groups.items()}
        rows.append(json.dumps(row) + "\n")
    (directory / "metrics.jsonl").write_text("".join(rows))
    parts = {
        f"val-{number}": {
            "options": {"split": "val", "layer": layer},
            "val": None if val is None else report(val),
            "test": report(test),
            "tests": {"clean": report(test)},
        }
        for number, (layer, val, test) in enumerate(dfr or ())
    }
    result = {
        "run": {
            "identity": name, "seed": seed, "config": config, "splits": {"train": splits},
            "images_seen": 100 + seed, "seconds": 2.0, "commit": "abc", "moved": False,
        },
        "selected": {"criterion": "val/worst", "phase": "erm", "epoch": len(epochs)},
        "val": report(epochs[-1][0]), "test": report(epochs[-1][1]),
        "tests": {"clean": report(epochs[-1][1])}, "dfr": parts,
        "analysis": {name: {"options": {}, "metrics": m} for name, m in (analysis or {}).items()},
    }  # fmt: skip
    (directory / "result.json").write_text(json.dumps(result))
    (directory / "done").touch()
    return directory


def read_csv(path):
    return list(csv.DictReader(path.open()))


# --- what is read ---------------------------------------------------------------------------------


def truncate(path, size=40):
    path.write_bytes(path.read_bytes()[:-size])


DAMAGE = {
    "result.json cannot be read": lambda d: truncate(d / "result.json"),
    "result.json is not the result of a run": lambda d: (d / "result.json").write_text("[1, 2]"),
    "result.json has no run": lambda d: (d / "result.json").write_text('{"run": 3}'),
    "result.json has no run.config": lambda d: (d / "result.json").write_text('{"run": {}}'),
    "No such file": lambda d: (d / "result.json").unlink(),
    "Is a directory": lambda d: ((d / "result.json").unlink(), (d / "result.json").mkdir()),
    "metrics.jsonl ends in the middle of a line": lambda d: truncate(d / "metrics.jsonl"),
    "metrics.jsonl does not contain": lambda d: (d / "metrics.jsonl").write_bytes(b""),
    "metrics.jsonl cannot be read": lambda d: (d / "metrics.jsonl").write_bytes(b"\0\xff\x80\n"),
    "metrics.jsonl lacks the epoch": lambda d: (d / "metrics.jsonl").write_bytes(
        (d / "metrics.jsonl").read_bytes().split(b"\n")[0] + b"\n"
    ),
}


@pytest.mark.parametrize("sentence", DAMAGE)
def test_a_damaged_run_is_named_and_left_out(tmp_path, sentence):
    make(tmp_path, seed=0)
    broken = make(tmp_path, seed=1)
    DAMAGE[sentence](broken)
    made = write_report(tmp_path, ["made"], QUIET)
    assert list(made.skipped) == [str(broken)]
    assert sentence in made.skipped[str(broken)]
    text = (made.folder / "report.md").read_text()
    assert "0 not done, 1 unusable" in text
    assert f"left out: {broken}: {made.skipped[str(broken)]}" in text
    (record,) = made.tables["methods"].records
    assert str(record["seeds"]) == "1 of 2"


def places(tree, path=()):
    yield path
    items = tree.items() if isinstance(tree, dict) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def test_whatever_a_result_holds_there_is_no_traceback(tmp_path):
    directory = make(tmp_path, dfr=[(1, 0.5, 0.5)])
    sound = json.loads((directory / "result.json").read_text())
    refused = 0
    for path in list(places(sound))[1:]:
        for wrong in (None, "x", 3, float("inf"), [], {}):
            tree = copy.deepcopy(sound)
            node = tree
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = wrong
            (directory / "result.json").write_text(json.dumps(tree))
            try:
                read = read_run(directory)
            except ValueError:
                refused += 1
                continue
            one = Trial(read, "birds", "erm", "r1", read.config, read.rows)
            judged = {("birds", "erm"): judge(with_settings([one]), "val/worst")}
            methods(judged, [Metric("worst", "test/worst")])
    assert refused > 100


def test_only_the_last_phase_counts(tmp_path):
    directory = make(tmp_path, epochs=((0.1, 0.1), (0.2, 0.6)))
    path = directory / "metrics.jsonl"
    early = path.read_text().replace('"erm"', '"first"').replace("0.2", "0.9")
    path.write_text(early + path.read_text())
    made = write_report(tmp_path, ["made"], QUIET)
    assert made.tables["methods"].records[0]["worst"].mean == pytest.approx(60)


def test_a_method_without_phases_is_judged_by_its_result(tmp_path):
    directory = make(tmp_path)
    tree = json.loads((directory / "result.json").read_text())
    tree["selected"] = None
    (directory / "result.json").write_text(json.dumps(tree))
    (directory / "metrics.jsonl").unlink()
    made = write_report(tmp_path, ["made"], QUIET)
    assert made.tables["methods"].records[0]["worst"].mean == pytest.approx(40)


def test_points_that_are_not_done_are_listed_with_their_message(tmp_path):
    make(tmp_path, seed=0)
    failed = make(tmp_path, seed=1, done=False)
    (failed / "failed").write_text("Traceback\nRunError: loss is nan\n")
    made = write_report(tmp_path, ["made"], QUIET)
    (missing,) = made.missing
    assert (missing.status, missing.overrides) == ("failed", "seed=1")
    assert missing.message == "RunError: loss is nan"
    assert (
        "- failed: seed=1 (made) RunError: loss is nan" in (made.folder / "report.md").read_text()
    )


def test_nothing_finished_is_a_report_too(tmp_path):
    make(tmp_path, done=False)
    made = write_report(tmp_path, ["made"], QUIET)
    assert [path.name for path in made.files] == ["report.md"]
    assert "No run is finished." in made.files[0].read_text()


# --- rows -----------------------------------------------------------------------------------------


def test_a_run_in_two_sweeps_counts_once(tmp_path):
    make(tmp_path, seed=0, sweep="a")
    make(tmp_path, seed=0, sweep="b")
    make(tmp_path, seed=1, sweep="b")
    made = write_report(tmp_path, ["a", "b"], QUIET)
    assert made.folder == tmp_path / "reports" / "a+b"
    assert [str(one["seeds"]) for one in made.tables["methods"].records] == ["2"]


def test_means_deviations_and_budgets_by_hand(tmp_path):
    for seed, test in enumerate((0.4, 0.5, 0.9)):
        make(tmp_path, seed, epochs=((0.9, test), (0.1, 0.0)))
    (record,) = read_csv(write_report(tmp_path, ["made"], QUIET).folder / "methods.csv")
    assert float(record["worst_mean"]) == pytest.approx(60)
    assert float(record["worst_std"]) == pytest.approx(26.457513)
    assert float(record["worst_low"]) == pytest.approx(60 - 4.3026527 * 26.457513 / 3**0.5)
    assert (record["seeds"], record["images seen"], record["seconds"]) == ("3", "101", "2.0")


def test_images_of_the_run_started_from_count_too(tmp_path):
    result = make(tmp_path) / "result.json"
    found = json.loads(result.read_text())
    found["run"]["origin_images_seen"] = 900
    result.write_text(json.dumps(found))
    (record,) = read_csv(write_report(tmp_path, ["made"], QUIET).folder / "methods.csv")
    assert record["images seen"] == "1000"


def test_settings_are_named_by_what_differs():
    def names(*options):
        made = [trial(f"r{n}", 0, (), **one) for n, one in enumerate(options)]
        return [one.setting for one in with_settings(made)]

    assert names({"lr": 0.1}) == [""]
    assert names({"lr": 0.1, "wd": 0}, {"lr": 0.01, "wd": 0}) == ["lr=0.1", "lr=0.01"]
    assert names({"method.width": 1, "backbone.width": 1}, {"method.width": 2, "backbone.width": 3})
    assert names({"method.w": 1, "backbone.w": 1}, {"method.w": 2, "backbone.w": 3}) == [
        "method.w=1 backbone.w=1", "method.w=2 backbone.w=3",
    ]  # fmt: skip
    assert names({"on": True, "grid": (1, 2)}, {"on": None, "grid": (1,)}) == [
        "on=true grid=[1,2]", "on=null grid=[1]",
    ]  # fmt: skip
    # momentum is said by the optimizer's name; an option that one of two equals lacks is not
    sgd, adam = {"optimizer.momentum": 0.9}, {"optimizer": "adam"}
    made = [trial("r1", 0, (), **sgd), trial("r2", 0, ())]
    made[1].config["optimizer"] = adam["optimizer"]
    assert [one.setting for one in with_settings(made)] == ["optimizer=sgd", "optimizer=adam"]
    assert names({"lr": 1}, {"lr": 1, "clip": 5}) == ["", "clip=5"]
    # what no option tells apart is never averaged
    assert names({"lr": 1}, {"lr": 1}) == ["[r0]", "[r1]"]


def test_options_of_a_repair_that_others_determine_are_left_out():
    made = [
        trial(f"r/{n}", repair="x", **{"dfr.split": split, "dfr.tune": tune, "dfr.c_grid": grid})
        for n, (split, tune, grid) in enumerate(
            [("val", "half", (1,)), ("target", "val", (2,)), ("target", "val", (3,))]
        )
    ]
    assert [one.setting for one in with_settings(made)] == [
        "split=val c_grid=[1]", "split=target c_grid=[2]", "split=target c_grid=[3]",
    ]  # fmt: skip


def test_runs_on_other_splits_share_no_row_and_no_pair(tmp_path):
    for method, splits in (("erm", "a"), ("iw", "b"), ("dro", "a")):
        for seed in (0, 1):
            make(tmp_path, seed, method=method, splits=splits, **{"dataset.strength": splits})
    made = write_report(tmp_path, ["made"], QUIET)
    labels = [(one["data set"], one["method"]) for one in made.tables["methods"].records]
    assert labels == [
        ("birds (splits 1)", "erm"), ("birds (splits 1)", "dro"), ("birds (splits 2)", "iw"),
    ]  # fmt: skip
    assert [one["method"] for one in made.tables["comparison"].records] == ["dro"]
    (note,) = collect(tmp_path, ["made"]).notes
    assert "birds (splits 2): dataset.strength=b" in note
    assert note in (made.folder / "report.md").read_text()


# --- tables ---------------------------------------------------------------------------------------


def test_criteria_are_told_apart_and_the_oracle_is_marked(tmp_path):
    make(tmp_path, epochs=((0.9, 0.1), (0.2, 0.8), (0.3, 0.5)), dfr=[(1, 0.5, 0.7)])
    made = write_report(tmp_path, ["made"], QUIET)
    lines = [
        (one["method"], one["criterion"], one["epoch"], round(one["worst"].mean))
        for one in made.tables["criteria"].records
    ]
    assert lines == [
        ("erm", "val/worst", 1, 10),
        ("erm", "val/average", 1, 10),
        ("erm", "val/worst_class", 1, 10),
        ("erm", "last", 3, 50),
        ("erm", "oracle (reads test)", 2, 80),
        ("erm + DFR", "any", None, 70),
    ]


def test_a_criterion_that_was_not_recorded_has_no_line(tmp_path):
    directory = make(tmp_path)
    path = directory / "metrics.jsonl"
    path.write_text(path.read_text().replace("val/worst_class", "val/other"))
    table = write_report(tmp_path, ["made"], QUIET).tables["criteria"]
    assert "val/worst_class" not in [one["criterion"] for one in table.records]
    assert "Not recorded: val/worst_class of birds erm." in table.notes


def test_repairs_that_nothing_chooses_are_all_listed(tmp_path):
    make(tmp_path, dfr=[(1, None, 0.7), (2, None, 0.8)])
    made = write_report(tmp_path, ["made"], QUIET)
    found = [(one["method"], one["setting"]) for one in made.tables["methods"].records]
    assert found == [
        ("erm", ""),
        ("erm + DFR", "layer=1 (unselected)"),
        ("erm + DFR", "layer=2 (unselected)"),
    ]
    assert any(note.startswith("(unselected)") for note in made.tables["methods"].notes)
    criteria = [
        (one["criterion"], one["setting"])
        for one in made.tables["criteria"].records
        if one["method"] == "erm + DFR"
    ]
    assert criteria == [
        ("none", "layer=1 (unselected)"), ("none", "layer=2 (unselected)"),
        ("oracle (reads test)", "layer=2"),
    ]  # fmt: skip


def test_pairs_are_compared_over_the_seeds_they_share(tmp_path):
    figures = {"erm": (0.5, 0.5, 0.5, 0.2), "iw": (0.6, 0.7, 0.8), "dro": (0.5, 0.4, 0.6)}
    for method, tests in figures.items():
        for seed, test in enumerate(tests):
            make(tmp_path, seed, epochs=((0.5, test),), method=method)
    made = write_report(tmp_path, ["made"], QUIET)
    first, second = made.tables["comparison"].records
    assert (first["method"], first["against"], first["shared seeds"]) == ("iw", "erm", 3)
    assert first["difference in worst"].mean == pytest.approx(20)
    assert first["difference in worst"].std == pytest.approx(10)
    assert (first["p"], second["p"]) == (0.25, 1.0)
    assert (first["p (Holm)"], second["p (Holm)"]) == (0.5, 1.0)
    notes = made.tables["comparison"].notes
    assert any("With 3 shared seeds no p can be below 0.25." in note for note in notes)
    against_best = write_report(tmp_path, ["made"], Options(baseline=None, plots=False))
    records = against_best.tables["comparison"].records
    assert [(one["method"], one["against"]) for one in records] == [
        ("erm", "iw"), ("iw", "dro"), ("dro", "iw"),
    ]  # fmt: skip


def test_the_setting_shown_is_chosen_by_validation_and_all_are_listed(tmp_path):
    make(tmp_path, epochs=((0.6, 0.2),), **{"optimizer.lr": 0.1})
    make(tmp_path, epochs=((0.5, 0.9),), **{"optimizer.lr": 0.2})
    made = write_report(tmp_path, ["made"], QUIET)
    assert [one["setting"] for one in made.tables["methods"].records] == ["lr=0.1"]
    listed = [(one["setting"], one["chosen"]) for one in made.tables["settings"].records]
    assert listed == [("lr=0.1", "yes"), ("lr=0.2", "")]


def test_the_runs_are_listed_by_criterion(tmp_path):
    make(tmp_path, epochs=((0.6, 0.2), (0.1, 0.7)), dfr=[(1, 0.5, 0.7)])
    found = read_csv(write_report(tmp_path, ["made"], QUIET).folder / "runs.csv")
    assert len(found) == 2 * len(STANDARD)
    picked = {(one["method"], one["criterion"]): one for one in found}
    assert picked["erm", "val/worst"]["test/worst"] == "0.2"
    assert picked["erm", "oracle"]["test/worst"] == "0.7"
    assert picked["erm + DFR", "oracle"]["dfr"] == "val-0"
    assert picked["erm", "last"]["clean/group/land/land"] == "0.7"


# --- rows and columns of the reader's choice ------------------------------------------------------


def strengths(outputs):
    for strength in (1.0, 0.95):
        for size in (1000, 500):
            for lr, val in ((0.1, 0.3), (0.2, 0.4)):
                make(
                    outputs, epochs=((val, strength / 2 + size / 1e4 + lr / 100),),
                    splits=f"{strength} {size}", **{
                        "dataset.strength": strength, "dataset.size": size, "optimizer.lr": lr,
                    },
                )  # fmt: skip


def test_keys_become_rows_and_columns_and_the_rest_is_selected(tmp_path):
    strengths(tmp_path)
    options = Options(
        rows=("dataset.strength",), columns=("dataset.size",), metrics=("worst",), plots=False
    )
    made = write_report(tmp_path, ["made"], options)
    records = [
        {key: getattr(cell, "mean", cell) for key, cell in one.items()}
        for one in made.tables["table"].records
    ]
    assert [one["strength"] for one in records] == ["0.95", "1.0"]
    assert records[0]["size=500"] == pytest.approx(47.5 + 5 + 0.2)  # lr=0.2, by validation
    assert records[1]["size=1000"] == pytest.approx(50 + 10 + 0.2)
    assert list(records[0]) == ["strength", "size=500", "size=1000"]
    for ending in ("md", "csv", "tex"):
        assert (made.folder / f"table.{ending}").exists()
    write_report(tmp_path, ["made"], QUIET)
    assert not (made.folder / "table.md").exists()  # an older report's would mislead


def test_a_cell_never_mixes_methods_or_splits(tmp_path):
    strengths(tmp_path)
    make(tmp_path, method="iw", splits="1.0 500", **{"dataset.strength": 1.0, "dataset.size": 500})
    options = Options(rows=("optimizer.lr",), metrics=("worst",), plots=False)
    table = write_report(tmp_path, ["made"], options).tables["table"]
    assert list(table.records[0])[:2] == ["lr", "splits"]
    options = Options(rows=("dataset.strength", "dataset.size"), metrics=("worst",), plots=False)
    table = write_report(tmp_path, ["made"], options).tables["table"]
    assert list(table.records[0])[:3] == ["strength", "size", "method"]


def test_only_what_is_kept_is_reported(tmp_path):
    strengths(tmp_path)
    wanted = {"dataset.strength": [1.0], "optimizer.lr": 0.1, "dataset.size": [500, 1000]}
    made = write_report(tmp_path, ["made"], Options(keep=wanted, plots=False))
    settings = made.tables["settings"].records
    assert len(settings) == 2
    text = (made.folder / "report.md").read_text()
    assert "Kept: only" in text
    assert "2 runs, 0 repairs." in text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rows": ("dataset.strenth",)}, "did you mean dataset.strength"),
        ({"columns": ("seed",)}, "choose from dataset, method, setting"),
        ({"metrics": ("wrost",)}, "did you mean worst"),
        ({"metrics": ("dirty/worst",)}, "worst, average"),
        ({"criterion": "test/worst"}, "val/worst, val/average, val/worst_class, last, oracle"),
        ({"baseline": "ermm"}, "did you mean erm"),
        ({"keep": {"method": "iw"}}, "keep.method=iw matches no run; choose from erm"),
        ({"keep": {"methods": "iw"}}, "did you mean method"),
        ({"keep": {"dataset.size": 500, "dataset.strength": 1.0, "optimizer.lr": 0.3}}, "0.3"),
    ],
)
def test_a_bad_choice_is_told_with_what_there_is(tmp_path, options, sentence):
    strengths(tmp_path)
    with pytest.raises(UserError) as told:
        write_report(tmp_path, ["made"], Options(plots=False, **options))
    message = str(told.value)
    assert sentence in message
    assert "\n" not in message


def test_empty_choices_are_refused():
    for key in ("rows", "metrics"):
        with pytest.raises(ValueError, match=f"{key}=.. is empty"):
            Options(**{key: ()})
    with pytest.raises(ValueError, match="columns=method is already one of the rows"):
        Options(columns=("method",))


def test_an_oracle_for_all_is_marked_on_top(tmp_path):
    make(tmp_path)
    made = write_report(tmp_path, ["made"], Options(criterion="oracle", plots=False))
    assert "bounds, not results" in (made.folder / "report.md").read_text().split("##")[0]


def test_named_test_sets_are_metrics_too(tmp_path):
    make(tmp_path)
    options = Options(metrics=("clean/worst", "group/land/land"), plots=False)
    (record,) = write_report(tmp_path, ["made"], options).tables["methods"].records
    assert record["clean/worst"].mean == pytest.approx(40)
    assert record["group/land/land"].mean == pytest.approx(40)


def test_repairs_that_no_point_asked_for_are_left_out_unless_wanted(tmp_path):
    make(tmp_path, dfr=[(1, 0.5, 0.7), (2, 0.6, 0.8)])
    manifest = tmp_path / "sweeps" / "made" / "points.jsonl"
    entry = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**entry, "needs": entry["needs"][:2]}) + "\n")
    found = collect(tmp_path, ["made"])
    assert [trial.repair for trial in found.trials] == [None, "val-0"]
    assert found.notes == (
        "1 repairs of these runs were made outside the sweep and are left out; `repairs=all`"
        " shows them.",
    )
    every = collect(tmp_path, ["made"], all_repairs=True)
    assert [trial.repair for trial in every.trials] == [None, "val-0", "val-1"]
    assert every.notes == ()


def abstaining(error, worst=0.5, rule="erm", coverages=(80, 100)):
    """What selective classification leaves of a rule, at an error that grows with the coverage."""
    found = {f"{rule}/aurc/test": error / 2}
    for nominal in coverages:
        found[f"{rule}/coverage_at_{nominal}/test"] = nominal / 100 - 0.01
        found[f"{rule}/error_at_{nominal}/test"] = error * nominal / 100
        found[f"{rule}/worst_at_{nominal}/test"] = worst
    return found


def test_errors_of_networks_that_may_abstain_are_a_table(tmp_path):
    for seed, error in enumerate((0.1, 0.3)):
        both = abstaining(error) | abstaining(error / 2, None, "product")
        make(tmp_path, seed, analysis={"selective-1": both}, dfr=[(1, 0.5, 0.7)])
    make(tmp_path, 0, analysis={"selective-1": abstaining(0.4)}, method="iw")
    made = write_report(tmp_path, ["made"], QUIET)
    erm, product, iw = made.tables["selective"].records  # and none of the repair
    assert (erm["method"], erm["rule"], str(erm["seeds"])) == ("erm", "erm", "2")
    assert erm["error at 80"].mean == pytest.approx(16)
    assert erm["error at 80"].std == pytest.approx(100 * (0.02**2 * 32) ** 0.5)
    assert (erm["error at 100"].mean, erm["AURC"].mean) == pytest.approx((20, 10))
    assert (product["rule"], product["error at 100"].mean) == ("product", pytest.approx(10))
    assert (erm["worst at 80"].mean, product["worst at 80"]) == (50, None)
    assert iw["error at 100"].mean == pytest.approx(40)
    assert "within 1.0 points" in made.tables["selective"].notes[0]
    rows = (made.folder / "selective.tex").read_text().splitlines()
    bold = {
        row.split("&")[2].strip(): r"\textbf{8.0 $\pm$ 5.7}" in row for row in rows if "&" in row
    }
    assert bold == {"rule": False, "erm": False, "product": True}, "the least error is the best"
    assert (made.folder / "selective.md").exists()


def test_what_analyses_found_at_the_end_is_a_metric_too(tmp_path):
    errors = {"erm": 0.2, "iw": 0.3, "dro": 0.1}
    for method, error in errors.items():
        make(tmp_path, analysis={"selective-1": abstaining(error)}, method=method)
    name = "selective/erm/error_at_100/test"
    options = Options(metrics=(name,), baseline=None, rows=("method",), plots=False)
    made = write_report(tmp_path, ["made"], options)
    assert [record[name].mean for record in made.tables["methods"].records] == [20, 30, 10]
    against = [one["against"] for one in made.tables["comparison"].records]
    assert against == ["dro", "dro", "erm"], "the best other method has the least error"
    for table in ("methods", "criteria", "table"):
        lines = (made.folder / f"{table}.tex").read_text().splitlines()
        bold = [line for line in lines if "textbf" in line]
        assert bold
        assert all("dro" in line for line in bold)


def test_two_analyses_of_a_name_are_told_apart(tmp_path):
    parts = {"selective-1": abstaining(0.2), "selective-2": abstaining(0.4, coverages=(90,))}
    make(tmp_path, analysis=parts)
    records = write_report(tmp_path, ["made"], QUIET).tables["selective"].records
    assert [record["rule"] for record in records] == ["selective-1/erm", "selective-2/erm"]
    manifest = tmp_path / "sweeps" / "made" / "points.jsonl"
    entry = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**entry, "needs": entry["needs"][:2]}) + "\n")
    (record,) = write_report(tmp_path, ["made"], QUIET).tables["selective"].records
    assert (record["rule"], record["AURC"].mean) == ("erm", 10), "only what the sweep asked for"


def test_kinds_of_groups_compete_only_where_a_report_has_several(tmp_path):
    """Group DRO by annotated groups and by inferred ones are two rows, and JTT is one as ever."""
    for groups in (None, "clusters"):
        own = {} if groups is None else {"groups": groups}
        make(tmp_path, method="group_dro", **own)
    make(tmp_path, method="jtt", groups="errors")
    rows = write_report(tmp_path, ["made"], QUIET).tables["methods"].records
    assert {row["method"] for row in rows} == {"group_dro", "group_dro (clusters)", "jtt"}


# --- the command ----------------------------------------------------------------------------------


def test_the_command_prints_markdown_and_writes_every_file(command_line, tmp_path):
    for method in ("erm", "iw"):
        for seed in (0, 1):
            make(tmp_path, seed, method=method, dfr=[(1, 0.5, 0.7), (2, 0.6, 0.8)])
    ended = command_line.run(
        "report", "sweep=made", f"paths.outputs={tmp_path}", "tracker=none",
        "curve={x: dfr.layer}", "keep={method: [erm, iw, erm + DFR]}", "rows=[method]",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert ended.out.startswith("| data set")
    assert "erm + DFR" in ended.out
    assert "iw + DFR" not in ended.out
    folder = tmp_path / "reports" / "made"
    names = {path.name for path in folder.iterdir()}
    tables = ("methods", "criteria", "table")
    expected = {f"{name}.{ending}" for name in tables for ending in ("csv", "tex")}
    expected |= {
        "report.md",
        "settings.csv",
        "comparison.csv",
        "runs.csv",
        "table.md",
        "budgets.csv",
    }
    figures = ("curve", "learning_curves_birds", "worst_vs_average", "best_of_n")
    assert names == expected | {f"{name}.{ending}" for name in figures for ending in ("png", "pdf")}
    assert all(str(folder / name) in ended.out for name in names)
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    text = (folder / "report.md").read_text()
    assert all(f"({name})" in text for name in names if name.endswith(".png"))


def test_the_commands_mistakes_are_told_in_a_sentence(command_line, tmp_path):
    make(tmp_path)
    where = (f"paths.outputs={tmp_path}", "tracker=none", "plots=false")
    for arguments, sentence in (
        (("sweep=mode",), "sweep=mode does not exist"),
        (("sweep=[]",), "sweep=[] "),
        (("sweep=made", "criterion=val/wrst"), "did you mean val/worst"),
        (("sweep=made", "curve={y: 3}"), "unknown key curve.y"),
    ):
        ended = command_line.run("report", *arguments, *where)
        assert ended.code == 2, ended.err
        assert sentence in ended.err
        assert len(ended.err.strip().splitlines()) == 1 or "curve" in arguments[-1]


@pytest.mark.parametrize("layout", sorted(path.stem for path in (CONF / "layout").glob("*")))
def test_every_layout_is_a_choice_of_rows_and_columns(layout):
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("report", ["sweep=x", f"layout={layout}", "tracker=none"])
    config = check(composed, ReportConfig)
    assert config.sweeps == ["x"]
    assert (config.rows == Options.rows) == (layout == "main")


@pytest.mark.cold
def test_a_report_needs_neither_torch_nor_a_tracker(tmp_path):
    make(tmp_path)
    code = (
        "import sys; from pathlib import Path; import spurcor.report;"
        "from spurcor.reports import write_report; from spurcor.reports.options import Options;"
        f"write_report(Path({str(tmp_path)!r}), ['made'], Options(plots=False));"
        "slow = {'torch', 'mlflow', 'matplotlib', 'scipy.stats', 'sklearn', 'pandas'};"
        "print(sorted(slow & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert ended.stdout.strip() == b"[]", ended.stderr.decode()
