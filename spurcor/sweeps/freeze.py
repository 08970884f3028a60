"""Configuration and code frozen at submission, so that later edits do not reach queued jobs."""

import hashlib
import shutil
from pathlib import Path

import yaml

from spurcor.config.nodes import plain
from spurcor.config.packages import folder_of, plugins
from spurcor.config.schema import TrainConfig
from spurcor.errors import UserError
from spurcor.runs.lookup import read_frozen
from spurcor.sweeps.manifest import Point, sweep_folder
from spurcor.system.files import replacing_folder, write_text
from spurcor.system.passwords import masked
from spurcor.system.places import REPO

COPIED = ("spurcor", "conf", "sweeps")


def write_point(point: Point) -> Path:
    """Write the checked configuration of a point for its process to read; return the file.

    The name contains a hash of the content, so later commands cannot change a queued point.
    """
    config = point.config
    folder = sweep_folder(config) / "points"
    folder.mkdir(parents=True, exist_ok=True)
    text = masked(yaml.safe_dump(plain(config), sort_keys=False))
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    path = folder / f"{config.identity}-seed{config.seed}-{digest}.yaml"
    write_text(path, text)
    return path


def read_point(path: Path) -> TrainConfig:
    """Load the configuration of a frozen point; UserError if it cannot be read."""
    try:
        return read_frozen(path, "start the sweep again to rewrite its points")
    except UserError as error:  # its message begins with the path
        raise UserError(f"point={error}") from error


def copy_code(folder: Path) -> Path:
    """Copy code and configuration, including plug-ins, and return the copy's folder.

    Its name contains a hash of the content, so equal code is copied once. Passwords are masked.
    """
    from spurcor.system.versions import commit

    sources = {name: REPO / name for name in COPIED} | {name: folder_of(name) for name in plugins()}
    digest = hashlib.sha256()
    for source in sources.values():
        for path in sorted(source.rglob("*")):
            code = path.suffix in (".py", ".yaml") and "__pycache__" not in path.parts
            if code and path.is_file():
                digest.update(str(path.relative_to(source.parent)).encode() + path.read_bytes())
    if within := [name for name in plugins() if folder.is_relative_to(sources[name])]:
        raise UserError(
            f"paths.outputs lies in the plug-in {within[0]}; choose a folder outside it"
        )
    target = folder / f"code-{digest.hexdigest()[:8]}"
    if not target.exists():
        with replacing_folder(target) as beside:
            for name, source in sources.items():
                ignored, links = shutil.ignore_patterns("__pycache__", "outputs"), name in COPIED
                shutil.copytree(source, beside / name, symlinks=links, ignore=ignored)
            for path in (path for path in beside.rglob("*.yaml") if not path.is_symlink()):
                text = path.read_text(encoding="utf-8")
                if masked(text) != text:  # jobs read frozen points instead
                    path.write_text(masked(text), encoding="utf-8")
            (beside / "commit").write_text(commit() + "\n")
    return target
