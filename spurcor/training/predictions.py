"""Predictions of every split that reports, kept with their metrics."""

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

COLUMNS = ("index", "y", "a", "logits")  # of predictions.npz, by split


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
