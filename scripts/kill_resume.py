"""SIGKILL a run of every method at random moments; in the end nothing may tell.

python scripts/kill_resume.py [--kills 20] [--seed 0]

For each method a run is left in peace and another is killed and restarted with the same command
until it has been killed often enough; rows (but for clocks), weights and result.json are compared.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from conftest import CommandLine
from killing import compare

from spurcor.config import CONF


def main() -> int:
    """Returns 1 if any run differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    differing = 0
    with tempfile.TemporaryDirectory() as folder:
        line = CommandLine(Path(folder))
        for path in sorted((CONF / "method").glob("*.yaml")):
            place = Path(folder) / path.stem
            place.mkdir()
            command = (f"method={path.stem}", "method.epochs=60")
            moments, different = compare(line, command, place, options.kills, options.seed, 1.0, 4)
            where = ", ".join(f"{n} x {m}" for m, n in Counter(moments).most_common())
            print(f"{path.stem}: {len(moments)} kills ({where})")
            print(f"{path.stem}: {'DIFFERENT: ' + str(different) if different else 'identical'}")
            differing += bool(different)
        line.close()
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
