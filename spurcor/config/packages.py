"""Packages whose classes a configuration may name: spurcor, some libraries, and plug-ins.

A plug-in is the user's own package. Because its code is run, it can only be named in the
environment or on the command line, never in a file.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spurcor.errors import UserError
from spurcor.system.places import CONF

FOREIGN = ("torch", "torchvision", "timm")
VARIABLE = "SPURCOR_PLUGINS"
WORD = "plugins="
HOW = f"pass plugins=<package> on the command line, or set {VARIABLE}"
RESERVED = ("spurcor", "conf", "sweeps", "commit", *FOREIGN)  # some are used beside frozen code


def plugins() -> tuple[str, ...]:
    """Return the names of the plug-ins, from the environment."""
    return _names(os.environ.get(VARIABLE, ""))


def own(module: str) -> bool:
    """Return whether a module belongs to spurcor or a plug-in."""
    return module.partition(".")[0] in ("spurcor", *plugins())


def take(words: list[str]) -> list[str]:
    """Move `plugins=...` from the command line to the environment and return the other arguments.

    Child processes read the environment, too.
    """
    typed = [word for word in words if word.startswith(WORD)]
    names = [name for word in typed for name in _names(word.removeprefix(WORD))]
    if names:
        os.environ[VARIABLE] = ",".join(dict.fromkeys([*plugins(), *names]))
    return [word for word in words if word not in typed]


def folder_of(name: str) -> Path:
    """Return a plug-in's folder without importing it; raise UserError if it is not a package."""
    if not name.isidentifier() or name in RESERVED:
        raise UserError(f"plugins={name} is not a package of your own; {HOW}")
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.origin or not spec.submodule_search_locations:
        raise UserError(
            f"plugins={name}: Python finds no package of that name with an __init__.py; install it"
            " (pip install -e <folder>), or put the folder above it on PYTHONPATH"
        )
    return Path(spec.origin).parent


def conf_folders() -> list[Path]:
    """Return the config folders that Hydra searches: spurcor's, then the plug-ins'.

    Raises UserError if two folders contain a file of the same name.
    """
    folders = [CONF, *(folder_of(name) / "conf" for name in plugins())]
    seen: dict[Path, Path] = {}
    for folder in folders if len(folders) > 1 else ():
        # The clone's sweeps are behind a link, which rglob does not follow.
        for path in (*folder.rglob("*.yaml"), *(folder / "sweeps").rglob("*.yaml")):
            before = seen.setdefault(path.relative_to(folder), path)
            if before != path:
                raise UserError(f"{path} has the name of {before}; rename it")
    return [folder for folder in folders if folder.is_dir()]


def options(group: str) -> list[str]:
    """Return the names of a group's options."""
    return sorted(path.stem for one in conf_folders() for path in (one / group).glob("*.yaml"))


def refuse_ambiguous(target: type) -> None:
    """Refuse a plug-in class whose name is not unique, as identities leave out its module."""
    package, name = target.__module__.partition(".")[0], target.__qualname__
    pattern = re.compile(rf"^class {name}\b", re.MULTILINE)
    files = folder_of(package).rglob("*.py")
    found = [path for path in files if pattern.search(path.read_text(errors="replace"))]
    if len(found) > 1:
        raise UserError(
            f"{package} has several classes {name} ({', '.join(map(str, sorted(found)))}), and runs"
            " are named by that; rename all but one"
        )


# --- records --------------------------------------------------------------------------------------


def used(tree: Any) -> dict[str, str]:
    """Return the plug-ins whose classes a configuration names, with their versions."""
    packages = {target.partition(".")[0] for target in _targets(tree)}
    return {name: _version(name) for name in plugins() if name in packages}


def refuse_absent(path: Path, recorded: Any) -> None:
    """Raise UserError if a plug-in that a saved configuration records is not loaded."""
    for name, version in recorded.items() if isinstance(recorded, Mapping) else ():
        if name not in plugins():
            raise UserError(
                f"{path} was made with the plug-in {name} {version}, which is not loaded; pass"
                f" plugins={name}, or set {VARIABLE}={name}"
            )


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _targets(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(value.get("_target_"), str):
            yield value["_target_"]
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _targets(item)


@functools.cache
def _version(name: str) -> str:
    """Return the version of the installed distribution, or else the package's `__version__`."""
    for distribution in importlib.metadata.packages_distributions().get(name, ()):
        return importlib.metadata.version(distribution)
    try:
        return str(getattr(importlib.import_module(name), "__version__", "unknown"))
    except Exception as error:  # a module may raise anything while it is imported
        raise UserError(f"plugins={name} cannot be imported ({error})") from error
