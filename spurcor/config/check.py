"""Check and convert a composed configuration, reporting all of its problems at once."""

import dataclasses
import difflib
import inspect
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from spurcor.config.hints import allowed_types, choices, describe
from spurcor.config.nodes import FOREIGN_BASES, Node, flat, locate
from spurcor.config.packages import HOW, own
from spurcor.config.released import place_of
from spurcor.errors import UserError
from spurcor.system.passwords import kept

# Constructor arguments that the program supplies, not the user, by config group.
RUNTIME = {
    "backbone": {"info"},
    "features": {"info"},
    "method": {"backbone", "info"},
    "optimizer": {"params"},
    "schedule": {"optimizer", "T_max"},
    "tracker": {"outputs"},
}
# Class that the nodes of each group must derive from.
ROLES = {
    "backbone": "spurcor.models.backbone.Backbone",
    "method": "spurcor.training.method.Method",
    "optimizer": FOREIGN_BASES[1],
    "schedule": FOREIGN_BASES[2],
    "features.backbone": "spurcor.models.backbone.Backbone",
    "groups": "spurcor.groups.contract.Inference",
    "dfr": "spurcor.repair.contract.LastLayer",
    "analysis.*": "spurcor.analysis.contract.Analysis",
    "dataset": "spurcor.data.source.DataSource",
    "dataset.transform": "spurcor.data.transforms.Transform",
    "tracker.*": "spurcor.tracking.Tracker",
}
LARGEST = 2**63 - 1  # largest integer of torch, numpy and JSON readers
T = TypeVar("T")


def arguments_of(target: str, path: str) -> list[str]:
    """Return the constructor arguments of the node at `path` that the user may set."""
    runtime = RUNTIME.get(path.partition(".")[0], set())
    return [name for name in inspect.signature(locate(target)).parameters if name not in runtime]


def composed(config: DictConfig) -> dict[str, Any]:
    """Return the composed configuration as a resolved dict, without the `hydra` part.

    Raises UserError if a file sets `plugins`, or anything sets `_revision_`.
    """
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    tree = OmegaConf.to_container(own, resolve=True)
    assert isinstance(tree, dict)
    if "plugins" in tree:
        raise UserError(
            f"plugins cannot be set in a file, because naming a plug-in runs its code; {HOW}"
        )
    for key in flat("", tree):
        if key.endswith("._revision_"):
            raise UserError(f"{key[1:]} is set by spurcor and cannot be changed; leave it out")
    return {str(key): value for key, value in tree.items()}


def check_saved(tree: Mapping[str, Any], schema: type[T]) -> T:
    """Check a saved configuration, keeping the class revisions it was saved with."""
    return check(_with_revisions(tree), schema)


