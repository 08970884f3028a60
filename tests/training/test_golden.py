"""What training gives: golden losses, and the story that the README tells."""

import json

import pytest
import torch
from training import read, rows_of, trainer_of

from spurcor.runs import execute
from spurcor.system.terminal import Terminal

# Change these only with a reason in the commit: they are the numbers that users have.
GOLDEN = {
    "erm": [0.286443, 0.137255, 0.104989],
    "iw": [0.718195, 0.414873, 0.215591],
    "group_dro": [0.793659, 0.530997, 0.372110],
}


@pytest.mark.parametrize("method", GOLDEN)
def test_losses_are_those_of_before(method, tmp_path):
    cfg = read(f"method={method}", "method.epochs=3")
    trainer, trained = trainer_of(cfg, tmp_path)
    trainer.fit(trained)
    losses = [row["train/loss"] for row in rows_of(tmp_path)]
    assert losses == pytest.approx(GOLDEN[method], abs=1e-4)


def finish(outputs, *overrides):
    torch.set_num_threads(1)
    cfg = read(*overrides, "tracker=none", f"paths.outputs={outputs}")
    outcome = execute.execute(cfg, Terminal(quiet=True))
    assert outcome.status == "done"
    return json.loads((outcome.directory / "result.json").read_text())


def test_a_shortcut_is_learnt_and_repaired(tmp_path):
    erm = finish(tmp_path)
    (dfr,) = erm["dfr"].values()
    dro = finish(tmp_path, "method=group_dro", "dfr=none")
    assert erm["test"]["groups"]["small/red"]["accuracy"] >= 0.95
    assert erm["test"]["groups"]["large/green"]["accuracy"] >= 0.95
    assert erm["test"]["worst"] <= 0.6
    assert dfr["test"]["average"] >= 0.85
    assert dfr["test"]["worst"] >= erm["test"]["worst"] + 0.15
    assert dro["test"]["worst"] >= erm["test"]["worst"] + 0.15


def test_the_digit_itself_can_be_learnt(tmp_path):
    grey = finish(tmp_path, "dataset.tint=0", "dfr=none")
    assert min(group["accuracy"] for group in grey["test"]["groups"].values()) >= 0.9
