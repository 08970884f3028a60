"""Frozen features: what they are, that they are extracted once, and what trains on them."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REPO
from PIL import Image
from safetensors.torch import load_file, save_file
from test_contracts import CrashError, StopAt
from training import read, rows_of, trainer_of, without_time

from spurcor.config.schema import FeatureOptions
from spurcor.data import groups
from spurcor.data.transforms import Fixed
from spurcor.errors import RunError
from spurcor.models import features
from spurcor.models.features import weights_hash
from spurcor.runs import build

FROZEN = ("features=frozen", "features/backbone=small_cnn")
SMALL = ("backbone.width=16", "backbone.depth=1", "method.epochs=2", "train.batch_size=200")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.delenv("SPURCOR_STORE", raising=False)


def config(tmp_path, *overrides):
    return read(*FROZEN, f"paths.data={tmp_path / 'data'}", *overrides)


def kept(tmp_path):
    return sorted((tmp_path / "data" / ".spurcor" / "features").glob("*.npy"))


def splits_of(cfg):
    return build.build(cfg)[0]


def test_features_are_those_of_the_evaluated_images(tmp_path):
    cfg = config(tmp_path)
    frozen = splits_of(cfg)
    images = splits_of(read())
    torch.manual_seed(features.derive_seed("features", 0))
    backbone = cfg.features.backbone.build(info=images.info).eval()
    assert list(frozen.data) == list(images.data)
    for name, split in frozen.data.items():
        with torch.no_grad():
            expected = backbone(images.transform(images[name].fetch(torch.arange(40)).x))
        x = frozen.transform(split.fetch(torch.arange(40)).x)
        torch.testing.assert_close(x[:, :, 0, 0], expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(split.y, images[name].y)
        assert torch.equal(split.a, images[name].a)
    assert frozen.info.shape == (backbone.dim, 1, 1)


def test_features_of_length_one(tmp_path):
    frozen = splits_of(config(tmp_path, "features.normalize=true"))
    x = frozen.transform(frozen["val"].fetch(torch.arange(10)).x).flatten(1)
    torch.testing.assert_close(x.norm(dim=1), torch.ones(10))
    raw = splits_of(config(tmp_path))["val"].fetch(torch.arange(10)).x.flatten(1)
    torch.testing.assert_close(x, raw / raw.norm(dim=1, keepdim=True))
    assert torch.equal(Fixed()(raw), raw)


def test_the_second_time_nothing_is_extracted(tmp_path, monkeypatch):
    first = splits_of(config(tmp_path))
    assert len(kept(tmp_path)) == len(first.data)

    def refuse(*args):
        raise AssertionError("extracted again")

    monkeypatch.setattr(features, "_extract", refuse)
    again = splits_of(config(tmp_path, "method=iw", "features.normalize=true"))
    for name, split in first.data.items():
        assert torch.equal(split.images.pixels, again[name].images.pixels)
        assert split.fingerprint == again[name].fingerprint


@pytest.mark.parametrize(
    "change",
    [
        "seed=1",  # other random weights
        "features.layer=0",
        "features.precision=bf16",
        "dataset.tint=0.5",
        "dataset.transform.mean=[0.1,0.2,0.2]",
        "dataset.split_seed=1",
        "features.backbone.padding=2",
    ],
)
def test_what_moves_the_features_changes_the_key(change, tmp_path):
    before = splits_of(config(tmp_path))
    count = len(kept(tmp_path))
    after = splits_of(config(tmp_path, change))
    assert len(kept(tmp_path)) == 2 * count
    for name in before.data:
        assert before[name].fingerprint != after[name].fingerprint


def test_extraction_takes_no_draw_from_training(tmp_path, monkeypatch):
    def drawing(*args):
        torch.rand(3)
        return plain(*args)

    plain, after = features.freeze, []
    for freeze in (plain, drawing):
        monkeypatch.setattr(features, "freeze", freeze)
        splits_of(config(tmp_path))
        after.append(torch.get_rng_state())
    assert torch.equal(*after)


def test_one_changed_weight_changes_the_hash():
    state = {"a": torch.zeros(3), "b": torch.tensor(2)}
    other = {"a": torch.tensor([0.0, 0.0, 1e-30]), "b": torch.tensor(2)}
    assert weights_hash(state) == weights_hash({k: v.clone() for k, v in state.items()})
    assert weights_hash(state) != weights_hash(other)
    assert weights_hash(state) != weights_hash({"c": state["a"], "b": state["b"]})


def test_another_file_of_weights_is_another_run_and_other_features(tmp_path):
    import torchvision

    torch.manual_seed(0)
    state = torchvision.models.resnet18().state_dict()
    identities, prints = [], []
    for shift in (0.0, 0.5):
        state["conv1.weight"] += shift
        torch.save(state, tmp_path / "weights.pth")
        cfg = read(
            "features=frozen",
            "features/backbone=resnet18",
            f"features.backbone.pretrained={tmp_path / 'weights.pth'}",
            "dataset.subset_size=8",
            f"paths.data={tmp_path / 'data'}",
        )
        identities.append(cfg.identity)
        prints.append(splits_of(cfg).fingerprints["train"])
    assert identities[0] != identities[1]
    assert prints[0] != prints[1]


def test_identities_know_features_and_are_what_they_were_without(tmp_path):
    assert read().identity == read("features=none").identity
    frozen = config(tmp_path)
    assert frozen.identity != read("backbone=mlp").identity
    others = ("features.layer=0", "features.normalize=true", "features.backbone.padding=2")
    assert len({frozen.identity, *(config(tmp_path, one).identity for one in others)}) == 4
    assert config(tmp_path, "features.layer=-1", "features.pooling=null").identity == (
        frozen.identity
    )
    assert FeatureOptions(frozen.features.backbone).hashed() == frozen.features.hashed()
    assert frozen.backbone.target.endswith("Mlp")  # what choices.yaml says


BUILD = """
import sys
sys.path[:0] = [sys.argv[1]]
from training import read
from pathlib import Path
from spurcor.models.backbone import Backbone
from spurcor.runs.build import build
forward = Backbone.features
def counted(self, *args, **options):
    with open(Path(sys.argv[2]).parent / "passes", "a") as file:
        file.write("x")
    return forward(self, *args, **options)