def _with_revisions(value: Any) -> Any:
    """Set revision 1 on saved nodes without a revision, because only higher ones are saved."""
    if isinstance(value, list):
        return [_with_revisions(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    first = {"_revision_": 1} if "_target_" in value else {}
    return first | {key: _with_revisions(item) for key, item in value.items()}


def check(config: DictConfig | Mapping[str, Any], schema: type[T]) -> T:
    """Convert a composed configuration to `schema`, or raise one `UserError` with all problems.

    Every `_target_` node is checked against the type hints of its constructor.
    """
    tree = composed(config) if isinstance(config, DictConfig) else config
    problems: list[str] = []
    arguments = _check_arguments("", tree, schema, set(), problems)
    if not problems:
        try:
            return schema(**arguments)
        except ValueError as error:
            problems.append(str(error))
    raise UserError("\n".join(dict.fromkeys(problems)))


def _check_arguments(
    path: str, values: Any, owner: type, runtime: set[str], problems: list[str]
) -> dict[str, Any]:
    """Check a mapping against the constructor of `owner` and return the coerced arguments."""
    signature = inspect.signature(owner)
    hints = _hints(owner)
    parameters = {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in runtime
    }
    dot = f"{path}." if path else ""
    coerced: dict[str, Any] = {}
    for key, value in values.items():
        if key not in parameters:
            problems.append(unknown_key(f"{dot}{key}", list(parameters)))
        elif value == "???":
            problems.append(f"{dot}{key} has no value; set {dot}{key}=...")
        else:
            coerced[key] = _coerce(f"{dot}{key}", value, hints.get(key, Any), problems)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in values:
            problems.append(f"{dot}{name} is missing; add +{dot}{name}=...")
    return coerced


def _hints(owner: type) -> dict[str, Any]:
    try:
        constructor = owner if dataclasses.is_dataclass(owner) else owner.__init__  # type: ignore[misc]
        return typing.get_type_hints(constructor)
    except NameError:  # a foreign class with annotations for type checkers only
        return {}


def _coerce(path: str, value: Any, hint: Any, problems: list[str]) -> Any:
    """Convert one value to the type of its hint, or append to `problems` and return None."""
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
    from pydantic_core import SchemaError

    members = allowed_types(hint)
    if nested := _nested(hint, value):
        return _check_nested(path, value, nested, problems)
    if unsound := _unsound(value):
        problems.append(f"{path}={value} {unsound}")
        return None
    options = any(dataclasses.is_dataclass(member) for member in members)  # given as a mapping
    # Python counts True as an int, but true or false for a number is always a mistake.
    switch = isinstance(value, bool) and not ({bool, Any} & members)
    if switch or (options and not (value is None and types.NoneType in members)):
        problems.append(f"{path}={value} is not {describe(hint)}")
        return None
    try:
        settings = ConfigDict(arbitrary_types_allowed=True)
        found = TypeAdapter(hint, config=settings).validate_python(value)
        if unsound := _unsound(found):  # a number given as a string
            problems.append(f"{path}={value} {unsound}")
        # Points run in another working directory.
        return found.expanduser().absolute() if isinstance(found, Path) else found
    except (ValidationError, PydanticUserError, SchemaError):  # the last two: of foreign hints
        near = nearest(str(value), [str(member) for member in choices(hint)])
        hint_text = f"; did you mean {near}?" if near else ""
        problems.append(f"{path}={value} is not {describe(hint)}{hint_text}")
        return None


def _unsound(value: Any) -> str:
    """Return the problem with a plain value, at any depth, or an empty string."""
    if isinstance(value, float) and not math.isfinite(value):
        return "is not finite"
    if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
        return "is too large"
    if isinstance(value, str | Path):
        if "\0" in str(value):
            return "contains a NUL character"
        if not str(value).isascii() and str(value) != str(value).encode(errors="replace").decode():
            return "is not valid UTF-8"
    if isinstance(value, Mapping):
        if "_target_" in value:
            return "contains _target_, which names a class, but only plain values are allowed here"
        return next(filter(None, map(_unsound, [*value, *value.values()])), "")
    if isinstance(value, list | tuple):
        return next(filter(None, map(_unsound, value)), "")
    return ""


def _nested(hint: Any, value: Any) -> Any:
    """Return the type that a mapping converts to, `dict` for a mapping of nodes, or None."""
    members = allowed_types(hint)
    left_out = types.NoneType in members and value in (None, {})
    if Node in members and not left_out:
        return Node
    if not isinstance(value, Mapping):
        return None
    if typing.get_args(hint) == (str, Node):
        return dict
    for member in members:
        if isinstance(member, type) and dataclasses.is_dataclass(member):
            empty_allowed = types.NoneType in members and not value
            return types.NoneType if empty_allowed else member
        # An argument that is itself a class of spurcor, such as a data set's transform.
        if "_target_" in value and own(getattr(member, "__module__", "")):
            return Node
    return None


def _check_nested(path: str, value: Mapping[str, Any], kind: Any, problems: list[str]) -> Any:
    if kind is types.NoneType:
        return None
    if kind is dict:
        return {
            key: _check_nested(f"{path}.{key}", item, Node, problems) for key, item in value.items()
        }
    if kind is Node:
        return _check_node(path, value, problems)
    before = len(problems)
    arguments = _check_arguments(path, value, kind, set(), problems)
    if len(problems) == before:
        try:
            return kind(**arguments)
        except ValueError as error:
            problems.append(f"{path}.{error}")
    return None


def _check_node(path: str, value: Any, problems: list[str]) -> Node | None:
    if not isinstance(value, Mapping) or not isinstance(value.get("_target_"), str):
        problems.append(f"{path} has no _target_; choose one of the files in conf/{path}")
        return None
    if foreign := {"_args_", "_convert_", "_partial_", "_recursive_"} & set(value):
        problems.append(
            f"{path}.{sorted(foreign)[0]} is not allowed; use only _target_ and plain values"
        )
        return None
    try:
        owner = locate(value["_target_"])
    except UserError as error:
        problems.append(f"{path}: {error}")
        return None
    group = path.partition(".")[0]
    bases = {f"{base.__module__}.{base.__qualname__}" for base in owner.__mro__}
    role = ROLES.get(path) or ROLES.get(f"{group}.*")
    contract = inspect.isabstract(owner) or getattr(owner, "_is_protocol", False)
    if role not in bases or contract:
        name = path.rpartition(".")[2] if path in ROLES else group
        problems.append(f"{path}._target_={value['_target_']} is not a valid {name}")
        return None
    revision = value.get("_revision_", getattr(owner, "revision", 1))
    if not isinstance(revision, int):
        problems.append(f"{path}._revision_={revision} is not an integer")
        return None
    runtime = RUNTIME.get(group, set())
    arguments = {k: item for k, item in value.items() if k not in ("_target_", "_revision_")}
    arguments = _check_arguments(path, arguments, owner, runtime, problems)
    if group == "tracker":
        arguments = {k: kept(v) if isinstance(v, str) else v for k, v in arguments.items()}
    return Node(path, place_of(value["_target_"]), arguments, revision)


def nearest(word: str, names: Iterable[str]) -> str | None:
    """Return the most similar name other than the word itself, or None."""
    near = difflib.get_close_matches(word, [name for name in names if name != word], 1)
    return near[0] if near else None


def unknown_key(path: str, names: list[str]) -> str:
    """Return the message for an unknown key, with the nearest key or a list of keys."""
    parent, _, key = path.rpartition(".")
    dot = f"{parent}." if parent else ""
    if near := nearest(key, names):
        return f"unknown key {path}; did you mean {dot}{near}?"
    taken = f"; {parent or 'the top level'} has {', '.join(sorted(names))}" if names else ""
    return f"unknown key {path}{taken}"
