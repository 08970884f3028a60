"""The options that every data set has, on labels alone and on photographs."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from photos import write_photos
from training import read

from spurcor.data.groups import GroupedDataset, GroupSpec, members_by
from spurcor.data.photographs import Photographs
from spurcor.data.source import DataSource, apportion
from spurcor.data.splits import Splits
from spurcor.data.streams import Stream
from spurcor.data.transforms import Normalize, Photo, Transform
from spurcor.errors import UserError

SPEC = GroupSpec(("land", "water"), ("forest", "sea"), aligned=(0, 1))
COUNTS = {
    "train": [60, 5, 3, 32],
    "val": [20, 20, 6, 6],
    "test": [10, 10, 10, 10],
    "odd": [0, 8, 8, 0],
}
CPU = torch.device("cpu")


def labels(counts):
    g = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    return g[torch.randperm(len(g), generator=torch.Generator().manual_seed(1))]


@dataclass(kw_only=True)
class Made(DataSource):
    """Splits of COUNTS whose images are their number."""

    spec = SPEC
    transform: Transform = field(default_factory=Normalize)

    def load(self, root):
        data = {}
        for name, counts in COUNTS.items():
            g = labels(counts)
            images = torch.arange(len(g), dtype=torch.uint8).view(-1, 1, 1, 1)
            data[name] = GroupedDataset(SPEC, images, g // 2, g % 2, torch.arange(len(g)))
        return data


def counts(split):
    return split.group_counts.tolist()


def made(**options):
    return Made(**options).splits(Path())


# --- options --------------------------------------------------------------------------------------


def test_without_options_everything_is_there():
    data = made()
    assert {name: counts(split) for name, split in data.items()} == COUNTS
    for split in data.values():
        x = split.fetch(torch.tensor([3, 1])).x.flatten().tolist()
        assert x == [3, 1]


def test_target_is_a_share_of_each_group_of_val_and_leaves_it():
    data = made(target_fraction=0.5)
    assert counts(data["target"]) == [10, 10, 3, 3]
    assert counts(data["val"]) == [10, 10, 3, 3]
    both = torch.cat([data["target"].source, data["val"].source])
    assert both.sort()[0].tolist() == list(range(52))
    for name in ("target", "val"):  # labels and images go with the samples
        split = data[name]
        assert split.fetch(torch.arange(len(split))).x.flatten().tolist() == split.source.tolist()
        assert torch.equal(split.g, labels(COUNTS["val"])[split.source])
    assert counts(data["test"]) == COUNTS["test"]


def test_a_quarter_of_val():
    data = made(target_fraction=0.25)
    assert counts(data["target"]) == [5, 5, 2, 2]  # 1.5 is rounded to 2
    assert counts(data["val"]) == [15, 15, 4, 4]


def test_target_may_be_a_share_of_what_train_keeps():
    data = made(target_fraction=0.2, target_from="train", drop_groups=("land/sea",))
    whole = made(drop_groups=("land/sea",))["train"]
    assert counts(data["target"]) == [round(0.2 * count) for count in counts(whole)]
    both = torch.cat([data["target"].source, data["train"].source])
    assert torch.equal(both.sort()[0], whole.source.sort()[0])
    assert counts(data["val"]) == COUNTS["val"]
    with pytest.raises(UserError, match="of 100 train samples"):
        made(target_fraction=0.001, target_from="train")


def test_sizes_keep_proportions_and_every_group():
    data = made(num_train=20, num_val=26, num_test=8)
    assert counts(data["train"]) == [12, 1, 1, 6]
    assert counts(data["val"]) == [10, 10, 3, 3]
    assert counts(data["test"]) == [2, 2, 2, 2]
    assert counts(data["odd"]) == [0, 4, 4, 0]
    assert data["train"].source.tolist() == sorted(data["train"].source.tolist())


def test_one_size_for_all_and_a_size_of_its_own():
    data = made(subset_size=12, num_test=16)
    sizes = {name: len(split) for name, split in data.items()}
    assert sizes == {"train": 12, "val": 12, "test": 16, "odd": 16}
    assert {name: len(split) for name, split in made(subset_size=1000).items()} == {
        "train": 100,
        "val": 52,
        "test": 40,
        "odd": 16,
    }


def test_sizes_are_taken_after_target():
    data = made(target_fraction=0.5, num_val=8)
    assert counts(data["target"]) == [10, 10, 3, 3]
    assert len(data["val"]) == 8


def test_the_size_of_target_is_its_own():
    """Files have it follow `subset_size`; of older runs, which lack it, nothing is cut."""
    data = made(target_fraction=0.5, num_target=8)
    assert counts(data["target"]) == [3, 3, 1, 1]
    assert len(data["val"]) == 26
    whole = made(target_fraction=0.5)["target"].source.tolist()
    assert set(data["target"].source.tolist()) < set(whole)
    assert len(made(target_fraction=0.5, subset_size=8)["target"]) == 26


@pytest.mark.parametrize(("typed", "size"), [((), None), (("dataset.subset_size=8",), 8)])
def test_files_have_the_size_of_target_follow_the_subset(typed, size):
    arguments = read("dataset=digits", *typed).dataset.arguments
    assert arguments["num_target"] == size
    assert "num_target" not in read("dataset=digits").dataset.hashed()


def test_dropped_groups_leave_train_alone():
    data = made(drop_groups=("land/sea", "water/forest"))
    assert counts(data["train"]) == [60, 0, 0, 32]
    assert counts(data["val"]) == COUNTS["val"]
    assert counts(made(drop_groups=("land/sea",), num_train=10)["train"]) == [5, 0, 1, 4]


def test_the_split_seed_draws_and_nothing_else():
    options = {"target_fraction": 0.5, "num_train": 20}
    state = torch.get_rng_state()
    one, again, other = made(**options), made(**options), made(**options, split_seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("train", "target", "val"):
        assert torch.equal(one[name].source, again[name].source)
        assert one[name].fingerprint == again[name].fingerprint
        assert not torch.equal(one[name].source, other[name].source)


@pytest.mark.parametrize(
    ("seats", "size", "expected"),
    [
        ([60, 5, 3, 32], 10, [5, 1, 1, 3]),  # 6, 1, 0, 3, and one of the largest for the third
        ([5, 5], 3, [2, 1]),
        ([97, 1, 2], 3, [1, 1, 1]),
        ([1000, 1], 4, [3, 1]),
        ([3, 4], 7, [3, 4]),
    ],
)
def test_seats_by_hand(seats, size, expected):
    assert apportion(torch.tensor(seats), size).tolist() == expected


def test_positions_by_label():
    members = members_by(torch.tensor([2, 0, 2, 5, 0]))
    assert [m.tolist() for m in members] == [[1, 4], [0, 2], [3]]
    ordered = members_by(torch.tensor([2, 0, 2, 5, 0]), torch.tensor([4, 3, 2, 1, 0]))
    assert [m.tolist() for m in ordered] == [[4, 1], [2, 0], [3]]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"target_fraction": 1.0}, "target_fraction=1.0 "),
        ({"num_train": 0}, "num_train=0 must be at least 1"),
        ({"workers": -1}, "workers=-1 "),
        (
            {"drop_groups": ("land/lake",)},
            "drop_groups=land/lake .*: land/for|drop_groups=land/lake .* land/for",
        ),
        ({"drop_groups": tuple(SPEC.names)}, r"drop_groups=\["),
        ({"target_fraction": 0.01}, r"target_fraction=0\.01 of 52 val"),
        ({"num_val": 3}, "dataset.num_val=3 is too small: val has 4 groups"),
        ({"subset_size": 3}, "dataset.subset_size=3 is too small: train has 4 groups"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        made(**options)


def test_a_data_set_with_a_target_needs_no_share_of_val():
    source = Made(target_fraction=0.5)
    groups = dict.fromkeys(("train", "target", "val"), torch.zeros(4))
    with pytest.raises(UserError, match=r"dataset\.target_fraction=0\.5.*target_from=train"):
        source.select(groups, SPEC)
    clean = Made(target_fraction=0.5, target_from="train").select(groups, SPEC)
    assert {name: (of, len(rows)) for name, (of, rows) in clean.items()} == {
        "train": ("train", 2),
        "target": ("train", 2),
        "val": ("val", 4),
    }


# --- photographs ----------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Photos(DataSource):
    """Forty photographs in three splits."""

    spec = SPEC

    def load(self, root):
        names = sorted(str(path.relative_to(root)) for path in root.rglob("*.jpg"))
        g = torch.arange(40) % 4
        members = {
            "train": torch.arange(0, 20),
            "val": torch.arange(20, 32),
            "test": torch.arange(32, 40),
        }
        return Photographs(SPEC, root, names, g // 2, g % 2, members)


AUGMENT = {"size": 24, "resize": 28, "crop": 24, "augment": True, "short": 30}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "photos"
    write_photos(folder, 40, lambda i: (50 + i % 7, 44 + i % 5))
    return folder


def load(root, device=CPU, **options):
    return Splits.load(Photos(**{"transform": Photo(**AUGMENT), **options}), root, device)


def batches(splits, count=5, position=0, **options):
    options = {"seed": 0, "workers": splits.workers, **options}
    feed = Stream(splits["train"], splits.transform, 8, **options).start(position)
    return [next(feed) for _ in range(count)]


def equal(one, other):
    return all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in zip(one, other, strict=True)
        for name in ("x", "y", "a", "g", "index")
    )


def test_photographs_go_with_their_labels(root):
    splits = load(root, target_fraction=0.5)
    everything = load(root)["val"]
    for name in ("target", "val"):
        split = splits[name]
        at = torch.searchsorted(everything.source, split.source)
        assert torch.equal(split.fetch(torch.arange(len(split))).x, everything.fetch(at).x)
        assert torch.equal(split.y, everything.y[at])
        assert torch.equal(split.a, everything.a[at])


def test_training_crops_are_of_the_photograph_they_belong_to(root):
    """A box of nearly all of it, shrunk, is close to the evaluated image of the same sample."""
    transform = Photo(**AUGMENT | {"scale": (0.99, 1.0), "flip": False, "crop": 28, "size": 28})
    splits = load(root, transform=transform, target_fraction=0.5)
    for name in ("train", "target"):
        split = splits[name]
        feed = Stream(split, transform, None, seed=0).start(0)
        x, index = (batch := next(feed)).x, batch.index
        still = transform(split.fetch(torch.arange(len(split))).x)
        distance = torch.cdist(x.flatten(1), still.flatten(1))
        assert torch.equal(distance.argmin(dim=1), index)


@pytest.mark.parametrize("store", ["disk", "memory", "device"])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_where_images_are_and_who_reads_them_changes_nothing(root, store, workers):
    expected = batches(load(root))
    splits = load(root, store=store, workers=workers)
    assert splits["train"].images.mapped == (store == "disk")
    assert equal(batches(splits), expected)
    assert equal(batches(splits, count=2, position=3), expected[3:])


def test_epochs_and_seeds_crop_differently(root):
    splits = load(root)
    first, later = batches(splits, 3), batches(splits, 3, position=3)
    of = torch.cat([batch.index for batch in first]).argsort()
    again = torch.cat([batch.index for batch in later]).argsort()
    x, z = (torch.cat([b.x for b in side]) for side in (first, later))
    assert (x[of] != z[again]).flatten(1).any(1).float().mean() > 0.9
    assert not equal(first, batches(splits, 3, seed=1))


def test_a_subset_decodes_only_what_it_uses(root, tmp_path, monkeypatch):
    monkeypatch.setenv("SPURCOR_STORE", str(tmp_path))
    splits = load(root, num_train=8, num_val=4, num_test=4)
    assert (len(splits["train"].images), len(splits["train"].train_images)) == (16, 8)
    whole = load(root)
    for name in ("train", "val", "test"):
        split = splits[name]
        at = torch.searchsorted(whole[name].source, split.source)
        assert torch.equal(split.fetch(torch.arange(len(split))).x, whole[name].fetch(at).x)


def test_fingerprints_do_not_depend_on_where_and_when(root, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    for i, path in enumerate(sorted(copy.rglob("*.jpg"))):
        os.utime(path, (i, i))
    assert load(copy).fingerprints == load(root).fingerprints
    assert load(root).fingerprints != load(root, split_seed=1, num_train=8).fingerprints


def test_known_counts_are_compared(root, caplog):
    photos = Photos(transform=Photo(**AUGMENT)).load(root)
    official = {"train": [5, 5, 5, 5], "val": [3, 3, 3, 3], "test": [2, 2, 2, 2]}
    photos.warn_of_counts(official)
    assert not caplog.records
    photos.warn_of_counts(official | {"train": [5, 6, 5, 4]})
    (record,) = caplog.records
    assert "the splits are not the published ones: train has" in record.getMessage()
    assert "land/sea 5 instead of 6, water/sea 5 instead of 4" in record.getMessage()


def test_the_shape_is_that_of_the_input(root):
    assert load(root).info.shape == (3, 24, 24)
    small = Photo(size=40, crop=20)
    assert load(root, transform=small).info.shape == (3, 40, 40)


@pytest.mark.parametrize(("size", "told"), [(24, False), (32, False), (48, True)])
def test_images_that_are_enlarged_are_told_once(root, caplog, size, told):
    load(root, transform=Photo(size=size, resize=24))
    sentences = [record.getMessage() for record in caplog.records]
    assert ["of 24 x 24 pixels" in one and "size=24" in one for one in sentences] == [True] * told


def test_images_too_large_for_the_device_stay_in_memory(root, monkeypatch, caplog):
    from spurcor.data import splits as data

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    splits = Photos(transform=Photo(**AUGMENT)).splits(root)
    arrays = {id(s.images): s.images for s in splits.values()}
    placed = data._place(arrays, "device", torch.device("cuda"))
    assert {images.device.type for images in placed.values()} == {"cpu"}
    assert not any(images.mapped for images in placed.values())
    assert "they stay in memory" in caplog.text
