"""MNIST-CIFAR dominoes from small copies of both data sets in their real formats."""

import hashlib
import pickle
import shutil

import numpy as np
import pytest
import torch
from generators import TRAIN, write_folders, write_mnist, write_photo
from PIL import Image
from torchvision.datasets import CIFAR10
from training import read

from spurcor.data.groups import Split
from spurcor.data.transforms import CropFlip, Normalize
from spurcor.datasets.dominoes import CLASSES, Dominoes
from spurcor.datasets.sources import DEBIAN_FASHION, read_cifar10, read_fashion_mnist, read_mnist
from spurcor.errors import UserError

POOL = 100  # held out in all
pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Data that no test changes."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    write_mnist(root, rng)
    write_folders(root, rng)
    return root


@pytest.fixture
def own(tmp_path):
    """Data to change."""
    rng = np.random.default_rng(0)
    write_mnist(tmp_path, rng)
    write_folders(tmp_path, rng)
    return tmp_path


def load(root, **options):
    return Dominoes(**{"pool_size": POOL, **options}).load(root)


def matches(split):
    return int((split.y == split.a).sum())


# --- reading --------------------------------------------------------------------------------------


def test_reading_mnist(shared):
    images, digits = read_mnist(shared, train=True)
    assert images.shape == (485, 28, 28)
    assert torch.bincount(digits).tolist() == list(range(44, 54))
    raw = (shared / "MNIST" / "raw" / "train-images-idx3-ubyte").read_bytes()
    assert images.numpy().tobytes() == raw[16:]


