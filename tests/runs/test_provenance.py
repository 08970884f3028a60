"""Finished runs of other code are told of; moving, reformatting and rewording it is not."""

import ast
import json

import pytest
from killing import contents
from training import SMALL, read

from spurcor.runs import execute, provenance
from spurcor.sweeps import carry_out
from spurcor.system.files import write_json
from spurcor.system.terminal import Terminal
from spurcor.training import predictions

READ = provenance.text_of


@pytest.fixture
def edited(monkeypatch):
    """Code as if it had been edited: `edited(module, before, after)`."""
    texts = {}

    def forget():
        provenance._module.cache_clear()
        provenance.fingerprint.cache_clear()

    def edit(module, before, after):
        text = texts.get(module) or READ(module)
        assert before in text
        texts[module] = text.replace(before, after)
        forget()

    monkeypatch.setattr(provenance, "text_of", lambda name: texts.get(name) or READ(name))
    yield edit
    texts.clear()
    forget()


def parts(before):
    return provenance.changed(before, read("backbone=mlp"))


COUNTS = {
    "the method": ("spurcor.methods.erm", "losses.mean()", "0 * losses.mean()", "method=erm"),
    "its step": ("spurcor.training.method", "set_to_none=True", "set_to_none=False", "method=erm"),
    "a loss": ("spurcor.training.losses", "return F.cross_", "return -F.cross_", "method=erm"),
    "the data set": ("spurcor.datasets.digits", "VAL: 300", "VAL: 301", "dataset=digits"),
    "its transform": ("spurcor.data.transforms", "1 / (255 *", "1 / (256 *", "dataset=digits"),
    "the backbone": ("spurcor.backbones.mlp", "x.flatten(1)", "x.flatten(1) * 2", "backbone=mlp"),
}  # fmt: skip


@pytest.mark.parametrize("what", COUNTS)
def test_code_that_moves_numbers_counts(what, edited):
    before = provenance.code_of(read("backbone=mlp"))
    assert parts(before) == []
    module, line, other, part = COUNTS[what]
    edited(module, line, other)
    assert any(found.startswith(part) for found in parts(before))


SILENT = {
    "a docstring": ("spurcor.methods.erm", '"""Return L = 1/B sum_i l_i."""', '"""The mean."""'),
    "a comment": ("spurcor.methods.erm", "return losses.mean()", "return losses.mean()  # so"),
    "a line": ("spurcor.methods.erm", "losses.mean()", "(\n            losses.mean()\n        )"),
    "a message": ("spurcor.backbones.mlp", "must be at least 1 and", "is too small, or"),
    "an annotation": ("spurcor.methods.erm", "losses: Tensor, batch: Batch", "losses, batch"),
    "a module": (
        "spurcor.methods.erm",
        "from spurcor.training.method import Method, Phase, Supervised",
        "from spurcor.methods.iw import Method, Phase, Supervised",
    ),
    "what it never uses": (
        "spurcor.training.losses",
        "from torch import Tensor\n",
        "from torch import Tensor\nUNUSED = 1\n",
    ),
}


@pytest.mark.parametrize("what", SILENT)
def test_what_moves_no_number_does_not_count(what, edited):
    before = provenance.code_of(read("backbone=mlp"))
    edited(*SILENT[what])
    assert parts(before) == []


def test_sentences_do_not_count_wherever_they_are_made_and_keys_do():
    def left_of(text):
        reader = provenance._Reader(provenance._module("spurcor.methods.erm"))
        return ast.dump(reader.visit(ast.parse(f"def f(x):\n    return {text}").body[0]))

    assert left_of("UserError(f'{x} is odd')") == left_of("UserError(f'{x} is not even')")
    assert left_of("x['mean']") != left_of("x['sum']")


def test_every_name_that_is_read_is_found():
    """A closure that misses a definition would call changed code unchanged."""
    module = provenance._module("spurcor.methods.prusc")
    reader = provenance._Reader(module)
    reader.visit(module.definitions["Prusc"])
    names = {name for _, name in reader.used}
    assert {"Method", "DebiasingSet", "gates_of", "Prune", "contrast"} <= names
    assert isinstance(module.definitions["contrast"], ast.FunctionDef)


OPTIONS = (*SMALL, "method.epochs=2", "dfr=none", "tracker=none")


def finished(tmp_path, *overrides):
    cfg = read(*OPTIONS, *overrides, f"paths.outputs={tmp_path}")
    assert execute.execute(cfg, Terminal(quiet=True)).status == "done"
    return cfg


def tell(*configs):
    carry_out.warn_of_other_code([carry_out.Point((), config) for config in configs])


def test_a_run_that_was_done_by_other_code_is_told_of_once_for_a_sweep(tmp_path, edited, caplog):
    configs = [finished(tmp_path, f"seed={seed}") for seed in (0, 1)]
    before = contents(configs[0].directory)
    tell(*configs)
    assert caplog.messages == []
    edited("spurcor.methods.erm", "losses.mean()", "0 * losses.mean()")
    tell(*configs)
    (message,) = caplog.messages
    for word in ("2 of 2 runs were finished", "method=erm", "rerun=true"):
        assert word in message
    tell(configs[0], read(*OPTIONS, "seed=2", f"paths.outputs={tmp_path}"))
    assert "1 of 1 runs was finished" in caplog.messages[-1]
    tell(configs[0])
    assert f"{configs[0].directory} was finished" in caplog.messages[-1]
    assert contents(configs[0].directory) == before
    again = read(*OPTIONS, f"paths.outputs={tmp_path}", "seed=0")
    assert again.identity == configs[0].identity


def test_a_run_that_is_continued_by_other_code_is_told_of(tmp_path, edited, caplog, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(predictions, "predict_all", stop)
        with pytest.raises(KeyboardInterrupt):
            finished(tmp_path)
    cfg = read(*OPTIONS, f"paths.outputs={tmp_path}")
    recorded = json.loads((cfg.directory / "code.json").read_text())
    edited("spurcor.methods.erm", "losses.mean()", "0 * losses.mean()")
    assert execute.execute(cfg, Terminal(quiet=True)).status == "done"
    assert any("method=erm" in message and "rerun=true" in message for message in caplog.messages)
    result = json.loads((cfg.directory / "result.json").read_text())
    assert result["run"]["code"] == recorded  # part of it is of the code of then


def test_a_run_that_kept_no_fingerprint_is_told_of_by_its_commit(tmp_path, capsys):
    cfg = finished(tmp_path)
    path = cfg.directory / "result.json"
    result = json.loads(path.read_text())
    del result["run"]["code"]
    result["run"]["commit"] = "0123456789ab"
    write_json(path, result)
    execute.execute(cfg, Terminal())
    assert "0123456789ab" in capsys.readouterr().out


def test_an_epoch_that_another_rule_chose_is_told_of(tmp_path, caplog):
    cfg = finished(tmp_path)
    path = cfg.directory / "result.json"
    result = json.loads(path.read_text())
    result["selected"]["epoch"] = 3 - result["selected"]["epoch"]
    write_json(path, result)
    tell(cfg)
    (message,) = caplog.messages
    assert "train.selection=val/worst" in message
