"""HAM10000: pigmented skin lesions of several clinics, whose shares of malignant ones differ."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from spurcor.config.check import nearest
from spurcor.data.archives import extracted, folder_of
from spurcor.data.groups import GroupSpec, Split, members_by, usual_values
from spurcor.data.partition import check_fractions, drawn
from spurcor.data.photographs import Photographs, warn_once
from spurcor.data.source import DataSource
from spurcor.data.tables import CsvTable, columns_of
from spurcor.data.transforms import Photo, Transform
from spurcor.errors import UserError
from spurcor.seeding import derive_seed
from spurcor.system.files import is_clutter

if TYPE_CHECKING:
    from pandas import Series

URL = "https://doi.org/10.7910/DVN/DBW86T"
FOLDERS = ("ham10000", "HAM10000", "skin-cancer-mnist-ham10000")  # under paths.data
TABLE = "ham10000_metadata"
TABLES = tuple(f"{TABLE}{ending}" for ending in (".csv", ".tab", "", ".tsv", ".txt"))
PART = "ham10000_images_part_"
ARCHIVES = (
    "archive",
    "dataverse_files",
    "skin-cancer-mnist-ham10000",
    "ham10000",
    TABLE,
    f"{PART}1",
    f"{PART}2",
)
DEPTH = 5  # levels of folders that are searched
PUBLISHED = 10015  # images

Dx = Literal["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
Label = Literal["malignant", "akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
Attribute = Literal["dataset", "sex", "localization", "age_60"]
MALIGNANT = ("mel", "bcc", "akiec")
UNKNOWN = ("unknown", "nan", "na", "n/a", "none", "null")
AGES = ("under_60", "60_or_older")


@dataclass(kw_only=True)
class Ham10000(DataSource):
    """Malignant against benign lesions, or one diagnosis against the others.

    `label` is malignant (melanoma, basal cell carcinoma, actinic keratosis) or a diagnosis of the
    column dx. `attribute` is the clinic (dataset), sex or localization, or whether the patient is
    60 or older; rows where it is unknown are left out. Only the clinics in `sources` are used, all
    if it is empty. With `strength`, TRAIN is subsampled so that this share of each class has the
    attribute value usual for it. With `balance`, VAL and TEST keep as many images of each group as
    the smallest has. All images of a lesion are in the same split; `fractions` are the shares of
    TRAIN, VAL and TEST. Tschandl, Rosendahl, Kittler (Scientific Data, 2018).
    """

    transform: Transform = field(default_factory=lambda: Photo(resize=256, crop=224))
    label: Label = "malignant"
    attribute: Attribute = "dataset"
    sources: tuple[str, ...] = ("rosendahl", "vidir_modern")
    strength: float | None = None
    balance: bool = True
    fractions: tuple[float, ...] = (0.6, 0.15, 0.25)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.shares = check_fractions(self.fractions)
        if self.strength is not None and not 0.5 < self.strength <= 1:
            raise ValueError(f"strength={self.strength} must be above 0.5 and at most 1, or null")
        if len({*self.sources}) < len(self.sources):
            raise ValueError(f"sources=[{', '.join(self.sources)}] lists one of them twice")
        if self.attribute == "dataset" and len(self.sources) == 1:
            raise ValueError(
                f"sources=[{self.sources[0]}] must be at least two for attribute=dataset"
            )

    def load(self, root: Path) -> Photographs:
        """Read labels from the table and draw the splits by lesion."""
        folder = _folder(root)
        table = self._read(folder)
        chosen, values = self._chosen(table, folder)
        attributes = self._attributes(values[chosen], table)
        y = self._classes(table)
        codes = values.map({name: code for code, name in enumerate(attributes)})
        a = torch.from_numpy(codes.fillna(0).to_numpy("int64", copy=True))
        rows = torch.from_numpy(chosen.to_numpy(copy=True)).nonzero().squeeze(1)
        classes = ("benign" if self.label == "malignant" else f"not_{self.label}", self.label)
        counts = torch.zeros(2, len(attributes), dtype=torch.int64)
        counts.index_put_((y[rows], a[rows]), torch.ones(len(rows), dtype=torch.int64), True)
        spec = GroupSpec(classes, attributes, usual_values(counts))
        self._refuse_without(counts, spec)
        names = _file_names(table, folder, chosen)
        units = torch.from_numpy(_codes(table.filled("lesion_id")))
        members = self._draw(spec.group(y, a), rows, units, spec)
        photographs = Photographs(spec, folder, names, y, a, members, units)
        photographs.warn_of_size(PUBLISHED)
        photographs.warn_of_empty_groups()
        return photographs

    # --- the table --------------------------------------------------------------------------------

    def _read(self, folder: Path) -> CsvTable:
        """Read the columns that are needed as text, from the first table that has them."""
        column = "age" if self.attribute == "age_60" else self.attribute
        clinic = ["dataset"] if self.sources else []
        wanted = list(dict.fromkeys(["image_id", "lesion_id", "dx", *clinic, column]))
        paths = _tables(folder)
        fit = [path for path in paths if {*wanted} <= {*columns_of(path, "image_id")}]
        if not fit and "dataset" in wanted and "dataset" not in columns_of(paths[0], "image_id"):
            raise UserError(
                f"dataset.sources=[{', '.join(self.sources)}] and attribute={self.attribute} need"
                f" the column dataset, which {paths[0]}, like Kaggle's, lacks; get"
                f" HAM10000_metadata from {URL}, or set dataset.sources=[] and"
                " dataset.attribute=sex"
            )
        return CsvTable.read((fit or paths)[0], wanted)

    def _chosen(self, table: CsvTable, folder: Path) -> tuple["Series[bool]", "Series[Any]"]:
        """Return which rows (M,) are used, and the attribute's values, NaN where unknown."""
        used = table.filled("image_id").notna()
        if self.sources:
            clinics = _lower(table, "dataset")
            have = clinics.value_counts()
            for name in self.sources:
                if name not in have:
                    near = nearest(name, map(str, have.index))
                    there = ", ".join(f"{clinic} ({n:,})" for clinic, n in have.items())
                    hint = f"did you mean {near}?" if near else f"it has {there}"
                    raise UserError(f"dataset.sources={name}: {table.path} has none; {hint}")
            used = clinics.isin(self.sources)
        values = _ages(table) if self.attribute == "age_60" else _lower(table, self.attribute)
        unknown = used & values.isna()
        if unknown.any():
            count, of = f"{int(unknown.sum()):,}", f"{int(used.sum()):,}"
            sentence = f"{count} of {of} rows are left out, since {self.attribute} is unknown"
            warn_once(folder, f"{table.path}: {sentence}")
        return used & ~unknown, values

    def _attributes(self, values: "Series[Any]", table: CsvTable) -> tuple[str, ...]:
        """Return the values of the attribute, two or more, in a fixed order."""
        have = {str(value) for value in values.unique()}
        usual = self.sources if self.attribute == "dataset" else AGES
        known = [name for name in usual if name in have]
        found = (*known, *sorted(have.difference(known)))
        if len(found) < 2:
            raise UserError(
                f"dataset.attribute={self.attribute}: the rows used of {table.path} have only"
                f" {found[0] if found else 'unknown values'}; choose another attribute or more"
                " dataset.sources"
            )
        if self.strength is not None and len(found) > 2:
            raise UserError(
                f"dataset.strength={self.strength} needs an attribute with two values, but"
                f" {self.attribute} has {len(found)}: {', '.join(found)}; set dataset.strength=null"
            )
        return found

    def _classes(self, table: CsvTable) -> Tensor:
        """Return the class (M,): 1 for the label, otherwise 0."""
        dx = _lower(table, "dx")
        known = get_args(Dx)
        table.refuse(~dx.isin(known), "dx", f"is not one of {', '.join(known)}", "correct it")
        positive = dx.isin(MALIGNANT if self.label == "malignant" else [self.label])
        return torch.from_numpy(positive.to_numpy("int64", copy=True))

    def _refuse_without(self, counts: Tensor, spec: GroupSpec) -> None:
        """Refuse a class without images."""
        for name, n in zip(spec.classes, counts.sum(1).tolist(), strict=True):
            if not n:
                raise UserError(
                    f"dataset.label={self.label}: none of the {int(counts.sum()):,} images used is"
                    f" {name}; choose another label or other dataset.sources"
                )

    # --- drawing ----------------------------------------------------------------------------------

    def _draw(self, g: Tensor, rows: Tensor, units: Tensor, spec: GroupSpec) -> dict[str, Tensor]:
        """Return the rows of each split: drawn by lesion, then reduced by strength and balance."""
        seed = derive_seed("ham10000", self.split_seed)
        option = f"fractions={list(self.fractions)}"
        parts = drawn(g[rows], self.shares, seed, units[rows], option)
        members = {name: rows[positions] for name, positions in parts.items()}
        generator = self._generator("ham10000/groups")
        for name in members:
            order = torch.randperm(len(members[name]), generator=generator)
            groups = {int(g[members[name][m[0]]]): m for m in members_by(g[members[name]], order)}
            counts = [len(groups.get(group, ())) for group in range(spec.num_groups)]
            sizes = self._sizes(name, counts, spec)
            kept = [groups[group][:size] for group, size in enumerate(sizes) if size]
            members[name] = members[name][torch.cat(kept).sort()[0]]
        return members

    def _sizes(self, name: str, counts: Sequence[int], spec: GroupSpec) -> Sequence[int]:
        """Return how many samples of each group (G,) a split keeps."""
        if name == Split.TRAIN:
            return counts if self.strength is None else self._sizes_of_strength(counts, spec)
        if not self.balance:
            return counts
        told = _told(counts, spec)
        if not min(counts):
            raise UserError(
                f"dataset.balance=true: {name} has an empty group ({told}); set"
                " dataset.balance=false, or choose another label, attribute or dataset.sources"
            )
        return [min(counts)] * len(counts)

    def _sizes_of_strength(self, counts: Sequence[int], spec: GroupSpec) -> Sequence[int]:
        """Return the largest sizes (G,) with which `strength` of each class is aligned."""
        assert self.strength is not None
        sizes = [0] * len(counts)
        for y, usual in enumerate(spec.aligned):
            own, other = 2 * y + usual, 2 * y + 1 - usual
            ratio = (1 - self.strength) / self.strength  # of conflicting to aligned samples
            sizes[own] = counts[own]
            if ratio * counts[own] > counts[other]:
                sizes[own] = int(counts[other] / ratio + 1e-9)
            sizes[other] = min(counts[other], int(ratio * sizes[own] + 1e-9 + 0.5))
            if not sizes[own] or (ratio and not sizes[other]):
                raise UserError(
                    f"dataset.strength={self.strength} leaves nothing of {spec.names[own]} or"
                    f" {spec.names[other]}: train has {_told(counts, spec)}; choose another"
                    " strength, or null"
                )
        return sizes


