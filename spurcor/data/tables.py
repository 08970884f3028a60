"""Tables of labels that come with photographs, read by pandas and checked column by column.

All errors in a column are reported at once, the first few rows by number (the header is not
counted) and value.
"""

import codecs
import csv
import io
import itertools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spurcor.data.groups import Split
from spurcor.errors import UserError, on_one_line

if TYPE_CHECKING:
    from pandas import DataFrame, Series

SPLIT_CODES = {0: Split.TRAIN, 1: Split.VAL, 2: Split.TEST}  # as in Waterbirds, CelebA and ISIC
MAX_COLUMNS = 10_000
MAX_CELL = 60  # characters of a cell quoted in a message
MAX_SHOWN = 5
MAX_HEADER = 500  # characters of a header quoted in a message


class CsvTable:
    """Columns of a table with M rows."""

    def __init__(self, path: Path, frame: "DataFrame") -> None:
        self.path, self.frame = path, frame

    @classmethod
    def read(
        cls,
        path: Path,
        text: Sequence[str],
        numbers: Sequence[str] = (),
        comment: str | None = None,
        fix: str = "",
    ) -> "CsvTable":
        """Read the named columns of a CSV file with a header; those in `text` stay strings.

        The separator is a comma, semicolon or tab. Lines that begin with `comment` are skipped. A
        `UserError` is raised if a column is missing, with `fix` at its end, or the file cannot be
        parsed.
        """
        wanted = [*text, *numbers]
        # All columns are read: with a selection, pandas would not notice rows with too many fields.
        types = dict.fromkeys(text, str)
        content, encoding = _read(path)
        header = _header(content, encoding, comment)
        separator = _separator(header, wanted)
        if (count := header.count(separator) + 1) > MAX_COLUMNS:  # pandas would take minutes
            raise UserError(f"{path} has {count:,} columns; keep {', '.join(wanted)}")
        options = {"sep": separator, "encoding": encoding, "comment": comment}
        frame = _read_csv(path, content, dtype=types, index_col=False, **options)
        frame.columns = found = [str(name).strip() for name in frame.columns]
        if missing := [name for name in wanted if name not in found]:
            have = _shown(", ".join(found), MAX_HEADER) or "none"
            raise UserError(f"{path} lacks the columns {', '.join(missing)}; it has {have}{fix}")
        return cls(path, frame[wanted])

    def __len__(self) -> int:
        return len(self.frame)

    def names(self, column: str) -> list[str]:
        """Return file names (M,), none empty and all distinct."""
        values = self.filled(column)
        self.refuse(values.duplicated(keep=False), column, "is listed more than once", "keep one")
        names: list[str] = values.tolist()
        return names

    def filled(self, column: str) -> "Series[Any]":
        """Return the values (M,) of a column, none empty."""
        values = self.frame[column]
        self.refuse(values.isna(), column, "is empty", "fill it in")
        return values

    def codes(self, column: str, allowed: Sequence[int]) -> Tensor:
        """Return the integers (M,) int64 of a column, all of them in `allowed`."""
        numbers = self._numbers(column)
        known = " or ".join(map(str, allowed))
        self.refuse(~numbers.isin(allowed), column, f"is not {known}", "correct it")
        return torch.from_numpy(numbers.to_numpy("int64", copy=True))

    def whole(self, column: str) -> Tensor:
        """Return the integers (M,) int64 of a column, none negative."""
        numbers = self._numbers(column)
        wrong = ~((numbers >= 0) & (numbers % 1 == 0))
        self.refuse(wrong, column, "is not an integer of at least 0", "correct it")
        return torch.from_numpy(numbers.to_numpy("int64", copy=True))

    def _numbers(self, column: str) -> "Series[Any]":
        """Return values (M,) as numbers, NaN if not numeric; a decimal comma is accepted."""
        import pandas as pd

        values = self.frame[column]
        if not pd.api.types.is_numeric_dtype(values):
            values = values.astype(str).str.strip().str.replace(",", ".", regex=False)
        return pd.to_numeric(values, errors="coerce")

    def splits(self, column: str) -> dict[str, Tensor]:
        """Return the rows of each split, coded 0, 1, 2 for TRAIN, VAL, TEST; none may be empty."""
        codes = self.codes(column, tuple(SPLIT_CODES))
        members = {str(s): (codes == code).nonzero().squeeze(1) for code, s in SPLIT_CODES.items()}
        if empty := [name for name, rows in members.items() if not len(rows)]:
            numbers = {str(split): code for code, split in SPLIT_CODES.items()}
            told = ", ".join(f"{name} ({column} {numbers[name]})" for name in empty)
            raise UserError(f"{self.path} has no rows for {told}; use the complete file")
        return members

    def refuse(self, wrong: "Series[bool]", column: str, what: str, fix: str) -> None:
        """Raise a `UserError` that lists the wrong rows, if there are any."""
        if not wrong.any():
            return
        values = self.frame[column][wrong]
        shown = [
            f"'{_shown(value)}' in row {row + 1}" if value == value else f"row {row + 1}"  # NaN
            for row, value in values.head(MAX_SHOWN).items()
        ]
        more = f" and {len(values) - MAX_SHOWN:,} more" if len(values) > MAX_SHOWN else ""
        raise UserError(
            f"{self.path}: {column} {what} in {len(values):,} of {len(self):,} rows"
            f" ({', '.join(shown)}{more}); {fix}"
        )


