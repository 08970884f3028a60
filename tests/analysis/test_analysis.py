"""Analyses of a run: when they measure, what they leave, what they must not touch."""

import dataclasses
import logging
from contextlib import suppress

import numpy as np
import pytest
import torch
from test_contracts import CrashError, StopAt, noisy
from training import Silent, read, rows_of, trainer_of, without_time

from spurcor.analysis.contract import Analyses, Analysis
from spurcor.config import check, nodes
from spurcor.config.nodes import Node
from spurcor.config.schema import RunPaths, analysis_name
from spurcor.errors import UserError
from spurcor.runs import execute as runs
from spurcor.runs import lookup
from spurcor.runs.analyze import analyze_stored, kept_weights
from spurcor.runs.prepared import prepare_finished
from spurcor.system.files import read_json, write_json
from spurcor.system.lock import lock_of, locked
from spurcor.system.terminal import Terminal
from spurcor.tracking import Trackers

SMALL = ("backbone=mlp", "backbone.width=16", "train.batch_size=200", "tracker=none")


class Noise(Analysis):
    """Draws random numbers and runs the network in whatever mode it finds."""

    measures = True

    def __init__(self, epochs=(1,), refuses=False):
        self.epochs, self.refuses = epochs, refuses

    def check(self, method, splits):
        if self.refuses:
            raise ValueError("refuses=true refuses everything")

    def due(self, epoch):
        return epoch in self.epochs

    def measure(self, method, splits, found):
        assert not method.training
        batch = splits["val"].fetch(torch.arange(8))
        logits = method.predict(splits.transform(batch.x))
        return {
            "noise/val": torch.rand(()),
            "undefined/val": torch.tensor(torch.nan),
            "logits/val": logits,
        }

    def finish(self, ended):
        picture = ended.folder / "plots" / "noise.png"
        picture.parent.mkdir(exist_ok=True)
        picture.write_bytes(b"a picture")
        return {"metrics": {"count": len(ended.series.moments)}}


class End(Analysis):
    """Looks at the stored predictions only."""

    def finish(self, ended):
        with np.load(ended.directory / "predictions.npz", allow_pickle=False) as stored:
            right = stored["test/logits"].argmax(1) == stored["test/y"]
        return {"metrics": {"right/test": float(right.mean())}}


def analyses(**named):
    folders = {f"{name}-0": analysis for name, analysis in named.items()}
    return Analyses(folders, {folder: {} for folder in folders})


def only_training(rows):
    """Rows without what analyses added to them."""
    kept = [{k: v for k, v in row.items() if not k.startswith("noise/")} for row in rows]
    return without_time([row for row in kept if "val/worst" in row])


def test_an_analysis_leaves_no_trace(tmp_path):
    cfg = read("method.epochs=6", "backbone=mlp", "train.eval_every=2", "tracker=none")
    ends = []
    for name, chosen in (("plain", {}), ("measured", {"noise": Noise((1, 3, 4))})):
        folder = tmp_path / name
        folder.mkdir()
        trainer, method = trainer_of(cfg, folder, analyses(**chosen))
        trainer.fit(noisy(method))
        ends.append((method.state_dict(), trainer.progress.selected.facts))
    measured = rows_of(tmp_path / "measured")
    assert [row["epoch"] for row in measured] == [1, 2, 3, 4, 6]
    assert ["noise/noise/val" in row for row in measured] == [True, False, True, True, False]
    assert measured[0]["noise/undefined/val"] is None
    assert "noise/logits/val" not in measured[0]  # no single number
    assert only_training(measured) == without_time(rows_of(tmp_path / "plain"))
    assert ends[0][1] == ends[1][1]
    for name, value in ends[0][0].items():
        assert torch.equal(value, ends[1][0][name])


def test_early_stopping_counts_evaluations_not_rows(tmp_path):
    options = ("train.early_stopping={patience: 2, metric: val/loss}", "optimizer.lr=0.01")
    cfg = read("method.epochs=40", "train.eval_every=3", *options, *SMALL)
    ends = []
    for name, chosen in (("plain", {}), ("measured", {"noise": Noise(range(41))})):
        folder = tmp_path / name
        folder.mkdir()
        trainer, method = trainer_of(cfg, folder, analyses(**chosen))
        trainer.fit(method)
        ends.append(trainer.progress.steps)
    assert ends[0] == ends[1]
    assert rows_of(tmp_path / "plain")[-1]["epoch"] < 40