def _told(counts: Sequence[int], spec: GroupSpec) -> str:
    return ", ".join(f"{group} {n:,}" for group, n in zip(spec.names, counts, strict=True))


# --- columns --------------------------------------------------------------------------------------


def _codes(values: "Series[Any]") -> Any:
    import pandas as pd

    return pd.factorize(values)[0].astype("int64")


def _lower(table: CsvTable, column: str) -> "Series[Any]":
    """Return a column (M,) in lower case, NaN where it is empty or unknown."""
    values = table.frame[column].astype(str).str.strip().str.lower()
    return values.mask(table.frame[column].isna() | values.isin(UNKNOWN) | (values == ""))


def _ages(table: CsvTable) -> "Series[Any]":
    """Return under_60 or 60_or_older (M,), NaN where the age is unknown."""
    import pandas as pd

    values = _lower(table, "age")
    ages = pd.to_numeric(values.str.replace(",", ".", regex=False), errors="coerce")
    table.refuse(values.notna() & ages.isna(), "age", "is not a number", "correct it")
    return (ages >= 60).map({False: AGES[0], True: AGES[1]}).mask(ages.isna())


# --- files ----------------------------------------------------------------------------------------


def _folder(root: Path) -> Path:
    for name in FOLDERS:
        if (root / name).is_dir():
            return root / name
    raise UserError(
        f"paths.data={root} has no folder {FOLDERS[0]}; put HAM10000_metadata, and"
        f" HAM10000_images_part_1 and _2 or their zip archives, there, from {URL}"
    )


