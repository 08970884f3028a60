"""Deep Feature Reweighting of a finished run: features from its network, results to its folder."""

from collections.abc import Mapping
from pathlib import Path

import torch

from spurcor import checkpoint, results
from spurcor.config import Node, TrainConfig, dfr_name, plain
from spurcor.data import Split, Splits
from spurcor.dfr import Table
from spurcor.errors import UserError
from spurcor.files import read_json, write_json
from spurcor.method import Method
from spurcor.metrics import apply
from spurcor.tracking import Record, Trackers
from spurcor.trainer import untouched


def repair(
    directory: Path,
    config: TrainConfig,
    node: Node,
    splits: Splits,
    method: Method,
    trackers: Trackers,
) -> Path:
    """Deep Feature Reweighting of a finished run, unless it is there; returns its folder."""
    folder = directory / "dfr" / dfr_name(node)
    if (folder / "result.json").exists():
        return folder
    trained = read_json(directory / "result.json")["run"]
    refuse_leak(trained["splits"], splits)
    dfr = node.build()
    layer = method.backbone.layer(dfr.layer)
    name = {"last": "last.safetensors", "selected": "model.safetensors"}[dfr.weights]
    checkpoint.load_weights(method, directory / name)
    folder.mkdir(parents=True, exist_ok=True)
    with untouched(method):
        features = {
            name: apply(
                lambda x: method.backbone.features(x, [layer])[layer],
                splits[name],
                splits.transform,
            )
            for name in dfr.reads
        }
        tables = {
            name: Table(
                x.double().cpu().numpy(),
                splits[name].y.cpu().numpy(),
                splits[name].g.cpu().numpy(),
            )
            for name, x in features.items()
        }
        fit = dfr.fit(tables, splits.info.spec, trained["seed"])
        device = splits.device
        weight = torch.from_numpy(fit.linear.weight).to(device)
        bias = torch.from_numpy(fit.linear.bias).to(device)
        reports = results.predict_all(
            lambda x: method.backbone.features(x, [layer])[layer].double() @ weight.T + bias,
            splits,
            folder / "predictions.npz",
        )
    fitted_on_val = dfr.split is Split.VAL
    part = {
        "options": plain(node.arguments),
        "layer": layer,
        "c": fit.c,
        **reports,
        "val": None if fitted_on_val else reports["val"],
        "val_is": "none" if fitted_on_val else "held_out",
    }
    checkpoint.save_weights(
        folder / "weights.safetensors", {"weight": weight.cpu(), "bias": bias.cpu()}
    )
    write_json(folder / "result.json", part)
    results.write_result(directory)
    trackers.report(Record.of_dfr(directory, folder, node, config))
    return folder


def refuse_leak(trained: Mapping[str, str], splits: Splits) -> None:
    """Splits must be those that a run was trained with, by their fingerprints."""
    changed = [name for name, print_ in splits.fingerprints.items() if trained.get(name) != print_]
    if changed:
        raise UserError(
            f"the {', '.join(changed)} split is not the one this run was trained with: samples it"
            " was trained on may now be tested on; restore the data it was made from"
        )
