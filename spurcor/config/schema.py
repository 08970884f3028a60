"""Configuration schema: options of training and of the commands, and the identity of a run."""

import dataclasses
import functools
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from spurcor.config.check import nearest
from spurcor.config.nodes import Node, flat, plain
from spurcor.system.places import REPO

# Options of the machine, not of the experiment, which the identity leaves out.
MACHINE = ("device", "num_threads", "checkpoint_seconds", "keep_epochs")
METRICS = (
    "worst",
    "average",
    "adjusted",
    "balanced",
    "worst_class",
    "worst_inferred",
    "aligned",
    "conflicting",
    "loss",
)
MOST_THREADS = 1024  # torch crashes if the system cannot create that many
Loss = Literal["cross_entropy", "logistic", "mse"]


def check_criterion(key: str, criterion: str) -> None:
    """Raise ValueError unless `criterion` is a validation metric; no other may select an epoch."""
    split, _, name = criterion.partition("/")
    if split == "val" and (name in METRICS or name.startswith("group/")):
        return
    near = nearest(name, METRICS) if split == "val" else None
    fix = f"did you mean val/{near}?" if near else f"use val/ and one of {', '.join(METRICS)}"
    raise ValueError(f"{key}={criterion} is not a validation metric; {fix}")


@dataclass(frozen=True)
class EarlyStopping:
    """Options to end a phase once `metric` has not improved for `patience` evaluations."""

    patience: int
    metric: str = "val/loss"

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"patience={self.patience} must be at least 1")
        check_criterion("metric", self.metric)


@dataclass(frozen=True)
class TrainOptions:
    """Options of the training loop."""

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
    backbone_lr_factor: float = 1.0
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    accumulate: int = 1
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "eval_every", "num_threads", "accumulate"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if (self.num_threads or 1) > MOST_THREADS:
            raise ValueError(f"num_threads={self.num_threads} must be at most {MOST_THREADS}")
        if self.keep_epochs and min(self.keep_epochs) < 1:
            raise ValueError(f"keep_epochs={list(self.keep_epochs)} must be at least 1")
        if self.checkpoint_seconds < 0:
            seconds = self.checkpoint_seconds
            raise ValueError(f"checkpoint_seconds={seconds} must not be negative")
        for name in ("backbone_lr_factor", "clip_norm"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be positive")
        weights = self.class_weights
        if isinstance(weights, tuple) and (min(weights, default=-1) < 0 or not any(weights)):
            raise ValueError(
                f"class_weights={list(weights)} must be numbers of at least 0, one for each class"
            )
        check_criterion("selection", self.selection)


@dataclass(frozen=True)
class Site:
    """Settings of a SLURM cluster, written once in conf/site/<name>.yaml."""

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
    """Path of the results."""

    outputs: Path


@dataclass(frozen=True)
class Paths:
    """Paths of the data and of the results."""

    data: Path
    outputs: Path


@dataclass(frozen=True)
class RunPaths:
    """Paths of the runs and, if it was moved, of their data."""

    outputs: Path
    data: Path | None = None


@dataclass(frozen=True)
class FeatureOptions:
    """Features of a frozen network that replace the images; see spurcor/models/features.py."""

    backbone: Node
    layer: int | str = -1
    pooling: str | None = None
    normalize: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    def hashed(self) -> dict[str, Any]:
        """Return the options that affect the features, leaving out defaults."""
        values = {option.name: getattr(self, option.name) for option in dataclasses.fields(self)}
        defaults = {option.name: option.default for option in dataclasses.fields(self)}
        changed = {key: value for key, value in values.items() if value != defaults[key]}
        return {**changed, "backbone": self.backbone.hashed()}


@dataclass(frozen=True)
class TrainConfig:
    """A checked configuration of `spurcor.train`: everything that defines a run."""

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
    groups: Node | None = None  # None: the annotated ones
    dfr: Node | None = None
    site: Site = field(default_factory=Site)
    seed: int = 0
    sweep: str = "default"
    rerun: bool = False
    dry: bool = False
    trial: int | None = None
    point: tuple[str, ...] = ()
    plugins: dict[str, str] = field(default_factory=dict)  # versions of the plug-ins used

    def __post_init__(self) -> None:
        check_sweep_name(self.sweep)
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed} must be between 0 and 2^63 - 1")

    @functools.cached_property
    def identity(self) -> str:
        """Hash of everything that affects the weights, except the seed, which names a folder."""
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
        payload = {"dataset": self.hashed_data, **nodes, "train": train}
        if self.features is not None:
            payload["features"] = self.features.hashed()
        if self.groups is not None:
            payload["groups"] = self.groups.hashed(self.paths.data)
            if (run := self.groups.arguments.get("run")) is not None:
                payload["groups"]["run"] = self._named(Path(run))
        text = json.dumps(payload, sort_keys=True, allow_nan=True)
        return "r" + hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def hashed_data(self) -> dict[str, Any]:
        """The data set and its arguments as hashed, without how its images are stored and read."""
        dataset = self.dataset.hashed(self.paths.data)
        return {key: value for key, value in dataset.items() if key not in ("store", "workers")}

    @property
    def init(self) -> Path | None:
        """Directory of the finished run that `method.init` starts from, or None."""
        init = self.method.arguments.get("init")
        return None if init is None else Path(init)

    @property
    def origin(self) -> str | None:
        """Identity of the `init` run as it enters this run's, with its seed if that differs."""
        return None if self.init is None else self._named(self.init)

    def _named(self, run: Path) -> str:
        """Return a run as it enters this run's identity."""
        identity, seed = run.parts[-2:]
        return identity if seed == f"seed{self.seed}" else f"{identity}/{seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that affect the weights, flat: option names and `group.argument` values."""
        nodes = ["dataset", "features", "backbone", "method", "optimizer", "schedule"]
        nodes += [] if self.groups is None else ["groups"]
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
        """Files in the run's folder that exist once all that was requested is done."""
        repair = [] if self.dfr is None else [f"dfr/{dfr_name(self.dfr)}"]
        analyses = [f"analysis/{analysis_name(*item)}" for item in self.analysis.items()]
        return ["done", *(f"{folder}/result.json" for folder in (*repair, *analyses))]

    @property
    def directory(self) -> Path:
        """The run's folder."""
        choices = self.choices
        parent = self.paths.outputs / "runs" / choices["dataset"] / choices["method"]
        return parent / self.identity / f"seed{self.seed}"


def dfr_name(node: Node) -> str:
    """Return a repair's folder name: the split it is fitted on and a hash of its options."""
    return _folder(node.arguments.get("split", "val"), node)


def analysis_name(name: str, node: Node) -> str:
    """Return an analysis's folder name: its name and a hash of its options."""
    return _folder(name, node)


def _folder(name: str, node: Node) -> str:
    text = json.dumps(node.hashed(), sort_keys=True)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def check_sweep_name(name: str) -> None:
    """Raise ValueError unless `name` is valid for a folder and an MLflow experiment."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        hint = ""
        if (REPO / "sweeps" / f"{name}.yaml").exists():
            hint = f"; to run the sweep file, pass +sweeps={name}"
        raise ValueError(f"sweep={name} may have only letters, digits, '_', '-' and '.'{hint}")
