"""Colored MNIST with exact group counts, from small files in MNIST's format."""

import numpy as np
import pytest
import torch
from generators import assert_drawn_by_its_seed_alone, write_mnist
from training import read

from spurcor.datasets.colored_mnist import ColoredMnist
from spurcor.datasets.sources import read_mnist
from spurcor.errors import UserError

SMALL = {"train_size": 200, "test_size": 80, "val_size": 40, "target_size": 20}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_mnist(root, np.random.default_rng(0), ink=0.5)
    return root


def load(root, **options):
    return ColoredMnist(**{**SMALL, **options}).load(root)


@pytest.fixture(scope="module")
def splits(root):
    return load(root)


# pi = (1 + y E[y] + a E[a] + y a (rho + E[y] E[a])) / 4, worked out by hand.
COUNTS = {
    "the default": ({}, [90, 10, 10, 90]),
    "independent": ({"train_correlation": 0.0}, [50, 50, 50, 50]),
    "complete": ({"train_correlation": 1.0}, [100, 0, 0, 100]),
    "reversed": ({"train_correlation": -0.8}, [10, 90, 90, 10]),
    # E[y] = 0.2, E[a] = 0, E[ya] = 0.6: 1.4, 0.2, 0.6, 1.8 quarters
    "more large": ({"train_correlation": 0.6, "train_label_marginal": 0.2}, [70, 10, 30, 90]),
    # E[y] = 0, E[a] = 0.2, E[ya] = 0.6: 1.4, 0.6, 0.2, 1.8 quarters
    "more red": ({"train_correlation": 0.6, "train_attribute_marginal": 0.2}, [70, 30, 10, 90]),
    # E[y] = E[a] = 0.5, E[ya] = 0.1 + 0.25: 0.35, 0.65, 0.65, 2.35 quarters
    "both": (
        {
            "train_correlation": 0.1,
            "train_label_marginal": 0.5,
            "train_attribute_marginal": 0.5,
            "train_size": 100,
        },
        [9, 16, 16, 59],  # 8.75, 16.25, 16.25, 58.75 round to 9, 16, 16, 59
    ),
    # 5.85, 0.65, 0.65, 5.85 round to 6, 1, 1, 6: one too many, taken from the largest
    "a rest": ({"train_size": 13}, [5, 1, 1, 6]),
}


@pytest.mark.parametrize("case", COUNTS)
def test_the_groups_of_train_have_exact_numbers(root, case):
    options, counts = COUNTS[case]
    assert load(root, **options)["train"].group_counts.tolist() == counts


def test_numbers_of_the_other_splits(splits, root):
    assert list(splits) == ["train", "val", "target", "test"]
    assert splits["val"].group_counts.tolist() == [10] * 4
    assert splits["target"].group_counts.tolist() == [5] * 4
    assert splits["test"].group_counts.tolist() == [20] * 4
    options = {"test_correlation": -0.5, "test_label_marginal": 0.1, "test_attribute_marginal": 0.1}
    # E[ya] = -0.49: 0.31, 1.49, 1.49, 0.71 quarters of 80
    assert load(root, **options)["test"].group_counts.tolist() == [6, 30, 30, 14]


def test_names(splits, root):
    spec = splits["train"].spec
    assert spec.names == ["small/green", "small/red", "large/green", "large/red"]
    assert spec.aligned == (0, 1)
    assert load(root, train_correlation=-0.5)["train"].spec.aligned == (1, 0)


def test_pixels(splits, root):
    """Half of the pixels are 0; grey 1 and 2 count as background, from 3 on there is colour."""
    for name, split in splits.items():
        grey, digits = read_mnist(root, train=name != "test")
        assert torch.equal(split.y, (digits[split.source] >= 5).long())
        grey = grey[split.source]
        rows = torch.arange(len(split))
        bright = 1 - split.a  # channel 0 is red, 1 is green
        pixels = split.images.pixels
        assert torch.equal(pixels[rows, bright], grey)
        quarter = torch.where(grey >= 3, (grey / 4).round().to(torch.uint8), grey)
        for other in (1 - bright, torch.full_like(bright, 2)):
            assert torch.equal(pixels[rows, other], quarter)
        assert bool(((grey == 1) | (grey == 2)).any())


