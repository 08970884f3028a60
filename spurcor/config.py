"""Configuration: resolvers, the schema of what the loop reads, `check` and `build`.

Hydra composes; `check` turns the composition into typed, coerced values or reports every problem at
once; everything after it sees dataclasses and plain values, never a `DictConfig`.
"""

import dataclasses
import difflib
import functools
import hashlib
import importlib
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from omegaconf import DictConfig, OmegaConf

from spurcor.errors import UserError
from spurcor.passwords import kept

REPO = Path(__file__).resolve().parents[1]
CONF = REPO / "conf"

# What the program, not the user, hands to the constructors of each group.
RUNTIME = {
    "backbone": {"info"},
    "features": {"info"},
    "method": {"backbone", "info"},
    "optimizer": {"params"},
    "schedule": {"optimizer", "T_max"},
    "tracker": {"outputs"},
}
# Options of the machine, not of the experiment: they are in no identity.
MACHINE = ("device", "num_threads", "checkpoint_seconds", "keep_epochs")
# Foreign classes that a _target_ may name: their package, and what they must derive from.
FOREIGN = ("torch", "torchvision", "timm")
FOREIGN_BASES = (
    "torch.nn.modules.module.Module",
    "torch.optim.optimizer.Optimizer",
    "torch.optim.lr_scheduler.LRScheduler",
)
# What a node of each group must be.
ROLES = {
    "backbone": "spurcor.backbone.Backbone",
    "method": "spurcor.method.Method",
    "optimizer": FOREIGN_BASES[1],
    "schedule": FOREIGN_BASES[2],
    "features.backbone": "spurcor.backbone.Backbone",
    "dfr": "spurcor.dfr.Dfr",
    "analysis.*": "spurcor.analysis.Analysis",
    "dataset": "spurcor.source.DataSource",
    "dataset.transform": "spurcor.transforms.Transform",
    "tracker.*": "spurcor.tracking.Tracker",
}
METRICS = (
    "worst",
    "average",
    "adjusted",
    "balanced",
    "worst_class",
    "aligned",
    "conflicting",
    "loss",
)
LARGEST = 2**63 - 1  # what torch, numpy and JSON readers hold
MOST_THREADS = 1024  # torch crashes when it is asked for more than the system gives
Loss = Literal["cross_entropy", "logistic", "mse"]
T = TypeVar("T")


# --- schema ---------------------------------------------------------------------------------------


def check_criterion(key: str, criterion: str) -> None:
    """Only metrics of the validation split select."""
    split, _, name = criterion.partition("/")
    if split == "val" and (name in METRICS or name.startswith("group/")):
        return
    near = nearest(name, METRICS) if split == "val" else None
    fix = f"did you mean val/{near}?" if near else f"only val/... selects: {', '.join(METRICS)}"
    raise ValueError(f"{key}={criterion} is no metric of the validation split; {fix}")


@dataclass(frozen=True)
class EarlyStopping:
    """End a phase once `metric` has not improved for `patience` evaluations."""

    patience: int
    metric: str = "val/loss"

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError("patience must be at least 1")
        check_criterion("metric", self.metric)


@dataclass(frozen=True)
class TrainOptions:
    """What the training loop reads."""

    batch_size: int | None = 64
    loss: Loss = "cross_entropy"
    eval_every: int = 1
    checkpoint_seconds: float = 60.0
    keep_epochs: tuple[int, ...] = ()
    early_stopping: EarlyStopping | None = None
    selection: str = "val/worst"
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    channels_last: bool = False
    device: str = "auto"
    num_threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "eval_every", "num_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if (self.num_threads or 1) > MOST_THREADS:
            raise ValueError(f"num_threads={self.num_threads} must be at most {MOST_THREADS}")
        if self.keep_epochs and min(self.keep_epochs) < 1:
            raise ValueError(f"keep_epochs={list(self.keep_epochs)}: epochs are counted from 1")
        if self.checkpoint_seconds < 0:
            raise ValueError("checkpoint_seconds must not be negative")
        check_criterion("selection", self.selection)


