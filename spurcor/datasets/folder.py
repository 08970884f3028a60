"""Your own photographs, described by a table."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spurcor.data.groups import GroupSpec, Split
from spurcor.data.photographs import Photographs
from spurcor.data.source import DataSource
from spurcor.data.tables import SPLIT_CODES, CsvTable
from spurcor.data.transforms import Photo, Transform
from spurcor.errors import UserError

if TYPE_CHECKING:
    from pandas import Series

COLUMNS = ("filename", "split", "y", "a")
# Refused, since they would otherwise become names of test sets.
MISSPELT = ("training", "tr", "valid", "validation", "dev", "va", "testing", "te")


@dataclass(kw_only=True)
class Folder(DataSource):
    """A CSV file with columns filename, split, y and a, and the images that it names.

    The separator is a comma, semicolon or tab; the encoding is Unicode or Windows' cp1252. `csv` is
    absolute or relative to paths.data, and so is `images`, the folder that file names are relative
    to, by default the table's own. y and a are names or numbers; classes and attribute values are
    taken from the whole file and sorted (numbers by size). split is train, target, val, test, or 0,
    1, 2 for train, val, test; any other name makes a test set of that name. `aligned`
    (class/attribute, one per class) names the groups in which the attribute value is the usual one
    for the class.
    """

    transform: Transform = field(default_factory=lambda: Photo(resize=256, crop=224))
    csv: str
    images: str | None = None
    aligned: tuple[str, ...] = ()

    def load(self, root: Path) -> Photographs:
        """Read file names and labels from the table."""
        path = root / Path(self.csv).expanduser()
        if not path.is_file():
            raise UserError(
                f"dataset.csv={self.csv}: {path} does not exist; give the path of a table with the"
                f" columns {', '.join(COLUMNS)}"
            )
        images = path.parent if self.images is None else root / Path(self.images).expanduser()
        if not images.is_dir():
            raise UserError(
                f"dataset.images={self.images}: {images} does not exist; give the folder of images"
            )
        table = CsvTable.read(path, COLUMNS)
        classes, y = _labels(table, "y")
        attributes, a = _labels(table, "a")
        aligned = self._aligned(classes, attributes, path)
        try:
            spec = GroupSpec(classes, attributes, aligned)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        return Photographs(spec, images, table.names("filename"), y, a, _members(table))

    def _aligned(
        self, classes: tuple[str, ...], attributes: tuple[str, ...], path: Path
    ) -> tuple[int, ...]:
        """Return the usual attribute value of each class, or () if `aligned` is empty."""
        if not self.aligned:
            return ()
        by_class = {
            f"{c}/{a}": (y, i) for y, c in enumerate(classes) for i, a in enumerate(attributes)
        }
        if unknown := [name for name in self.aligned if name not in by_class]:
            raise UserError(
                f"dataset.aligned={unknown[0]} is not a group of {path}; choose from"
                f" {', '.join(by_class)}"
            )
        chosen = sorted(by_class[name] for name in self.aligned)
        if [y for y, _ in chosen] != list(range(len(classes))):
            raise UserError(
                f"dataset.aligned={list(self.aligned)} must name one group of each class of {path}:"
                f" {', '.join(classes)}"
            )
        return tuple(a for _, a in chosen)


def _labels(table: CsvTable, column: str) -> tuple[tuple[str, ...], Tensor]:
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


def _members(table: CsvTable) -> dict[str, Tensor]:
    """Return the rows of each split: the usual splits in their order, then test sets by name."""
    codes = {str(code): str(split) for code, split in SPLIT_CODES.items()}
    names = table.filled("split").str.strip()
    names = names.str.replace(r"^(\d)[.,]0+$", r"\1", regex=True).replace(codes)
    known = [str(split) for split in Split]
    table.refuse(
        ~names.isin(known) & _no_name(names),
        "split",
        "is not a split",
        f"use {', '.join(known)}, or 0, 1, 2 for train, val, test, or a name for your own test set"
        " (a letter, then letters, digits, '_', '-' and '.')",
    )
    present = set(names)
    if empty := [str(s) for s in (Split.TRAIN, Split.VAL, Split.TEST) if s not in present]:
        raise UserError(f"{table.path} has no rows with split {' or '.join(empty)}; add some")
    others = sorted(present.difference(known))
    rows = {name: (names == name).to_numpy(copy=True) for name in [*known, *others]}
    return {
        name: torch.from_numpy(chosen).nonzero().squeeze(1)
        for name, chosen in rows.items()
        if chosen.any()
    }


def _no_name(names: "Series[Any]") -> "Series[bool]":
    """Return which names (M,) are unfit for a test set: misspelt usual splits, odd characters."""
    usual = [*map(str, Split), *MISSPELT]
    return ~names.str.fullmatch(r"[A-Za-z][\w.-]*") | names.str.lower().isin(usual)