def test_reading_photographs(shared):
    images, labels = read_cifar10(shared, train=True)
    assert images.shape == (400, 3, 32, 32)
    assert torch.equal(labels, torch.arange(10).repeat_interleave(TRAIN))
    for i in (0, 2 * TRAIN + 3, 399):
        name = CLASSES[i // TRAIN]
        suffix = "jpg" if name == "bird" else "png"
        path = shared / "cifar10" / "train" / name / f"{i % TRAIN:04}.{suffix}"
        expected = np.asarray(Image.open(path)).transpose(2, 0, 1)
        assert np.array_equal(images[i].numpy(), expected)


def test_grey_photographs_get_three_channels(own):
    path = own / "cifar10" / "test" / "airplane" / "0000.png"
    Image.open(path).convert("L").save(path)
    images, _ = read_cifar10(own, train=False)
    assert torch.equal(images[0, 0], images[0, 2])


# --- composition ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def splits(shared):
    return load(shared)


def test_sizes(splits):
    sizes = {str(name): len(split) for name, split in splits.items()}
    assert sizes == {"train": 10 * (TRAIN - POOL // 10), "target": 50, "val": 50, "test": 100}
    assert splits[Split.TRAIN].images.pixels.shape == (300, 3, 64, 32)


def test_a_domino_is_a_digit_over_a_photograph(splits, shared):
    for name, split in splits.items():
        train = name != Split.TEST
        digits, photos = read_mnist(shared, train), read_cifar10(shared, train)
        top, bottom = split.images.pixels[:, :, :32], split.images.pixels[:, :, 32:]
        upper, lower = split.source.unbind(1)
        for channel in range(3):
            assert torch.equal(top[:, channel, 2:30, 2:30], digits[0][upper])
        border = torch.ones(32, 32, dtype=torch.bool)
        border[2:30, 2:30] = False
        assert top[:, :, border].sum() == 0
        assert torch.equal(bottom, photos[0][lower])
        assert torch.equal(split.a, digits[1][upper])
        assert torch.equal(split.y, photos[1][lower])
        assert torch.equal(split.g, 10 * split.y + split.a)


def test_names_of_groups(splits):
    spec = splits[Split.TRAIN].spec
    assert spec.num_groups == 100
    assert spec.names[35] == "cat/5"
    assert spec.is_aligned().nonzero().flatten().tolist() == list(range(0, 100, 11))


def test_full_strength_pairs_digit_and_class(splits):
    train = splits[Split.TRAIN]
    assert torch.equal(train.y, train.a)
    assert torch.bincount(train.y).tolist() == [30] * 10


@pytest.mark.parametrize("strength", [0.0, 0.5, 0.9])
def test_weaker_correlation_permutes_some_photographs(shared, strength):
    found = []
    for split_seed in range(6):
        train = load(shared, strength=strength, split_seed=split_seed)[Split.TRAIN]
        assert matches(train) >= round(300 * strength)
        assert torch.bincount(train.y).tolist() == torch.bincount(train.a).tolist() == [30] * 10
        assert train.source[:, 1].unique().numel() == 300
        found.append(matches(train) / 300)
    # 1 - s of the photographs are permuted and 1 in 10 of them meets its digit by chance
    assert np.mean(found) == pytest.approx(strength + (1 - strength) / 10, abs=0.03)


def test_strength_leaves_the_other_splits_membership_alone(shared, splits):
    other = load(shared, strength=0.8)
    for position in (0, 1):
        pools = [
            torch.cat([s[Split.VAL].source, s[Split.TARGET].source])[:, position]
            for s in (splits, other)
        ]
        assert set(pools[0].tolist()) == set(pools[1].tolist())


@pytest.mark.parametrize("name", [Split.VAL, Split.TARGET, Split.TEST])
def test_halves_are_independent_outside_of_train(shared, name):
    held_out = [load(shared, split_seed=seed)[name] for seed in range(10)]
    rate = sum(map(matches, held_out)) / sum(map(len, held_out))
    assert 0.06 < rate < 0.14
    assert len({tuple(split.source.flatten().tolist()) for split in held_out}) == 10


def test_the_pool_has_as_many_of_every_class(splits):
    for labels in ("y", "a"):
        pool = torch.cat([getattr(splits[name], labels) for name in (Split.VAL, Split.TARGET)])
        assert torch.bincount(pool).tolist() == [10] * 10
    assert len(torch.bincount(splits[Split.VAL].y).unique()) > 1


def test_splits_share_no_digit_and_no_photograph(splits):
    for position in (0, 1):
        sources = torch.cat(
            [splits[n].source[:, position] for n in (Split.TRAIN, Split.VAL, Split.TARGET)]
        )
        assert sources.unique().numel() == 400


def test_test_uses_every_photograph_once_with_true_digits(splits, shared):
    test = splits[Split.TEST]
    assert sorted(test.source[:, 1].tolist()) == list(range(100))
    assert test.source[:, 0].unique().numel() == 100
    assert torch.bincount(test.y).tolist() == [10] * 10
    assert torch.equal(test.a, read_mnist(shared, train=False)[1][test.source[:, 0]])
    assert len(torch.bincount(test.a).unique()) > 1


def test_the_split_is_drawn_by_its_seed_alone(shared, splits):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again, other = load(shared), load(shared, split_seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    for name, split in splits.items():
        assert again[name].fingerprint == split.fingerprint
        assert other[name].fingerprint != split.fingerprint


def test_transforms():
    assert isinstance(read("dataset=dominoes").dataset.build().transform, CropFlip)
    plain = read("dataset=dominoes", "dataset/transform=cifar10").dataset.build().transform
    assert isinstance(plain, Normalize)
    x = torch.full((1, 3, 64, 32), 255, dtype=torch.uint8)
    expected = [(1 - 0.4914) / 0.2023, (1 - 0.4822) / 0.1994, (1 - 0.4465) / 0.2010]
    assert plain(x)[0, :, 40, 7].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"strength": 1.5}, {"strength": -0.1}, *[{"pool_size": n} for n in (0, 30, -20, 50000)]],
)
def test_bad_options_are_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value} must be"):
        Dominoes(**options)


def test_a_pool_that_takes_everything_is_refused(shared):
    with pytest.raises(UserError, match=r"pool_size=400 .* 40 images.* below 400"):
        load(shared, pool_size=400)


# --- the decoded array ----------------------------------------------------------------------------


