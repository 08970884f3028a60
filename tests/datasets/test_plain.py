"""CIFAR-10 and Fashion-MNIST as they are, and the files that they are read from."""

import gzip
import shutil

import numpy as np
import pytest
import torch
from generators import (
    TEST_COUNTS,
    TRAIN,
    TRAIN_COUNTS,
    assert_drawn_by_its_seed_alone,
    idx,
    write_folders,
    write_mnist,
)
from training import read

from spurcor.data.transforms import CropFlip
from spurcor.datasets import sources
from spurcor.datasets.plain import Plain
from spurcor.datasets.sources import read_fashion_mnist, read_mnist
from spurcor.errors import UserError

pytestmark = pytest.mark.usefixtures("offline")
FASHION = ("FashionMNIST", "raw", "train-images-idx3-ubyte")


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """Whatever is installed on this machine."""
    monkeypatch.setattr(sources, "DEBIAN_FASHION", tmp_path / "debian")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    write_mnist(root, rng)
    write_mnist(root, rng, name="FashionMNIST")
    write_folders(root, rng)
    return root


def load(root, name="fashion_mnist", **options):
    return Plain(**{"name": name, "val_size": 60, **options}).load(root)


# --- the data sets --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "train", "test"),
    [("cifar10", (3, 32, 32), 400, 100), ("fashion_mnist", (1, 28, 28), 485, TEST_COUNTS.sum())],
)
def test_splits(root, name, shape, train, test):
    splits = load(root, name)
    sizes = {str(split): len(data) for split, data in splits.items()}
    assert sizes == {"train": train - 60, "val": 60, "test": test}
    held_in = torch.cat([splits["train"].source, splits["val"].source])
    assert torch.equal(held_in.sort()[0], torch.arange(train))
    assert splits["train"].images is splits["val"].images
    images, labels = getattr(sources, f"read_{name}")(root, train=True)
    for part in ("train", "val"):
        data = splits[part]
        batch = data.fetch(torch.arange(len(data)))
        assert batch.x.shape[1:] == shape
        assert torch.equal(batch.x.flatten(), images[data.source].flatten())
        assert torch.equal(batch.y, labels[data.source])


def test_groups_are_classes(root):
    split = load(root)["test"]
    assert split.spec.names[9] == "ankle-boot/any"
    assert split.group_counts.tolist() == TEST_COUNTS.tolist()
    assert not split.spec.is_aligned().any()


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist"])
def test_val_is_drawn_by_its_seed_alone(root, name):
    assert_drawn_by_its_seed_alone(lambda **options: load(root, name, **options))


def test_bad_options_are_refused(root):
    with pytest.raises(ValueError, match="val_size=0 must be at least 1"):
        Plain(name="cifar10", val_size=0)
    with pytest.raises(UserError, match=r"val_size=485 .*\b485 training"):
        load(root, val_size=485)
    with pytest.raises(UserError, match=r"dataset.name=mnist .*one of cifar10, fashion_mnist"):
        read("dataset=cifar10", "dataset.name=mnist")


def test_what_is_composed():
    cifar = read("dataset=cifar10")
    assert isinstance(cifar.dataset.build().transform, CropFlip)
    assert cifar.dfr is None
    z = (
        read("dataset=fashion_mnist")
        .dataset.build()
        .transform(torch.full((1, 1, 28, 28), 255, dtype=torch.uint8))
    )
    assert float(z.max()) == pytest.approx((1 - 0.2860) / 0.3530, rel=1e-5)


# --- the files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reader"), [("MNIST", read_mnist), ("FashionMNIST", read_fashion_mnist)]
)
@pytest.mark.parametrize("train", [True, False])
def test_compressed_files_are_the_same(tmp_path, name, reader, train):
    for folder, compressed in (("plain", False), ("packed", True)):
        write_mnist(tmp_path / folder, np.random.default_rng(1), name, compressed=compressed)
    plain, packed = (reader(tmp_path / folder, train) for folder in ("plain", "packed"))
    assert torch.equal(plain[0], packed[0])
    assert torch.equal(plain[1], packed[1])
    counts = TRAIN_COUNTS if train else TEST_COUNTS
    assert torch.bincount(plain[1]).tolist() == counts.tolist()


