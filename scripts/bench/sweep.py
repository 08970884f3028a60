"""What a sweep costs beyond its training: python scripts/bench/sweep.py [process|slurm|files ...]

process: a 9-point sweep in one process: wall time less the phases' own seconds and one import.
slurm:   from submission to the first step of a point, in parts (needs a cluster).
files:   status and report over 1,000 runs of 50 epochs with 60 keys a row, made for the purpose.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

REPEATS = 3
IMPORTS = "import hydra, torch, torchvision, sklearn.linear_model, mlflow"
BEGAN = re.compile(
    r"began ([\d.]+) s after its process: imports ([\d.]+) s, data and model ([\d.]+)"
)


def run(*arguments: str, module: str = "train") -> float:
    """Wall time of a command of spurcor, a cold process."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", f"spurcor.{module}", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{ended.stdout}{ended.stderr}")
    return time.perf_counter() - begin


def process(folder: Path) -> None:
    """Overhead of a point of a sweep in one process, its MLflow store included."""
    overheads = []
    for repeat in range(REPEATS):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", IMPORTS], check=True)
        imports = time.perf_counter() - begin
        outputs = folder / f"process{repeat}"
        wall = run(
            "-m", f"paths.outputs={outputs}", "sweep=bench", "dfr=none",
            "method=erm,iw,group_dro", "seed=0,1,2",
        )  # fmt: skip
        results = [
            json.loads(path.read_text()) for path in outputs.glob("runs/*/*/*/*/result.json")
        ]
        phases = sum(result["run"]["seconds"] for result in results)
        overheads.append((wall - phases - imports) / len(results))
        print(
            f"process: {len(results)} points, wall {wall:.1f} s, phases {phases:.1f} s, one import"
            f" {imports:.1f} s: {overheads[-1]:.2f} s a point"
        )
    print(f"process: median {statistics.median(overheads):.2f} s a point of {REPEATS} sweeps")


def slurm(folder: Path) -> None:
    """One point after the other through SLURM, an idle cluster each time."""
    for repeat in range(REPEATS):
        outputs = folder / f"slurm{repeat}"
        options = ("hydra.launcher.wait=false", "site.cpus_per_task=2", "site.mem_gb=3")
        begin = time.time()
        run("-m", "hydra/launcher=slurm", f"paths.outputs={outputs}", "sweep=bench", *options)
        command = time.time() - begin
        manifest = outputs / "sweeps" / "bench" / "points.jsonl"
        entry = json.loads(manifest.read_text().splitlines()[-1])
        directory = outputs / entry["directory"]
        while not (directory / "done").exists():
            time.sleep(0.2)
        script = next((outputs / "sweeps" / "bench" / "slurm").glob("*/*_submission.sh"))
        submitted = script.stat().st_mtime
        log = (directory / "train.log").read_text()
        found = BEGAN.search(log)
        assert found is not None, log
        age, imports, data = map(float, found.groups())
        began = datetime.strptime(log[: log.index(",")], "%Y-%m-%d %H:%M:%S").timestamp()
        row = json.loads((directory / "metrics.jsonl").read_text().splitlines()[0])
        first = row["seconds"] / row["step"]
        print(
            f"slurm: command {command:.1f} s until submission is told; then scheduler"
            f" {max(0.0, began - age - submitted):.1f} s, imports {imports:.1f} s, data and model"
            f" {data:.1f} s, a step {first:.2f} s"
        )


def files(folder: Path) -> None:
    """Cold status and report over many made-up runs."""
    make_runs(folder, num_runs=1000, num_epochs=50, num_keys=60)
    for module, options in (("status", ()), ("report", ()), ("report", ("plots=false",))):
        walls = [
            run(f"paths.outputs={folder}", "sweep=many", *options, module=module)
            for _ in range(REPEATS)
        ]
        name = " ".join((module, *options))
        print(f"files: {name}: median {statistics.median(walls):.1f} s, most {max(walls):.1f} s")


def make_runs(outputs: Path, num_runs: int, num_epochs: int, num_keys: int) -> None:
    """Runs of 5 methods, 4 learning rates and 50 seeds, as their files would be."""
    random_state = 1
    entries = []
    groups = [f"{c}/{a}" for c in ("land", "water") for a in ("land", "water")]
    measures = ("worst", "average", "adjusted", "balanced", "worst_class", "aligned")
    measures += ("conflicting", "loss")
    names = [f"{split}/{m}" for split in ("val", "test") for m in measures]
    names += [f"{split}/group/{group}" for split in ("val", "test") for group in groups]
    names += [f"analysis/quantity{i}/val" for i in range(num_keys - len(names) - 6)]
    for number in range(num_runs):
        method, rate, seed = f"method{number % 5}", number // 5 % 4, number // 20
        directory = outputs / "runs" / "made" / method / f"r{number % 20:08x}" / f"seed{seed}"
        directory.mkdir(parents=True)
        rows = []
        for epoch in range(1, num_epochs + 1):
            row = {"phase": "erm", "epoch": epoch, "step": 100 * epoch}
            row |= {"time": 1_700_000_000_000 + epoch, "seconds": float(epoch), "train/loss": 0.5}
            for name in names:
                random_state = random_state * 1103515245 + 12345 & 0x7FFFFFFF
                row[name] = random_state / 0x7FFFFFFF
            rows.append(json.dumps(row))
        (directory / "metrics.jsonl").write_text("\n".join(rows) + "\n")
        last = json.loads(rows[-1])
        report = {m: last[f"test/{m}"] for m in measures[:-1]}
        report["groups"] = {g: {"accuracy": last[f"test/group/{g}"], "count": 100} for g in groups}
        config = {"dataset": "made", "method": method, "backbone": "small_cnn"}
        config |= {"optimizer": "sgd", "optimizer.lr": 10.0**-rate, "method.epochs": num_epochs}
        run_ = {
            "identity": f"r{number % 20:08x}", "seed": seed, "dataset": "made", "method": method,
            "backbone": "small_cnn", "config": config, "commit": "made", "moved": False,
            "seconds": float(num_epochs), "images_seen": 1000, "splits": {"test": "a"},
        }  # fmt: skip
        selected = {"criterion": "val/worst", "phase": "erm", "epoch": num_epochs}
        parts = {"run": run_, "selected": selected, "val": report, "test": report}
        text = json.dumps({**parts, "tests": {}, "dfr": {}}, indent=1)
        (directory / "result.json").write_text(text)
        (directory / "done").write_text("made\n")
        entries.append(
            {
                "overrides": [f"method={method}", f"optimizer.lr={10.0**-rate}", f"seed={seed}"],
                "identity": run_["identity"],
                "seed": seed,
                "needs": ["done"],
                "job": None,
                "log": None,
                "directory": str(directory.relative_to(outputs)),
            }
        )
    folder = outputs / "sweeps" / "many"
    folder.mkdir(parents=True)
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    (folder / "points.jsonl").write_text(text)


def main() -> None:
    """Run what is named, or everything that this machine can."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=["process", "slurm", "files"])
    parts = parser.parse_args().parts or ["process", "slurm", "files"]
    os.environ.setdefault("COLUMNS", "160")
    for name in parts:
        # A job may still be writing its last lines when its directory goes.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            {"process": process, "slurm": slurm, "files": files}[name](Path(folder))


if __name__ == "__main__":
    main()
