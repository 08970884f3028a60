"""Figure of how a repair was tuned."""

from pathlib import Path

from spurcor.data.groups import GroupSpec
from spurcor.presentation.drawing import MOST, Drawing, Panel, Series
from spurcor.repair.fitting import Fit


def draw_tuning(path: Path, fit: Fit, spec: GroupSpec) -> None:
    """Draw worst-group accuracy on the tuning data over C, a line per class weight, or over epochs.

    Nothing is drawn if there was nothing to choose.
    """
    from spurcor.presentation.plots import write

    over = "epoch" if any("epoch" in row for row in fit.tuning) else "c"
    if not (lines := _lines(fit, spec, over)):
        return
    series = [
        Series(
            label, style, [x for x, _ in sorted(points)], [y for _, y in sorted(points)],
            y_bars=[0.0] * len(points),
        )
        for style, (label, points) in enumerate(list(lines.items())[:MOST])
    ]  # fmt: skip
    log = over == "c" and len({row[over] for row in fit.tuning}) > 1
    best = fit.c if over == "c" else None
    title = "vertical: the one chosen" if best is not None else ""
    drawing = Drawing(
        "tuning", "", over if over == "epoch" else "C", "tuning accuracy, worst group (%)",
        [Panel(title, series, mark=best, log_x=log)],
    )  # fmt: skip
    write(path, drawing)


def _lines(fit: Fit, spec: GroupSpec, over: str) -> dict[str, list[tuple[float, float]]]:
    """Return the points of each line by its label."""
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
    return lines
