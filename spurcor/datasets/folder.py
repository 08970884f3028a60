"""Your own photographs, described by a table or sorted into class folders."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spurcor.data.association import Contingency
from spurcor.data.class_folders import read_class_folders
from spurcor.data.groups import GroupSpec, Split
from spurcor.data.labels import (
    Fractions,
    drawn_rows,
    labels,
    members,
    product,
    shares_of,
    shares_text,
)
from spurcor.data.photographs import Photographs
from spurcor.data.source import DataSource
from spurcor.data.tables import CsvTable, columns_of
from spurcor.data.transforms import Photo, Transform
from spurcor.errors import UserError

if TYPE_CHECKING:
    from pandas import DataFrame

log = logging.getLogger(__name__)

MOST_VALUES = 20  # of a column that may be a shortcut
ROWS_PER_VALUE = 5  # on average; with fewer, a column goes together with the class by chance


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns; several for `a` make every combination an attribute value."""

    filename: str = "filename"
    split: str | None = "split"
    y: str = "y"
    a: str | tuple[str, ...] | None = "a"
    unit: str | None = None

    def found(self, path: Path) -> "Columns":
        """Return the columns without `a` and `split` if the table lacks those of that name."""
        default = Columns()
        needed = {self.filename, self.y, *self.attributes, self.split or self.y}
        have = columns_of(path, *sorted(needed))
        split = None if self.split == default.split and self.split not in have else self.split
        a = None if self.a == default.a and self.a not in have else self.a
        return Columns(self.filename, split, self.y, a, self.unit)

    @property
    def attributes(self) -> tuple[str, ...]:
        """The columns whose values make up the attribute, none if it is unknown."""
        return (self.a,) if isinstance(self.a, str) else self.a or ()

    @property
    def names(self) -> list[str]:
        """All columns that are read."""
        others = [name for name in (self.split, self.unit) if name is not None]
        return list(dict.fromkeys([self.filename, *others, self.y, *self.attributes]))


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

    `columns` renames the columns. Without a column a, attribute values are unknown. Without a
    column split, splits are drawn by `fractions`, stratified by group, seeded by `split_seed`. The
    values of the column `unit` (patients, cameras) do not cross splits. With `csv` null, `images`
    has a folder of images per class, or folders train, val and test of these.
    """

    transform: Transform = field(default_factory=lambda: Photo(resize=256, crop=224))
    csv: str | None
    images: str | None = None
    aligned: tuple[str, ...] = ()
    columns: Columns = Columns()
    fractions: Fractions = None

    def __post_init__(self) -> None:
        super().__post_init__()
        shares_of(self.fractions)
        if self.csv is not None:
            return
        if self.images is None:
            raise ValueError(
                "csv=null needs dataset.images, a folder with a folder of images per class; set"
                " it, or name a table by dataset.csv"
            )
        if self.columns != Columns():
            raise ValueError("columns names columns of a table, but csv=null; leave them out")

    def load(self, root: Path) -> Photographs:
        """Read file names and labels from the table, or from the folders."""
        table, columns, images = self._table(root)
        classes, y = labels(table, columns.y)
        spec, a = self._groups(table, columns, classes, y)
        names = table.names(columns.filename)
        split = self._members(table, columns, spec.group(y, a))
        return Photographs(spec, images, names, y, a, split)

    def knows_groups(self, root: Path) -> bool:
        """Return whether the table has the columns of the attribute."""
        return self.csv is not None and bool(self.columns.found(self._path(root)).attributes)

    def candidates(self, root: Path) -> dict[str, Contingency]:
        """Return the classes in TRAIN against each column of the table with few values."""
        if self.csv is None:
            return {}
        table, columns, _ = self._table(root)
        taken = {columns.filename, columns.split, columns.unit, columns.y, ""}
        others = [name for name in columns_of(table.path, *columns.names) if name not in taken]
        frame = CsvTable.read(table.path, [columns.y, *dict.fromkeys(others)]).frame
        frame = frame.iloc[self.load(root).members[Split.TRAIN].numpy()]
        classes, _ = labels(table, columns.y)
        pairs = {name: frame[[columns.y, name]] for name in others}
        found = {name: _contingency(pair, classes) for name, pair in pairs.items()}
        return {name: one for name, one in found.items() if one is not None}

    # --- where things are -------------------------------------------------------------------------

    def _table(self, root: Path) -> tuple[CsvTable, Columns, Path]:
        """Return the table, the columns that it has, and the folder of images."""
        if self.csv is None:
            images = self._images(root)
            table = read_class_folders(images)
            return table, Columns(a=None, split="split" if "split" in table.frame else None), images
        path = self._path(root)
        images = path.parent if self.images is None else self._images(root)
        columns = self.columns.found(path)
        fix = "; dataset.columns.y=<column> names another, and so on"
        return CsvTable.read(path, columns.names, fix=fix), columns, images

    def _path(self, root: Path) -> Path:
        path = root / Path(str(self.csv)).expanduser()
        if not path.is_file():
            default = Columns()
            names = [default.filename, str(default.split), default.y, str(default.a)]
            raise UserError(
                f"dataset.csv={self.csv}: {path} does not exist; give the path of a table with the"
                f" columns {', '.join(names)}"
            )
        return path

    def _images(self, root: Path) -> Path:
        images = root / Path(str(self.images)).expanduser()
        if not images.is_dir():
            raise UserError(
                f"dataset.images={self.images}: {images} does not exist; give the folder of images"
            )
        return images

    # --- groups and splits ------------------------------------------------------------------------

    def _groups(
        self, table: CsvTable, columns: Columns, classes: tuple[str, ...], y: Tensor
    ) -> tuple[GroupSpec, Tensor]:
        """Return the spec, and each row's attribute value (M,)."""
        attributes: tuple[str, ...] = ("any",)
        aligned: tuple[int, ...] = ()
        a = torch.zeros_like(y)
        if columns.attributes:
            attributes, a = product(table, columns.attributes)
            aligned = self._aligned(classes, attributes, table.path)
        elif self.columns.a is not None and self.csv is not None:
            log.warning(
                "%s has no column %s, so its groups are its classes; dataset.columns.a=<column>"
                " names another, dataset.columns.a=null says that there is none",
                table.path,
                self.columns.a,
            )
        try:
            spec = GroupSpec(classes, attributes, aligned, known=bool(columns.attributes))
        except UserError as error:
            raise UserError(f"{table.path}: {error}") from error
        if self.aligned:
            spec.require_groups(f"dataset.aligned={list(self.aligned)}")
        return spec, a

    def _members(self, table: CsvTable, columns: Columns, g: Tensor) -> dict[str, Tensor]:
        """Return the rows of each split, as the table has them or as drawn."""
        if columns.split is None:
            return drawn_rows(table, g, self.fractions, self.split_seed, columns.unit)
        if self.fractions:
            fix = "put all images into <class>/" if self.csv is None else "dataset.columns.split="
            raise UserError(
                f"dataset.{shares_text(self.fractions)}: {table.path} has splits of its own; leave"
                f" the fractions out, or {fix}{'null draws others' * (self.csv is not None)}"
            )
        return members(table, columns.split, columns.unit)

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


def _contingency(frame: "DataFrame", classes: tuple[str, ...]) -> Contingency | None:
    """Return the counts of a column of classes and another; None if that has too many values."""
    import pandas as pd

    kept = frame.dropna()
    if not 2 <= kept.iloc[:, 1].nunique() <= len(kept) // ROWS_PER_VALUE:
        return None
    y, values = (kept.iloc[:, column].str.strip() for column in (0, 1))
    counts = pd.crosstab(y, values).reindex(classes, fill_value=0)
    if counts.shape[1] > MOST_VALUES:
        return None
    return Contingency(tuple(map(str, counts.columns)), counts.to_numpy("int64"))