@dataclass(frozen=True)
class Site:
    """What a SLURM cluster wants to be told; written once, in conf/site/<name>.yaml."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    timeout_min: int = 240
    gpus_per_node: int = 1
    cpus_per_task: int = 4
    mem_gb: float | None = 16.0
    array_parallelism: int = 64
    max_num_timeout: int = 1000
    signal_delay_s: int = 120
    setup: tuple[str, ...] = ()
    additional_parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OutputPaths:
    """Where results are."""

    outputs: Path


@dataclass(frozen=True)
class Paths:
    """Where data is read and results are written."""

    data: Path
    outputs: Path


@dataclass(frozen=True)
class RunPaths:
    """Where runs are, and where their data is now if not where they read it."""

    outputs: Path
    data: Path | None = None


@dataclass(frozen=True)
class Node:
    """A checked `_target_` node: a class and its arguments, coerced to the constructor's types."""

    path: str
    target: str
    arguments: dict[str, Any]
    revision: int = 1  # of the class, when the configuration was made: a mend that moves numbers

    def build(self, **runtime: Any) -> Any:
        """Construct the object; what its constructor refuses is the user's mistake."""
        arguments = {
            key: value.build() if isinstance(value, Node) else value
            for key, value in self.arguments.items()
        }
        try:
            return locate(self.target)(**arguments, **runtime)
        except UserError:
            raise
        except (ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"{self.path}: {str(error).splitlines()[0]}") from error

    def takes(self, argument: str) -> bool:
        """Whether the constructor has an argument of that name."""
        return argument in inspect.signature(locate(self.target)).parameters

    def hashed(self, folder: Path | None = None) -> dict[str, Any]:
        """Target and those arguments that differ from the constructor's defaults.

        A class whose numbers changed since it was first released has a `revision` above 1, which
        counts too: what an earlier one gave is not taken for what it gives now. Files named
        relative to `folder` count by their content.
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
        return {"_target_": self.target, **_revised(self.revision), **plain(kept)}


@dataclass(frozen=True)
class FeatureOptions:
    """Which features of which fixed network replace the images; see spurcor/features.py."""

    backbone: Node
    layer: int | str = -1
    pooling: str | None = None
    normalize: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    def hashed(self) -> dict[str, Any]:
        """What moves the features; defaults are left out."""
        values = {option.name: getattr(self, option.name) for option in dataclasses.fields(self)}
        defaults = {option.name: option.default for option in dataclasses.fields(self)}
        changed = {key: value for key, value in values.items() if value != defaults[key]}
        return {**changed, "backbone": self.backbone.hashed()}


@dataclass(frozen=True)
class TrainConfig:
    """A checked configuration of `spurcor.train`: all that a run is made from."""

    dataset: Node
    backbone: Node
    method: Node
    optimizer: Node
    schedule: Node
    paths: Paths
    train: TrainOptions
    choices: dict[str, str]
    analysis: dict[str, Node]
    tracker: dict[str, Node]
    features: FeatureOptions | None = None
    dfr: Node | None = None
    site: Site = field(default_factory=Site)
    seed: int = 0
    sweep: str = "default"
    rerun: bool = False
    point: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_sweep_name(self.sweep)
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed} must be between 0 and 2^63 - 1")

    @functools.cached_property
    def identity(self) -> str:
        """Hash of all that moves the weights, but for the seed, which is a folder."""
        dataset = self.dataset.hashed(self.paths.data)
        for key in ("store", "workers"):
            dataset.pop(key, None)
        nodes = {name: getattr(self, name).hashed() for name in ("backbone", "method")}
        nodes |= {name: getattr(self, name).hashed() for name in ("optimizer", "schedule")}
        if self.origin is not None:
            nodes["method"]["init"] = self.origin
        defaults = plain(TrainOptions())
        train = {
            key: value
            for key, value in plain(self.train).items()
            if key not in MACHINE and value != defaults[key]
        }
        payload = {"dataset": dataset, **nodes, "train": train}
        if self.features is not None:
            payload["features"] = self.features.hashed()
        text = json.dumps(payload, sort_keys=True, allow_nan=True)
        return "r" + hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def init(self) -> Path | None:
        """Directory of the finished run that `method.init` starts from."""
        init = self.method.arguments.get("init")
        return None if init is None else Path(init)

    @property
    def origin(self) -> str | None:
        """That run as an identity holds it: by its own, and by its seed where that is another."""
        if self.init is None:
            return None
        identity, seed = self.init.parts[-2:]
        return identity if seed == f"seed{self.seed}" else f"{identity}/{seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """What moves the weights, flat: chosen names and `group.argument` values."""
        nodes = ("dataset", "features", "backbone", "method", "optimizer", "schedule")
        values: dict[str, Any] = {name: self.choices.get(name, "none") for name in nodes}
        for name in nodes:
            node = getattr(self, name)
            if node is not None:
                values |= flat(name, plain(node.arguments if isinstance(node, Node) else node))
        if self.origin is not None:
            values["method.init"] = self.origin
        train = plain(self.train)
        return values | flat("train", {k: v for k, v in train.items() if k not in MACHINE})

    @property
    def needs(self) -> list[str]:
        """Files of the run directory that are there once everything asked for is done."""
        repair = [] if self.dfr is None else [f"dfr/{dfr_name(self.dfr)}"]
        analyses = [f"analysis/{analysis_name(*item)}" for item in self.analysis.items()]
        return ["done", *(f"{folder}/result.json" for folder in (*repair, *analyses))]

    @property
    def directory(self) -> Path:
        """The run's place on disk."""
        choices = self.choices
        parent = self.paths.outputs / "runs" / choices["dataset"] / choices["method"]
        return parent / self.identity / f"seed{self.seed}"


