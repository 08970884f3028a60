"""Skin lesions of the ISIC archive: coloured calibration patches indicate a benign lesion."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from spurcor.data.archives import folders_in
from spurcor.data.groups import GroupSpec
from spurcor.data.photographs import Photographs
from spurcor.data.source import DataSource
from spurcor.data.tables import CsvTable
from spurcor.data.transforms import Photo, Transform
from spurcor.errors import UserError
from spurcor.system.files import is_clutter

URL = "https://www.isic-archive.com"
CSV = "raw_val_4groups.csv"
IMAGES = "multi_groups"
FOLDERS = ("isic", "ISIC", "")  # under paths.data


@dataclass(kw_only=True)
class Isic(DataSource):
    """Benign against malignant lesions; the attribute is whether calibration patches are visible.

    Labels and splits come from PruSC's four-group file: in the archive itself no malignant lesion
    has patches. Le, Schlötterer, Seifert (TMLR 2025); images: International Skin Imaging
    Collaboration.
    """

    transform: Transform = field(default_factory=lambda: Photo(resize=256, crop=224))

    def load(self, root: Path) -> Photographs:
        """Read labels and splits from raw_val_4groups.csv; the group is 2 y + patch."""
        folder = _find(root)
        table = CsvTable.read(folder / CSV, ["isic_id"], ["split", "benign_malignant", "patches"])
        return Photographs(
            GroupSpec(("benign", "malignant"), ("no_patch", "patch"), aligned=(1, 0)),
            folder / IMAGES,
            _file_names(table, folder / IMAGES),
            table.codes("benign_malignant", (0, 1)),
            table.codes("patches", (0, 1)),
            table.splits("split"),
        )


def _find(root: Path) -> Path:
    folders = [root / name for name in FOLDERS]
    for folder in [*folders, *(inner for f in folders[:-1] for inner in folders_in(f))]:
        if (folder / CSV).is_file() and (folder / IMAGES).is_dir():
            return folder
    raise UserError(
        f"{root / 'isic'} has no {CSV} with a folder {IMAGES} of images; put the table of PruSC"
        f" there, and under {IMAGES} the images that it names, from {URL}"
    )


def _file_names(table: CsvTable, images: Path) -> list[str]:
    """Return the file of each identifier in the table, written with or without an extension."""
    files = [path.name for path in images.iterdir() if not is_clutter(path.name)]
    stems = [name.rpartition(".")[0] for name in files]
    written = table.filled("isic_id")
    bare = ~written.isin(files)
    twice = [stem for stem, count in Counter(stems).items() if count > 1]
    fix = "write it with its extension"
    table.refuse(bare & written.isin(twice), "isic_id", "names several files", fix)
    found = written.map(dict(zip(stems, files, strict=True)))
    # Identifiers without a file stay as written; missing files are later reported together.
    table.frame["isic_id"] = written.where(~bare | found.isna(), found)
    return table.names("isic_id")
