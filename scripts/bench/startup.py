"""How fast --help answers, against a bare Hydra application: python scripts/bench/startup.py."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BARE = """\
import hydra

@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    pass

if __name__ == "__main__":
    main()
"""
PAIRS = 10


def seconds(command: list[str]) -> float:
    """Wall time of a command."""
    begin = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begin


def main() -> None:
    """Interleaved pairs after one of each to warm the disk's cache."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "bare.py"
        script.write_text(BARE)
        bare = [sys.executable, str(script), "--help"]
        ours = [sys.executable, "-m", "spurcor.train", "--help"]
        seconds(bare), seconds(ours)
        pairs = [(seconds(ours), seconds(bare)) for _ in range(PAIRS)]
    ratios = sorted(a / b for a, b in pairs)
    print(
        f"--help: median ratio {statistics.median(ratios):.2f} of {PAIRS} pairs"
        f" (from {ratios[0]:.2f} to {ratios[-1]:.2f});"
        f" ours {statistics.median(a for a, _ in pairs):.2f} s,"
        f" bare {statistics.median(b for _, b in pairs):.2f} s"
    )


if __name__ == "__main__":
    main()