def dfr_name(node: Node) -> str:
    """Folder of a DFR: what it fits on, with a hash of its options."""
    return _folder(node.arguments.get("split", "val"), node)


def analysis_name(name: str, node: Node) -> str:
    """Folder of an analysis: its name with a hash of its options."""
    return _folder(name, node)


def _folder(name: str, node: Node) -> str:
    text = json.dumps(node.hashed(), sort_keys=True)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def check_sweep_name(name: str) -> None:
    """A sweep's name is a folder and an MLflow experiment."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        hint = ""
        if (REPO / "sweeps" / f"{name}.yaml").exists():
            hint = f"; to run the sweep file, say +sweeps={name}"
        raise ValueError(f"sweep={name} is no name of letters, digits, '_', '-' and '.'{hint}")


def content(value: Any, folder: Path | None) -> Any:
    """A file that is read counts by what is in it, not by its name."""
    if isinstance(value, str | Path) and "." in str(value):
        for path in (Path(value), *([folder / value] if folder else [])):
            if path.is_file():
                with path.open("rb") as file:  # weights may take gigabytes
                    return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    return value


def sweep_files() -> list[Path]:
    """The sweep files, sweeps/<dataset>/<question>.yaml."""
    return sorted((CONF / "sweeps").glob("*/*.yaml"))


def plain(value: Any) -> Any:
    """A value as YAML and JSON hold it."""
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
    """A nested mapping with dotted keys."""
    if isinstance(value, Mapping):
        return {k: v for key in value for k, v in flat(f"{prefix}.{key}", value[key]).items()}
    return {prefix: value}


# --- targets --------------------------------------------------------------------------------------


@functools.cache
def locate(target: str) -> type:
    """The class that a `_target_` names, if it is one that a configuration may build.

    Nothing outside the packages named here is imported, and nothing but a class is called:
    `torch.hub.load` and `torch.load` run foreign code.
    """
    module_name, _, name = target.rpartition(".")
    package = module_name.partition(".")[0]
    if package != "spurcor" and package not in FOREIGN:
        raise UserError(f"_target_={target} is not a class of spurcor, torch, torchvision or timm")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # a module may raise anything while it is imported
        raise UserError(f"_target_={target} does not exist ({error})") from error
    refusal = UserError(f"_target_={target} is not a class that a configuration may build")
    if not isinstance(found, type):
        raise refusal
    home = found.__module__.partition(".")[0]
    bases = {f"{base.__module__}.{base.__qualname__}" for base in found.__mro__}
    if home != "spurcor" and not (home in FOREIGN and bases.intersection(FOREIGN_BASES)):
        raise refusal
    return found


def arguments_of(target: str, path: str) -> list[str]:
    """What the user may give to the constructor of the node at `path`."""
    runtime = RUNTIME.get(path.partition(".")[0], set())
    return [name for name in inspect.signature(locate(target)).parameters if name not in runtime]


# --- check ----------------------------------------------------------------------------------------


def composed(config: DictConfig) -> dict[str, Any]:
    """What Hydra composed, resolved, without Hydra's own part."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    tree = OmegaConf.to_container(own, resolve=True)
    assert isinstance(tree, dict)
    for key in flat("", tree):
        if key.endswith("._revision_"):
            raise UserError(f"{key[1:]} is written by spurcor and cannot be chosen; leave it out")
    return {str(key): value for key, value in tree.items()}


