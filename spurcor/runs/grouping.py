"""The groups that a run trains by, where they are not the annotated ones."""

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spurcor.config.schema import TrainConfig
from spurcor.data.examples import draw_examples
from spurcor.data.grouping import Grouping
from spurcor.data.groups import GroupedDataset, GroupSpec, Split
from spurcor.data.splits import Splits
from spurcor.errors import Damaged, UserError
from spurcor.groups.contract import Inference, Table
from spurcor.groups.quality import quality
from spurcor.models.weights import load_weights
from spurcor.runs.reference import STORED, reference_directory, reference_facts
from spurcor.runs.refusals import refuse_leak
from spurcor.runs.results import read_result
from spurcor.system.files import decoding, read_json, replacing, write_json, write_text
from spurcor.training.method import Method, untouched
from spurcor.training.metrics import apply

FOLDER, ABOUT = STORED.parent, STORED.name
ASSIGNED, LISTED = "assigned.npz", "groups.csv"


def with_grouping(
    config: TrainConfig,
    directory: Path,
    splits: Splits,
    network: Callable[[Path, Splits], Method],
) -> Splits:
    """Return the splits with the groups that `config.groups` asks for.

    They are read from the run's `directory`, where its training has stored them, or else inferred.
    `network` builds the untrained network of the reference run from its directory. Raises UserError
    if that run is not finished, or was trained on other data.
    """
    if config.groups is None:
        return splits
    folder = directory / FOLDER
    if (folder / ABOUT).exists() and not config.rerun:
        return replace(splits, grouping=_read(folder, splits))
    inference: Inference = config.groups.build()
    splits.spec.require_classes(f"groups={config.choices['groups']}")
    tables = _tables(config, inference, splits, network)
    return replace(splits, grouping=inference.infer(tables, splits.spec, config.seed))


def write_grouping(directory: Path, config: TrainConfig, splits: Splits) -> None:
    """Store the groups that a run trains by, how well they match the annotated ones, and examples.

    Examples go to the run's plots, which trackers show.
    """
    grouping, folder = splits.grouping, directory / FOLDER
    if grouping is None or (folder / ABOUT).exists():
        return
    folder.mkdir(exist_ok=True)
    arrays = {name: a.cpu().numpy() for name, a in grouping.attribute.items()}
    with replacing(folder / ASSIGNED) as beside, beside.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    write_text(folder / LISTED, _csv(grouping, splits))
    if grouping.spec.known:
        draw_examples(splits.trained(Split.TRAIN), directory / "plots" / "groups.png")
    spec = grouping.spec
    about = {"attributes": list(spec.attributes), "known": spec.known}
    about |= {"quality": _quality(grouping, splits), "cost": reference_facts(config)}
    write_json(folder / ABOUT, about)


def about_groups(directory: Path) -> dict[str, Any]:
    """Return what is known of the groups that a run trained by; empty for the annotated ones.

    `quality`: how well they match these, by split. `cost`: of the reference run.
    """
    path = directory / STORED
    return read_json(path) if path.exists() else {}


def _read(folder: Path, splits: Splits) -> Grouping:
    about, path = read_json(folder / ABOUT), folder / ASSIGNED
    with decoding(path), np.load(path, allow_pickle=False) as arrays:
        attribute = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    for name, a in attribute.items():
        if a.shape != splits[name].y.shape:
            raise Damaged(path, f"has {len(a)} values for the {len(splits[name])} of {name}")
    spec = GroupSpec(splits.spec.classes, tuple(about["attributes"]), known=about["known"])
    return Grouping(spec, attribute)


def _tables(
    config: TrainConfig,
    inference: Inference,
    splits: Splits,
    network: Callable[[Path, Splits], Method],
) -> dict[str, Table]:
    """Return the tables of the splits that groups are inferred on."""
    if inference.reference is None:
        there = [name for name in inference.on if name in splits.data]
        return {name: Table(splits[name].y.cpu(), torch.empty(0)) for name in there}
    data = {name: splits[name] for name in inference.on}
    directory = reference_directory(config, inference.reference)
    if not (directory / "done").exists():
        raise UserError(
            f"groups={config.choices['groups']}: its reference run {directory} is not finished; run"
            " the same command to train it"
        )
    refuse_leak(read_result(directory)["run"]["splits"], splits)
    tables: dict[str, Table] = {}
    with torch.random.fork_rng():  # training draws the same numbers if the groups are stored
        method = network(directory, splits)
        load_weights(method, directory / "last.safetensors")
        with untouched(method):
            for name, split in data.items():
                logits = apply(method.predict, split, splits.transform).cpu()
                features = _features(method, split, splits) if inference.needs_features else None
                tables[name] = Table(split.y.cpu(), logits, features)
    return tables


def _features(method: Method, split: GroupedDataset, splits: Splits) -> Tensor:
    """Return the input of the last layer (N, D) on a split, on the CPU."""
    layer = method.backbone.layer(-1)

    def read(x: Tensor) -> Tensor:
        return method.backbone.features(x, [layer])[layer]

    return apply(read, split, splits.transform).cpu()


def _quality(grouping: Grouping, splits: Splits) -> dict[str, Any]:
    """Return the figures of each split; none of groups that are only hidden."""
    found: dict[str, Any] = {}
    if not grouping.spec.known:
        return found
    for name, a in grouping.attribute.items():
        split = splits[name]
        true = split.a if split.spec.known else None
        found[name] = quality(a, true, split.y, grouping.spec)
    return found


def _csv(grouping: Grouping, splits: Splits) -> str:
    """Return a line per sample: where it is from, its class, its inferred and annotated value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "index", "class", "inferred", "annotated"])
    for name, values in grouping.attribute.items():
        split = splits[name]
        known = split.a.tolist() if split.spec.known else [None] * len(split)
        rows = zip(split.y.tolist(), values.tolist(), known, strict=True)
        for index, (y, a, true) in enumerate(rows):
            annotated = "" if true is None else split.spec.attributes[true]
            inferred = grouping.spec.attributes[a]
            writer.writerow([name, index, split.spec.classes[y], inferred, annotated])
    return text.getvalue()
