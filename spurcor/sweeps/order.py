"""Points that start from what another point has trained: which one, and in what order they run."""

import dataclasses
import json
from collections.abc import Sequence

from spurcor.config.schema import TrainConfig
from spurcor.errors import UserError
from spurcor.sweeps.manifest import Point
from spurcor.sweeps.read import POINT, with_init


def with_origins(points: Sequence[Point]) -> list[Point]:
    """Replace each `method.init=@<method>` by the run directory of the point that is meant.

    It is the sweep's only run of that method on the same data, backbone and seed; `@<identity>`
    names one of several. Raises UserError if there is none, or more than one.
    """
    keys = [_shared(point.config) for point in points]
    found: dict[int, Point] = {}

    def resolved(number: int, after: tuple[int, ...] = ()) -> Point:
        if number not in found:
            if number in after:
                raise UserError(
                    f"{_asked(points[number])}: the points start from each other; give one of them"
                    " a finished run"
                )
            found[number] = replaced(number, (*after, number))
        return found[number]

    def replaced(number: int, after: tuple[int, ...]) -> Point:
        point, name = points[number], _name(points[number])
        if name is None:
            return point
        alike = [k for k, key in enumerate(keys) if key == keys[number] and k != number]
        meant = [resolved(k, after) for k in alike if points[k].config.choices["method"] == name]
        if not meant:
            others = [points[k] for k in alike if _name(points[k]) is None]
            meant = [one for one in others if one.config.identity.startswith(name)]
        origin = _only(point, meant).config.directory
        return dataclasses.replace(point, config=with_init(point.config, str(origin)))

    return [resolved(number) for number in range(len(points))]


def in_order(points: Sequence[Point]) -> list[list[Point]]:
    """Return the points in batches, each of which starts only from runs of earlier ones."""
    of_run = {point.config.directory: point for point in points}

    def depth(config: TrainConfig) -> int:
        before = of_run.get(config.init) if config.init is not None else None
        return 0 if before is None else 1 + depth(before.config)

    depths = [depth(point.config) for point in points]
    return [
        [point for point, own in zip(points, depths, strict=True) if own == number]
        for number in range(max(depths, default=-1) + 1)
    ]


def _name(point: Point) -> str | None:
    """Return what stands behind the @ of a point's method.init; None without one."""
    init = point.config.method.arguments.get("init")
    return init.removeprefix(POINT) if isinstance(init, str) and init.startswith(POINT) else None


def _shared(config: TrainConfig) -> str:
    """Return what a run has in common with those that it may start from."""
    features = None if config.features is None else config.features.hashed()
    parts = [config.hashed_data, features, config.backbone.hashed(), config.seed]
    return json.dumps(parts, sort_keys=True)


def _only(point: Point, meant: Sequence[Point]) -> Point:
    runs = {one.config.directory: one for one in meant}
    if len(runs) == 1:
        return next(iter(runs.values()))
    seed = f"seed={point.config.seed}"
    if not runs:
        raise UserError(
            f"{_asked(point)}: no point of this sweep with the same data, backbone and {seed} has"
            f" method={_name(point)}; add it, or give a finished run"
        )
    listed = "; ".join(
        f"@{one.config.identity} ({' '.join(one.overrides)})" for one in runs.values()
    )
    raise UserError(
        f"{_asked(point)} could be each of {len(runs)} points with {seed}; choose one: {listed}"
    )


def _asked(point: Point) -> str:
    return f"method.init={POINT}{_name(point)}"