Backbone.features = counted
cfg = read("features=frozen", "features/backbone=small_cnn", f"paths.data={sys.argv[2]}")
print("ready", flush=True)
sys.stdin.readline()
print(sorted(build(cfg)[0].fingerprints.values()), flush=True)
"""


@pytest.mark.cold
def test_four_processes_extract_once(tmp_path):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD, str(REPO / "tests"), str(tmp_path / "data")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate()[0].splitlines()[-1] for process in started]
    assert [process.returncode for process in started] == [0] * 4
    assert len(set(outputs)) == 1
    batches = sum(-(-len(np.load(path)) // groups.EVALUATION_BATCH) for path in kept(tmp_path))
    assert len((tmp_path / "passes").read_text()) == batches


def test_features_with_nan_are_told_and_not_kept(tmp_path):
    import torchvision

    state = torchvision.models.resnet18().state_dict()
    state["layer4.1.bn2.bias"][0] = float("nan")
    save_file(state, tmp_path / "weights.safetensors")
    cfg = read(
        "features=frozen",
        "features/backbone=resnet18",
        f"features.backbone.pretrained={tmp_path / 'weights.safetensors'}",
        "dataset.subset_size=8",
        f"paths.data={tmp_path / 'data'}",
    )
    with pytest.raises(RunError, match=r"features of pool: 8 of 8 samples "):
        splits_of(cfg)
    assert not kept(tmp_path)


def test_a_run_of_another_machines_precision_is_the_same_run(tmp_path, monkeypatch):
    """With `auto` a GPU extracts in bf16 and a CPU does not: that is no change of the data."""
    first = splits_of(config(tmp_path))
    extract = features._extract

    def reduced(path, title, backbone, *rest):
        backbone.autocast = torch.bfloat16
        extract(path, title, backbone, *rest)

    for path in kept(tmp_path):
        path.unlink()
    monkeypatch.setattr(features, "_extract", reduced)
    other = splits_of(config(tmp_path))
    assert not torch.equal(first["val"].images.pixels, other["val"].images.pixels)
    assert first.fingerprints == other.fingerprints


@pytest.mark.parametrize("damage", ["cut", "short"])
def test_damaged_features_are_told(damage, tmp_path):
    splits_of(config(tmp_path))
    path = kept(tmp_path)[0]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        np.save(path, np.load(path)[:-1])
    with pytest.raises(ValueError, match=rf"{path.name} is damaged .*remove it"):
        splits_of(config(tmp_path))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("method=masktune",), "method=masktune needs pixels"),
        (
            ("backbone=small_cnn", "backbone.padding=0"),
            "padding=0 needs images of at least 16 x 16 pixels",
        ),
        (("method=frozen", "features.layer=block9"), "layer=block9 does not exist"),
        (("method.epochs=0",), "method.epochs=0"),
    ],
)
def test_what_does_not_fit_features_is_told_before_any_is_extracted(
    options, sentence, command_line, tmp_path
):
    places = (f"paths.data={tmp_path / 'data'}", f"paths.outputs={tmp_path / 'out'}")
    ended = command_line.run("train", *FROZEN, *places, *options, "tracker=none")
    assert ended.code == 2, ended.err
    assert sentence in ended.err
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "out").exists()


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["erm", "iw", "group_dro"])
def test_methods_train_on_features_and_resume_exactly(method, tmp_path):
    cfg = config(tmp_path, f"method={method}", *SMALL, "train.checkpoint_seconds=0")
    folders = [tmp_path / part for part in ("whole", "broken")]
    for folder in folders:
        folder.mkdir()
    trainer, straight = trainer_of(cfg, folders[0])
    trainer.fit(straight)
    first, broken = trainer_of(cfg, folders[1])
    first.observer = StopAt(3)
    with pytest.raises(CrashError):
        first.fit(broken)
    second, resumed = trainer_of(cfg, folders[1])
    second.fit(resumed)
    rows = rows_of(folders[0])
    assert without_time(rows_of(folders[1])) == without_time(rows)
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]


def test_a_repair_straight_on_features(command_line, tmp_path):
    places = (f"paths.data={tmp_path / 'data'}", f"paths.outputs={tmp_path / 'out'}")
    ended = command_line.run("train", *FROZEN, *places, "method=frozen", "tracker=none")
    assert ended.code == 0, ended.err + ended.out
    (path,) = (tmp_path / "out").glob("runs/digits/frozen/*/seed0/result.json")
    result = json.loads(path.read_text())
    assert result["test"] is None
    assert result["val"] is None
    ((name, repair),) = result["dfr"].items()
    assert repair["test"]["worst"] > 0.5
    assert f"+ DFR {name}" in ended.out
    assert not (path.parent / "predictions.npz").exists()
    again = command_line.run("train", *FROZEN, *places, "method=frozen", "tracker=none")
    assert again.code == 0
    assert "was done before" in again.out
    report = command_line.run("report", "sweep=default", places[1], "tracker=none", "plots=false")
    assert report.code == 0, report.err
    assert "frozen + DFR" in report.out


def test_a_repair_is_fitted_on_the_features_and_not_on_a_random_network_over_them(
    command_line, tmp_path
):
    places = (f"paths.data={tmp_path / 'data'}", f"paths.outputs={tmp_path / 'out'}")
    layer = ("features.layer=block2", "dfr.num_retrains=1")
    ended = command_line.run("train", *FROZEN, *places, *layer, "method=frozen", "tracker=none")
    assert ended.code == 0, ended.err + ended.out
    (path,) = (tmp_path / "out").glob("runs/digits/frozen/*/seed0/dfr/*/weights.safetensors")
    head = load_file(path)
    with np.load(path.with_name("predictions.npz")) as stored:
        logits = torch.from_numpy(stored["test/logits"])
    frozen = splits_of(config(tmp_path, *layer[:1]))["test"]
    features = frozen.fetch(torch.arange(len(frozen))).x.flatten(1).double()
    assert features.shape[1] == head["weight"].shape[1] == 32
    torch.testing.assert_close(features @ head["weight"].T + head["bias"], logits)


def test_a_repair_on_a_network_that_nobody_trained_is_that_on_its_features(command_line, tmp_path):
    """The same weights, once as the run's network and once as frozen features."""
    import torchvision

    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "weights.pth")
    places = (f"paths.data={tmp_path / 'data'}", f"paths.outputs={tmp_path / 'out'}")
    weights = f"pretrained={tmp_path / 'weights.pth'}"
    common = ("method=frozen", "tracker=none", "dataset.num_train=100", "dfr.num_retrains=2")
    own = ("backbone=resnet18", f"backbone.{weights}")
    frozen = ("features=frozen", "features/backbone=resnet18", f"features.backbone.{weights}")
    tests = []
    for options in (own, (*frozen, "backbone=linear")):
        ended = command_line.run("train", *common, *options, *places)
        assert ended.code == 0, ended.err + ended.out
    for path in (tmp_path / "out").glob("runs/digits/frozen/*/seed0/result.json"):
        (repair,) = json.loads(path.read_text())["dfr"].values()
        tests.append(repair["test"]["groups"])
    assert len(tests) == 2
    for group, value in tests[0].items():
        assert value["accuracy"] == pytest.approx(tests[1][group]["accuracy"], abs=0.02)


def test_nothing_to_train_and_nothing_to_fit_is_refused(command_line, tmp_path):
    ended = command_line.run(
        "train", "method=frozen", "dfr=none", f"paths.outputs={tmp_path}", "tracker=none"
    )
    assert ended.code == 2
    assert "dfr=none" in ended.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("options", "stores"), [((), 2), (FROZEN, 1)])
def test_photographs_are_not_decoded_for_crops_that_nobody_takes(options, stores, tmp_path):
    """The data set's transform augments; features are of the evaluated images."""
    lines = ["filename,split,y,a"]
    for i, split in enumerate(("train", "val", "test") * 4):
        Image.fromarray(np.full((40, 30, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{split},{i // 3 % 2},{i // 6}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    small = [f"dataset.transform.{key}=16" for key in ("resize", "crop")]
    data = ("dataset=folder", f"dataset.csv={tmp_path / 't.csv'}", f"paths.data={tmp_path}", *small)
    network = ("backbone=mlp",) if options else ("backbone=small_cnn",)
    splits = build.build(read(*data, *options, *network))[0]
    assert len(list((tmp_path.parent / ".spurcor" / tmp_path.name).glob("*/store.json"))) == stores
    assert len(splits["train"]) == 4
