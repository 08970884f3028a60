"""`tuned=write`: the setting that a report chose becomes the default of its data set and method."""

from types import SimpleNamespace

import pytest
import yaml
from training import read

from spurcor.errors import UserError
from spurcor.reports import tuned
from spurcor.reports.tables import judge_all
from spurcor.reports.trials import Trial
from spurcor.sweeps.manifest import Point, write_manifest

PAIR = ("dataset=isic", "method=scale")  # without an entry


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """A folder in place of conf, which the entries are written to."""
    monkeypatch.setattr(tuned, "CONF", tmp_path / "conf")
    return tmp_path / "conf"


def entries(tmp_path, *scored: tuple[float, tuple[str, ...]], how="write", splits=None):
    """The entries of a sweep of runs with these scores on VAL and typed words."""
    trials = []
    for val, typed in scored:
        words = (*PAIR, "sweep=mine", f"paths.outputs={tmp_path}", *typed)
        config = read(*words)
        write_manifest([Point(words, config)])
        run = SimpleNamespace(
            identity=config.identity, directory=config.directory, seed=0, images=1, seconds=1.0
        )
        row = {"epoch": 1, "val/worst": val, "val/average": val}
        data = (splits or {}).get(val, "isic")
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in config.settings.items()}
        trials.append(Trial(run, data, "scale", config.identity, settings, [row]))
    judged = judge_all(trials, "val/worst", {})
    return tuned.tuned_entries(tmp_path, ["mine"], judged, how)


def write(texts):
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


SEARCHED = (
    (0.7, ("optimizer.lr=0.1", "method.gate=step")),
    (0.9, ("optimizer.lr=0.2", "method.gate=linear")),
    (0.8, ("optimizer.lr=0.3", "method.gate=step")),
)


def test_an_entry_is_the_best_run_of_the_sweep(tmp_path, conf):
    typed = ("method.epochs=7", "train.batch_size=16", "train.early_stopping={patience: 2}")
    texts = entries(tmp_path, *((val, (*words, *typed)) for val, words in SEARCHED))
    (path,) = texts
    assert path == conf / "tuned" / "isic" / "scale.yaml"
    write(texts)
    best = read(*PAIR, *SEARCHED[1][1], *typed)
    assert read(*PAIR, f"hydra.searchpath=[file://{conf}]").identity == best.identity
    assert best.identity != read(*PAIR).identity


def test_an_entry_says_where_it_is_from_and_what_was_typed_beside_it(tmp_path, conf):
    beside = ("backbone=mlp", "dataset.transform.size=16")
    (text,) = entries(tmp_path, *((val, (*words, *beside)) for val, words in SEARCHED)).values()
    assert "Best by val/worst (90.0) of 3 settings with 1 seed in the sweep mine." in text
    assert "Tried there: method.gate, optimizer.lr." in text
    assert "Chosen with backbone=mlp dataset.transform.size=16." in text
    assert set(yaml.safe_load(text)) == {"method", "optimizer"}  # and no other data or network


def test_an_entry_that_is_there_is_replaced_only_when_that_is_asked(tmp_path, conf):
    write({conf / "tuned/isic/scale.yaml": "# @package _global_\nmethod: {epochs: 3}\n"})
    with pytest.raises(UserError, match=r"isic/scale.yaml exists; pass tuned=replace"):
        entries(tmp_path, *SEARCHED)
    (text,) = entries(tmp_path, *SEARCHED, how="replace").values()
    # What it had set is kept as the best run had it, which is not the entry's 3 here.
    assert yaml.safe_load(text)["method"] == {
        "gate": "linear",
        "epochs": read(*PAIR).method.arguments["epochs"],
    }


def test_what_has_no_best_setting_has_no_entry(tmp_path, conf):
    with pytest.raises(UserError, match="no setting of scale has a val/worst"):
        entries(tmp_path, *((None, words) for _, words in SEARCHED))
    versions = {0.7: "isic (splits 1)", 0.9: "isic (splits 2)", 0.8: "isic (splits 1)"}
    with pytest.raises(UserError, match="several versions of its splits; choose one with keep"):
        entries(tmp_path, *SEARCHED, splits=versions)


def test_options_of_groups_are_kept_where_the_method_chooses_them(tmp_path, conf):
    jtt = ("method=jtt", "groups.epochs=5", "method.upweight=3")
    (text,) = entries(tmp_path, (0.9, jtt), (0.8, (*jtt[:1], "groups.epochs=2"))).values()
    assert yaml.safe_load(text)["groups"] == {"epochs": 5}
    chosen = ("method=group_dro", "groups=clusters", "groups.k=3")
    with pytest.raises(UserError, match="was chosen with groups=clusters"):
        entries(tmp_path, (0.9, chosen), (0.8, ("method=group_dro",)))


def test_the_command_writes_the_files_last(command_line, tmp_path):
    """A refusal leaves no report behind; conf of the project itself has these pairs."""
    words = (f"paths.outputs={tmp_path}", "tracker=none", "sweep=mine")
    quick = ("method.epochs=1", "backbone=mlp", "dfr=none", "optimizer.lr=0.01,0.02")
    assert command_line.run("train", "-m", *words, *quick).code == 0
    report = tmp_path / "reports" / "mine" / "report.md"
    report.unlink()
    ended = command_line.run("report", *words, "tuned=write", "plots=false")
    assert ended.code == 2
    assert "conf/tuned/digits/erm.yaml exists; pass tuned=replace" in ended.err
    assert not report.exists()
