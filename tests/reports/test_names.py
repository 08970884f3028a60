"""Names of classes and attributes are shown as they are, whatever they would mean elsewhere."""

import csv
import io
import re
import shutil
import subprocess

import pytest
from training import SMALL, read

from spurcor.data.examples import draw_examples
from spurcor.data.groups import GroupSpec
from spurcor.datasets.digits import Digits
from spurcor.prepare import groups_table
from spurcor.presentation import pictures, render
from spurcor.presentation.tables import Table
from spurcor.reports import write_report
from spurcor.reports.options import Options
from spurcor.runs import execute
from spurcor.sweeps.manifest import Point, write_manifest
from spurcor.sweeps.states import PointState
from spurcor.sweeps.tables import status_table
from spurcor.system.terminal import PatientConsole, Terminal

CLASSES = ("cat [/indoor]", "nevus [clinical] :dog:")
ATTRIBUTES = ("a|b*c", "$x_1$ & 50% #{}")
GROUPS = [f"{c}/{a}" for c in CLASSES for a in ATTRIBUTES]


def console(terminal=False):
    return PatientConsole(file=io.StringIO(), width=200, force_terminal=terminal)


def shown(*parts, terminal=False):
    to = console(terminal)
    for part in parts:
        to.print(part)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", to.file.getvalue())


@pytest.fixture
def nasty(monkeypatch):
    monkeypatch.setattr(Digits, "spec", GroupSpec(CLASSES, ATTRIBUTES, aligned=(0, 1)))


def test_a_run_ends_with_the_names_as_they_are(nasty, tmp_path):
    overrides = (*SMALL, "method.epochs=1", "dfr=val", "analysis=selective", "tracker=none")
    overrides = (*overrides, f"paths.outputs={tmp_path}")
    config = read(*overrides)
    to = console(terminal=True)
    point = Point(overrides, config)
    outcome = execute.execute(config, Terminal(to), lambda: write_manifest([point]))
    assert outcome.status == "done"
    for name in (*GROUPS, *CLASSES):
        assert name in to.file.getvalue()
    options = Options(metrics=(f"group/{GROUPS[1]}", "worst"))
    report = write_report(tmp_path, ["default"], options)
    with (report.folder / "methods.csv").open() as file:
        assert f"group/{GROUPS[1]}_mean" in next(csv.reader(file))
    title = f"group/{GROUPS[1]}"
    assert title in shown(render.rich_table(report.tables["methods"])).replace("\n", "")
    latex = (report.folder / "methods.tex").read_text()
    assert r"group/cat [/indoor]/\$x\_1\$ \& 50\% \#\{\}" in latex


def test_a_status_and_a_preview_show_the_names(nasty, tmp_path):
    entry = {"overrides": ["dataset.aligned=[x[/red]]", "k=2"], "identity": "r0", "seed": 0,
             "directory": "x", "needs": ["done"], "job": None, "log": None}  # fmt: skip
    failed = PointState(entry, "failed", "class [/bold] :dog: is none")
    text = shown(status_table([failed]))
    assert "dataset.aligned=[x[/red]] k=2" in text
    assert "failed class [/bold] :dog: is none" in text
    splits = Digits().splits(tmp_path)
    text = shown(groups_table(splits))
    assert all(name in text for name in GROUPS)
    draw_examples(splits["train"], tmp_path / "preview.png")
    assert (tmp_path / "preview.png").exists()


def test_a_bar_shows_its_title_as_it_is(monkeypatch, capsys):
    from spurcor.system import terminal as module

    to = console(terminal=True)
    monkeypatch.setattr(module, "PatientConsole", lambda: to)
    assert list(module.tracked(range(2), "features [/x] of [bold]", 2)) == [0, 1]
    assert "features [/x] of [bold]" in to.file.getvalue()


NAMES = ["a|b", "*c* and `d`", "_e_ but f_g", "<b>h</b>", "back\\slash", "two\nlines"]


def test_markdown_escapes_what_it_would_read():
    table = Table("t", "T", [{"head|er": name, "x_y": 1} for name in NAMES])
    head, _, *lines = render.markdown(table).splitlines()
    assert head.replace(" ", "") == r"|head\|er|x_y|"
    cells = [line[1:].rpartition("|")[0].rpartition("|")[0].strip() for line in lines]
    assert cells == [
        r"a\|b", r"\*c\* and \`d\`", r"\_e\_ but f_g", r"\<b>h\</b>", r"back\\slash", "two lines",
    ]  # fmt: skip


SPECIAL = "&%$#_{}~^\\<>"


def test_latex_escapes_every_special_character(tmp_path):
    table = Table("t", "T", [{"name": f"{SPECIAL} in a cell", SPECIAL: 1}])
    text = render.latex(table)
    body = text.partition("\n")[2]
    for character in "&%$#_":
        assert rf"\{character}" in body
    assert len(re.findall(r"(?<!\\)&", body)) == 2  # between the columns alone
    if shutil.which("pdflatex") is None:
        return
    document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{text}"
    (tmp_path / "t.tex").write_text(document + r"\end{document}")
    command = ["pdflatex", "-interaction=batchmode", "-halt-on-error", "t.tex"]
    assert subprocess.run(command, cwd=tmp_path, stdout=subprocess.DEVNULL).returncode == 0


def test_a_dollar_sign_in_a_picture_begins_no_formula(tmp_path):
    import torch

    names = ("$\\broken{$", "$a_b$")
    rows = {name: [torch.zeros(3, 4, 4), torch.zeros(4, 4)] for name in names}
    pictures.draw_panels(rows, "$\\title{$", tmp_path / "panels.png")
    pictures.draw_histograms(torch.ones(2, 2, 3), names, "$\\x{$", tmp_path / "histograms.png")
    import numpy as np

    labels = {"$\\class{$": np.array(names)}
    pictures.draw_scatter(torch.zeros(2, 2), labels, tmp_path / "scatter.png")
    assert len(list(tmp_path.iterdir())) == 3
