"""Classes, attribute values and splits, as columns of a table hold them or as drawn."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spurcor.data.groups import Split
from spurcor.data.partition import partition, refuse_crossing
from spurcor.data.tables import SPLIT_CODES, CsvTable
from spurcor.errors import UserError
from spurcor.seeding import derive_seed

if TYPE_CHECKING:
    from pandas import Series

Fractions = dict[str, float] | tuple[float, ...] | None  # of splits that are drawn
FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}
# Refused, since they would otherwise become names of test sets.
MISSPELT = ("training", "tr", "valid", "validation", "dev", "va", "testing", "te")
FIX = (
    f"use {', '.join(map(str, Split))}, or 0, 1, 2 for train, val, test, or a name for your own"
    " test set (a letter, then letters, digits, '_', '-' and '.')"
)


def labels(table: CsvTable, column: str) -> tuple[tuple[str, ...], Tensor]:
    """Return the sorted names in a column, and the index (M,) of each row's name."""
    values = table.filled(column).str.strip()
    found = [str(name) for name in values.unique()]
    spellings: dict[float, str] = {}
    for name in found:
        number = float(name) if re.fullmatch(r"[+-]?\d+\.?\d*", name) else None
        if number is not None and (other := spellings.setdefault(number, name)) != name:
            raise UserError(
                f"{table.path}: {column} has both {other} and {name}, which are the same number;"
                " write it in one way"
            )
    if all(re.fullmatch(r"[+-]?\d+", name) for name in found):
        found.sort(key=lambda name: (int(name), name))
    else:
        found.sort()
    numbers = values.map({name: number for number, name in enumerate(found)})
    return tuple(found), torch.from_numpy(numbers.to_numpy("int64", copy=True))


def product(table: CsvTable, columns: Sequence[str]) -> tuple[tuple[str, ...], Tensor]:
    """Return the combinations of values that occur in the columns, and each row's index (M,).

    The values of a combination are joined by '+'.
    """
    names, index = labels(table, columns[0])
    for column in columns[1:]:
        others, other = labels(table, column)
        found, index = torch.unique(index * len(others) + other, return_inverse=True)
        pairs = [divmod(code, len(others)) for code in found.tolist()]
        names = tuple(f"{names[first]}+{others[second]}" for first, second in pairs)
    return names, index


# --- splits ---------------------------------------------------------------------------------------


def members(table: CsvTable, column: str, unit: str | None = None) -> dict[str, Tensor]:
    """Return the rows of each split: the usual splits in their order, then test sets by name.

    Raises a `UserError` if a value of the column `unit` is in several splits.
    """
    codes = {str(code): str(split) for code, split in SPLIT_CODES.items()}
    names = table.filled(column).str.strip()
    names = names.str.replace(r"^(\d)[.,]0+$", r"\1", regex=True).replace(codes)
    known = [str(split) for split in Split]
    table.refuse(~names.isin(known) & _no_name(names), column, "is not a split", FIX)
    present = set(names)
    if empty := [str(s) for s in (Split.TRAIN, Split.VAL, Split.TEST) if s not in present]:
        raise UserError(f"{table.path} has no rows with split {' or '.join(empty)}; add some")
    others = sorted(present.difference(known))
    rows = {name: (names == name).to_numpy(copy=True) for name in [*known, *others]}
    found = {
        name: torch.from_numpy(chosen).nonzero().squeeze(1)
        for name, chosen in rows.items()
        if chosen.any()
    }
    if unit is not None:
        refuse_crossing(table.filled(unit).str.strip().tolist(), found, unit, str(table.path))
    return found


def drawn_rows(
    table: CsvTable, g: Tensor, fractions: Fractions, seed: int, unit: str | None = None
) -> dict[str, Tensor]:
    """Return the rows of splits that are drawn, stratified by the groups g (M,).

    All rows with the same value in the column `unit` are in one split.
    """
    import pandas as pd

    codes = None
    if unit is not None:
        values = pd.factorize(table.filled(unit).str.strip())[0]
        codes = torch.from_numpy(values.astype("int64"))
    shares = shares_of(fractions)
    try:
        found = partition(g, shares, derive_seed("fractions", seed), codes)
    except ValueError as error:
        raise UserError(
            f"dataset.{shares_text(fractions)} cannot be drawn from the {len(table):,} rows of"
            f" {table.path} ({error}); give it splits of your own, or more samples"
        ) from error
    if empty := [name for name, rows in found.items() if not len(rows)]:
        raise UserError(
            f"dataset.{shares_text(fractions)} leaves {' and '.join(empty)} empty; choose others"
        )
    return found


def shares_of(fractions: Fractions) -> dict[str, float]:
    """Return the share of each split, always in the same order, by default `FRACTIONS`.

    Raises ValueError if they lack TRAIN, VAL or TEST, are not positive or do not add up to 1.
    """
    if not fractions:
        return dict(FRACTIONS)
    if not isinstance(fractions, Mapping):
        if len(fractions) != len(FRACTIONS):
            raise ValueError(f"{shares_text(fractions)} must be three numbers: train, val, test")
        fractions = dict(zip(FRACTIONS, fractions, strict=True))
    known = [str(split) for split in Split]
    if lacking := [name for name in FRACTIONS if name not in fractions]:
        raise ValueError(f"{shares_text(fractions)} lacks {', '.join(lacking)}; add it")
    if unknown := [name for name in fractions if name not in known]:
        raise ValueError(f"fractions.{unknown[0]} is not a split; use {', '.join(known)}")
    if min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"{shares_text(fractions)} must be positive and add up to 1")
    return {name: fractions[name] for name in known if name in fractions}


def shares_text(fractions: Fractions) -> str:
    """Return the fractions as they are typed, for messages."""
    shares: Any = fractions or FRACTIONS
    if not isinstance(shares, Mapping):
        return f"fractions={list(shares)}"
    return f"fractions={{{', '.join(f'{name}: {share}' for name, share in shares.items())}}}"


def _no_name(names: "Series[Any]") -> "Series[bool]":
    """Return which names (M,) are unfit for a test set: misspelt usual splits, odd characters."""
    usual = [*map(str, Split), *MISSPELT]
    return ~names.str.fullmatch(r"[A-Za-z][\w.-]*") | names.str.lower().isin(usual)