def check_saved(tree: Mapping[str, Any], schema: type[T]) -> T:
    """`check` a configuration that a run was saved with, which keeps the revisions of its time."""
    return check(_with_revisions(tree), schema)


def _with_revisions(value: Any) -> Any:
    """Revisions above 1 are written down; nodes without one are of the first."""
    if isinstance(value, list):
        return [_with_revisions(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    first = {"_revision_": 1} if "_target_" in value else {}
    return first | {key: _with_revisions(item) for key, item in value.items()}


def check(config: DictConfig | Mapping[str, Any], schema: type[T]) -> T:
    """Type and coerce a composed configuration, or report all of its problems in one `UserError`.

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
    """Check a mapping against the constructor of `owner`; returns the coerced arguments."""
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
            problems.append(f"{dot}{key} has no value; give one as {dot}{key}=...")
        else:
            coerced[key] = _coerce(f"{dot}{key}", value, hints.get(key, Any), problems)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in values:
            problems.append(f"{dot}{name} is missing; add it as +{dot}{name}=...")
    return coerced


def _hints(owner: type) -> dict[str, Any]:
    try:
        constructor = owner if dataclasses.is_dataclass(owner) else owner.__init__  # type: ignore[misc]
        return typing.get_type_hints(constructor)
    except NameError:  # a foreign class with annotations for type checkers only
        return {}


def _coerce(path: str, value: Any, hint: Any, problems: list[str]) -> Any:
    """One value as its type hint wants it."""
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

    members = _members(hint)
    if nested := _nested(hint, value):
        return _check_nested(path, value, nested, problems)
    if unsound := _unsound(value):
        problems.append(f"{path}={value} {unsound}")
        return None
    options = any(dataclasses.is_dataclass(member) for member in members)  # come as a mapping
    # Python counts True as an int, and a switch given where a number belongs is always a mistake.
    switch = isinstance(value, bool) and not ({bool, Any} & members)
    if switch or (options and not (value is None and types.NoneType in members)):
        problems.append(f"{path}={value} is not {_describe(hint)}")
        return None
    try:
        settings = ConfigDict(arbitrary_types_allowed=True)
        found = TypeAdapter(hint, config=settings).validate_python(value)
        if unsound := _unsound(found):  # a number that was a text
            problems.append(f"{path}={value} {unsound}")
        # Points run in another working directory.
        return found.expanduser().absolute() if isinstance(found, Path) else found
    except (ValidationError, PydanticUserError):  # the latter where keys belong, as in paths
        near = nearest(str(value), [str(member) for member in _literals(hint)])
        hint_text = f"; did you mean {near}?" if near else ""
        problems.append(f"{path}={value} is not {_describe(hint)}{hint_text}")
        return None


def _unsound(value: Any) -> str:
    """What is wrong with a plain value wherever it stands; nothing if it is sound."""
    if isinstance(value, float) and not math.isfinite(value):
        return "is no finite number"
    if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
        return "is too large"
    if isinstance(value, str | Path):
        if "\0" in str(value):
            return "holds a NUL character, which no file name may"
        if not str(value).isascii() and str(value) != str(value).encode(errors="replace").decode():
            return "is not written in UTF-8"
    if isinstance(value, Mapping):
        if "_target_" in value:
            return "names a class, where only plain values are taken"
        return next(filter(None, map(_unsound, [*value, *value.values()])), "")
    if isinstance(value, list | tuple):
        return next(filter(None, map(_unsound, value)), "")
    return ""


def _nested(hint: Any, value: Any) -> Any:
    """The dataclass, `Node` or mapping of nodes that a mapping is to become, or None."""
    members = _members(hint)
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
        # A constructor that takes another part of spurcor, as a data set does its transform.
        if "_target_" in value and getattr(member, "__module__", "").startswith("spurcor."):
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
        problems.append(f"{path} names no _target_; choose one of the files in conf/{path}")
        return None
    if foreign := {"_args_", "_convert_", "_partial_", "_recursive_"} & set(value):
        problems.append(f"{path}.{sorted(foreign)[0]} is refused; only _target_ and plain values")
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
        problems.append(f"{path}._target_={value['_target_']} is no {name}")
        return None
    revision = value.get("_revision_", getattr(owner, "revision", 1))
    if not isinstance(revision, int):
        problems.append(f"{path}._revision_={revision} is not a whole number")
        return None
    runtime = RUNTIME.get(group, set())
    arguments = {k: item for k, item in value.items() if k not in ("_target_", "_revision_")}
    arguments = _check_arguments(path, arguments, owner, runtime, problems)
    if group == "tracker":
        arguments = {k: kept(v) if isinstance(v, str) else v for k, v in arguments.items()}
    return Node(path, value["_target_"], arguments, revision)


def _members(hint: Any) -> set[Any]:
    """The types that a union allows, or the one type."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return {member for arg in typing.get_args(hint) for member in _members(arg)}
    if typing.get_origin(hint) is Literal:
        return {type(member) for member in typing.get_args(hint)}
    return {hint}


def _literals(hint: Any) -> Iterator[Any]:
    if typing.get_origin(hint) is Literal:
        yield from typing.get_args(hint)
    for member in typing.get_args(hint):
        yield from _literals(member)


def _describe(hint: Any) -> str:
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    if literals := list(_literals(hint)):
        return "one of " + ", ".join(map(str, literals))
    known = [names[m] for m in (float, int, bool, str) if m in _members(hint)]
    known += [f"a list of {_several(m)}" for m in _members(hint) if _element(m) is not None]
    if types.NoneType in _members(hint):
        known.append("null")
    if known:
        return " or ".join(known)
    for member in _members(hint):
        if isinstance(member, type) and dataclasses.is_dataclass(member):
            return f"a mapping of {', '.join(field.name for field in dataclasses.fields(member))}"
    return f"a value of type {getattr(hint, '__name__', hint)}".replace("typing.", "")


def _element(hint: Any) -> Any:
    """The type of what a list or tuple holds; None of anything else."""
    holds = typing.get_args(hint) if typing.get_origin(hint) in (list, tuple) else ()
    return holds[0] if holds else None


def _several(hint: Any) -> str:
    names = {float: "numbers", int: "whole numbers", bool: "true or false", str: "texts"}
    inner = _element(hint)
    return names.get(inner) or f"lists of {_several(inner)}"


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name that was most likely meant, which is never the word itself."""
    near = difflib.get_close_matches(word, [name for name in names if name != word], 1)
    return near[0] if near else None


def unknown_key(path: str, names: list[str]) -> str:
    """The sentence for a key that nothing takes."""
    parent, _, key = path.rpartition(".")
    dot = f"{parent}." if parent else ""
    if near := nearest(key, names):
        return f"{path} is no key; did you mean {dot}{near}?"
    taken = f"; {parent or 'the top level'} takes {', '.join(sorted(names))}" if names else ""
    return f"{path} is no key{taken}"


# --- resolvers ------------------------------------------------------------------------------------


@functools.cache
def _choices() -> Mapping[str, Mapping[str, str]]:
    import yaml

    loaded: Mapping[str, Mapping[str, str]] = yaml.safe_load(
        (CONF / "choices.yaml").read_text(encoding="utf-8")
    )
    return loaded


def choice(group: str, dataset: str, method: str, features: str = "none") -> str:
    """The default of a config group for a (data set, method), by conf/choices.yaml."""
    table = _choices()[group]
    if features != "none":
        return table.get(f"features/{method}") or table["features"]
    return table.get(f"{dataset}/{method}") or table.get(dataset) or table["default"]


def first(*values: Any) -> Any:
    """The first value that is not null, or null."""
    return next((value for value in values if value is not None), None)


def register() -> None:
    """Make spurcor's resolvers known to OmegaConf."""
    if not CONF.is_dir():
        raise UserError(
            f"there is no conf folder beside {Path(__file__).parent}; install spurcor from a clone"
            " with 'pip install -e .'"
        )
    OmegaConf.register_new_resolver("choice", choice, replace=True)
    OmegaConf.register_new_resolver("first", first, replace=True)
    OmegaConf.register_new_resolver("repo_root", lambda: str(REPO), replace=True)