def _tables(folder: Path) -> list[Path]:
    """Return the tables in the folder, after extracting archives if there is none: one or more."""
    for files in _ever_more(folder):
        found = [path for path in files if path.name.lower() in TABLES]
        if found:
            return sorted(found, key=lambda path: (TABLES.index(path.name.lower()), path))
    raise UserError(f"{folder} has no HAM10000_metadata.csv or .tab; put it there, from {URL}")


def _file_names(table: CsvTable, folder: Path, chosen: "Series[bool]") -> list[str]:
    """Return the file of each image in the table, relative to the folder."""
    written = table.frame["image_id"] = table.filled("image_id").str.strip()
    table.names("image_id")
    stems = written.str.replace(r"\.(jpe?g|png)$", "", case=False, regex=True)
    found: Mapping[str, str] = {}
    for files in _ever_more(folder):
        found = _images(files, folder)
        if not (chosen & ~stems.isin(found)).any():
            break
    table.refuse(
        chosen & ~stems.isin(found),
        "image_id",
        "has no image",
        f"put HAM10000_images_part_1 and _2, or their zip archives, into {folder}",
    )
    return [found.get(stem, f"{stem}.jpg") for stem in stems]


def _images(files: Sequence[Path], folder: Path) -> dict[str, str]:
    """Return the file of each image by its name without ending; published folders come first."""

    def rank(path: Path) -> tuple[bool, str]:
        return not path.parent.name.lower().startswith(PART), str(path)

    images = [path for path in files if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    ranked = sorted(images, key=rank, reverse=True)  # the last one of a name stays
    return {path.stem: path.relative_to(folder).as_posix() for path in ranked}


def _ever_more(folder: Path) -> Iterator[list[Path]]:
    """Yield all files in the folder, then those after extracting its archives, twice.

    Dataverse's archive of everything has archives in it.
    """
    files = list(_walk(folder))
    yield files
    for _ in range(2):
        archives = [
            path
            for path in files
            if path.suffix.lower() == ".zip"
            and path.stem.lower() in ARCHIVES
            and not folder_of(path).is_dir()
        ]
        for path in archives:
            extracted(path)
        if archives:
            files = list(_walk(folder))
            yield files


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder, followlinks=True):
        depth = len(Path(place).relative_to(folder).parts)
        folders[:] = sorted(f for f in folders if not is_clutter(f)) if depth < DEPTH else []
        yield from (Path(place) / name for name in sorted(files) if not is_clutter(name))
