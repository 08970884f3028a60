"""A 24-point sweep on a real cluster that everything happens to; in the end nothing may tell.

source /tmp/spurcor-slurm/env && python scripts/slurm_ordeal.py

Three methods, two learning rates, four seeds. While it runs, conf/ and the code are edited, one job
is requeued, one hits a time limit of two minutes, one is killed, the controller restarts and the
MLflow server is away for a minute. One re-issue must submit the killed point alone; then every run
must be that of the same sweep left in peace, and MLflow must hold each once with every row.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from ordeal import Size, withstand

SWEEP = (
    "method=erm,iw,group_dro", "optimizer.lr=0.001,0.002", "seed=0,1,2,3", "method.epochs=250",
)  # fmt: skip


def main() -> None:
    """Ends with a traceback where anything was lost, doubled or changed."""
    begin = time.monotonic()

    def tell(text: str) -> None:
        print(f"{(time.monotonic() - begin) / 60:5.1f} min  {text}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        withstand(Path(folder), Size(SWEEP, limit_min=2, server_seconds=60), tell)
    tell("nothing tells")


if __name__ == "__main__":
    main()
