"""Where the clone is: its configuration lies beside the package."""

from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
CONF = REPO / "conf"
