"""MNIST with cues, from small files in MNIST's format."""

import numpy as np
import pytest
import torch
from generators import TEST_COUNTS, assert_drawn_by_its_seed_alone, write_mnist
from training import read

from spurcor.data.groups import Split
from spurcor.datasets.mnist_cues import MnistCues
from spurcor.datasets.sources import read_mnist
from spurcor.errors import UserError

SMALL = {"target_per_class": 6, "val_per_class": 4, "square_size": 5}
SWAPPED = {**SMALL, "minority": ("right_bottom", "left_top")}
TESTS = ["test", "non_spurious", "spurious", "opposite"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_mnist(root, np.random.default_rng(0), ink=0.3)
    return root


def load(root, **options):
    return MnistCues(**{**SWAPPED, **options}).load(root)


@pytest.fixture(scope="module")
def splits(root):
    return load(root)


def table(split):
    """Numbers of images by class and attribute."""
    return split.group_counts.view(len(split.spec.classes), -1).tolist()


# --- numbers --------------------------------------------------------------------------------------


def test_groups_and_their_numbers(splits):
    """53 nines and 51 sevens, 10 of each held out: int(0.95 * 43) = 40 and int(0.95 * 41) = 38."""
    spec = splits["train"].spec
    assert spec.names[:4] == ["9/none", "9/left_top", "9/right_bottom", "7/none"]
    assert spec.aligned == (1, 2)
    assert {str(name): table(split) for name, split in splits.items()} == {
        "train": [[0, 40, 3], [0, 3, 38]],
        "target": [[0, 3, 3], [0, 3, 3]],
        "val": [[0, 2, 2], [0, 2, 2]],
        "test": [[0, 5, 5], [0, 4, 4]],
        "non_spurious": [[10, 0, 0], [8, 0, 0]],
        "spurious": [[0, 10, 0], [0, 0, 8]],
        "opposite": [[0, 0, 10], [0, 8, 0]],
        "only_spurious": [[0, 1, 0], [0, 0, 1]],
    }


def test_without_a_minority_cue_the_others_stay_clean(root):
    splits = load(root, minority=())
    assert table(splits["train"]) == [[3, 40, 0], [3, 0, 38]]
    assert table(splits["target"]) == [[0, 3, 3], [0, 3, 3]]
    assert table(load(root, minority=("none", "left_top"))["train"]) == [[3, 40, 0], [0, 3, 38]]


def test_a_probability_for_each_class(root):
    assert table(load(root, probability=(1.0, 0.0))["train"]) == [[0, 43, 0], [0, 41, 0]]
    # 0.29 * 100 is 28.999... in floating point, and means 29
    assert int((MnistCues(probability=(0.29,))._biased([100, 100])[0] == 1).sum()) == 29


def test_three_classes(root):
    cues = {"digits": (0, 1, 2), "main": ("vertical", "horizontal", "left_top"), "minority": ()}
    splits = load(root, **cues)
    assert table(splits["target"]) == [[0, 2, 2, 2]] * 3
    assert table(splits["opposite"]) == [[0, 0, 8, 0], [0, 0, 0, 9], [0, 10, 0, 0]]
    assert splits["train"].spec.aligned == (1, 2, 3)


# --- pixels ---------------------------------------------------------------------------------------


def expected(grey, cue):
    """What a cue does to an image (28, 28), pixel by pixel."""
    image = grey.clone()
    for i in range(28):
        for j in range(28):
            line = {"horizontal": i, "vertical": j}.get(cue)
            if line is not None:
                if line in (0, 7, 14, 21) and image[i, j] == 0:
                    image[i, j] = 255
            elif cue != "none":
                top, left = cue.endswith("top"), cue.startswith("left")
                if (i < 5 if top else i > 22) and (j < 5 if left else j > 22):
                    image[i, j] = 255
    return image


@pytest.mark.parametrize(
    "main",
    [("left_top", "right_bottom"), ("left_bottom", "right_top"), ("horizontal", "vertical")],
)
def test_cues_are_where_they_belong(root, main):
    splits = load(root, main=main, minority=main[::-1])
    for name, split in splits.items():
        assert split.images.pixels.shape[1:] == (1, 28, 28)
        train = name in ("train", "target", "val")
        grey, labels = read_mnist(root, train)
        if name != "only_spurious":
            assert torch.equal(split.y, (labels[split.source] == 7).long())
        for i in range(0, len(split), 5):
            blank = name == "only_spurious"
            original = torch.zeros_like(grey[0]) if blank else grey[split.source[i]]
            cue = split.spec.attributes[split.a[i]]
            assert torch.equal(split.images.pixels[i, 0], expected(original, cue)), (name, cue)


def test_only_the_cue_is_left(splits):
    pixels = splits["only_spurious"].images.pixels
    assert pixels.bool().sum((1, 2, 3)).tolist() == [25, 25]
    assert bool((pixels[0, 0, :5, :5] == 255).all())
    assert bool((pixels[1, 0, 23:, 23:] == 255).all())
    assert splits["only_spurious"].source.tolist() == [-1, -1]


def test_distance_of_lines(root):
    lines = {"main": ("vertical", "horizontal"), "minority": (), "distance": 10}
    pixels = load(root, **lines)["only_spurious"].images.pixels[:, 0]
    assert pixels[0].bool().any(0).nonzero().flatten().tolist() == [0, 10, 20]
    assert pixels[1].bool().any(1).nonzero().flatten().tolist() == [0, 10, 20]


# --- who is where ---------------------------------------------------------------------------------


def test_every_image_is_in_one_split(splits, root):
    labels = read_mnist(root, train=True)[1]
    sources = torch.cat([splits[name].source for name in ("train", "target", "val")])
    assert torch.equal(sources.sort()[0], ((labels == 9) | (labels == 7)).nonzero().flatten())
    for name in TESTS:
        assert torch.equal(splits[name].source, splits["test"].source)
        assert len(splits[name]) == TEST_COUNTS[9] + TEST_COUNTS[7]


def test_who_conflicts_is_chosen_at_random(root):
    chosen = set()
    for seed in range(5):
        train = load(root, split_seed=seed)[Split.TRAIN]
        conflicting = train.source[(train.a != train.y + 1)]
        chosen.add(tuple(conflicting.tolist()))
    assert len(chosen) == 5
    assert max(map(max, chosen)) > 200 > 100 > min(map(min, chosen))


def test_the_bias_of_train_changes_train_alone(splits, root):
    other = load(root, probability=(0.6,))
    changed = [n for n in splits if splits[n].fingerprint != other[n].fingerprint]
    assert changed == ["train"]
    assert torch.equal(splits["train"].source, other["train"].source)


def test_the_split_is_drawn_by_its_seed_alone(root):
    assert_drawn_by_its_seed_alone(lambda **options: load(root, **options))


# --- options --------------------------------------------------------------------------------------

BAD = {
    "a digit too large": ({"digits": (9, 10)}, r"digits=10 must be between 0 and 9"),
    "the same digit": ({"digits": (9, 9)}, r"digits=\[9, 9\] must be "),
    "one digit": ({"digits": (9,), "main": ("vertical",)}, r"digits=\[9\] must be "),
    "a cue too few": ({"main": ("vertical",)}, r"main=\[vertical\] must be 2 different cues"),
    "the same cue": ({"main": ("vertical", "vertical")}, r"main=.* must be 2 different cues"),
    "a minority too few": ({"minority": ("none",)}, r"minority=\[none\] must be empty, or 2"),
    "no minority": ({"minority": ("left_top", "none")}, r"minority=left_top must differ"),
    "above 1": ({"probability": (1.1,)}, r"probability=1.1 must be between 0 and 1"),
    "below 0": ({"probability": (0.5, -1.0)}, r"probability=-1.0 must be between 0 and 1"),
    "three of two": ({"probability": (0.5,) * 3}, r"probability=.* one for each of the 2 digits"),
    "overlapping": ({"square_size": 15}, r"square_size=15 must be between 1 and 14"),
    "nothing": ({"square_size": 0}, r"square_size=0 must be between 1 and 14"),
    "everywhere": ({"distance": 1}, r"distance=1 must be between 2 and 28"),
    "no target": ({"target_per_class": 1}, r"target_per_class=1 must be at least 2"),
    "no val": ({"val_per_class": 0}, r"val_per_class=0 must be at least 2"),
    "of the base": ({"workers": -1}, "workers=-1 "),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_refused(case):
    options, sentence = BAD[case]
    with pytest.raises(ValueError, match=sentence):
        MnistCues(**options)


def test_a_held_out_part_that_takes_everything_is_refused(root):
    with pytest.raises(UserError, match=r"target_per_class=47 .*\b51 .*digit 7"):
        load(root, target_per_class=47)


def test_options_are_typed_on_the_command_line():
    typed = ("dataset.digits=[3,5,8]", "dataset.main=[vertical,left_top,right_top]")
    cfg = read("dataset=mnist_cues", *typed, "dataset.minority=[]", "dataset.probability=[1]")
    assert cfg.dataset.build().spec.names[-1] == "8/right_top"
    with pytest.raises(UserError, match=r"dataset.main=.*one of left_top, left_bottom"):
        read("dataset=mnist_cues", "dataset.main=[left_tpo,vertical]")


# --- the real thing -------------------------------------------------------------------------------


def test_target_may_be_left_out(root):
    splits = load(root, target_per_class=0)
    assert "target" not in splits
    assert splits["val"].group_counts.tolist() == load(root)["val"].group_counts.tolist()


@pytest.mark.real_data
def test_real_numbers(data_root):
    """5,949 nines and 6,265 sevens; 1,009 and 1,028 in the test set."""
    splits = read("dataset=mnist_cues").dataset.build().splits(data_root)
    assert {str(name): table(split) for name, split in splits.items()} == {
        "train": [[0, 4701, 248], [0, 264, 5001]],
        "target": [[0, 250, 250], [0, 250, 250]],
        "val": [[0, 250, 250], [0, 250, 250]],
        "test": [[0, 505, 504], [0, 514, 514]],
        "non_spurious": [[1009, 0, 0], [1028, 0, 0]],
        "spurious": [[0, 1009, 0], [0, 0, 1028]],
        "opposite": [[0, 0, 1009], [0, 1028, 0]],
        "only_spurious": [[0, 1, 0], [0, 0, 1]],
    }
