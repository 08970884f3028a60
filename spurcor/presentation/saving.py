"""Write figures to files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from spurcor.system.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PRINT_DPI = 150


def save_figure(figure: "Figure", path: Path, dpi: int = PRINT_DPI) -> None:
    """Write a figure atomically, in the format of its file extension."""
    # Without a date, equal figures give identical files.
    metadata: dict[str, Any] = {"CreationDate": None} if path.suffix == ".pdf" else {}
    with replacing(path) as beside:
        figure.savefig(beside, format=path.suffix[1:], dpi=dpi, metadata=metadata)
