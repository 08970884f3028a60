"""Features of any modality (images, text, tables), embedded beforehand and kept in one file."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spurcor.data.groups import GroupedDataset, GroupSpec
from spurcor.data.images import Images
from spurcor.data.labels import Fractions, drawn_rows, labels, members, shares_of, shares_text
from spurcor.data.source import DataSource
from spurcor.data.tables import CsvTable
from spurcor.data.transforms import Fixed, Transform
from spurcor.errors import UserError
from spurcor.system.files import decoding

if TYPE_CHECKING:
    from pandas import DataFrame

LABELS = ("y", "a", "split", "unit", "ids")
FIX = "write features (N, D) as numbers, and y, a, split, unit and ids (N) as numbers or strings"
Arrays = dict[str, Any]  # features (N, D): array or tensor; of `LABELS` those in the file: (N,)


@dataclass(kw_only=True)
class Embeddings(DataSource):
    """Features (N, D) and labels in a file .npz, .safetensors or .parquet; no network is run.

    Arrays: `features`, `y` and, where known, `a`, `split`, `unit` and `ids` (distinct), with the
    meaning of the columns of `Folder`; in parquet, columns, of which `features` holds lists, or f0,
    f1, ... numbers. `file` is absolute or relative to paths.data. Without `split`, splits are drawn
    by `fractions`, stratified by group, seeded by `split_seed`. `normalize` scales each sample's
    features to unit length.
    """

    transform: Transform = field(default_factory=Fixed)
    file: str
    normalize: bool = False
    fractions: Fractions = None

    def __post_init__(self) -> None:
        super().__post_init__()
        shares_of(self.fractions)
        if not isinstance(self.transform, Fixed):
            raise ValueError("transform is for images, but these are features; leave it out")
        self.transform = Fixed(self.normalize)

    def knows_groups(self, root: Path) -> bool:
        """Return whether the file has an array `a`."""
        return "a" in _names(self._path(root))

    def load(self, root: Path) -> dict[str, GroupedDataset]:
        """Read features and labels, and split them."""
        path = self._path(root)
        arrays = _read(path)
        features = _features(path, arrays)
        table = CsvTable(path, _frame(path, arrays, len(features)))
        classes, y = labels(table, "y")
        attributes, a = labels(table, "a") if "a" in arrays else (("any",), torch.zeros_like(y))
        try:
            spec = GroupSpec(classes, attributes, known="a" in arrays)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        images = Images(features[:, :, None, None], _signature(features))
        return {
            name: GroupedDataset(spec, images, y[rows], a[rows], rows, rows)
            for name, rows in self._members(table, spec.group(y, a)).items()
        }

    def _members(self, table: CsvTable, g: Tensor) -> dict[str, Tensor]:
        unit = "unit" if "unit" in table.frame else None
        if "split" not in table.frame:
            return drawn_rows(table, g, self.fractions, self.split_seed, unit)
        if self.fractions:
            raise UserError(
                f"dataset.{shares_text(self.fractions)}: {table.path} has an array split; leave the"
                " fractions out, or the array"
            )
        return members(table, "split", unit)

    def _path(self, root: Path) -> Path:
        path = root / Path(self.file).expanduser()
        if path.suffix.lower() not in READERS:
            raise UserError(
                f"dataset.file={self.file} is not {', '.join(READERS)}; write the features as one"
                " of these"
            )
        if not path.is_file():
            raise UserError(
                f"dataset.file={self.file}: {path} does not exist; give the path of a file with the"
                " arrays features and y"
            )
        return path


# --- labels and features --------------------------------------------------------------------------


def _features(path: Path, arrays: Arrays) -> Tensor:
    """Return the features (N, D) float32, all finite."""
    if lacking := [name for name in ("features", "y") if name not in arrays]:
        raise UserError(
            f"{path} lacks {' and '.join(lacking)}; it has {', '.join(arrays) or 'nothing'}; {FIX}"
        )
    found = arrays["features"]
    if not isinstance(found, Tensor):
        if found.dtype.kind not in "fiub":
            raise UserError(f"{path}: features are of type {found.dtype}, not numbers; {FIX}")
        with np.errstate(over="ignore"):  # infinite values are refused below
            found = torch.from_numpy(np.ascontiguousarray(found.astype("float32")))
    if found.is_complex():
        raise UserError(f"{path}: features are of type {found.dtype}; {FIX}")
    if found.dim() != 2 or 0 in found.shape:
        raise UserError(
            f"{path}: features have the shape {tuple(found.shape)}, not (samples, dimensions);"
            f" {FIX}"
        )
    found = found.float().contiguous()
    if bad := (~found.isfinite()).any(1).nonzero().flatten().tolist():
        raise UserError(
            f"{path}: features are NaN or infinite in {len(bad):,} of {len(found):,} rows, the"
            f" first of them row {bad[0] + 1}; remove these rows, or embed them again"
        )
    return found


def _frame(path: Path, arrays: Arrays, count: int) -> "DataFrame":
    """Return the labels as columns of strings, all of them of `count` rows."""
    import pandas as pd

    there = {name: np.asarray(arrays[name]) for name in LABELS if name in arrays}
    for name, values in there.items():
        if values.shape != (count,):
            raise UserError(
                f"{path}: {name} has the shape {values.shape}, but features have {count:,} rows;"
                f" {FIX}"
            )
    frame = pd.DataFrame({name: _texts(path, name, values) for name, values in there.items()})
    if "ids" in there:
        CsvTable(path, frame).names("ids")  # raises UserError for one that is there twice
    return frame


def _texts(path: Path, name: str, values: np.ndarray[Any, Any]) -> list[str | None]:
    """Return labels as strings, None where missing; whole numbers have no point."""
    kind = values.dtype.kind
    if kind == "f":
        odd = np.flatnonzero(np.isinf(values) | (values % 1 > 0))
        if len(odd):
            raise UserError(
                f"{path}: {name} is {values[odd[0]]} in row {odd[0] + 1}, not a whole number;"
                " write whole numbers or names"
            )
        return [None if np.isnan(value) else str(int(value)) for value in values]
    if kind == "S":
        return [value.decode(errors="replace") or None for value in values]
    if kind in "iubU" or (kind == "O" and all(_plain(value) for value in values)):
        return [None if value is None or value == "" else str(value) for value in values]
    raise UserError(f"{path}: {name} is of type {values.dtype}; {FIX}")


def _plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | np.integer)


def _signature(features: Tensor) -> Tensor:
    """Return a hash (N,) int64 of each sample's features."""
    rows = features.numpy()
    hashes = (hashlib.sha256(row.tobytes()).digest()[:8] for row in rows)
    return torch.tensor([int.from_bytes(one, "little") >> 1 for one in hashes])