def test_photographs_are_decoded_once(own, monkeypatch):
    first, _ = read_cifar10(own, train=True)
    stores = list((own / "cifar10" / ".spurcor" / "train").glob("original-*/store.json"))
    assert len(stores) == 1

    def refuse(*args):
        raise AssertionError("decoded again")

    monkeypatch.setattr(Image, "open", refuse)
    again, labels = read_cifar10(own, train=True)
    assert torch.equal(first, again)
    assert len(labels) == 400


@pytest.mark.parametrize("name", ["Thumbs.db", "desktop.ini", ".DS_Store", "._0000.png"])
def test_what_desktops_leave_is_no_photograph(own, name):
    before = read_cifar10(own, train=True)[1]
    (own / "cifar10" / "train" / "cat" / name).write_bytes(b"x")
    assert torch.equal(read_cifar10(own, train=True)[1], before)


def test_photographs_may_be_one_level_deeper(own, tmp_path):
    before = read_cifar10(own, train=True)[0]
    (tmp_path / "deeper" / "cifar10").mkdir(parents=True)
    (tmp_path / "deeper" / "cifar10" / "__MACOSX").mkdir()
    shutil.copytree(own / "cifar10", tmp_path / "deeper" / "cifar10" / "CIFAR-10-images")
    assert torch.equal(read_cifar10(tmp_path / "deeper", train=True)[0], before)


def test_an_added_photograph_is_seen(own):
    read_cifar10(own, train=True)
    folder = own / "cifar10" / "train" / "cat"
    write_photo(folder / "9999.png", np.random.default_rng(1))
    images, labels = read_cifar10(own, train=True)
    assert torch.bincount(labels).tolist() == [40, 40, 40, 41, 40, 40, 40, 40, 40, 40]
    expected = np.asarray(Image.open(folder / "9999.png")).transpose(2, 0, 1)
    assert np.array_equal(images[4 * TRAIN].numpy(), expected)


def test_a_replaced_photograph_is_seen(own):
    before, _ = read_cifar10(own, train=True)
    path = own / "cifar10" / "train" / "cat" / "0000.png"
    path.unlink()
    write_photo(path, np.random.default_rng(1))
    after, _ = read_cifar10(own, train=True)
    changed = (before != after).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [3 * TRAIN]


def test_a_photograph_of_another_size_is_refused(own):
    path = own / "cifar10" / "train" / "truck" / "0007.png"
    Image.new("RGB", (48, 32)).save(path)
    with pytest.raises(UserError, match=r"truck/0007\.png is 48 x 32, not 32 x 32"):
        read_cifar10(own, train=True)


# --- missing data ---------------------------------------------------------------------------------


def test_missing_data_are_told_and_leave_nothing_behind(tmp_path):
    root = tmp_path / "data"
    with pytest.raises(UserError, match=rf"paths\.data={root} lacks MNIST.*{root}/MNIST/raw"):
        load(root)
    assert not root.exists()


def test_missing_photographs_are_told_and_leave_nothing_behind(tmp_path):
    write_mnist(tmp_path, np.random.default_rng(0))
    before = sorted(tmp_path.rglob("*"))
    folder = f"{tmp_path}/cifar10/train"
    with pytest.raises(UserError, match=rf"lacks CIFAR10.*{folder}.*cifar-10-batches-py"):
        load(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_class_folder_is_told(own):
    folder = own / "cifar10" / "train" / "frog"
    folder.rename(own / "frog")
    with pytest.raises(UserError, match=rf"{folder.parent} lacks the class folders frog"):
        load(own)
    assert not list((own / "cifar10").glob(".train*"))


def test_a_truncated_mnist_file_is_told(own):
    path = own / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="MNIST"):
        load(own)


# --- torchvision's batches ------------------------------------------------------------------------


