"""Find finished and unfinished runs on disk, and load their configurations."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from spurcor.config.check import check_saved
from spurcor.config.packages import refuse_absent
from spurcor.config.schema import Paths, RunPaths, TrainConfig
from spurcor.errors import Damaged, UserError
from spurcor.system.files import decoding
from spurcor.system.passwords import masked


def read_config(directory: Path) -> TrainConfig:
    """Return the stored configuration of a run."""
    return read_frozen(directory / "config.yaml")


def find(reference: str, outputs: Path, key: str = "run") -> Path:
    """Return a run's directory, given its path, its identity, or mlflow:<run id>.

    An identity may be cut to its first digits and followed by /seed<k>. `key` is the option that
    named the run. Raises UserError if no run or several runs match.
    """
    reference = reference.rstrip("/")
    if reference.startswith("mlflow:"):
        directory = _from_mlflow(reference, outputs, key)
    elif Path(reference).is_dir():
        directory = Path(reference).absolute()
    elif Path(reference).is_file():
        raise UserError(
            f"{key}={reference} is a file; give the run's folder, which contains config.yaml"
        )
    else:
        identity, _, seed = reference.partition("/")
        found = [
            path
            for path in sorted((outputs / "runs").glob(f"*/*/{identity}*/{seed or 'seed*'}"))
            if path.is_dir() and path.name.removeprefix("seed").isdigit()
        ]
        if not found:
            raise UserError(
                f"{key}={reference} is not a folder, and no run in {outputs}/runs starts with it"
            )
        if len(found) > 1:
            names = ", ".join(f"{path.parent.name}/{path.name}" for path in found[:6])
            raise UserError(f"{key}={reference} matches {len(found)} runs ({names}); choose one")
        directory = found[0]
    if not (directory / "config.yaml").exists():
        raise UserError(f"{key}={reference} is not a run: {directory} has no config.yaml")
    return directory


def _from_mlflow(reference: str, outputs: Path, key: str) -> Path:
    from mlflow.exceptions import MlflowException

    from spurcor.tracking.mlflow_connection import open_store, store_uri
    from spurcor.tracking.store import database_of

    uri = store_uri(outputs)
    try:
        if (database := database_of(uri)) is not None and not database.exists():
            raise KeyError(reference)  # opening would create it
        run = open_store(uri, outputs).get_run(reference.removeprefix("mlflow:"))
        return Path(run.data.tags["spurcor.directory"])
    except (MlflowException, KeyError) as error:
        raise UserError(
            f"{key}={reference} is not a spurcor run in the MLflow store {masked(uri)}"
        ) from error


def find_done(reference: str, outputs: Path, key: str = "run") -> Path:
    """Return a run's directory as `find` does; UserError if the run is not finished."""
    directory = find(reference, outputs, key)
    if not (directory / "done").exists():
        raise UserError(f"{key}={directory} is not finished; run its command again to continue")
    return directory


def has_all(directory: Path, needs: Iterable[str]) -> bool:
    """Return whether a run's directory contains all the required files."""
    return all((directory / path).exists() for path in needs)


def reopen(reference: str, paths: RunPaths, **asked: Any) -> tuple[Path, TrainConfig]:
    """Return directory and configuration of a finished run, with `asked` replacing its options.

    Such options are `dfr`, `analysis` and `tracker`. `paths` replace its paths, except for an unset
    `data`.
    """
    directory = find_done(reference, paths.outputs)
    config = read_config(directory)
    here = Paths(data=paths.data or config.paths.data, outputs=paths.outputs)
    return directory, dataclasses.replace(config, paths=here, **asked)


CHOSEN = ("dataset", "backbone", "method")  # every run has one of each


def read_frozen(path: Path, fix: str | None = None) -> TrainConfig:
    """Load a configuration stored on disk, as pure data: nothing is resolved or imported.

    Raises `Damaged`, with the remedy `fix`, if the file does not fit this version of the code.
    """
    with decoding(path, fix):
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(tree, dict):
        raise Damaged(path, "does not contain the configuration of a run", fix)
    refuse_absent(path, tree.get("plugins"))
    try:
        config = check_saved(tree, TrainConfig)
    except UserError as error:
        said = "; ".join(str(error).splitlines())
        raise Damaged(path, f"does not fit this version of the code ({said})", fix) from error
    if missing := [group for group in CHOSEN if not config.choices.get(group)]:
        raise Damaged(path, f"is damaged (choices lacks {', '.join(missing)})", fix)
    return config
