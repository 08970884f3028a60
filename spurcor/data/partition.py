"""Splits that are drawn: stratified by group, with all samples of a unit in one split."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from spurcor.data.groups import Split
from spurcor.errors import UserError

MOST_FOLDS = 20  # a split is as many of these as its fraction of the samples asks for


def partition(
    g: Tensor, fractions: Mapping[str, float], seed: int, unit: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the positions of each split, in rising order, from groups (N,) and fractions.

    `unit` (N,) numbers what must not cross splits: patients, lesions, people. Fractions are of the
    samples and add up to 1; whole units and rare groups are met as nearly as can be, by
    scikit-learn's stratified folds. Raises a ValueError if a split would be empty.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"fractions={dict(fractions)} must be positive and add up to 1")
    folds = _folds(list(fractions.values()))
    if too_few := [name for name, share in fractions.items() if not round(share * folds)]:
        raise ValueError(f"the fraction of {too_few[0]} is too small; at least 1/{MOST_FOLDS}")
    count = len(g) if unit is None else len(torch.unique(unit))
    if count < folds:
        raise ValueError(
            f"fractions={dict(fractions)} need at least {folds} units, and the data has {count}"
        )
    if (most := int(g.bincount().max())) < folds:
        raise ValueError(
            f"fractions={dict(fractions)} need a group of at least {folds} samples, and the largest"
            f" has {most}"
        )
    # Without units the plain folds do the same, a hundred times as fast.
    kind = StratifiedKFold if unit is None else StratifiedGroupKFold
    drawn = kind(folds, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings(action="ignore"):  # of groups with fewer samples than folds
        parts = [part for _, part in drawn.split(np.zeros(len(g)), g.numpy(), unit)]
    members, first = {}, 0
    for name, share in fractions.items():
        last = first + round(share * folds)
        members[name] = torch.from_numpy(np.sort(np.concatenate(parts[first:last])))
        first = last
    return members


def drawn(
    g: Tensor, fractions: Mapping[str, float], seed: int, unit: Tensor, option: str
) -> dict[str, Tensor]:
    """Return `partition`'s splits, or raise a `UserError` that names the option of the data set."""
    try:
        members = partition(g, fractions, seed, unit)
    except ValueError as error:
        raise UserError(f"dataset.{option}: {error}") from error
    if empty := [name for name, rows in members.items() if not len(rows)]:
        raise UserError(
            f"dataset.{option}: {', '.join(empty)} would be empty, with"
            f" {len(torch.unique(unit)):,} units in all; choose other fractions"
        )
    return members


def check_fractions(fractions: Sequence[float]) -> dict[str, float]:
    """Return the shares of TRAIN, VAL and TEST, or raise a ValueError that says what is wrong."""
    shares = dict(zip(map(str, (Split.TRAIN, Split.VAL, Split.TEST)), fractions, strict=False))
    wrong = len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6
    if wrong:
        raise ValueError(
            f"fractions={list(fractions)} must be three positive numbers that add up to 1, for"
            " train, val and test"
        )
    return shares


def _folds(shares: Sequence[float]) -> int:
    """Return the fewest folds of which every share is a whole number, at most MOST_FOLDS."""
    for folds in range(2, MOST_FOLDS):
        if all(abs(share * folds - round(share * folds)) < 1e-6 for share in shares):
            return folds
    return MOST_FOLDS


def refuse_crossing(
    unit: Sequence[str], members: Mapping[str, Tensor], what: str, where: str
) -> None:
    """Refuse splits that share a unit, since what is tested would have been trained on."""
    seen: dict[str, str] = {}
    for name, rows in members.items():
        for one in sorted({unit[row] for row in rows.tolist()}):
            if one in seen:
                raise UserError(
                    f"{where}: {what} {one} is in {seen[one]} and {name}; put all of its samples"
                    " into one split"
                )
            seen[one] = name