def write_batches(root, monkeypatch, photos):
    """CIFAR-10 as torchvision unpickles it, with the checksums of these files."""
    folder = root / CIFAR10.base_folder
    folder.mkdir()

    def write(name, content):
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def batches(names, images, labels):
        rows = images.reshape(len(labels), -1).numpy()
        return [
            [name, write(name, {"data": part, "labels": part_labels.tolist()})]
            for name, part, part_labels in zip(
                names,
                np.array_split(rows, len(names)),
                np.array_split(labels.numpy(), len(names)),
                strict=True,
            )
        ]

    names = [f"data_batch_{i}" for i in range(1, 6)]
    monkeypatch.setattr(CIFAR10, "train_list", batches(names, *photos["train"]))
    monkeypatch.setattr(CIFAR10, "test_list", batches(["test_batch"], *photos["test"]))
    md5 = write("batches.meta", {"label_names": list(CLASSES)})
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5})
    return folder


@pytest.fixture
def batches(shared, tmp_path, monkeypatch):
    write_mnist(tmp_path, np.random.default_rng(0))
    photos = {part: read_cifar10(shared, part == "train") for part in ("train", "test")}
    return write_batches(tmp_path, monkeypatch, photos)


def test_batches_give_the_same_data_as_folders(batches, shared, splits):
    for train in (True, False):
        for one, other in zip(
            read_cifar10(batches.parent, train), read_cifar10(shared, train), strict=True
        ):
            assert torch.equal(one, other)
    for name, split in load(batches.parent).items():
        assert split.fingerprint == splits[name].fingerprint
        assert torch.equal(split.images.pixels, splits[name].images.pixels)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_altered_batches_are_refused_before_they_are_unpickled(batches, tmp_path):
    victim = tmp_path / "executed"
    (batches / "data_batch_3").write_bytes(pickle.dumps(Payload(victim)))
    with pytest.raises(UserError, match="lacks CIFAR10"):
        load(batches.parent)
    assert not victim.exists()


# --- the real thing -------------------------------------------------------------------------------


@pytest.mark.real_data
def test_real_sizes(data_root):
    splits = Dominoes(strength=0.95).load(data_root)
    sizes = {str(name): len(split) for name, split in splits.items()}
    assert sizes == {"train": 48000, "target": 1000, "val": 1000, "test": 10000}
    train, test = splits[Split.TRAIN], splits[Split.TEST]
    assert torch.bincount(train.y).tolist() == torch.bincount(train.a).tolist() == [4800] * 10
    assert matches(train) / 48000 == pytest.approx(0.955, abs=0.004)
    # MNIST's test digits in their true numbers
    digits = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert torch.bincount(test.a).tolist() == digits
    assert matches(test) / 10000 == pytest.approx(0.1, abs=0.015)
    mean = train.images.pixels[::16, :, 32:].double().mean((0, 2, 3)) / 255
    assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.01)


# --- other classes --------------------------------------------------------------------------------

BINARY = {"digits": (0, 1), "pool_size": 20}
CARS = {**BINARY, "classes": ("automobile", "truck")}
FASHION = {**BINARY, "below": "fashion_mnist", "classes": ("coat", "dress")}


@pytest.fixture(scope="module")
def with_fashion(shared, tmp_path_factory):
    root = tmp_path_factory.mktemp("fashion")
    for name in ("MNIST", "cifar10"):
        (root / name).symlink_to(shared / name)
    write_mnist(root, np.random.default_rng(3), name="FashionMNIST")
    return root


def test_cars_and_trucks(shared):
    """44 zeros, 45 ones, 40 of each class: 40 train, 10 of them held out; 10 of each in test."""
    splits = load(shared, **CARS)
    assert splits["train"].spec.names == [
        *("automobile/0", "automobile/1", "truck/0", "truck/1"),
    ]
    assert splits["train"].group_counts.tolist() == [30, 0, 0, 30]
    pool = sum(splits[name].group_counts.view(2, 2) for name in (Split.VAL, Split.TARGET))
    assert pool.sum(0).tolist() == pool.sum(1).tolist() == [10, 10]
    assert len(splits["test"]) == 17  # 8 zeros and 9 ones
    for name, split in splits.items():
        train = name != Split.TEST
        digits, photos = read_mnist(shared, train), read_cifar10(shared, train)
        upper, lower = split.source.unbind(1)
        assert torch.equal(split.a, digits[1][upper])
        assert torch.equal(photos[1][lower], torch.tensor([1, 9])[split.y])
        assert torch.equal(split.images.pixels[:, 1, 2:30, 2:30], digits[0][upper])
        assert torch.equal(split.images.pixels[:, :, 32:], photos[0][lower])


