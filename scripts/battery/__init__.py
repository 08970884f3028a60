"""Seeded scripts that look for faults for as long as one likes: python -m scripts.battery."""

import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tests"))  # the machinery is that of the tests
