"""What every data set must hold; found by listing conf/dataset, tried on small copies of each."""

import shutil

import pytest
import torch
from small_data import OPTIONS
from test_contracts import DATASETS, CrashError, StopAt
from training import read, rows_of, trainer_of, without_time

from spurcor import prepare
from spurcor.data import examples
from spurcor.data.groups import Split
from spurcor.data.splits import Splits
from spurcor.errors import UserError
from spurcor.runs import build

SMALL = ("backbone=mlp", "backbone.width=8", "backbone.depth=1", "method.epochs=2")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(small_root):
    return small_root


def config(name, root, *overrides):
    own = (*OPTIONS[name], "train.selection=val/average", "optimizer=adam", "train.batch_size=8")
    return read(f"dataset={name}", f"paths.data={root}", *own, *SMALL, *overrides)


def test_every_data_set_has_a_small_copy():
    assert set(OPTIONS) == set(DATASETS)


@pytest.mark.parametrize("name", DATASETS)
def test_splits_have_labels_and_images_that_a_network_can_read(name, root):
    cfg = config(name, root)
    splits = Splits.load(cfg.dataset.build(), root, CPU)
    assert {Split.TRAIN, Split.VAL, Split.TEST} <= set(splits.data)
    info = splits.info
    names = info.spec.names
    assert len(set(names)) == len(names) == info.spec.num_groups
    for split in splits.data.values():
        labels = split.y if split.y.dim() == 2 else split.y[:, None]
        assert len(split) > 0
        assert int(labels.min()) >= 0
        assert int(labels.max()) < info.spec.num_classes
        assert int(split.g.min()) >= 0
        assert int(split.g.max()) < info.spec.num_groups
        batch = split.fetch(torch.tensor([len(split) - 1, 0]))
        features = batch.x.shape[2:] == (1, 1)
        assert batch.x.dtype == (torch.float32 if features else torch.uint8)
        z = splits.transform(batch.x)
        assert z.shape[1:] == info.shape
        assert z.isfinite().all()
        assert z.abs().max() < 20
    trained = {
        tuple(row) for row in splits["train"].source.reshape(len(splits["train"]), -1).tolist()
    }
    for row in splits["val"].source.reshape(len(splits["val"]), -1).tolist():
        assert tuple(row) not in trained  # what is selected on is not trained on


@pytest.mark.parametrize("name", DATASETS)
def test_a_data_set_is_drawn_by_its_seed_and_by_nothing_else(name, root):
    cfg = config(name, root)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = Splits.load(cfg.dataset.build(), root, CPU).fingerprints
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    assert Splits.load(cfg.dataset.build(), root, CPU).fingerprints == first


@pytest.mark.parametrize("name", DATASETS)
def test_a_share_of_train_may_become_target(name, root):
    """Also in the place of a TARGET that the data set has."""
    whole = config(name, root).dataset.build().splits(root)["train"]
    typed = ("dataset.target_from=train", "dataset.target_fraction=0.5")
    splits = config(name, root, *typed).dataset.build().splits(root)
    rows = [tuple(r) for s in ("train", "target") for r in splits[s].source.view(-1, 1).tolist()]
    assert sorted(rows) == sorted(tuple(r) for r in whole.source.view(-1, 1).tolist())
    assert len(splits["train"]) + len(splits["target"]) == len(whole)


@pytest.mark.parametrize("name", DATASETS)
def test_training_on_a_data_set_resumes_exactly_in_an_epoch(name, root, tmp_path):
    """With a process that reads ahead for the run that is interrupted."""
    cfg = config(name, root, "train.checkpoint_seconds=0", "dataset.subset_size=24")
    if name in ("dominoes", "cifar10"):  # more groups than that
        cfg = config(name, root, "train.checkpoint_seconds=0")
    folders = [tmp_path / part for part in ("whole", "broken")]
    for folder in folders:
        folder.mkdir()
    trainer, straight = trainer_of(cfg, folders[0])
    trainer.fit(straight)
    ahead = config(name, root, *("train.checkpoint_seconds=0", "dataset.workers=1"))
    assert ahead.identity == config(name, root, "train.checkpoint_seconds=0").identity
    first, broken = trainer_of(cfg, folders[1])
    first.observer = StopAt(2)
    with pytest.raises(CrashError):
        first.fit(broken)
    second, resumed = trainer_of(cfg, folders[1])
    torch.manual_seed(12345)
    second.fit(resumed)
    assert without_time(rows_of(folders[1])) == without_time(rows_of(folders[0]))
    for key, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


