"""Results of a finished run: predictions, result.json, and its parts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spurcor.system.files import read_json, write_json
from spurcor.system.shapes import Found, Repair, Result
from spurcor.training.predictions import kept_phases

PARTS: dict[str, Any] = {"dfr": Repair, "analysis": Found}


def read_result(directory: Path) -> dict[str, Any]:
    """result.json of a finished run, with all that its readers count on."""
    return read_json(directory / "result.json", Result)


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
