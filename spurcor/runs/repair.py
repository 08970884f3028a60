"""Deep Feature Reweighting of a finished run: features from its network, results to its folder."""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from spurcor.config.nodes import Node, plain
from spurcor.config.schema import TrainConfig, dfr_name
from spurcor.data.groups import GroupSpec, Split
from spurcor.data.splits import Splits
from spurcor.errors import RunError, UserError
from spurcor.models import weights as checkpoint
from spurcor.models.backbone import Backbone
from spurcor.repair.dfr import Dfr, Fit
from spurcor.repair.heads import Table
from spurcor.runs import results
from spurcor.runs.refusals import refuse_leak
from spurcor.system.files import remove_leftovers, replacing, write_json
from spurcor.system.lock import Held, holder, lock_of, locked
from spurcor.tracking import Record, Trackers
from spurcor.training import predictions
from spurcor.training.method import Method, untouched
from spurcor.training.metrics import apply

log = logging.getLogger(__name__)

# Of a repair that came to nothing; the run itself is as finished as any.
NO_FIGURES: dict[str, Any] = {
    **{"c": None, "class_weight": None, "tuning": []},
    **{"val": None, "test": None, "tests": {}, "val_is": "none"},
}


def repair(
    directory: Path,
    config: TrainConfig,
    node: Node,
    splits: Splits,
    method: Method,
    trackers: Trackers,
) -> Path:
    """Deep Feature Reweighting of a finished run, unless it is there; returns its folder.

    Raises `Held` where another process makes the same one. Others of the same run may be made
    meanwhile.
    """
    folder = directory / "dfr" / dfr_name(node)
    if (folder / "result.json").exists():
        return folder
    trained = results.read_result(directory)["run"]
    refuse_leak(trained["splits"], splits)
    guard = config.paths.outputs / ".guard"
    with locked(lock_of(folder), guard):
        remove_leftovers(folder)
        if (folder / "result.json").exists():
            return folder
        if not (directory / "done").exists():
            raise UserError(f"run={directory} has been set aside meanwhile")
        part = _make(folder, trained["seed"], node, splits, method)
        with FileLock(guard):
            for path in directory.glob(".result.json.*.tmp"):  # of a process killed just here
                path.unlink()
            results.write_result(directory, dfr={folder.name: part})
            write_json(folder / "result.json", part)  # last: what is there is in the other, too
        trackers.report(Record.of_dfr(directory, folder, node, config))
    return folder


def repairing(directory: Path) -> Iterator[Held]:
    """Who is making repairs or analyses of a run now."""
    for lock in (*sorted(directory.glob("dfr/*.lock")), lock_of(directory / "analysis")):
        if (owner := holder(lock)) is not None:
            yield Held(lock, owner)


def _make(folder: Path, seed: int, node: Node, splits: Splits, method: Method) -> dict[str, Any]:
    """Everything but result.json, of which the content is returned."""
    dfr: Dfr = node.build()
    layer = method.backbone.layer(dfr.layer)
    name = {"last": "last.safetensors", "selected": "model.safetensors"}[dfr.weights]
    checkpoint.load_weights(method, folder.parents[1] / name)
    folder.mkdir(parents=True, exist_ok=True)
    features = _features(dfr, method.backbone, layer)
    about = {"options": plain(node.arguments), "layer": layer}
    with untouched(method):
        tables = {name: _table(features, splits, name) for name in dfr.reads}
        try:
            fit = dfr.fit(tables, splits.info.spec, seed, splits.device)
        except RunError as error:  # the same data would give the same: it is what there is to tell
            log.warning("%s cannot be fitted: %s (features of layer %s)", folder, error, layer)
            return {**about, **NO_FIGURES, "note": f"cannot be fitted: {error}"}
        weight = torch.from_numpy(fit.linear.weight).to(splits.device)
        bias = torch.from_numpy(fit.linear.bias).to(splits.device)
        reports = predictions.predict_all(
            lambda x: features(x).double() @ weight.T + bias,
            splits.without(method.consumed),
            folder / "predictions.npz",
        )
    checkpoint.save_weights(
        folder / "weights.safetensors", {"weight": weight.cpu(), "bias": bias.cpu()}
    )
    draw_tuning(folder / "plots" / "tuning.png", fit, splits.info.spec)
    unseen = dfr.split is not Split.VAL and reports["val"] is not None
    return {
        **about,
        "c": fit.c,
        "class_weight": None if fit.class_weight is None else list(fit.class_weight),
        "tuning": list(fit.tuning),
        "note": fit.note or None,
        **reports,
        "val": reports["val"] if unseen else None,
        "val_is": "held_out" if unseen else "none",
    }


def _features(dfr: Dfr, backbone: Backbone, layer: str) -> Callable[[Tensor], Tensor]:
    return lambda x: backbone.features(x, [layer], dfr.pooling)[layer]


def _table(features: Callable[[Tensor], Tensor], splits: Splits, name: str) -> Table:
    """Features and labels of a split as it is evaluated; TRAIN too is not augmented."""
    split = splits[name]
    x = apply(features, split, splits.transform)
    return Table(x.double().cpu().numpy(), split.y.cpu().numpy(), split.g.cpu().numpy())


def draw_tuning(path: Path, fit: Fit, spec: GroupSpec) -> None:
    """Worst-group accuracy on the tuning data over C, a line per class weight, or over the epoch.

    Nothing is drawn where there was nothing to choose.
    """
    from matplotlib import rc_context

    from spurcor.presentation.drawing import MOST, Drawing, Panel, Series
    from spurcor.presentation.plots import STYLE, draw

    over = "epoch" if any("epoch" in row for row in fit.tuning) else "c"
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in fit.tuning:
        if row[over] is None or row["worst"] is None:
            continue
        weights = row.get("class_weight")
        label = f"fit {row['fit'] + 1}" if "fit" in row else "all classes alike"
        if weights is not None:
            names = zip(spec.classes, weights, strict=True)
            label = ", ".join(f"{name} {weight:g}" for name, weight in names)
        lines.setdefault(label, []).append((row[over], 100 * row["worst"]))
    if not lines:
        return
    series = [
        Series(
            label, style, [x for x, _ in sorted(points)], [y for _, y in sorted(points)],
            y_bars=[0.0] * len(points),
        )
        for style, (label, points) in enumerate(list(lines.items())[:MOST])
    ]  # fmt: skip
    best = fit.c if over == "c" else None
    title = "vertical: the one chosen" if best is not None else ""
    drawing = Drawing(
        "tuning", "", over if over == "epoch" else "C", "tuning accuracy, worst group (%)",
        [Panel(title, series, mark=best)],
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(STYLE), replacing(path) as beside:
        figure = draw(dataclasses.asdict(drawing))
        if over == "c" and len({row[over] for row in fit.tuning}) > 1:
            axes = figure.axes[0]
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
        figure.savefig(beside, format="png", dpi=150)
