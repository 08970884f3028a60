"""Predictions on every evaluated split, stored together with their metrics."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spurcor.data.groups import Split
from spurcor.data.splits import Splits
from spurcor.errors import Damaged
from spurcor.system.files import decoding, read_json, replacing, write_json
from spurcor.system.shapes import Phase, Plan
from spurcor.training.metrics import apply, group_metrics, label_scores

COLUMNS = ("index", "y", "a", "logits")  # in predictions.npz, for each split


def predict_all(predict: Callable[[Tensor], Tensor], splits: Splits, path: Path) -> dict[str, Any]:
    """Write the predictions on every evaluated split to `path`; return metrics per split."""
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
    """Load predictions.npz: `index`, `y`, `a` and `logits` (N, K) per split.

    `y` holds classes (N,) or labels (N, K). Raises Damaged if columns are missing or do not match.
    """
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


def write_phase(
    folder: Path, predict: Callable[[Tensor], Tensor], splits: Splits, **about: Any
) -> None:
    """Store predictions and metrics of the weights that the next phase starts from.

    result.json is written last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reports = predict_all(predict, splits, folder / "predictions.npz")
    write_json(folder / "result.json", {**about, "weights": "last", **reports})


def kept_phases(directory: Path) -> dict[str, Any]:
    """Return the results kept of a run's phases by name, in order.

    The result of the run that this run starts from comes first.
    """
    parts = {p.parent.name: read_json(p, Phase) for p in directory.glob("phases/*/result.json")}
    plan = read_json(directory / "phases.json", Plan)["phases"] if parts else []
    order = [phase["name"] for phase in plan]
    first = [name for name in parts if name not in order]
    return {name: parts[name] for name in (*first, *order) if name in parts}
