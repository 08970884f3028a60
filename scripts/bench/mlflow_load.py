"""Many writers at once on one MLflow store: python scripts/bench/mlflow_load.py [--store both].

Every thread is a run that sends its rows through `MlflowTracker`, on a sqlite file and through an
`mlflow server`. Afterwards the store's own tables are read: nothing may be lost or doubled.
With --interval 0 each row is a request of its own, which is far more than training asks for.
"""

import argparse
import math
import multiprocessing
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from servers import mlflow_server

from spurcor.system.lock import lock_of, locked
from spurcor.tracking import Record, sender
from spurcor.tracking.mlflow import MlflowTracker

BEGIN = 1_700_000_000_000  # epoch ms of the first row


@dataclass(frozen=True)
class Load:
    """How much is written, and where to."""

    outputs: Path
    uri: str | None
    database: Path
    processes: int
    threads: int
    rows: int
    metrics: int
    interval: float
    pause: float

    @property
    def writers(self) -> int:
        """Runs at the same time."""
        return self.processes * self.threads

    def directory(self, number: int) -> Path:
        """The run directory of a writer."""
        return self.outputs / "runs" / "digits" / "erm" / f"r{number:03d}" / "seed0"


def values(number: int, row: int, metrics: int) -> dict[str, float]:
    """Metrics that tell which writer and which row they are of."""
    return {f"test/metric{k:02d}": number + row / 1000 + k / 1e6 for k in range(metrics)}


def write(load: Load, number: int) -> tuple[bool, float]:
    """One run from start to finish; whether all was taken, and the longest call in seconds."""
    directory = load.directory(number)
    record = Record(directory, "run", f"run {number}", "load", load.outputs / "sweeps" / "load")
    longest = 0.0
    with locked(lock_of(directory), load.outputs / ".guard"):
        directory.mkdir(parents=True, exist_ok=True)
        tracker = MlflowTracker(load.outputs, load.uri)
        tracker.start(record)
        for row in range(load.rows):
            time.sleep(load.pause)
            begin = time.perf_counter()
            entry = {"step": row, "time": BEGIN + row} | values(number, row, load.metrics)
            tracker.log(record, [entry])
            longest = max(longest, time.perf_counter() - begin)
        tracker.finish(record, "FINISHED")
        tracker.close()
    return tracker.alive, longest


def process(load: Load, index: int) -> list[tuple[bool, float]]:
    """The threads of one process."""
    sender.FLUSH_SECONDS = load.interval
    first = index * load.threads
    with ThreadPoolExecutor(load.threads) as pool:
        done = list(pool.map(lambda k: write(load, first + k), range(load.threads)))
    assert "torch" not in sys.modules
    return done


def faults(load: Load) -> list[str]:
    """What the store's tables say of lost, doubled and wrong values."""
    connection = sqlite3.connect(load.database)
    runs = {
        run: (name, status)
        for run, name, status in connection.execute(
            "SELECT r.run_uuid, r.name, r.status FROM runs r JOIN tags t USING (run_uuid)"
            " JOIN experiments e USING (experiment_id) WHERE e.name = 'load'"
            " AND t.key = 'spurcor.kind' AND t.value = 'run' AND r.lifecycle_stage = 'active'"
        )
    }
    stored: dict[tuple[str, str, int], list[float]] = {}
    for run, key, step, value in connection.execute(
        "SELECT m.run_uuid, m.key, m.step, m.value FROM metrics m JOIN runs r USING (run_uuid)"
        " JOIN experiments e USING (experiment_id) WHERE e.name = 'load'"
    ):
        name = runs[run][0] if run in runs else "of no run"
        stored.setdefault((name, key, step), []).append(value)
    connection.close()
    found: Counter[str] = Counter()
    names = Counter(name for name, _ in runs.values())
    for number in range(load.writers):
        if names[f"run {number}"] != 1:
            found[f"run stored {names[f'run {number}']} times"] += 1
        for row in range(load.rows):
            for key, value in values(number, row, load.metrics).items():
                got = stored.pop((f"run {number}", key, row), [])
                if len(got) != 1:
                    found["value lost" if not got else "value doubled"] += 1
                elif not math.isclose(got[0], value, rel_tol=1e-12):
                    found["value wrong"] += 1
    if stored:
        found["value that nobody sent"] += len(stored)
    for _, status in runs.values():
        if status != "FINISHED":
            found[f"run left {status}"] += 1
    return [f"{count} x {text}" for text, count in found.items()]


def measure(load: Load) -> bool:
    """Print the figures; whether everything is there once."""
    sweep = Record.of_sweep(load.outputs / "sweeps" / "load")
    sweep.directory.mkdir(parents=True)
    first = MlflowTracker(load.outputs, load.uri)  # as a sweep does before its runs start
    first.start(sweep)
    first.close()
    begin = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(load.processes, context) as pool:
        results = [pool.submit(process, load, index) for index in range(load.processes)]
        done = [entry for result in results for entry in result.result()]
    seconds = time.perf_counter() - begin
    broken = sum(not alive for alive, _ in done)
    problems = faults(load) + ([f"{broken} x mirror given up"] if broken else [])
    rows = load.writers * load.rows
    print(
        f"{'server' if load.uri else 'sqlite'}: {load.writers} writers ({load.processes} processes"
        f" of {load.threads} threads), {rows} rows of {load.metrics} metrics in {seconds:.1f} s:"
        f" {seconds / rows:.4f} s per row with imports,"
        f" longest call {1000 * max(longest for _, longest in done):.0f} ms;"
        f" {', '.join(problems) or 'nothing lost, nothing doubled'}",
        flush=True,
    )
    return not problems


@contextmanager
def store(kind: str, folder: Path) -> Iterator[tuple[str | None, Path]]:
    """The address and the sqlite file of a store."""
    if kind == "sqlite":
        yield None, folder / "outputs" / "mlflow.db"
    else:
        with mlflow_server(folder / "server", workers=2) as server:
            yield server.uri, server.database


def main() -> int:
    """Returns 1 if anything is lost, doubled or given up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--metrics", type=int, default=40)
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between two batches")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two rows")
    parser.add_argument("--store", choices=("sqlite", "server", "both"), default="both")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends as well
    sizes = {k: v for k, v in vars(options).items() if k != "store"}
    sound = True
    for kind in ("sqlite", "server") if options.store == "both" else (options.store,):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with store(kind, folder) as (uri, database):
                sound &= measure(Load(folder / "outputs", uri, database, **sizes))
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
