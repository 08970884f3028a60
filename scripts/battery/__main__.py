"""Every script of this folder for a while, one after the other.

python -m scripts.battery [--seconds 150] [--seed 0]
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from scripts.battery import REPO
from scripts.battery.runner import parser

HERE = Path(__file__).parent
START_SECONDS = 8.0  # that a script imports for, and works on after its time


def scripts() -> list[str]:
    """Names of the modules that are programs."""
    paths = sorted(path for path in HERE.glob("*.py") if path.stem != "__main__")
    return [path.stem for path in paths if "\nif __name__ ==" in path.read_text()]


def main() -> int:
    """Returns 1 if any of them found anything."""
    described = parser(__doc__)
    described.set_defaults(seconds=150.0)
    options = described.parse_args()
    end = time.monotonic() + options.seconds
    path = os.pathsep.join(filter(None, (str(REPO), os.environ.get("PYTHONPATH"))))
    failed, left = [], scripts()
    while left:
        share = (end - time.monotonic()) / len(left) - START_SECONDS
        name = left.pop(0)
        command = [sys.executable, "-m", f"scripts.battery.{name}"]
        command += ["--seconds", f"{max(share, 1.0):.0f}", "--seed", str(options.seed)]
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        if subprocess.run(command, cwd=REPO, env=environment).returncode:
            failed.append(name)
    if failed:
        print(f"findings of {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