def _shown(value: Any, most: int = MAX_CELL) -> str:
    """Return a cell for use in a message: on one line, and shortened if long."""
    text = on_one_line(str(value))
    return text if len(text) <= most else f"{text[:most]}..."


def read_columns(path: Path, columns: Mapping[int, str], skip: int = 0) -> CsvTable:
    """Read columns of a whitespace-separated file without a header.

    `columns` maps positions to names; a column named `image_id` stays text. The first `skip` lines
    are skipped.
    """
    types = {position: str for position, name in columns.items() if name == "image_id"}
    content, encoding = _read(path)
    options = {"sep": r"\s+", "header": None, "skiprows": skip, "usecols": list(columns)}
    frame = _read_csv(path, content, dtype=types, encoding=encoding, **options)
    return CsvTable(path, frame.rename(columns=dict(columns)))


def first_lines(path: Path, count: int) -> list[str]:
    """Return the first `count` lines of a text file, whatever its encoding."""
    content, encoding = _read(path)
    lines = io.TextIOWrapper(io.BytesIO(content), encoding, errors="replace")
    return [line.rstrip("\n") for line in itertools.islice(lines, count)]


def columns_of(path: Path, *known: str) -> list[str]:
    """Return the column names of a CSV file with a header, most of `known` among them."""
    header = _header(*_read(path))
    return _fields(header, _separator(header, known))


# --- the form of a file ---------------------------------------------------------------------------

SEPARATORS = ",;\t"


def _read(path: Path) -> tuple[bytes, str]:
    """Return the bytes of a file and their encoding: Unicode, or else Windows' cp1252."""
    if not path.is_file():
        raise UserError(f"{path} is not a file; put the table there")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content, "utf-16"
    try:
        content.decode()
    except UnicodeDecodeError:
        return content, "cp1252"
    return content, "utf-8-sig"


def _header(content: bytes, encoding: str, comment: str | None = None) -> str:
    """Return the first line that is neither blank nor a comment."""
    lines = io.TextIOWrapper(io.BytesIO(content), encoding, errors="replace")
    told = (line for line in lines if line.strip() and not (comment and line.startswith(comment)))
    return next(told, "").rstrip("\n")


def _fields(header: str, separator: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([header], delimiter=separator), [])]
    except csv.Error:  # a field too long for any header
        return []


def _separator(header: str, wanted: Sequence[str]) -> str:
    """Return the separator that yields most of the wanted columns."""

    def found(separator: str) -> int:
        return len(set(wanted).intersection(_fields(header, separator)))

    return max(SEPARATORS, key=found)


def _read_csv(path: Path, content: bytes, **options: Any) -> "DataFrame":
    """Read a table; only empty fields are missing values, NA and None are ordinary names."""
    import pandas as pd

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(
                io.BytesIO(content),
                keep_default_na=False,
                na_values=[""],
                low_memory=False,
                skipinitialspace=True,
                **options,
            )
    except (OSError, ValueError, pd.errors.ParserWarning) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as a table ({reason}); copy it again") from error
