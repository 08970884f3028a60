"""Points that start from another of the same sweep: which one is meant, and what waits for it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.types import RunMode

from spurcor.config import resolvers
from spurcor.errors import UserError
from spurcor.launchers.in_process import InProcess
from spurcor.launchers.points import Points
from spurcor.sweeps.manifest import Point, manifest
from spurcor.sweeps.order import in_order
from spurcor.system.places import CONF


def composed(tmp_path, points, *typed: str):
    """The points of a sweep as its launcher composes them, by their overrides."""
    resolvers.register()
    loader = ConfigLoaderImpl(create_config_search_path(str(CONF)))
    launcher = InProcess()
    launcher.config = loader.load_configuration("train", [], RunMode.MULTIRUN)
    launcher.hydra_context = SimpleNamespace(config_loader=loader)
    overrides = Points(points).expand([f"paths.outputs={tmp_path}", *typed])
    found = launcher.compose(overrides)
    return {
        " ".join(word for word in point.overrides if not word.startswith("paths.")): point.config
        for point in found
    }


def listed(*points: str) -> str:
    return f"hydra.sweeper.points={json.dumps(points)}"


START = "method=prusc method.init=@erm"


def test_the_only_point_of_a_method_with_the_same_seed_is_meant(tmp_path):
    found = composed(tmp_path, (START, "method=erm"), "seed=0,1")
    for seed in (0, 1):
        origin = found[f"method=erm seed={seed}"]
        assert found[f"{START} seed={seed}"].init == origin.directory
    assert len({config.identity for config in found.values()}) == 2


def test_a_run_that_starts_from_a_point_is_the_one_that_starts_from_that_finished_run(tmp_path):
    found = composed(tmp_path, (START, "method=erm"))
    origin = found["method=erm"]
    assert found[START].origin == origin.identity
    assert found[START].settings["method.init"] == origin.identity


def test_points_that_it_cannot_start_from_are_not_meant(tmp_path):
    """Another backbone, another strength of the cue, and twice the same run."""
    others = ("backbone=mlp", "dataset.strength=0.6")
    points = [f"{START} {other}" for other in others]
    points += [f"method=erm {other}" for other in (*others, f"{others[0]} dfr=none")]
    found = composed(tmp_path, points)
    for other in others:
        assert found[f"{START} {other}"].init == found[f"method=erm {other}"].directory


def test_what_starts_from_what_starts_from_another(tmp_path):
    chain = ("method=masktune method.init=@prusc", START, "method=erm")
    found = composed(tmp_path, chain)
    assert found[chain[0]].init == found[START].directory
    points = [Point((), config) for config in found.values()]
    order = [[point.config.choices["method"] for point in batch] for batch in in_order(points)]
    assert order == [["erm"], ["prusc"], ["masktune"]]


def test_of_several_one_is_chosen_by_its_identity(tmp_path):
    two = "method=erm optimizer.lr=0.1,0.2"
    with pytest.raises(UserError, match=r"method.init=@erm could be each of 2 points with seed=0"):
        composed(tmp_path, (START, two))
    found = composed(tmp_path, (two,))
    wanted = found["method=erm optimizer.lr=0.2"].identity
    start = f"method=prusc method.init=@{wanted[:6]}"
    again = composed(tmp_path, (start, two))
    assert again[start].origin == wanted
    same = composed(tmp_path, (START, "method=erm optimizer.lr=0.2"))
    assert again[start].identity == same[START].identity


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ((START,), "no point of this sweep with the same data, backbone and seed=0 has method=erm"),
        (
            ("method=prusc method.init=@prusc method.epochs=2,3",),
            "the points start from each other",
        ),
        ((START, "method=erm backbone=mlp"), "no point of this sweep"),
    ],
)
def test_a_sweep_without_what_is_meant_is_refused(points, said, tmp_path):
    with pytest.raises(UserError, match=said):
        composed(tmp_path, points)


QUICK = (
    "backbone=mlp", "tracker=none", "dfr=none", "dataset.subset_size=64", "dataset.strength=0.7",
)  # fmt: skip
SHORT = f"{START} method.prune_epochs=1 method.retrain_epochs=1"


def test_a_single_run_has_no_points(command_line, tmp_path):
    ended = command_line.run("train", *START.split(), f"paths.outputs={tmp_path}")
    assert ended.code == 2
    assert "method.init=@erm means a point of the same sweep, and this is a single run" in ended.err
    assert not list(tmp_path.iterdir())


def phases(entry: dict) -> list[str]:
    plan = json.loads((Path(entry["directory"]) / "phases.json").read_text())
    return [phase["name"] for phase in plan["phases"]]


def test_a_point_runs_after_the_one_that_it_starts_from(command_line, tmp_path):
    words = ("-m", listed(SHORT, "method=erm"), *QUICK, f"paths.outputs={tmp_path}")
    ended = command_line.run("train", *words, "method.epochs=2", COLUMNS="200")
    assert ended.code == 0, ended.out + ended.err
    assert ended.out.index("--- method=erm") < ended.out.index(f"--- {START}")
    start, origin = manifest(tmp_path, "default")
    assert "erm" in phases(origin)
    assert "erm" not in phases(start)
    kept = json.loads((Path(start["directory"]) / "phases/erm/result.json").read_text())
    assert kept["origin"]["identity"] == origin["identity"]


def test_a_point_whose_origin_fails_says_so_and_the_others_are_done(command_line, tmp_path):
    broken = "method=erm optimizer=sgd optimizer.lr=1e30 method.epochs=2"
    words = ("-m", listed(START, broken, "method=iw method.epochs=2"), *QUICK)
    ended = command_line.run("train", *words, f"paths.outputs={tmp_path}", COLUMNS="300")
    assert ended.code == 1
    assert "2 of 3 points are not done" in ended.err
    _, origin, _ = manifest(tmp_path, "default")
    told = f"method.init={origin['directory']} is not finished; run that first, then this again"
    assert told in ended.err


@pytest.mark.cold
def test_a_pool_trains_once_what_others_start_from_though_it_is_killed(command_line, tmp_path):
    from test_sweep import kill_a_point

    words = (
        "train", "-m", listed(SHORT, f"{SHORT} method.num_clusters=3", "method=erm"), *QUICK,
        "hydra/launcher=local_pool", "hydra.launcher.n_jobs=2", f"paths.outputs={tmp_path}",
    )  # fmt: skip
    started = command_line.start(*words, "method.epochs=2", COLUMNS="300")
    killed = kill_a_point(started, tmp_path)
    ended = started.wait(300)
    assert ended.code == 1
    *others, origin = manifest(tmp_path, "default")
    assert killed.startswith(origin["identity"])  # nothing else may start before it
    for other in others:
        assert "is not finished; run that first" in Path(other["log"]).read_text()
    ended = command_line.run(*words, "method.epochs=2", COLUMNS="300")
    assert ended.code == 0, ended.out + ended.err
    assert "erm" in phases(origin)
    assert not any("erm" in phases(entry) for entry in others)