# --- formats --------------------------------------------------------------------------------------


def _read_npz(path: Path) -> Arrays:
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        return {name: _no_objects(path, name, file) for name in file.files if name in _KNOWN}


def _no_objects(path: Path, name: str, file: Mapping[str, Any]) -> Any:
    try:
        return file[name]
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        raise UserError(f"{path}: {name} is an array of objects, which may run code; {FIX}") from (
            error
        )


def _names_npz(path: Path) -> list[str]:
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        return list(file.files)


def _read_safetensors(path: Path) -> Arrays:
    from safetensors.torch import load_file

    loaded = {name: value for name, value in load_file(path).items() if name in _KNOWN}
    return {name: v if name == "features" else v.numpy() for name, v in loaded.items()}


def _names_safetensors(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return list(file.keys())


def _read_parquet(path: Path) -> Arrays:
    import pandas as pd

    frame = pd.read_parquet(path)
    arrays = {name: frame[name].to_numpy() for name in LABELS if name in frame}
    for name in arrays:
        if isinstance(frame[name].dtype, pd.StringDtype | pd.CategoricalDtype):
            texts = frame[name].astype(object)
            arrays[name] = texts.where(texts.notna(), None).to_numpy()
    numbered = [f"f{i}" for i in range(len(frame.columns))]
    numbered = [name for name in numbered if name in frame]
    if "features" in frame:
        lengths = set(frame["features"].map(np.size))
        if len(lengths) > 1:
            raise UserError(
                f"{path}: features have between {min(lengths)} and {max(lengths)} values; all"
                " rows need as many"
            )
        arrays["features"] = np.stack(frame["features"].to_list()) if len(frame) else np.empty(0)
    elif numbered:
        arrays["features"] = frame[numbered].to_numpy()
    return arrays


def _names_parquet(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    return list(pq.read_schema(path).names)


_KNOWN = ("features", *LABELS)
READERS: dict[str, tuple[Callable[[Path], Arrays], Callable[[Path], list[str]]]] = {
    ".npz": (_read_npz, _names_npz),
    ".safetensors": (_read_safetensors, _names_safetensors),
    ".parquet": (_read_parquet, _names_parquet),
}


def _read(path: Path) -> Arrays:
    with decoding(path, "write it again"):
        return READERS[path.suffix.lower()][0](path)


def _names(path: Path) -> list[str]:
    with decoding(path, "write it again"):
        return READERS[path.suffix.lower()][1](path)