@pytest.mark.parametrize(
    ("form", "end"),
    [("{part}.{kind}", ""), ("{part}.{kind}", ".gz"), ("{part}-{kind}/{part}-{kind}", "")],
)
@pytest.mark.parametrize("folder", ["MNIST/raw", "MNIST"])
def test_the_names_of_kaggle_are_found(tmp_path, form, folder, end):
    """`train-images.idx3-ubyte` beside folders that are called `train-images-idx3-ubyte`."""
    published = tmp_path / "as published"
    write_mnist(published, np.random.default_rng(1), compressed=bool(end))
    for path in (published / "MNIST" / "raw").iterdir():
        part, _, kind = path.name.removesuffix(".gz").rpartition("-idx")
        kind = f"idx{kind}"
        (tmp_path / "MNIST").mkdir(exist_ok=True)
        place = tmp_path / folder / f"{form.format(part=part, kind=kind)}{end}"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
        (tmp_path / folder / f"{part}-{kind}").mkdir(exist_ok=True)
    for train in (True, False):
        expected, found = (
            read_mnist(root, train) for root in (tmp_path / "as published", tmp_path)
        )
        assert torch.equal(expected[0], found[0])
        assert torch.equal(expected[1], found[1])


def test_what_is_there_is_told_before_a_download(tmp_path, offline, caplog):
    write_mnist(tmp_path, np.random.default_rng(1))
    (tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte").unlink()
    found = f"{tmp_path}/MNIST/raw has t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte, train-im"
    with pytest.raises(UserError, match="which cannot be downloaded here") as caught:
        read_mnist(tmp_path, train=True)
    assert found in str(caught.value)
    assert found in caplog.text


def test_fashion_mnist_of_the_package_is_found(tmp_path):
    write_mnist(tmp_path, np.random.default_rng(1), "made", compressed=True)
    (tmp_path / "made" / "raw").rename(tmp_path / "debian")
    images, _ = read_fashion_mnist(tmp_path / "empty", train=True)
    assert len(images) == TRAIN_COUNTS.sum()
    assert not (tmp_path / "empty").exists()
    # what the user has put under paths.data goes before it
    write_mnist(tmp_path, np.random.default_rng(2), "FashionMNIST")
    assert not torch.equal(read_fashion_mnist(tmp_path, train=True)[0], images)


def test_missing_fashion_mnist_is_told_and_leaves_nothing_behind(tmp_path):
    data = tmp_path / "data"
    sentence = rf"paths\.data={data} lacks FashionMNIST.*{data}/FashionMNIST/raw.*dataset-fashion"
    with pytest.raises(UserError, match=sentence):
        read_fashion_mnist(data, train=True)
    assert not data.exists()


SPOILT = {
    "cut off": lambda content: content[:5000],
    "empty": lambda content: b"",
    "another kind": lambda content: b"\x89PNG" + content,
    "no image left": lambda content: content[:10],
    "another size": lambda content: idx(np.zeros((485, 32, 32), np.uint8)),
    "an image too few": lambda content: idx(np.zeros((484, 28, 28), np.uint8)),
}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("case", SPOILT)
def test_damaged_files_are_told(tmp_path, case, compressed):
    write_mnist(tmp_path, np.random.default_rng(0), "FashionMNIST", compressed=compressed)
    path = tmp_path.joinpath(*FASHION)
    if compressed:
        path = path.with_name(f"{path.name}.gz")
        path.write_bytes(gzip.compress(SPOILT[case](gzip.decompress(path.read_bytes()))))
    else:
        path.write_bytes(SPOILT[case](path.read_bytes()))
    with pytest.raises(UserError, match=r"FashionMNIST in .*raw is damaged"):
        read_fashion_mnist(tmp_path, train=True)


def test_a_compressed_file_that_was_cut_off_is_told(tmp_path):
    write_mnist(tmp_path, np.random.default_rng(0), compressed=True)
    path = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    for content in (path.read_bytes()[:-20], b"no gzip"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"MNIST in .* is damaged"):
            read_mnist(tmp_path, train=False)


@pytest.mark.real_data
def test_real_numbers(data_root):
    cifar = read("dataset=cifar10").dataset.build().splits(data_root)
    assert {str(name): len(split) for name, split in cifar.items()} == {
        "train": 45000,
        "val": 5000,
        "test": 10000,
    }
    assert cifar["test"].group_counts.tolist() == [1000] * 10
    assert TRAIN < cifar["val"].group_counts.min() < cifar["val"].group_counts.max()


@pytest.mark.skipif(not sources.DEBIAN_FASHION.is_dir(), reason="no package dataset-fashion-mnist")
def test_the_real_fashion_mnist(monkeypatch, tmp_path):
    monkeypatch.undo()
    splits = read("dataset=fashion_mnist").dataset.build().splits(tmp_path)
    assert {str(name): len(split) for name, split in splits.items()} == {
        "train": 55000,
        "val": 5000,
        "test": 10000,
    }
    assert splits["test"].group_counts.tolist() == [1000] * 10
    mean = splits["train"].images.pixels.double().mean() / 255
    assert float(mean) == pytest.approx(0.2860, abs=0.0001)
