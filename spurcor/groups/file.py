"""Groups from a table: of an earlier run, corrected by hand, or of another tool."""

from collections.abc import Mapping
from pathlib import Path

import torch

from spurcor.data.grouping import Grouping
from spurcor.data.groups import GroupSpec
from spurcor.data.tables import CsvTable
from spurcor.errors import UserError
from spurcor.groups.contract import Inference, On, Table, check_splits, grouped


class FromFile(Inference):
    """The attribute values in the column `attribute` of a table with `split` and `index`.

    A line is a sample: its split, its position there, and a value. The groups.csv of a run has
    these columns. Each sample of the splits `on` needs exactly one line; others are ignored.
    """

    def __init__(self, csv: Path, attribute: str = "inferred", on: On = ("train",)) -> None:
        self.reference, self.on = None, check_splits(on)
        self.csv, self.attribute = csv, attribute

    def infer(self, tables: Mapping[str, Table], spec: GroupSpec, seed: int) -> Grouping:
        """See `Inference`; UserError if samples have no line, or several."""
        if not self.csv.is_file():
            raise UserError(f"groups.csv={self.csv} does not exist")
        table = CsvTable.read(self.csv, ["split", self.attribute], ["index"])
        split = table.filled("split").tolist()
        index = table.whole("index").tolist()
        values = table.filled(self.attribute).tolist()
        names = tuple(sorted({v for v, of in zip(values, split, strict=True) if of in tables}))
        codes = {name: code for code, name in enumerate(names)}
        found = {
            name: torch.full((len(one.y),), -1, dtype=torch.int64) for name, one in tables.items()
        }
        for of, position, value in zip(split, index, values, strict=True):
            if of not in found:
                continue
            if position >= len(found[of]) or found[of][position] != -1:
                said = "twice" if position < len(found[of]) else "which has fewer samples"
                raise UserError(f"groups.csv={self.csv}: sample {position} of {of}, {said}")
            found[of][position] = codes[value]
        for name, a in found.items():
            if missing := (a == -1).nonzero().squeeze(1).tolist():
                raise UserError(
                    f"groups.csv={self.csv} has no line for {len(missing)} of the {len(a)} samples"
                    f" of {name}, the first of them index {missing[0]}; add them"
                )
        return grouped(names, found, spec)
