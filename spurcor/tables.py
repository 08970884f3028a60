"""Tables of labels that come with photographs: read by pandas, checked column by column.

Whatever is wrong in a column is told at once, the first rows of it by number (the header is not
counted) and value.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spurcor.data import Split
from spurcor.errors import UserError

if TYPE_CHECKING:
    from pandas import DataFrame, Series

SPLIT_CODES = {0: Split.TRAIN, 1: Split.VAL, 2: Split.TEST}  # of Waterbirds, CelebA and ISIC
MAX_SHOWN = 5


class Table:
    """Columns of a file of M rows."""

    def __init__(self, path: Path, frame: "DataFrame") -> None:
        self.path, self.frame = path, frame

    @classmethod
    def read(
        cls,
        path: Path,
        text: Sequence[str],
        numbers: Sequence[str] = (),
        comment: str | None = None,
    ) -> "Table":
        """Named columns of a CSV file with a header; those in `text` are left as they stand.

        Lines that begin with `comment` are left out.
        """
        wanted = [*text, *numbers]
        # All columns are read: of some only, pandas would not see that a row has too many fields.
        types = dict.fromkeys(text, str)
        frame = _read_csv(path, dtype=types, index_col=False, comment=comment)
        found = [str(name) for name in frame.columns]
        if missing := [name for name in wanted if name not in found]:
            have = ", ".join(found) or "none"
            raise UserError(f"{path} lacks the columns {', '.join(missing)}; it has {have}")
        return cls(path, frame[wanted])

    def __len__(self) -> int:
        return len(self.frame)

    def names(self, column: str) -> list[str]:
        """File names (M,), none empty and none twice."""
        values = self.filled(column)
        self.refuse(values.duplicated(keep=False), column, "is there more than once", "keep one")
        names: list[str] = values.tolist()
        return names

    def filled(self, column: str) -> "Series[Any]":
        """Values (M,), none empty."""
        values = self.frame[column]
        self.refuse(values.isna(), column, "is empty", "fill it in")
        return values

    def codes(self, column: str, allowed: Sequence[int]) -> Tensor:
        """Whole numbers (M,) int64, every one of them allowed."""
        import pandas as pd

        numbers = pd.to_numeric(self.frame[column], errors="coerce")
        known = " or ".join(map(str, allowed))
        self.refuse(~numbers.isin(allowed), column, f"is not {known}", "correct it")
        return torch.from_numpy(numbers.to_numpy("int64", copy=True))

    def whole(self, column: str) -> Tensor:
        """Whole numbers (M,) int64, none negative."""
        import pandas as pd

        numbers = pd.to_numeric(self.frame[column], errors="coerce")
        wrong = ~((numbers >= 0) & (numbers % 1 == 0))
        self.refuse(wrong, column, "is no whole number from 0 on", "correct it")
        return torch.from_numpy(numbers.to_numpy("int64", copy=True))

    def splits(self, column: str) -> dict[str, Tensor]:
        """Rows of each split, by the usual numbers."""
        codes = self.codes(column, tuple(SPLIT_CODES))
        members = {str(s): (codes == code).nonzero().squeeze(1) for code, s in SPLIT_CODES.items()}
        if empty := [name for name, rows in members.items() if not len(rows)]:
            numbers = {str(split): code for code, split in SPLIT_CODES.items()}
            told = ", ".join(f"{name} ({column} {numbers[name]})" for name in empty)
            raise UserError(f"{self.path} has no rows for {told}; put the whole file there")
        return members

    def refuse(self, wrong: "Series[bool]", column: str, what: str, fix: str) -> None:
        """Tell the rows that are wrong, if there are any."""
        if not wrong.any():
            return
        values = self.frame[column][wrong]
        shown = [
            f"'{value}' in row {row + 1}" if value == value else f"row {row + 1}"  # NaN: empty
            for row, value in values.head(MAX_SHOWN).items()
        ]
        more = f" and {len(values) - MAX_SHOWN:,} more" if len(values) > MAX_SHOWN else ""
        raise UserError(
            f"{self.path}: {column} {what} in {len(values):,} of {len(self):,} rows"
            f" ({', '.join(shown)}{more}); {fix}"
        )


def read_columns(path: Path, columns: Mapping[int, str], skip: int = 0) -> Table:
    """Columns of a file without a header, separated by blanks: position and name of each.

    The first `skip` lines are left out; a column named `image_id` stays text.
    """
    types = {position: str for position, name in columns.items() if name == "image_id"}
    options = {"sep": r"\s+", "header": None, "skiprows": skip, "usecols": list(columns)}
    frame = _read_csv(path, dtype=types, **options)
    return Table(path, frame.rename(columns=dict(columns)))


def _read_csv(path: Path, **options: Any) -> "DataFrame":
    """Only what is empty is missing: NA and None are names like others."""
    import pandas as pd

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(
                path,
                keep_default_na=False,
                na_values=[""],
                low_memory=False,
                **options,
            )
    except (OSError, ValueError, pd.errors.ParserWarning) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as a table ({reason}); put it anew") from error
