"""Runs and sweeps of the first release, before modules had layers, are still runs and sweeps.

`fixtures/first_release` holds a finished ERM with a repair and an analysis, a PruSC that was
stopped while it pruned, and their sweep; `prusc-finished.jsonl` are the rows that it ended with.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import REPO
from training import read

from spurcor.runs import execute, lookup, provenance
from spurcor.system.files import read_lines
from spurcor.system.terminal import Terminal

RELEASE = REPO / "tests" / "fixtures" / "first_release"
COMMON = (
    *("backbone=mlp", "backbone.width=4", "backbone.depth=1", "tracker=none", "paths.data=/data"),
    *("train.num_threads=1", "train.checkpoint_seconds=0", "sweep=before"),
)
ERM = (*COMMON, "method=erm", "method.epochs=2", "train.keep_epochs=[1]", "analysis=gap_dynamics")
PRUSC = (
    *(*COMMON, "method=prusc", "dataset.strength=0.7", "method.epochs=2"),
    *("method.prune_epochs=40", "method.retrain_epochs=2"),
)


@pytest.fixture
def outputs(tmp_path):
    """The outputs folder of the release, where this test has put it."""
    shutil.copytree(RELEASE / "outputs", tmp_path / "outputs")
    for path in [*tmp_path.rglob("config.yaml"), *tmp_path.rglob("points.jsonl")]:
        path.write_text(path.read_text().replace("/outputs", str(tmp_path / "outputs")))
    return tmp_path / "outputs"


def config(outputs: Path, *overrides: str):
    return read(*overrides, f"paths.outputs={outputs}")


def test_a_finished_run_is_found_by_the_command_that_made_it(outputs, capsys):
    cfg = config(outputs, *ERM, "dfr=none")
    assert cfg.directory.exists()
    assert lookup.read_config(cfg.directory).identity == cfg.identity
    before = {path: path.stat().st_mtime_ns for path in cfg.directory.rglob("*")}
    outcome = execute.execute(cfg, Terminal())
    assert outcome.status == "done"
    assert "was done before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in cfg.directory.rglob("*")} == before
    # Its worst group was at 0 in both epochs: that release took the first, now the average decides.
    assert provenance.outdated(cfg) == ["train.selection=val/worst"]


def test_a_finished_run_is_repaired_and_analysed(outputs):
    cfg = config(outputs, *ERM, "analysis=[gap_dynamics,output_moments]")
    assert execute.execute(cfg, Terminal(quiet=True)).status == "done"
    result = json.loads((cfg.directory / "result.json").read_text())
    assert "target-cb31bf4b" in result["dfr"]  # as that release fitted it
    assert len(result["dfr"]) == 2  # and as it is fitted now
    assert {name.rpartition("-")[0] for name in result["analysis"]} == {
        "gap_dynamics",
        "output_moments",
    }


def test_an_unfinished_run_goes_on_to_the_same_end(outputs):
    torch.set_num_threads(1)
    cfg = config(outputs, *PRUSC, "dfr=none")
    assert (cfg.directory / "checkpoint.pt").exists()
    assert execute.execute(cfg, Terminal(quiet=True)).status == "done"
    clocks = ("time", "seconds")
    rows = [
        [{k: v for k, v in row.items() if k not in clocks} for row in read_lines(path)]
        for path in (cfg.directory / "metrics.jsonl", RELEASE / "prusc-finished.jsonl")
    ]
    assert len(rows[0]) == len(rows[1])
    for found, expected in zip(*rows, strict=True):
        assert found == pytest.approx(expected, abs=1e-4, nan_ok=True)


def test_a_sweep_is_shown_and_reported(outputs, command_line):
    status = command_line.run("status", "sweep=before", f"paths.outputs={outputs}")
    assert status.code == 0, status.err
    assert "rd6eb959f2f" in status.out
    assert "interrupted" in status.out
    report = command_line.run("report", "sweep=before", "plots=false", f"paths.outputs={outputs}")
    assert report.code == 0, report.err
    written = (outputs / "reports" / "before" / "report.md").read_text()
    assert "erm + DFR" in written
