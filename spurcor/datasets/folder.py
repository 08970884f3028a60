"""Photographs of your own, described by a table."""

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
# Other spellings, which would otherwise make test sets of those names.
MISSPELT = ("training", "tr", "valid", "validation", "dev", "va", "testing", "te")


@dataclass(kw_only=True)
class Folder(DataSource):
    """A CSV file with columns filename, split, y and a, and the images that it names.

    Commas, semicolons or tabs separate the columns; the text is Unicode or of Windows (cp1252).
    `csv` is absolute or relative to paths.data, `images` too: the folder that file names start
    from, by default the table's. y and a are names or numbers; classes and attribute values are
    those of the whole file, sorted (numbers by size). split is train, target, val, test, or 0, 1, 2
    for train, val, test; any other name makes a test set of that name. `aligned` (class/attribute,
    one for each class) names the groups where attribute and class go together.
    """

    transform: Transform = field(default_factory=lambda: Photo(resize=256, crop=224))
    csv: str
    images: str | None = None
    aligned: tuple[str, ...] = ()

    def load(self, root: Path) -> Photographs:
        """Names and labels from the table."""
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
        """The attribute of each class."""
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
    """Sorted names of a column and the number (M,) of each row's."""
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
    """Rows of each split: those of `Split` in their order, then others by name."""
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
    """Which (M,) cannot name a test set: other spellings of the usual splits, odd characters."""
    usual = [*map(str, Split), *MISSPELT]
    return ~names.str.fullmatch(r"[A-Za-z][\w.-]*") | names.str.lower().isin(usual)
