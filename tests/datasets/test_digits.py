"""The embedded data set."""

from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from training import read

from spurcor.data.transforms import Normalize
from spurcor.datasets.digits import Digits

SPLITS = ["train", "target", "val", "test", "opposite"]
NOWHERE = Path("/nonexistent")


@pytest.fixture(scope="module")
def splits():
    return Digits().load(NOWHERE)


def load(**options):
    return Digits(**options).load(NOWHERE)


def fingerprints(**options):
    return {str(name): split.fingerprint for name, split in load(**options).items()}


def test_sizes(splits):
    assert {str(name): len(split) for name, split in splits.items()} == {
        "train": 797,
        "target": 300,
        "val": 300,
        "test": 400,
        "opposite": 400,
    }
    for split in splits.values():
        assert split.images.pixels.shape[1:] == (3, 8, 8)
        assert split.images.pixels.dtype == torch.uint8


def test_every_digit_is_in_one_split(splits):
    sources = torch.cat([splits[name].source for name in SPLITS[:4]])
    assert sorted(sources.tolist()) == list(range(1797))
    assert torch.equal(splits["opposite"].source, splits["test"].source)


def test_labels_and_images_are_those_of_the_source(splits):
    digits = load_digits()
    for split in splits.values():
        assert torch.equal(split.y, (torch.from_numpy(digits.target)[split.source] >= 5).long())
        grey = torch.from_numpy(digits.images)[split.source] / 16
        rows = torch.arange(len(split))
        bright = split.images.pixels[rows, split.a].double() / 255
        torch.testing.assert_close(bright, grey, atol=0.0021, rtol=0)


def test_colours(splits):
    """Red is channel 0 and green channel 1; what is not the colour has a quarter of it."""
    for split in splits.values():
        rows, images = torch.arange(len(split)), split.images.pixels.double()
        bright = images[rows, split.a]
        for other in (1 - split.a, torch.full_like(split.a, 2)):
            torch.testing.assert_close(images[rows, other], bright / 4, atol=1.0, rtol=0)
    assert splits["train"].spec.attributes == ("red", "green")


@pytest.mark.parametrize("strength", [0.0, 0.5, 0.9, 0.95, 1.0])
def test_the_correlation_of_train_is_exact(strength):
    train = load(strength=strength)["train"]
    for label in (0, 1):
        members = train.y == label
        aligned = (train.a[members] == label).sum()
        assert aligned == round(strength * int(members.sum()))


@pytest.mark.parametrize("name", ["target", "val", "test"])
def test_colour_is_independent_of_the_class_elsewhere(splits, name):
    counts = splits[name].group_counts.view(2, 2)
    assert (counts[:, 0] - counts[:, 1]).abs().max() <= 1
    assert counts.min() > 0


def test_all_of_opposite_is_against_its_colour(splits):
    opposite = splits["opposite"]
    assert opposite.group_counts[opposite.spec.is_aligned()].tolist() == [0, 0]
    assert torch.equal(opposite.a, 1 - opposite.y)
    assert torch.equal(opposite.y, splits["test"].y)


def test_which_samples_are_aligned_has_nothing_to_do_with_their_order(splits):
    train = splits["train"]
    conflicting = (train.a != train.y).nonzero().flatten().double()
    assert 0.3 < conflicting.mean() / len(train) < 0.7
    assert conflicting.std() > 100


def test_without_tint_the_digits_are_grey():
    for split in load(tint=0.0).values():
        assert torch.equal(split.images.pixels[:, 0], split.images.pixels[:, 1])
        assert torch.equal(split.images.pixels[:, 0], split.images.pixels[:, 2])


def test_full_tint_leaves_one_channel():
    train = load(tint=1.0)["train"]
    assert train.images.pixels[:, 2].sum() == 0
    assert train.images.pixels[train.a == 0, 1].sum() == 0
    assert train.images.pixels[train.a == 1, 0].sum() == 0


def test_the_same_configuration_gives_the_same_data():
    one, two = load(), load()
    assert {n: s.fingerprint for n, s in one.items()} == {n: s.fingerprint for n, s in two.items()}
    assert all(torch.equal(one[name].images.pixels, two[name].images.pixels) for name in SPLITS)


def test_the_split_is_drawn_by_its_seed_alone():
    torch.manual_seed(0)
    first, state = fingerprints(), torch.get_rng_state()
    torch.manual_seed(1)
    assert fingerprints() == first
    torch.manual_seed(0)
    fingerprints()
    assert torch.equal(torch.get_rng_state(), state)
    other = fingerprints(split_seed=1)
    assert all(first[name] != other[name] for name in SPLITS)


def test_strength_changes_train_alone():
    first, other = fingerprints(), fingerprints(strength=0.8)
    assert [name for name in SPLITS if first[name] != other[name]] == ["train"]
    assert torch.equal(load()["train"].source, load(strength=0.8)["train"].source)


@pytest.mark.parametrize("options", [{"strength": 1.1}, {"strength": -0.1}, {"tint": 2.0}])
def test_fractions_are_fractions(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value} must be between 0 and 1"):
        Digits(**options)


def test_inputs_have_a_scale_that_trains(splits):
    transform = read("dataset=digits").dataset.build().transform
    assert isinstance(transform, Normalize)
    z = transform(splits["train"].images.pixels)
    assert abs(z.mean()) < 0.5
    assert 0.5 < z.std() < 1.5
