"""Splits that are drawn: their sizes, their groups, and units that do not cross them."""

import pytest
import torch

from spurcor.data.partition import partition, refuse_crossing
from spurcor.errors import UserError

THIRDS = {"train": 0.7, "val": 0.1, "test": 0.2}


def test_every_split_has_its_share_of_every_group():
    g = torch.tensor([0] * 700 + [1] * 200 + [2] * 90 + [3] * 10)
    members = partition(g, THIRDS, seed=3)
    for name, share in THIRDS.items():
        counts = torch.bincount(g[members[name]], minlength=4)
        assert (counts.double() - share * torch.bincount(g)).abs().max() <= 1
    together = torch.cat(list(members.values()))
    assert torch.equal(together.sort()[0], torch.arange(1000))


def test_units_stay_together_and_groups_nearly_balanced():
    generator = torch.Generator().manual_seed(0)
    unit = torch.randint(200, (4000,), generator=generator)
    g = torch.randint(4, (4000,), generator=generator)
    members = partition(g, THIRDS, seed=1, unit=unit)
    splits = [set(unit[rows].tolist()) for rows in members.values()]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 200
    for name, share in THIRDS.items():
        assert abs(len(members[name]) / 4000 - share) < 0.02
        found = torch.bincount(g[members[name]]) / torch.bincount(g)
        assert bool(((found - share).abs() < 0.05).all())


def test_the_seed_draws_and_nothing_else():
    g = torch.arange(300) % 3
    first, same, other = (partition(g, THIRDS, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in THIRDS)
    assert not torch.equal(first["train"], other["train"])


@pytest.mark.parametrize(
    ("fractions", "words"),
    [
        ({"train": 0.5, "test": 0.6}, "add up to 1"),
        ({"train": 1.0, "test": 0.0}, "positive"),
        ({"train": 0.5, "test": 0.5}, "need at least 2 units"),
    ],
)
def test_impossible_fractions_are_refused(fractions, words):
    with pytest.raises(ValueError, match=words):
        partition(torch.zeros(10, dtype=torch.int64), fractions, 0, torch.zeros(10))


def test_a_unit_in_two_splits_is_named():
    rows = {"train": torch.tensor([0, 1]), "test": torch.tensor([2, 3])}
    refuse_crossing(["a", "b", "c", "c"], rows, "patient", "t.csv")
    with pytest.raises(UserError, match=r"t\.csv: patient b is in train and test"):
        refuse_crossing(["a", "b", "b", "c"], rows, "patient", "t.csv")