def test_coats_and_dresses(with_fashion):
    """Class 4 is a coat and 3 a dress; 48 and 47 of them, 44 zeros and 45 ones."""
    splits = load(with_fashion, **FASHION, strength=0.5)
    train = splits["train"]
    assert torch.bincount(train.y).tolist() == torch.bincount(train.a).tolist() == [34, 35]
    assert 0 < int((train.y != train.a).sum()) < 40
    for name, split in splits.items():
        digits, clothes = (
            reader(with_fashion, name != Split.TEST) for reader in (read_mnist, read_fashion_mnist)
        )
        upper, lower = split.source.unbind(1)
        assert torch.equal(clothes[1][lower], torch.tensor([4, 3])[split.y])
        assert torch.equal(digits[1][upper], split.a)
        for channel in range(3):
            below = split.images.pixels[:, channel, 34:62, 2:30]
            assert torch.equal(below, clothes[0][lower])
        assert split.images.pixels[:, :, 32:34].sum() == 0


def test_digits_go_with_the_classes_in_their_order(shared):
    options = {**CARS, "digits": (7, 3), "classes": ("truck", "automobile")}
    train = load(shared, **options)["train"]
    digits = read_mnist(shared, train=True)[1][train.source[:, 0]]
    photos = read_cifar10(shared, train=True)[1][train.source[:, 1]]
    assert torch.equal(digits, torch.tensor([7, 3])[train.y])
    assert torch.equal(photos, torch.tensor([9, 1])[train.y])
    assert train.spec.names == ["truck/7", "truck/3", "automobile/7", "automobile/3"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"classes": ("coat", "truck")}, "classes=coat .*cifar10; .* airplane"),
        ({"classes": ("truck",)}, r"digits=\[0, 1\] and classes="),
        ({"digits": (1, 1)}, r"digits=\[1, 1\] and classes="),
        ({"digits": (1,), "classes": ("truck",)}, r"digits=\[1\] and classes="),
        ({"digits": (1, 10)}, "digits=10 must be between 0 and 9"),
        ({"pool_size": 30}, "pool_size=30 must be a multiple of 4 .*10000"),
        ({"pool_size": 10000}, "pool_size=10000 must be a multiple of 4 .*10000"),
    ],
)
def test_bad_classes_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Dominoes(**{**CARS, **options})


def test_the_published_dominoes_are_the_default():
    assert read("dataset=dominoes").dataset.hashed().keys() == {"_target_", "transform"}


# What the published composition gave before other classes were possible.
FINGERPRINTS = {
    Split.TRAIN: "826e5e39dc89e4bf",
    Split.TARGET: "2f8c02d3ade920f6",
    Split.VAL: "dfed98022cfaa3ee",
    Split.TEST: "e14ccc6f297afd5c",
}


@pytest.mark.real_data
def test_real_dominoes_are_what_they_were(data_root):
    splits = Dominoes(strength=0.95).load(data_root)
    assert {name: split.fingerprint for name, split in splits.items()} == FINGERPRINTS


@pytest.mark.real_data
def test_real_cars_and_trucks(data_root):
    splits = read("dataset=dominoes_cars").dataset.build().splits(data_root)
    sizes = {str(name): len(split) for name, split in splits.items()}
    assert sizes == {"train": 8000, "target": 1000, "val": 1000, "test": 2000}
    conflicting = int((splits["train"].y != splits["train"].a).sum())
    assert conflicting / 8000 == pytest.approx(0.05, abs=0.005)


@pytest.mark.real_data
@pytest.mark.skipif(not DEBIAN_FASHION.is_dir(), reason="no package dataset-fashion-mnist")
def test_real_coats_and_dresses(data_root):
    splits = read("dataset=dominoes_fashion").dataset.build().splits(data_root)
    sizes = {str(name): len(split) for name, split in splits.items()}
    assert sizes == {"train": 8000, "target": 1000, "val": 1000, "test": 2000}
