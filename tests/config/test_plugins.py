"""Methods of the user's own: which packages are let in, and by whom."""

import importlib
import json
import sys

import pytest
import yaml
from killing import run_of
from training import SMALL, read

from spurcor.config import nodes, packages
from spurcor.errors import UserError
from spurcor.runs import lookup, provenance
from spurcor.sweeps import slurm

INIT = '"""Mine."""\n\n__version__ = "0.3"\n'
METHOD = """
from spurcor.methods.erm import Erm
from .losses import scaled

class Mine(Erm):
    def reduce(self, losses, batch):
        return scaled(losses.mean())
"""
LOSSES = "def scaled(loss):\n    return 2.0 * loss\n"
YAML = "_target_: mypackage.methods.Mine\nepochs: 2\n"
TUNED = "# @package _global_\ntrain: {batch_size: 50}\n"
EVIL = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"
FEW = (*SMALL, "dataset.subset_size=300", "dfr=none", "tracker=none", "method.epochs=1")


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where Python finds `mypackage`, and `evil`, which leaves a file when it is imported."""
    found = tmp_path / "path"
    own = {"__init__.py": INIT, "methods.py": METHOD, "losses.py": LOSSES}
    own |= {"conf/method/mine.yaml": YAML, "conf/tuned/digits/mine.yaml": TUNED}
    write(found / "mypackage", own)
    write(found / "evil", {"__init__.py": EVIL, "methods.py": METHOD})
    write(found / "evil", {"conf/method/bad.yaml": "_target_: evil.methods.Mine\nepochs: 2\n"})
    monkeypatch.syspath_prepend(found)
    monkeypatch.delenv(packages.VARIABLE, raising=False)
    yield found
    assert not (found / "evil" / "ran").exists()
    for name in [name for name in sys.modules if name.partition(".")[0] == "mypackage"]:
        del sys.modules[name]
    for cached in (nodes.locate, provenance._module, provenance.fingerprint):
        cached.cache_clear()


@pytest.fixture
def named(folder, monkeypatch):
    monkeypatch.setenv(packages.VARIABLE, "mypackage")
    return folder


@pytest.fixture
def train(command_line, folder, tmp_path):
    """A command that finds both packages."""
    outputs = tmp_path / "outputs"

    def run(*words, module="train"):
        place = f"paths.outputs={outputs}"
        return command_line.run(module, *words, place, PYTHONPATH=str(folder))

    run.outputs = outputs
    return run


# --- what a plug-in brings ------------------------------------------------------------------------


def test_its_files_can_be_chosen_and_its_classes_count_as_its_own(named):
    config = read("method=mine")
    assert config.train.batch_size == 50
    assert config.plugins == {"mypackage": "0.3"}
    assert config.method.hashed()["_target_"] == "method.mypackage.Mine"
    assert read("method=erm").plugins == {}


def test_a_class_that_moves_keeps_its_name(named):
    before = read("method=mine").identity
    write(named / "mypackage", {"deep/__init__.py": "", "conf/method/mine.yaml": YAML})
    (named / "mypackage" / "methods.py").rename(named / "mypackage" / "deep" / "moved.py")
    write(named / "mypackage" / "deep", {"losses.py": LOSSES})
    importlib.invalidate_caches()
    write(named / "mypackage", {"conf/method/mine.yaml": YAML.replace("methods", "deep.moved")})
    assert read("method=mine").identity == before


def test_two_classes_of_one_name_are_refused(named):
    write(named / "mypackage", {"other.py": METHOD})
    with pytest.raises(UserError, match=r"several classes Mine .*other\.py.*rename"):
        read("method=mine")


@pytest.mark.parametrize(
    ("file", "before", "after", "counts"),
    [
        ("losses.py", "2.0", "3.0", True),
        ("methods.py", "losses.mean()", "losses.sum()", True),
        ("methods.py", "import scaled", "import scaled  # so", False),
        ("__init__.py", "0.3", "0.4", False),
    ],
)
def test_its_code_counts(named, file, before, after, counts):
    config = read("method=mine")
    recorded = provenance.code_of(config)
    assert provenance.changed(recorded, config) == []
    path = named / "mypackage" / file
    path.write_text(path.read_text().replace(before, after))
    provenance._module.cache_clear()
    provenance.fingerprint.cache_clear()
    assert provenance.changed(recorded, config) == (["method=mine"] if counts else [])


def test_a_class_that_its_module_only_makes_counts_as_the_module(named):
    made = "\nif True:\n    class Inner(Mine):\n        pass\n"
    made += "\nMade = type('Unseen', (Mine,), {'__module__': __name__})\n"
    write(named / "mypackage", {"methods.py": METHOD + made})
    for name in ("Inner", "Made"):
        assert provenance.fingerprint(nodes.locate(f"mypackage.methods.{name}"))


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["os", "nowhere", "torch", "spurcor", "conf", "a.b", "[mypackage"])
def test_a_name_that_is_no_package_of_ones_own_is_refused(folder, monkeypatch, name):
    monkeypatch.setenv(packages.VARIABLE, name)
    with pytest.raises(UserError, match=r"^plugins=.*(PYTHONPATH|SPURCOR_PLUGINS)"):
        read()


@pytest.mark.parametrize("file", ["method/erm.yaml", "sweeps/digits/main.yaml", "train.yaml"])
def test_a_file_that_has_the_name_of_one_of_spurcors_is_refused(named, file):
    write(named / "mypackage" / "conf", {file: YAML})
    with pytest.raises(UserError, match=rf"{file}.*rename"):
        read()


def test_the_command_line_names_some_too(monkeypatch):
    monkeypatch.setenv(packages.VARIABLE, "first")
    words = packages.take(["-m", "plugins=second, third", "seed=0", "plugins=first"])
    assert words == ["-m", "seed=0"]
    assert packages.plugins() == ("first", "second", "third")


def test_without_it_nothing_of_it_is_there(folder, train):
    ended = train("method=mine")
    assert ended.code == 2
    assert "method=mine does not exist" in ended.err
    for typed in ("+plugins=evil", "++plugins=evil", "+plugins=[evil]"):
        ended = train(typed)
        assert ended.code == 2
        assert "plugins" in ended.err
    ended = train("method._target_=evil.methods.Mine")
    assert ended.code == 2
    assert "if evil is a plug-in of yours" in ended.err


SWEEPS = {
    "a key": "# @package _global_\nplugins: evil\n",
    "an empty key": "# @package _global_\nplugins: {}\n",
    "swept": "# @package _global_\nhydra: {sweeper: {params: {plugins: evil}}}\n",
    "added": "# @package _global_\nhydra: {sweeper: {params: {+plugins: evil}}}\n",
    "a point": "# @package _global_\nhydra: {sweeper: {points: ['plugins=evil method=bad']}}\n",
    "an added point": "# @package _global_\nhydra: {sweeper: {points: ['++plugins=evil']}}\n",
    "a class": "# @package _global_\nmethod: {_target_: evil.methods.Mine}\n",
    "the environment": "# @package _global_\nhydra: {job: {env_set: {SPURCOR_PLUGINS: evil}}}\n",
    "a search path": "# @package _global_\nhydra: {searchpath: ['pkg://evil.conf']}\n",
}


@pytest.mark.parametrize("what", SWEEPS)
def test_no_sweep_file_brings_one(what, train, tmp_path):
    write(tmp_path / "own", {"sweeps/theirs.yaml": SWEEPS[what]})
    ended = train("-m", "--config-dir", str(tmp_path / "own"), "+sweeps=theirs", "seed=0")
    assert ended.code == 2, ended.err
    assert ended.err.startswith("spurcor: ")
    assert "Traceback" not in ended.err
    assert not (train.outputs / "runs").exists()


def test_no_saved_configuration_brings_one(train):
    assert train(*FEW).code == 0
    path = run_of(train.outputs) / "config.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["method"]["_target_"] = "evil.methods.Mine"
    for plugins in ({}, {"evil": "1"}, ["evil"], "evil", None):
        path.write_text(yaml.safe_dump({**tree, "plugins": plugins}))
        with pytest.raises(UserError, match="evil"):
            lookup.read_config(path.parent)
    path.write_text(yaml.safe_dump({**tree, "plugins": {"evil": "1"}}))
    ended = train("run=r", "dfr=val", "tracker=none", module="retrain")
    assert ended.code == 2
    assert "made with the plug-in evil 1" in ended.err
    assert train(f"point=[{path}]").code == 2


# --- runs -----------------------------------------------------------------------------------------


def test_a_run_says_which_it_was_made_with_and_is_refused_without_it(train):
    ended = train("plugins=mypackage", "method=mine", *FEW)
    assert ended.code == 0, ended.err
    run = run_of(train.outputs)
    assert yaml.safe_load((run / "config.yaml").read_text())["plugins"] == {"mypackage": "0.3"}
    result = json.loads((run / "result.json").read_text())
    assert result["run"]["versions"]["mypackage"] == "0.3"
    assert "method" in result["run"]["code"]
    repair = ("run=r", "dfr=val", "tracker=none")
    ended = train(*repair, module="retrain")
    assert ended.code == 2
    assert "made with the plug-in mypackage 0.3" in ended.err
    assert "plugins=mypackage" in ended.err
    assert train("plugins=mypackage", *repair, module="retrain").code == 0
    assert train("sweep=default", "tracker=none", module="report").code == 0  # of files only


def test_points_of_a_pool_use_the_copy_of_it_that_was_frozen(train, folder):
    with (folder / "mypackage" / "methods.py").open("a") as file:
        file.write("\nprint('from', __file__)\n")
    pool = ("hydra/launcher=local_pool", "hydra.launcher.n_jobs=1")
    ended = train("-m", "plugins=mypackage", "method=mine", "seed=0", *pool, *FEW)
    assert ended.code == 0, ended.err
    (copy,) = train.outputs.glob("sweeps/default/code-*")
    (log,) = train.outputs.glob("sweeps/default/points/*.log")
    assert f"from {copy}/mypackage/methods.py" in log.read_text()
    assert (copy / "mypackage" / "conf" / "method" / "mine.yaml").exists()


def test_what_a_user_has_added_to_pythons_path_comes_after_the_copy(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    assert slurm.search_path(tmp_path) == f"{tmp_path}:/theirs"
    monkeypatch.delenv("PYTHONPATH")
    assert slurm.search_path(tmp_path) == str(tmp_path)


def test_help_and_messages_name_its_options(train):
    ended = train("plugins=mypackage", "--help")
    assert "masktune, mine, prusc" in ended.out
    ended = train("plugins=mypackage", "method=min")
    assert "mine" in ended.err
    assert "method.epochs?" in train("plugins=mypackage", "method=mine", "method.epoch=1").err
