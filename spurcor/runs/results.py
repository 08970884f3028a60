"""The results of a finished run in result.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spurcor.system.files import read_json, write_json
from spurcor.system.shapes import Found, Repair, Result
from spurcor.training.predictions import kept_phases

PARTS: dict[str, Any] = {"dfr": Repair, "analysis": Found}


def read_result(directory: Path) -> dict[str, Any]:
    """Load result.json of a finished run, checked for all required entries."""
    return read_json(directory / "result.json", Result)


def write_result(
    directory: Path,
    trained: Mapping[str, Any] | None = None,
    **given: Mapping[str, Any],
) -> dict[str, Any]:
    """Rebuild result.json from the training results and all repairs and analyses; return it.

    The results of training are `trained`, or those already in result.json. Repairs and analyses are
    read from the folders `dfr` and `analysis`; those not yet written there are passed as
    `dfr={name: part}`. The caller holds a lock, since several repairs of a run may finish at the
    same time and the last to rebuild must see them all.
    """
    parts = dict(trained) if trained is not None else read_result(directory)
    for kind, shape in PARTS.items():
        places = directory.glob(f"{kind}/*/result.json")
        found = {place.parent.name: read_json(place, shape) for place in places}
        parts[kind] = dict(sorted({**found, **given.get(kind, {})}.items()))
    parts["phases"] = kept_phases(directory)
    write_json(directory / "result.json", parts)
    return parts
