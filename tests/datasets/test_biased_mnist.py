"""MaskTune's biased MNIST, from small files in MNIST's format."""

import numpy as np
import pytest
import torch
from generators import TEST_COUNTS, assert_drawn_by_its_seed_alone, write_mnist
from training import read

from spurcor.datasets.biased_mnist import BiasedMnist
from spurcor.datasets.sources import read_mnist
from spurcor.errors import UserError

SETS = ["test", "biased", "raw"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_mnist(root, np.random.default_rng(0), ink=0.3)
    return root


def load(root, **options):
    return BiasedMnist(**{"val_size": 100, "conflict_ratio": 0.1, **options}).load(root)


@pytest.fixture(scope="module")
def splits(root):
    return load(root)


def whole(splits):
    """Labels and attributes of all training images, in the order of the file."""
    source, y, a = (
        torch.cat([getattr(splits[name], key) for name in ("train", "val")])
        for key in ("source", "y", "a")
    )
    order = source.argsort()
    assert torch.equal(source[order], torch.arange(485))
    return y[order], a[order]


@pytest.mark.parametrize(
    ("ratio", "squares"), [(0.1, (207, 26)), (0.01, (228, 3)), (0.0, (230, 0))]
)
def test_the_first_of_each_class_have_the_square(root, ratio, squares):
    """230 small and 255 large digits: 0.9 * 230 = 207 and 0.1 * 255 = 25.5, rounded to 26."""
    splits = load(root, conflict_ratio=ratio)
    y, a = whole(splits)
    for label, number in enumerate(squares):
        shown = a[y == label]
        assert shown.sum() == number
        assert shown[:number].all()
        assert not shown[number:].any()


def test_val_is_drawn_at_random_of_the_biased_images(splits, root):
    val = splits["val"]
    assert (len(splits["train"]), len(val)) == (385, 100)
    assert 0 < val.group_counts[0] < 30
    assert 0 < val.group_counts[3] < 30
    assert val.source.max() > 300 > 100 > val.source.min()
    other = load(root, conflict_ratio=0.5)
    assert torch.equal(other["val"].source, val.source)
    assert other["val"].fingerprint != val.fingerprint


def test_numbers_of_the_test_sets(splits):
    """50 small and 54 large digits."""
    assert [int(TEST_COUNTS[:5].sum()), int(TEST_COUNTS[5:].sum())] == [50, 54]
    assert {name: splits[name].group_counts.tolist() for name in SETS} == {
        "test": [25, 25, 27, 27],
        "biased": [50, 0, 0, 54],
        "raw": [50, 0, 54, 0],
    }
    assert splits["raw"].spec.names == ["small/none", "small/square", "large/none", "large/square"]
    assert splits["raw"].spec.is_aligned().tolist() == [False, True, True, False]


def test_pixels(splits, root):
    for name, split in splits.items():
        grey, digits = read_mnist(root, train=name in ("train", "val"))
        assert torch.equal(split.y, (digits[split.source] >= 5).long())
        pixels = split.images.take(split.rows)
        expected = grey[split.source][:, None].repeat(1, 3, 1, 1)
        square = split.a == 1
        expected[square, 0, :4, :4] = 255
        expected[square, 1:, :4, :4] = 0
        assert torch.equal(pixels, expected), name
    assert torch.equal(splits["raw"].images.pixels[:, 1], read_mnist(root, train=False)[0])


def test_who_has_the_square_in_test_is_chosen_at_random(root):
    sets = {tuple(load(root, split_seed=seed)["test"].a.tolist()) for seed in range(4)}
    assert len(sets) == 4


def test_the_split_is_drawn_by_its_seed_alone(root):
    assert_drawn_by_its_seed_alone(lambda **options: load(root, **options))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"conflict_ratio": 1.5}, "conflict_ratio=1.5 must be between 0 and 1"),
        ({"conflict_ratio": -0.1}, "conflict_ratio=-0.1 must be between 0 and 1"),
        ({"val_size": 0}, "val_size=0 must be at least 1"),
        ({"num_val": 0}, "num_val=0 must be at least 1"),
    ],
)
def test_bad_options_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        BiasedMnist(**options)


def test_a_val_that_takes_everything_is_refused(root):
    with pytest.raises(UserError, match=r"dataset\.val_size=485 .*\b485 training"):
        load(root, val_size=485)


@pytest.mark.real_data
def test_real_numbers(data_root):
    """30,596 small and 29,404 large training digits; 5,139 and 4,861 in the test set."""
    splits = read("dataset=biased_mnist").dataset.build().splits(data_root)
    counts = {str(name): split.group_counts.tolist() for name, split in splits.items()}
    train, val = counts.pop("train"), counts.pop("val")
    assert [sum(pair) for pair in zip(train, val, strict=True)] == [306, 30290, 29110, 294]
    assert (sum(train), sum(val)) == (48000, 12000)
    assert 40 < val[0] < 85
    assert 40 < val[3] < 85
    assert counts == {
        "test": [2570, 2569, 2431, 2430],
        "biased": [5139, 0, 0, 4861],
        "raw": [5139, 0, 4861, 0],
    }