def test_splits_share_no_image(splits):
    sources = torch.cat([splits[name].source for name in ("train", "val", "target")])
    assert sources.unique().numel() == len(sources) == 260


def test_target_may_be_left_out(splits, root):
    without = load(root, target_size=0)
    assert list(without) == ["train", "val", "test"]
    assert without["val"].fingerprint == splits["val"].fingerprint
    assert without["train"].group_counts.tolist() == splits["train"].group_counts.tolist()


@pytest.mark.parametrize("target_size", [20, 0])
def test_target_may_be_a_share_of_train(splits, root, target_size):
    options = {"target_from": "train", "target_fraction": 0.2, "target_size": target_size}
    clean = ColoredMnist(**{**SMALL, **options}).splits(root)
    assert clean["target"].group_counts.tolist() == [18, 2, 2, 18]
    assert clean["train"].group_counts.tolist() == [72, 8, 8, 72]
    sources = torch.cat([clean[name].source for name in ("train", "target")])
    assert sources.unique().numel() == 200
    if target_size:
        assert set(sources.tolist()) == set(splits["train"].source.tolist())


def test_train_changes_nothing_held_out(splits, root):
    other = load(root, train_correlation=0.2, train_size=100)
    changed = [n for n in splits if splits[n].fingerprint != other[n].fingerprint]
    assert changed == ["train"]


def test_the_split_is_drawn_by_its_seed_alone(root):
    assert_drawn_by_its_seed_alone(lambda **options: load(root, **options))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"train_correlation": 1.5},
            r"train_correlation=1.5 is impossible .* small/red would have the probability -0.125$",
        ),
        (
            {"test_correlation": 0.9, "test_label_marginal": 0.5},
            r"test_correlation=0.9 is impossible with test_label_marginal=0.5 .* small/red .*-0.1$",
        ),
        (
            {"train_label_marginal": -2.0, "train_correlation": 0.0},
            "large/green would have .*-0.25",
        ),
        ({"train_size": 0}, "train_size=0 must be at least 1"),
        ({"test_size": -8}, "test_size=-8 must be at least 1"),
        ({"val_size": 30}, "val_size=30 must be a multiple of 4"),
        ({"val_size": 0}, r"val_size=0 .*\b4\b"),
        ({"target_size": 6}, "target_size=6 must be a multiple of 4"),
        ({"target_size": -4}, r"target_size=-4 .*\b0\b"),
    ],
)
def test_bad_options_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        ColoredMnist(**options)


def test_too_few_images_are_told(root):
    """230 small and 255 large ones, 30 of each held out; 50 and 54 in the test set."""
    load(root, train_size=400)
    with pytest.raises(UserError, match=r"train_size=402 .*\b201 small.*\b200\b"):
        load(root, train_size=402)
    with pytest.raises(UserError, match=r"test_size=108 .*\b54 small.*\b50\b"):
        load(root, test_size=108)
    with pytest.raises(UserError, match=r"val_size=480 .*\b240 small.*\b230\b"):
        load(root, val_size=480)


@pytest.mark.real_data
def test_real_numbers(data_root):
    splits = read("dataset=colored_mnist").dataset.build().splits(data_root)
    assert {str(name): split.group_counts.tolist() for name, split in splits.items()} == {
        "train": [4500, 500, 500, 4500],
        "val": [500] * 4,
        "target": [200] * 4,
        "test": [2000] * 4,
    }
    # 29,404 large digits, 1,400 of them held out
    most = read("dataset=colored_mnist", "dataset.train_size=56008").dataset.build()
    assert most.load(data_root)["train"].group_counts.tolist() == [25204, 2800, 2800, 25204]
    with pytest.raises(UserError, match=r"\b28006 large.*\b28004\b"):
        read("dataset=colored_mnist", "dataset.train_size=56012").dataset.build().load(data_root)
