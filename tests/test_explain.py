"""Pictures of where a finished run looks."""

import pytest
import torch
from training import read

from spurcor.config.schema import RunPaths
from spurcor.errors import UserError
from spurcor.explain import ExplainConfig, _chosen, draw
from spurcor.library import FinishedRun
from spurcor.runs import execute, lookup
from spurcor.system.terminal import Terminal

OPTIONS = ("tracker=none", "dfr=none", "method.epochs=2")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A finished run, and one that has no maps."""
    folder = tmp_path_factory.mktemp("outputs")
    for backbone in ("small_cnn", "mlp"):
        cfg = read(f"backbone={backbone}", *OPTIONS, f"paths.outputs={folder}")
        assert execute.execute(cfg, Terminal(quiet=True)).status == "done"
    return folder


def opened(outputs, backbone="small_cnn"):
    for path in outputs.glob("runs/*/*/*/seed0"):
        run = FinishedRun(path, lookup.read_config(path))
        if run.config.choices["backbone"] == backbone:
            return run
    raise AssertionError


def config(outputs, **options):
    return ExplainConfig(run="r", paths=RunPaths(outputs=outputs), **options)


def test_the_images_are_those_asked_for(outputs):
    run = opened(outputs)
    split = run.splits["test"]
    every = _chosen(run, config(outputs))
    assert list(every) == split.spec.names
    for name, members in every.items():
        assert {split.spec.names[g] for g in split.g[members].tolist()} == {name}
    assert sum(map(len, every.values())) == len(split)
    wrong = _chosen(run, config(outputs, group=("large/red", "small/green"), mistakes=True))
    assert list(wrong) == ["large/red", "small/green"]
    logits = run.logits("test")
    for members in wrong.values():
        assert bool((logits[members].argmax(1) != split.y[members]).all())
        confidence = logits[members].softmax(1).amax(1)
        assert torch.equal(confidence, confidence.sort(descending=True).values)


def test_a_picture_is_drawn_beside_no_run(outputs, command_line):
    run = opened(outputs)
    before = sorted(run.directory.rglob("*"))
    ended = command_line.run(
        "explain", f"run={run.directory}", "group=small/green", f"paths.outputs={outputs}"
    )
    assert ended.code == 0, ended.err
    (picture,) = (outputs / "explain").rglob("*.png")
    assert str(picture) in ended.out
    assert picture.name == "test-small_green-block2-grad_cam.png"
    draw(run, config(outputs, group="large/red"))
    assert len(list((outputs / "explain").rglob("*.png"))) == 2
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(run.directory.rglob("*")) == before


def test_what_cannot_be_shown_is_refused(outputs):
    run = opened(outputs)
    with pytest.raises(UserError, match=r"group=small .* small/red"):
        draw(run, config(outputs, group="small"))
    run.__dict__["mistakes"] = lambda split: torch.tensor([0])  # of one group
    first, other = (run.splits["test"].spec.names[i] for i in (int(run.splits["test"].g[0]), -1))
    assert first != other
    with pytest.raises(UserError, match=f"group={other}: test "):
        draw(run, config(outputs, group=(first, other), mistakes=True))
    with pytest.raises(UserError, match="this data set has no nothing split"):
        draw(run, config(outputs, split="nothing"))
    with pytest.raises(UserError, match="layer=hidden "):
        draw(run, config(outputs, layer="hidden"))
    with pytest.raises(UserError, match=r"backbone=mlp: .*layer_1"):
        draw(opened(outputs, "mlp"), config(outputs))
    with pytest.raises(ValueError, match="num_images=0 must be at least 1"):
        config(outputs, num_images=0)
