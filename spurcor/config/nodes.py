"""`_target_` nodes: classes that a configuration may build, with their arguments."""

import dataclasses
import functools
import hashlib
import importlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spurcor.config.packages import FOREIGN, HOW, own, plugins, refuse_ambiguous
from spurcor.config.released import hashed_name, place_of
from spurcor.errors import UserError

NAMED = ("analysis", "tracker")  # groups that hold several nodes, by name
# Base classes that a _target_ outside spurcor and plug-ins must derive from.
FOREIGN_BASES = (
    "torch.nn.modules.module.Module",
    "torch.optim.optimizer.Optimizer",
    "torch.optim.lr_scheduler.LRScheduler",
)


@dataclass(frozen=True)
class Node:
    """A checked `_target_` node: a class and its arguments, coerced to the constructor's types."""

    path: str
    target: str
    arguments: dict[str, Any]
    revision: int = 1  # of the class when saved; a fix that changes results raises it

    def build(self, **runtime: Any) -> Any:
        """Construct the object; raise UserError if its constructor refuses the arguments."""
        arguments = {
            key: value.build() if isinstance(value, Node) else value
            for key, value in self.arguments.items()
        }
        try:
            return locate(self.target)(**arguments, **runtime)
        except UserError:
            raise
        except (ValueError, TypeError, RuntimeError) as error:
            said = str(error).splitlines()[0]
            key = re.match(r"\w+", said)
            dot = "." if key and key[0] in self.arguments and said[key.end() :][:1] == "=" else ": "
            raise UserError(f"{self.path}{dot}{said}") from error

    @property
    def group(self) -> str:
        """The config group: method, backbone, transform, analysis, ..."""
        first, _, rest = self.path.partition(".")
        return first if first in NAMED or not rest else rest.rpartition(".")[2]

    def takes(self, argument: str) -> bool:
        """Return whether the constructor has an argument of that name."""
        return argument in inspect.signature(locate(self.target)).parameters

    def hashed(self, folder: Path | None = None) -> dict[str, Any]:
        """Return the target and the non-default arguments, as hashed in identities.

        A class whose results have changed since its first release has a `revision` above 1, which
        is included, so that old results are not mistaken for new ones. Files, absolute or relative
        to `folder`, are hashed by content.
        """
        defaults = {
            name: parameter.default
            for name, parameter in inspect.signature(locate(self.target)).parameters.items()
        }
        kept = {
            key: value.hashed() if isinstance(value, Node) else content(value, folder)
            for key, value in self.arguments.items()
            if plain(value) != plain(defaults.get(key, inspect.Parameter.empty))
        }
        name = hashed_name(self.target, self.group)
        return {"_target_": name, **_revised(self.revision), **plain(kept)}


def content(value: Any, folder: Path | None) -> Any:
    """Return the SHA-256 of the content if `value` names a file, else `value`."""
    if isinstance(value, str | Path) and "." in str(value):
        for path in (Path(value), *([folder / value] if folder else [])):
            if path.is_file():
                with path.open("rb") as file:  # in chunks, as weights may take gigabytes
                    return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    return value


def plain(value: Any) -> Any:
    """Return a value converted to the plain types of YAML and JSON."""
    if isinstance(value, Node):
        return {"_target_": value.target, **_revised(value.revision), **plain(value.arguments)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _revised(revision: int) -> dict[str, int]:
    return {"_revision_": revision} if revision > 1 else {}


def flat(prefix: str, value: Any) -> dict[str, Any]:
    """Flatten a nested mapping to dotted keys, each beginning with `prefix`."""
    if isinstance(value, Mapping):
        return {k: v for key in value for k, v in flat(f"{prefix}.{key}", value[key]).items()}
    return {prefix: value}


@functools.cache
def locate(target: str) -> type:
    """Return the class that a `_target_` names, or raise UserError if it may not be built.

    Only spurcor, plug-ins, torch, torchvision and timm are imported, and only classes are accepted:
    functions such as `torch.hub.load` and `torch.load` run foreign code.
    """
    module_name, _, name = place_of(target).rpartition(".")
    package = module_name.partition(".")[0]
    if not own(package) and package not in FOREIGN:
        raise UserError(
            f"_target_={target} is not a class of spurcor, torch, torchvision or timm; if {package}"
            f" is a plug-in of yours, {HOW}"
        )
    try:
        found = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # a module may raise anything while it is imported
        raise UserError(f"_target_={target} does not exist ({error})") from error
    refusal = UserError(f"_target_={target} is not a class that a configuration may use")
    if not isinstance(found, type):
        raise refusal
    home = found.__module__.partition(".")[0]
    if home in plugins():
        refuse_ambiguous(found)
    bases = {f"{base.__module__}.{base.__qualname__}" for base in found.__mro__}
    if not own(home) and not (home in FOREIGN and bases.intersection(FOREIGN_BASES)):
        raise refusal
    return found
