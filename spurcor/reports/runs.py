"""Load finished runs; unreliable files are refused."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spurcor.config.nodes import flat

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A finished run.

    `rows` are the epochs of its last phase; a method without phases has one row, its result.
    `repairs` holds options and result row of each DFR, and `measured` the quantities of each
    analysis at the selected weights as <quantity>/<split>, both by folder name. `images` and
    `seconds` count the run that its groups were inferred with, too, and `images` also the run that
    it started from.
    """

    directory: Path
    identity: str
    seed: int
    config: Mapping[str, Any]
    splits: Mapping[str, str]
    tests: tuple[str, ...]
    rows: Sequence[Row]
    repairs: Mapping[str, tuple[Mapping[str, Any], Row]]
    measured: Mapping[str, Row]
    images: int
    seconds: float
    commit: str
    moved: bool
    notes: Mapping[str, str] = field(default_factory=dict)  # of repairs, by folder name
    titles: Mapping[str, str] = field(default_factory=dict)  # of repairs, by folder name
    groups: Row = field(default_factory=dict)  # how well inferred groups of TRAIN match


def number(row: Row, key: str) -> float | None:
    """Return the value of a row's column as a float; None unless it is a finite number."""
    value = row.get(key)
    if value is None or type(value) not in (float, int) or not math.isfinite(value):
        return None
    return float(value)


def read_run(directory: Path) -> Run:
    """Load a run from its directory; ValueError says which file is wrong and why."""
    result = _mapping(_parse(directory / "result.json", (directory / "result.json").read_bytes()))
    run = _mapping(result.get("run"), "result.json has no run")
    config = _mapping(
        run.get("config"), "result.json has no run.config; an older version may have written it"
    )
    tests = _mapping(result.get("tests", {}), "result.json: tests is not a mapping")
    reference = _mapping(run.get("reference", {}))
    try:
        return Run(
            directory=directory,
            identity=str(run["identity"]),
            seed=int(run["seed"]),
            config={
                "dataset": str(config["dataset"]),
                "method": str(config["method"]),
                **{key: _hashable(value) for key, value in config.items()},
            },
            splits={str(name): str(mark) for name, mark in _mapping(run["splits"]).items()},
            tests=tuple(tests),
            rows=_last_phase(directory, result),
            repairs=dict(_repairs(_mapping(result.get("dfr", {})))),
            titles={k: str(part.get("repair", "DFR")) for k, part in result.get("dfr", {}).items()},
            notes={
                k: part["note"] for k, part in result.get("dfr", {}).items() if part.get("note")
            },
            measured=dict(_measured(_mapping(result.get("analysis", {})))),
            groups=_mapping(_mapping(result.get("groups", {})).get("train", {})),
            images=int(run["images_seen"])
            + int(run.get("origin_images_seen", 0))
            + int(reference.get("images_seen", 0)),
            seconds=float(run["seconds"]) + float(reference.get("seconds", 0)),
            commit=str(run.get("commit", "unknown")),
            moved=bool(run.get("moved", False)),
        )
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        said = f"{type(error).__name__}: {error}"
        raise ValueError(f"result.json is not the result of a run ({said})") from error


def _parse(path: Path, text: bytes) -> Any:
    from pydantic_core import from_json

    try:
        return from_json(text)
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be read ({error})") from error


def _mapping(
    value: Any, sentence: str = "result.json is not the result of a run"
) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(sentence)
    return value


def _hashable(value: Any) -> Any:
    """Return a configuration value with lists as tuples and mappings as text."""
    if isinstance(value, list):
        return tuple(_hashable(item) for item in value)
    return str(value) if isinstance(value, dict) else value


def _last_phase(directory: Path, result: Mapping[str, Any]) -> Sequence[Row]:
    path = directory / "metrics.jsonl"
    selected = result.get("selected") or {}
    if selected.get("phase") is None:
        return [_as_row(result)]
    lines = path.read_bytes().split(b"\n")
    if lines.pop():
        raise ValueError("metrics.jsonl ends in the middle of a line")
    rows = _parse(path, b"[" + b",".join(line for line in lines if line) + b"]")
    if not rows or not all(isinstance(row, dict) and type(row.get("epoch")) is int for row in rows):
        raise ValueError("metrics.jsonl does not contain the epochs of a run")
    phase = rows[-1].get("phase")
    rows = [row for row in rows if row.get("phase") == phase]
    if selected["phase"] != phase or selected["epoch"] > rows[-1]["epoch"]:
        raise ValueError("metrics.jsonl lacks the epoch that result.json selected")
    return rows


def _repairs(parts: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Mapping[str, Any], Row]]]:
    for name, value in parts.items():
        part = _mapping(value, f"dfr {name} is not the result of a repair")
        options = _mapping(part.get("options"), f"dfr {name} has no options")
        keys = flat("dfr", options)
        yield name, ({key: _hashable(option) for key, option in keys.items()}, _as_row(part))


def _measured(parts: Mapping[str, Any]) -> Iterator[tuple[str, Row]]:
    for folder, value in parts.items():
        metrics = _mapping(value, f"analysis {folder} is not the result of an analysis").get(
            "metrics"
        )
        yield folder, _mapping(metrics or {})


def _as_row(result: Mapping[str, Any]) -> Row:
    """Return final results in the form of an epoch's row, so that the same code judges both."""
    reports = {"val": result.get("val"), "test": result["test"], **result.get("tests", {})}
    row: dict[str, Any] = {"phase": None, "epoch": None}
    for split, report in reports.items():
        for key, value in (report or {}).items():
            if not isinstance(value, Mapping):
                row[f"{split}/{key}"] = value
        for group, value in (report or {}).get("groups", {}).items():
            if value["count"]:
                row[f"{split}/group/{group}"] = value["accuracy"]
    return row