@pytest.mark.parametrize("name", DATASETS)
def test_prepare_shows_every_data_set(name, root, tmp_path):
    source = config(name, root).dataset.build()
    splits = source.splits(root)
    table = prepare.groups_table(splits)
    assert [str(column.header) for column in table.columns[1:]] == list(splits)
    assert table.row_count >= 2
    examples.draw_examples(splits["train"], tmp_path / "preview.png")
    assert (tmp_path / "preview.png").read_bytes().startswith(b"\x89PNG")


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["iw", "group_dro"])
def test_methods_that_work_on_groups_refuse_several_labels(method, root):
    with pytest.raises(ValueError, match=rf"method={method} .* 10 labels"):
        build.build(config("celeba_attributes", root, f"method={method}", "dfr=none"))


def test_sampling_and_repair_refuse_several_labels(root, command_line, tmp_path):
    typed = ("dataset=celeba_attributes", f"paths.data={root}", f"paths.outputs={tmp_path}")
    small = (*SMALL, "tracker=none", "train.selection=val/average")
    ended = command_line.run("train", *typed, *small, "dfr=val")
    assert ended.code == 2
    assert "dfr=none" in ended.err
    assert not (tmp_path / "runs").exists()
    ended = command_line.run("train", *typed, *small, "method.sampling=balanced")
    assert ended.code == 2
    assert "method.sampling=balanced " in ended.err
    assert not (tmp_path / "runs").exists()


def test_several_labels_are_trained_and_told_apart(root, command_line, tmp_path):
    typed = ("dataset=celeba_attributes", f"paths.data={root}", f"paths.outputs={tmp_path}")
    ended = command_line.run("train", *typed, *SMALL, "tracker=none", "train.batch_size=8")
    assert ended.code == 0, ended.err + ended.out
    assert "Arched_Eyebrows" in ended.out
    assert "worst" in ended.out


def test_a_worst_group_that_val_lacks_cannot_choose(root, command_line, tmp_path):
    """Biased MNIST without conflicts has no large digit with a square in VAL."""
    typed = ("dataset=biased_mnist", "dataset.conflict_ratio=0", *OPTIONS["biased_mnist"], *SMALL)
    places = (f"paths.data={root}", f"paths.outputs={tmp_path}", "tracker=none", "dfr=none")
    ended = command_line.run("train", *typed, *places, "train.selection=val/worst")
    assert ended.code == 2
    assert "train.selection=val/worst: group " in ended.err
    assert "train.selection=val/average" in ended.err
    assert not (tmp_path / "runs").exists()


