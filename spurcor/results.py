"""What a finished run says: predictions, result.json, and the parts it is made from."""

import functools
import importlib.metadata
import platform
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spurcor.config import REPO
from spurcor.data import Split, Splits
from spurcor.errors import Damaged
from spurcor.files import decoding, read_json, replacing, write_json
from spurcor.metrics import apply, group_metrics, label_scores
from spurcor.shapes import Found, Phase, Plan, Repair, Result

COLUMNS = ("index", "y", "a", "logits")  # of predictions.npz, by split
PARTS: dict[str, Any] = {"dfr": Repair, "analysis": Found}
VERSIONS = ("spurcor", "torch", "torchvision", "timm", "numpy", "scikit-learn")


def predict_all(predict: Callable[[Tensor], Tensor], splits: Splits, path: Path) -> dict[str, Any]:
    """Evaluate every split that reports, keep the predictions; returns metrics by split."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    reports: dict[str, Any] = {"val": None, "test": None, "tests": {}}
    train_counts = splits[Split.TRAIN].group_counts.cpu()
    for name, split in splits.evaluated.items():
        logits = apply(predict, split, splits.transform)
        columns = {"index": torch.arange(len(split)), "y": split.y, "a": split.a, "logits": logits}
        arrays |= {f"{name}/{key}": value.cpu().numpy() for key, value in columns.items()}
        report = group_metrics(logits, split.y, split.g, split.spec).summary(train_counts)
        if split.spec.task == "multilabel":
            report["labels"] = label_scores(logits, split.y, split.spec)
        if name in (Split.VAL, Split.TEST):
            reports[name] = report
        else:
            reports["tests"][name] = report
    with replacing(path) as beside, beside.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return reports


def read_predictions(folder: Path) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    """Positions (N,), classes or labels, attributes (N,) and logits (N, K), by split."""
    path, splits = folder / "predictions.npz", dict[str, dict[str, np.ndarray[Any, Any]]]()
    with decoding(path), np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            split, _, column = key.rpartition("/")
            splits.setdefault(split, {})[column] = arrays[key]
    for name, columns in splits.items():
        if not columns.keys() >= set(COLUMNS):
            raise Damaged(path, f"lacks columns of {name}")
        logits = columns["logits"]
        sizes = {np.shape(columns[column])[:1] for column in COLUMNS}
        numbers = all(columns[column].dtype.kind in "iubf" for column in COLUMNS)
        if len(sizes) != 1 or logits.ndim != 2 or not numbers:
            raise Damaged(path, f"is damaged (the columns of {name} do not belong together)")
    return splits


def read_result(directory: Path) -> dict[str, Any]:
    """result.json of a finished run, with all that its readers count on."""
    return read_json(directory / "result.json", Result)


def write_phase(
    folder: Path, predict: Callable[[Tensor], Tensor], splits: Splits, **about: Any
) -> None:
    """Keep the figures of the weights that the next phase goes on from; result.json comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    reports = predict_all(predict, splits, folder / "predictions.npz")
    write_json(folder / "result.json", {**about, "weights": "last", **reports})


def kept_phases(directory: Path) -> dict[str, Any]:
    """What a run has kept of its phases, in their order, after that of the run it started from."""
    parts = {p.parent.name: read_json(p, Phase) for p in directory.glob("phases/*/result.json")}
    plan = read_json(directory / "phases.json", Plan)["phases"] if parts else []
    order = [phase["name"] for phase in plan]
    first = [name for name in parts if name not in order]
    return {name: parts[name] for name in (*first, *order) if name in parts}


def write_result(
    directory: Path,
    trained: Mapping[str, Any] | None = None,
    **given: Mapping[str, Any],
) -> dict[str, Any]:
    """Rebuild result.json from the training's part, those in its folders, and those given.

    The folders of `dfr` and `analysis` hold a part each; parts that are not written yet are given
    as `dfr={name: part}`. Repairs of a run may end at the same time: whoever rebuilds last must
    have seen all parts, so the caller holds a lock.
    """
    parts = dict(trained) if trained is not None else read_result(directory)
    for kind, shape in PARTS.items():
        places = directory.glob(f"{kind}/*/result.json")
        found = {place.parent.name: read_json(place, shape) for place in places}
        parts[kind] = dict(sorted({**found, **given.get(kind, {})}.items()))
    parts["phases"] = kept_phases(directory)
    write_json(directory / "result.json", parts)
    return parts


def versions() -> dict[str, str]:
    """The versions that move numbers."""
    found = {name: importlib.metadata.version(name) for name in VERSIONS}
    return {"python": platform.python_version(), **found}


@functools.cache
def commit() -> str:
    """The commit of the code that runs, with a + where files differ from it."""
    copied = REPO / "commit"  # a sweep's copy of the code says what it was copied from
    if copied.exists():
        return copied.read_text().strip()
    git = ["git", "-C", str(REPO)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        watched = ["spurcor", "conf", "sweeps"]
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", *watched],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")
