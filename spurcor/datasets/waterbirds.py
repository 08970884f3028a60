"""Waterbirds: birds cut out and pasted onto backgrounds, most of them onto their usual habitat."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from spurcor.data.archives import extracted, folders_in
from spurcor.data.downloads import download
from spurcor.data.groups import GroupSpec, Split
from spurcor.data.photographs import Photographs
from spurcor.data.source import DataSource
from spurcor.data.tables import CsvTable
from spurcor.data.transforms import Photo, Transform
from spurcor.errors import UserError

log = logging.getLogger(__name__)
NAME = "waterbird_complete95_forest2water2"
MIRRORS = (  # no checksum is published: the group counts are compared instead
    f"https://nlp.stanford.edu/data/dro/{NAME}.tar.gz",
    f"https://downloads.cs.stanford.edu/nlp/data/dro/{NAME}.tar.gz",
    "https://worksheets.codalab.org/rest/bundles/0x505056d5cdea4e4eaa0e242cbfe2daa4/contents/blob/",
)
TABLE = "metadata.csv"
LEVELS = 3  # depth of the search for the table
PLACES = ("", "waterbirds_v1.0/", "waterbirds/")  # under paths.data
FOLDERS = (NAME, "waterbird", "")
ARCHIVES = (f"{NAME}.tar.gz", "waterbirds_v1.0.tar.gz", "blob", "archive.zip")
COUNTS: dict[str, tuple[int, ...]] = {  # groups in the order of `GroupSpec.names`
    Split.TRAIN: (3498, 184, 56, 1057),
    Split.VAL: (467, 466, 133, 133),
    Split.TEST: (2255, 2255, 642, 642),
}


@dataclass(kw_only=True)
class Waterbirds(DataSource):
    """Landbirds against waterbirds; the attribute is the background, land or water.

    In TRAIN 95 % of each class are on their own background, or all with `strength` 1 (SCALE); in
    VAL and TEST half. Read from the authors' folder or archive, from WILDS' or from Kaggle's (see
    `find`). Sagawa et al. (ICLR 2020): birds of CUB-200-2011 (Wah et al. 2011) on photographs of
    Places (Zhou et al. 2017).
    """

    transform: Transform = field(default_factory=lambda: Photo(resize=256, crop=224))
    strength: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strength not in (0.95, 1):
            raise ValueError(
                f"strength={self.strength} must be 0.95, as published, or 1, which removes"
                " landbird/water and waterbird/land from TRAIN"
            )

    def load(self, root: Path) -> Photographs:
        """Read labels and splits from metadata.csv; the group is 2 y + place."""
        folder = find(root)
        table = CsvTable.read(folder / TABLE, ["img_filename"], ["y", "split", "place"])
        photographs = Photographs(
            GroupSpec(("landbird", "waterbird"), ("land", "water"), aligned=(0, 1)),
            folder,
            table.names("img_filename"),
            table.codes("y", (0, 1)),
            table.codes("place", (0, 1)),
            table.splits("split"),
        )
        photographs.warn_of_counts(COUNTS)
        if self.strength < 1:
            return photographs
        aligned = photographs.spec.is_aligned()[photographs.groups[Split.TRAIN]]
        train = photographs.members[Split.TRAIN][aligned]
        return replace(photographs, members={**photographs.members, Split.TRAIN: train})


def find(root: Path) -> Path:
    """Return the folder with metadata.csv under `root`: present, extracted, or downloaded."""
    folder, useless = _look(root)
    archive = root / f"{NAME}.tar.gz"
    missing = f"paths.data={root} has no Waterbirds; download {MIRRORS[0]} and put it there"
    if folder is None and archive not in useless:
        found = "; ".join(f"{path} has no metadata.csv" for path in useless)
        if found:
            log.warning("%s; trying to download %s", found, archive.name)
        download(MIRRORS, archive, "; ".join(part for part in (missing, found) if part))
        folder, useless = _look(root)
    if folder is None:
        raise UserError(f"{missing}; {archive} has no metadata.csv")
    return folder


def _look(root: Path) -> tuple[Path | None, list[Path]]:
    """Return the folder with metadata.csv, and the folders and archives without one."""
    folders = [root / f"{place}{name}" for place in PLACES for name in FOLDERS]
    folders = [folder for folder in dict.fromkeys(folders) if folder != root and folder.is_dir()]
    if found := _with_table(folders):
        return found, []
    useless = [folder for folder in folders if folder.name == NAME]
    for name in (place + archive for place in PLACES for archive in ARCHIVES):
        if name == "archive.zip":  # the name of every download from Kaggle
            continue
        if (top := extracted(root / name)) is None:
            continue
        if found := _with_table([top]):
            return found, []
        useless.append(root / name)
    return None, useless


def _with_table(folders: Sequence[Path]) -> Path | None:
    """Return the first folder with the table, searching LEVELS levels of folders."""
    for _ in range(LEVELS):
        if found := next((folder for folder in folders if (folder / TABLE).is_file()), None):
            return found
        folders = [inner for folder in folders for inner in folders_in(folder)]
    return None
