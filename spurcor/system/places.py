"""Paths in the clone, where conf/ is next to the package."""

from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
CONF = REPO / "conf"