def test_what_was_measured_survives_a_crash(tmp_path):
    cfg = read("method.epochs=3", *SMALL, "train.checkpoint_seconds=0")
    series = []
    for name, crashes in (("whole", False), ("crashed", True)):
        folder = tmp_path / name
        folder.mkdir()
        if crashes:
            trainer, method = trainer_of(cfg, folder, analyses(noise=Noise((1, 2, 3))))
            trainer.observer = StopAt(6)
            with pytest.raises(CrashError):
                trainer.fit(method)
        chosen = analyses(noise=Noise((1, 2, 3)))
        trainer, method = trainer_of(cfg, folder, chosen)
        trainer.fit(method)
        series.append(chosen.series["noise-0"])
    assert [moment.epoch for moment in series[0].moments] == [1, 2, 3]
    assert series[0].moments == series[1].moments
    assert torch.equal(series[0].stacked()["logits/val"], series[1].stacked()["logits/val"])


@pytest.mark.parametrize(
    ("step", "epochs", "message"),
    [
        (5, range(9), "epoch 2 of erm"),  # in the second epoch of four steps
        (5, (0, 1, 3), "epoch 3 of erm"),
        (5, (0, 1), "epoch 0 of prune"),
        (5, (9,), "never, because all the epochs it asks for are over"),
        (13, range(9), "epoch 0 of prune"),
    ],
)
def test_an_analysis_that_comes_later_says_where_it_begins(step, epochs, message, tmp_path, caplog):
    options = ("method=prusc", "dataset.strength=0.7", "method.num_clusters=16")
    lengths = [f"method.{name}=1" for name in ("prune_epochs", "retrain_epochs")]
    cfg = read(*SMALL, *options, *lengths, "method.epochs=3", "train.checkpoint_seconds=0")
    with caplog.at_level(logging.WARNING, "spurcor"):
        for named, stop in (
            ({}, step),
            ({"noise": Noise(epochs)}, 2),
            ({"noise": Noise(epochs)}, 0),
        ):
            chosen = analyses(**named)
            trainer, method = trainer_of(cfg, tmp_path, chosen)
            trainer.observer = StopAt(stop)
            with suppress(CrashError):
                trainer.fit(method)
    told = [text for text in caplog.messages if text.startswith("analysis: noise was added")]
    assert len(told) == 1
    assert told[0].endswith(message)
    moments = chosen.series["noise-0"].moments
    assert not moments or message == f"epoch {moments[0].epoch} of {moments[0].phase}"
    assert bool(moments) == (not message.startswith("never"))


@pytest.fixture(autouse=True)
def _plug_ins(monkeypatch):
    """Configurations may name the classes of this file."""
    locate = nodes.locate
    here = {f"spurcor.{one.__name__}": one for one in (Noise, End)}
    for module in (nodes, check):
        monkeypatch.setattr(module, "locate", lambda target: here.get(target) or locate(target))


END = Node("analysis.end", "spurcor.End", {})


def noise(**options):
    return Node("analysis.noise", "spurcor.Noise", options)


def asking(tmp_path, *options, **nodes):
    """A configuration of a run that asks for analyses."""
    cfg = read(*SMALL, "method.epochs=4", f"paths.outputs={tmp_path}", "dfr=none", *options)
    return dataclasses.replace(cfg, analysis=nodes)


def execute(cfg):
    return runs.execute(cfg, Terminal())


def folder_of(cfg, name):
    return cfg.directory / "analysis" / analysis_name(name, cfg.analysis[name])


def test_a_run_ends_with_its_analyses(tmp_path):
    cfg = asking(tmp_path, noise=noise(epochs=[2, 4]), end=END)
    outcome = execute(cfg)
    result = read_json(cfg.directory / "result.json")
    part = result["analysis"][folder_of(cfg, "noise").name]
    first = {"phase": "erm", "epoch": 2}
    assert part == {"options": {"epochs": [2, 4]}, "metrics": {"count": 2}, "first": first}
    right = result["analysis"][folder_of(cfg, "end").name]["metrics"]["right/test"]
    assert right == pytest.approx(result["test"]["average"])
    assert outcome.result["analysis"] == result["analysis"]
    with np.load(folder_of(cfg, "noise") / "arrays.npz", allow_pickle=False) as arrays:
        assert arrays["epoch"].tolist() == [2, 4]
        assert arrays["phase"].tolist() == ["erm", "erm"]
        assert arrays["logits/val"].shape == (2, 8, 2)
        rows = rows_of(cfg.directory)
        assert arrays["noise/val"][1] == pytest.approx(rows[3]["noise/noise/val"])
    assert not (folder_of(cfg, "end") / "arrays.npz").exists()