def test_prepare_from_the_command_line(root, command_line, tmp_path):
    places = (f"paths.data={root}", f"paths.outputs={tmp_path}")
    ended = command_line.run("prepare", "dataset=waterbirds", *places)
    assert ended.code == 0, ended.err
    assert "waterbird/land" in ended.out
    assert "V of y, a" in ended.out
    assert (tmp_path / "previews" / "waterbirds.png").exists()
    ended = command_line.run("prepare", "dataset=isic", f"paths.data={tmp_path / 'none'}")
    assert ended.code == 2
    assert "isic" in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("dataset=dominoes", "dataset.transform.padding=40"), "dataset.transform.padding=40 "),
        (("dataset=dominoes", "dataset.transform.padding=-1"), "padding=-1 must not be negative"),
        (("dataset.transform.mean=[0.1,0.2]",), "mean=[0.1, 0.2]"),
        (
            ("dataset.transform.mean=[0.1,0.2]", "dataset.transform.std=[1,1]"),
            "dataset.transform does not fit images of 3 channels",
        ),
        (("dataset=waterbirds", "dataset.transform.size=0"), "size=0 must be at least 1"),
        (
            ("dataset=waterbirds", "dataset.transform.resize=48"),
            "crop=224 is larger than resize=48 ",
        ),
        (("dataset=waterbirds", "dataset.transform.crop=0"), "crop=0 must be at least 1"),
        (("dataset=waterbirds", "dataset.transform.resize=-3"), "resize=-3 must be at least 1"),
        (("dataset=waterbirds", "+dataset.transform.short=0"), "short=0 must be at least 1"),
    ],
)
def test_transforms_that_fit_no_image_are_refused(options, sentence, root, command_line, tmp_path):
    places = (f"paths.data={root}", f"paths.outputs={tmp_path}", "tracker=none", "dfr=none")
    small = (*SMALL, "train.selection=val/average")
    own = OPTIONS["dominoes"] if "dataset=dominoes" in options else ()
    ended = command_line.run("train", *options, *own, *small, *places)
    assert ended.code == 2, ended.out + ended.err
    assert sentence in ended.err
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_what_trains_nothing_selects_nothing(root, command_line, tmp_path):
    typed = ("dataset=biased_mnist", "dataset.conflict_ratio=0", *OPTIONS["biased_mnist"])
    repair = ("dfr=train", "dfr.tune=half", "dfr.balance=none", "dfr.c_grid=[10.0]")
    places = (f"paths.data={root}", f"paths.outputs={tmp_path}", "tracker=none")
    selection = ("method=frozen", "backbone=mlp", "train.selection=val/worst")
    ended = command_line.run("train", *typed, *repair, *places, *selection)
    assert ended.code == 0, ended.err + ended.out


@pytest.mark.parametrize("typed", ["nowhere.pth", "other.pth", "imagenet"])
@pytest.mark.parametrize("features", [False, True])
def test_weights_are_looked_for_before_photographs_are_decoded(
    typed, features, root, tmp_path, monkeypatch, offline
):
    """A file that is not there, one of another network, and what cannot be downloaded."""
    monkeypatch.setenv("SPURCOR_STORE", str(tmp_path / "stores"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    value = typed if typed == "imagenet" else tmp_path / typed
    key = "features.backbone" if features else "backbone"
    chosen = (
        ("features=frozen", "features/backbone=resnet18") if features else ("backbone=resnet18",)
    )
    cfg = read(f"paths.data={root}", "dataset=waterbirds", *chosen, f"{key}.pretrained={value}")
    with pytest.raises(UserError, match=rf"pretrained={value}"):
        build.build(cfg)
    assert not (tmp_path / "stores").exists()


def test_a_preview_that_cannot_be_written(command_line):
    ended = command_line.run("prepare", "paths.outputs=/dev/null/x")
    assert ended.code == 2
    assert "paths.outputs=/dev/null/x " in ended.err


def test_the_same_table_of_other_images_is_other_data(root, command_line, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(root / "folder", other / "folder")
    typed = ("dataset=folder", *SMALL, "train.batch_size=8", "tracker=none", "dfr=none")
    outputs = f"paths.outputs={tmp_path / 'out'}"
    assert command_line.run("train", *typed, outputs, f"paths.data={root}").code == 0
    same = command_line.run("train", *typed, outputs, f"paths.data={other}")
    assert same.code == 0, same.err
    assert "was done before" in same.out
    for path in other.rglob("*.jpg"):
        path.write_bytes((root / "folder" / "0.jpg").read_bytes())
    changed = command_line.run("train", *typed, outputs, f"paths.data={other}")
    assert changed.code == 2
    assert f"paths.data={other};" in changed.err
    table = f"dataset.csv={root / 'folder' / 'metadata.csv'}"
    moved = command_line.run("train", *typed, outputs, f"paths.data={root}", table)
    assert moved.code == 0, moved.err
    assert "was done before" in moved.out
