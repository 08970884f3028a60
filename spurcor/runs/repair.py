"""Deep Feature Reweighting of a finished run: feature extraction, fit and evaluation."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from spurcor.config.nodes import plain
from spurcor.data.groups import GroupedDataset, Split
from spurcor.data.splits import Splits
from spurcor.errors import RunError, UserError
from spurcor.models import weights
from spurcor.models.backbone import Backbone
from spurcor.models.losses import ScalarHead
from spurcor.repair.contract import LastLayer
from spurcor.repair.heads import FeatureTable, Linear
from spurcor.repair.tuning import draw_tuning
from spurcor.runs import results
from spurcor.runs.prepared import Prepared, Repair
from spurcor.runs.refusals import refuse_leak, repaired
from spurcor.system.files import remove_leftovers, write_json
from spurcor.system.lock import Held, holder, lock_of, locked
from spurcor.tracking import Record
from spurcor.training import predictions
from spurcor.training.method import Method, untouched
from spurcor.training.metrics import apply

log = logging.getLogger(__name__)

# Result of a repair that could not be fitted; the run itself stays finished.
NO_FIGURES: dict[str, Any] = {
    **{"c": None, "class_weight": None, "tuning": []},
    **{"val": None, "test": None, "tests": {}, "val_is": "none"},
}


def repair(run: Prepared, asked: Repair) -> Path:
    """Fit Deep Feature Reweighting to a finished run, unless done before; return its folder.

    Raises `Held` if another process is fitting the same repair. Other repairs of the run may be
    fitted at the same time.
    """
    directory, splits = run.directory, run.splits
    folder = directory / "dfr" / asked.name
    if (folder / "result.json").exists():
        return folder
    trained = results.read_result(directory)["run"]
    refuse_leak(trained["splits"], splits)
    with locked(lock_of(folder), run.guard):
        remove_leftovers(folder)
        if (folder / "result.json").exists():
            return folder
        if not (directory / "done").exists():
            raise UserError(f"run={directory} was set aside; repeat this once it is trained again")
        part = _make(folder, trained["seed"], asked, run)
        with FileLock(run.guard):
            for path in directory.glob(".result.json.*.tmp"):  # left by a kill
                path.unlink()
            results.write_result(directory, dfr={folder.name: part})
            write_json(folder / "result.json", part)  # last: then it is in the run's, too
        run.trackers.report(Record.of_dfr(directory, folder, asked.node, run.config))
    return folder


def repairing(directory: Path) -> Iterator[Held]:
    """Yield a `Held` for each repair or analysis of a run that is under way."""
    for lock in (*sorted(directory.glob("dfr/*.lock")), lock_of(directory / "analysis")):
        if (owner := holder(lock)) is not None:
            yield Held(lock, owner)


def _make(folder: Path, seed: int, asked: Repair, run: Prepared) -> dict[str, Any]:
    """Fit and evaluate a repair, write its files, and return the content of its result.json."""
    dfr, splits, method = asked.dfr, run.splits, run.method
    layer = method.backbone.layer(dfr.layer)
    name = {"last": "last.safetensors", "selected": "model.safetensors"}[dfr.weights]
    weights.load_weights(method, folder.parents[1] / name)
    folder.mkdir(parents=True, exist_ok=True)
    features = _features(dfr, method.backbone, layer)
    about = {"repair": dfr.title, "target": asked.node.target, "layer": layer}
    about |= {"options": plain(asked.node.arguments)}
    with untouched(method):
        data = {name: repaired(splits, dfr, name) for name in dfr.reads}
        tables = {name: _table(features, splits, split) for name, split in data.items()}
        spec = data[str(dfr.split)].spec
        try:
            fit = dfr.fit(tables, spec, seed, splits.device, _own(method, layer))
        except RunError as error:  # deterministic, so recorded as the result
            log.warning("%s cannot be fitted: %s (features of layer %s)", folder, error, layer)
            return {**about, **NO_FIGURES, "note": f"cannot be fitted: {error}"}
        weight = torch.from_numpy(fit.linear.weight).to(splits.device)
        bias = torch.from_numpy(fit.linear.bias).to(splits.device)
        kept = splits.without(method.consumed)
        reports = predictions.predict_all(
            lambda x: features(x).double() @ weight.T + bias, kept, folder / "predictions.npz"
        )
    layers = {"weight": weight.cpu(), "bias": bias.cpu()}
    weights.save_weights(folder / "weights.safetensors", layers)
    draw_tuning(folder / "plots" / "tuning.png", fit, spec)
    unseen = dfr.split is not Split.VAL and reports["val"] is not None
    return {
        **about,
        "c": fit.c,
        "chosen": dict(fit.chosen),
        "class_weight": None if fit.class_weight is None else list(fit.class_weight),
        "tuning": list(fit.tuning),
        "note": fit.note or None,
        **reports,
        "val": reports["val"] if unseen else None,
        "val_is": "held_out" if unseen else "none",
    }


def _own(method: Method, layer: str) -> Linear | None:
    """Return the network's own last layer, if it is linear in the features of `layer`."""
    head = method.head
    last = head.last if isinstance(head, ScalarHead) else head
    if not isinstance(last, nn.Linear) or layer != method.backbone.layer(-1):
        return None
    weight, bias = (part.detach().double().cpu().numpy() for part in (last.weight, last.bias))
    if last is not head:  # the logits are -f / 2 and f / 2
        weight, bias = (np.concatenate([-part, part]) / 2 for part in (weight, bias))
    return Linear(weight, bias)


def _features(dfr: LastLayer, backbone: Backbone, layer: str) -> Callable[[Tensor], Tensor]:
    return lambda x: backbone.features(x, [layer], dfr.pooling)[layer]


def _table(
    features: Callable[[Tensor], Tensor], splits: Splits, split: GroupedDataset
) -> FeatureTable:
    """Return features, labels and groups of a split, without augmentation even for TRAIN."""
    x = apply(features, split, splits.transform)
    return FeatureTable(x.double().cpu().numpy(), split.y.cpu().numpy(), split.g.cpu().numpy())
