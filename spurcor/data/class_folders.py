"""Image files in class folders, without a table."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from spurcor.data.groups import Split
from spurcor.data.tables import CsvTable
from spurcor.errors import UserError
from spurcor.system.files import is_clutter

log = logging.getLogger(__name__)

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif"),
)


def read_class_folders(root: Path) -> CsvTable:
    """Return a table (filename, y, split) of <split>/<class>/* or, without split, of <class>/*.

    File names are relative to `root`. Other files than images are left out; a warning counts them.
    """
    import pandas as pd

    tops = _folders(root)
    split = any(top.name in set(Split) for top in tops)
    rows, ignored = [], Counter[str]()
    for folder in [inner for top in tops for inner in _folders(top)] if split else tops:
        for file in _files(folder):
            if (ending := Path(file).suffix.lower()) in ENDINGS:
                row = (os.path.relpath(file, root), folder.name)
                rows.append((*row, folder.parent.name) if split else row)
            else:
                ignored[ending or "no ending"] += 1
    if ignored:
        told = ", ".join(f"{count:,} of {ending}" for ending, count in ignored.most_common(5))
        log.warning("%s: files that are not images are left out: %s", root, told)
    if len({row[1] for row in rows}) < 2:
        raise UserError(
            f"{root} has no images of two classes; put them in train/<class>/, val/<class>/ and"
            " test/<class>/, or in <class>/ to have splits drawn, or name a table by dataset.csv"
        )
    header = ["filename", "y", "split"] if split else ["filename", "y"]
    return CsvTable(root, pd.DataFrame(rows, columns=header, dtype=str))


def _folders(root: Path) -> list[Path]:
    return [path for path in sorted(root.iterdir()) if path.is_dir() and not is_clutter(path.name)]


def _files(folder: Path) -> Iterator[str]:
    """Yield the files below a folder in order, without what desktop systems create."""
    for place, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if not is_clutter(name))
        yield from (os.path.join(place, name) for name in sorted(names) if not is_clutter(name))
