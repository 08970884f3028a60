"""spurcor in a notebook: finished runs as objects, and the notebook itself."""

import subprocess
import sys

import pytest
import torch
from conftest import REPO
from small_data import OPTIONS, write_all

import spurcor
from spurcor.errors import UserError
from spurcor.library import fit, open_run


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("library")


def arguments(outputs):
    small = ("tracker=none", "backbone=mlp", "backbone.width=16", "method.epochs=3")
    return (*small, f"paths.outputs={outputs}", "train.selection=val/loss")


@pytest.fixture(scope="module")
def run(outputs):
    return fit(*arguments(outputs))


def test_a_run_is_opened_by_what_names_it(run, outputs):
    for reference in (run.directory, f"{run.directory.parent.name[:5]}/seed0"):
        assert open_run(reference, outputs).directory == run.directory
    assert repr(run) == f"<digits erm mlp seed 0: {run.directory}>"
    with pytest.raises(UserError, match=r"run=.*/runs "):
        open_run("r0000000", outputs)


def test_predictions_are_those_of_the_network(run):
    assert not run.method.training
    for split in ("val", "test", "opposite"):
        data = run.splits[split]
        with torch.no_grad():
            logits = run.method.predict(run.splits.transform(data.fetch(torch.arange(len(data))).x))
        torch.testing.assert_close(run.logits(split), logits, atol=1e-5, rtol=1e-5)
        report = run.result[split] if split != "opposite" else run.result["tests"][split]
        assert run.metrics(split).worst == pytest.approx(report["worst"])


def test_predictions_of_a_repair(run):
    ((name, part),) = run.result["dfr"].items()
    assert run.metrics("test", dfr="target").worst == pytest.approx(part["test"]["worst"])
    assert torch.equal(run.logits("test", dfr=name), run.logits("test", dfr="tar"))
    with pytest.raises(UserError, match=rf"dfr=val .* 0 repairs .*{name}"):
        run.logits("test", dfr="val")
    with pytest.raises(UserError, match=r"split=train .* opposite, test, val"):
        run.logits("train")


def test_mistakes_come_with_the_surest_first(run):
    wrong = run.mistakes("test")
    predicted, y = run.logits("test").argmax(dim=1), run.splits["test"].y
    assert sorted(wrong.tolist()) == (predicted != y).nonzero().squeeze(1).tolist()
    confidence = run.logits("test").softmax(dim=1).amax(dim=1)[wrong]
    assert (confidence.diff() <= 0).all()


def test_features_are_the_layers(run):
    x = run.features("val", "layer_1")
    assert x.shape == (300, 16)
    data = run.splits["val"]
    inputs = run.splits.transform(data.fetch(torch.arange(300)).x).flatten(1)
    expected = run.method.backbone.hidden[0](inputs).relu()
    torch.testing.assert_close(x, expected.detach(), atol=1e-5, rtol=1e-5)


def test_weights_of_the_last_epoch(run):
    selected = {k: v.clone() for k, v in run.load("selected").state_dict().items()}
    last = run.load("last").state_dict()
    same = all(torch.equal(selected[key], last[key]) for key in selected)
    assert same == (run.result["selected"]["epoch"] == 3)


def test_the_same_call_is_the_same_run_and_another_repair_is_added(run, outputs):
    again = fit(*arguments(outputs), "dfr=val")
    assert again.directory == run.directory
    kinds = sorted(name.partition("-")[0] for name in again.result["dfr"])
    assert kinds == ["target", "val"]


def test_other_data_than_the_run_was_trained_on_are_refused(run, outputs, monkeypatch):
    from spurcor.datasets import digits

    monkeypatch.setattr(digits, "derive_seed", lambda *parts: 123)
    with pytest.raises(UserError, match="not the one this run was trained with"):
        _ = open_run(run.directory, outputs).splits


def test_names_that_do_not_exist():
    with pytest.raises(AttributeError, match="no attribute 'open_rum'"):
        _ = spurcor.open_rum


@pytest.mark.cold
def test_importing_spurcor_imports_no_torch():
    code = "import sys, spurcor; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


@pytest.mark.cold
def test_the_notebook_runs(tmp_path):
    """On a small copy of MNIST, with two epochs in the place of its fifteen."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    write_all(tmp_path / "data")
    notebook = nbformat.read(REPO / "scripts" / "sandbox.ipynb", 4)
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    small = [*OPTIONS["mnist_cues"], "tracker=none", "dfr.c_grid=[1000.0]"]
    parameters.source = (
        f"data, outputs, epochs = {str(tmp_path / 'data')!r}, {str(tmp_path / 'out')!r}, 2\n"
        f"small = {small!r}"
    )
    nbclient.NotebookClient(notebook, timeout=300).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert outputs[-1][0]["data"]["text/plain"] == "True"
    text = "".join(o.get("text", "") for cell in outputs for o in cell)
    assert "only_spurious" in text
    assert sum("image/png" in o.get("data", {}) for cell in outputs for o in cell) >= 3