def test_the_same_command_on_a_finished_run_makes_what_is_missing_and_nothing_else(tmp_path):
    plain = asking(tmp_path, "train.keep_epochs=[1,3]")
    execute(plain)
    before = (plain.directory / "metrics.jsonl").read_bytes()
    cfg = asking(tmp_path, "train.keep_epochs=[1,3]", noise=noise(epochs=[4]), end=END)
    assert cfg.directory == plain.directory
    assert execute(cfg).status == "done"
    assert (cfg.directory / "metrics.jsonl").read_bytes() == before
    moments = [moment for moment, _ in kept_weights(cfg.directory)]
    epochs = sorted({1, 3, 4, read_json(cfg.directory / "result.json")["selected"]["epoch"]})
    assert [moment.epoch for moment in moments] == epochs
    rows = {row["epoch"]: row["step"] for row in rows_of(cfg.directory)}
    assert [moment.step for moment in moments] == [rows[epoch] for epoch in epochs]
    part = read_json(folder_of(cfg, "noise") / "result.json")
    assert part["metrics"]["count"] == len(epochs)
    names = {folder_of(cfg, name).name for name in ("noise", "end")}
    assert set(read_json(cfg.directory / "result.json")["analysis"]) == names
    made = (folder_of(cfg, "noise") / "arrays.npz").stat().st_mtime_ns
    assert execute(cfg).status == "done"
    assert (folder_of(cfg, "noise") / "arrays.npz").stat().st_mtime_ns == made


def test_other_options_are_another_analysis(tmp_path):
    execute(asking(tmp_path, noise=noise(epochs=[1])))
    cfg = asking(tmp_path, noise=noise(epochs=[2]))
    execute(cfg)
    assert len(read_json(cfg.directory / "result.json")["analysis"]) == 2


def test_a_finished_run_is_analysed_by_its_own_configuration(tmp_path):
    execute(asking(tmp_path))
    paths = RunPaths(outputs=tmp_path)
    directory, cfg = lookup.reopen("r", paths, analysis={"end": END}, tracker={})
    outcome = runs.analyze(directory, cfg, Terminal())
    assert list(outcome.result["analysis"]) == [folder_of(cfg, "end").name]
    with pytest.raises(UserError, match="analysis=none "):
        runs.analyze(directory, dataclasses.replace(cfg, analysis={}), Terminal())
    result = read_json(directory / "result.json")
    result["run"]["splits"]["test"] = "another"
    write_json(directory / "result.json", result)
    with pytest.raises(UserError, match="the test split is not the one"):
        runs.analyze(directory, asking(tmp_path, noise=noise(epochs=[1])), Terminal())


def test_the_selected_and_the_last_weights_are_analysed_too(tmp_path):
    cfg = asking(tmp_path)
    execute(cfg)
    result = read_json(cfg.directory / "result.json")
    result["selected"]["epoch"] = 2
    write_json(cfg.directory / "result.json", result)
    found = [(moment.epoch, path.name) for moment, path in kept_weights(cfg.directory)]
    assert found == [(2, "model.safetensors"), (4, "last.safetensors")]
    rows = cfg.directory / "metrics.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=r"metrics\.jsonl lacks rows"):
        list(kept_weights(cfg.directory))  # else the last weights would be those of epoch 3


def test_two_processes_never_analyse_a_run_at_once(tmp_path):
    cfg = asking(tmp_path)
    execute(cfg)
    cfg = asking(tmp_path, end=END)
    with locked(lock_of(cfg.directory / "analysis"), tmp_path / ".guard"):
        assert runs.analyze(cfg.directory, cfg, Terminal()).status == "held"
        assert execute(dataclasses.replace(cfg, rerun=True)).status == "held"
    assert runs.analyze(cfg.directory, cfg, Terminal()).status == "done"


def test_what_an_analysis_refuses_is_refused_before_anything_is_written(tmp_path):
    cfg = asking(tmp_path, noise=noise(refuses=True))
    with pytest.raises(UserError, match=r"analysis\.noise: refuses=true refuses everything"):
        execute(cfg)
    assert not (tmp_path / "runs").exists()


class Shown:
    """A tracker that keeps what it is shown."""

    def __init__(self):
        self.files, self.numbers = [], {}

    def __getattr__(self, name):
        return lambda *arguments: None

    def artifact(self, record, path, folder=""):
        self.files.append((path.name, folder))

    def result(self, record, row):
        self.numbers |= row


def test_trackers_show_pictures_and_numbers(tmp_path):
    execute(asking(tmp_path))
    cfg = asking(tmp_path, noise=noise(), end=END)
    shown = Shown()
    analyze_stored(prepare_finished(cfg, cfg.directory, Trackers([shown])))
    assert ("noise.png", f"plots/{folder_of(cfg, 'noise').name}") in shown.files
    result = read_json(cfg.directory / "result.json")
    assert shown.numbers["selected/end/right/test"] == pytest.approx(result["test"]["average"])


def test_people_are_shown_evaluations_only(tmp_path):
    cfg = read(*SMALL, "method.epochs=2", "train.eval_every=2")
    trainer, method = trainer_of(cfg, tmp_path, analyses(noise=Noise((1,))))
    seen = []

    class Watching(Silent):
        def row(self, row, phase):
            seen.append(row["epoch"])

    trainer.observer = Watching()
    trainer.fit(method)
    assert seen == [2]
