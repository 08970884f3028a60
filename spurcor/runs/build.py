"""Build data, models and analyses from a configuration."""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from spurcor.analysis.contract import Analyses
from spurcor.config.schema import TrainConfig
from spurcor.data.groups import DataInfo, GroupSpec
from spurcor.data.source import DataSource
from spurcor.data.splits import Splits
from spurcor.errors import UserError
from spurcor.models.pretrained import refuse_missing
from spurcor.runs.grouping import with_grouping
from spurcor.runs.lookup import read_config
from spurcor.runs.refusals import refuse_leak
from spurcor.runs.results import read_result
from spurcor.seeding import derive_seed
from spurcor.tracking import Trackers
from spurcor.training import checkpoint
from spurcor.training.method import Method, RunContext

DEFAULT_THREADS = torch.get_num_threads()  # before any run sets its own


def device(options: str) -> torch.device:
    """Return the named device, or for `auto` the GPU if there is one; UserError if unavailable."""
    if options == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with warnings.catch_warnings(action="ignore"):  # an error follows anyway
            chosen = torch.device(options)
            torch.zeros(1, device=chosen).item()  # fails on meta, which has no values
    except (RuntimeError, AssertionError, ImportError, ValueError, TypeError) as error:
        raise UserError(f"train.device={options} is not available here; use cpu or auto") from error
    return chosen


def build(config: TrainConfig, directory: Path | None = None) -> tuple[Splits, Method]:
    """Build data and untrained method of a run; all random initialisation is seeded.

    With `features`, the splits hold the extracted features of a frozen network. `directory`: where
    the run is, if it was moved.
    """
    options = config.train
    torch.set_num_threads(options.num_threads or DEFAULT_THREADS)
    source: DataSource = config.dataset.build()
    _refuse_missing_weights(config, source)
    place = device(options.device)
    splits = Splits.load(source, config.paths.data, place, augmented=config.features is None)
    if config.features is not None:
        splits.info.require_pixels("features=frozen")
        from spurcor.models.features import fixed_network, freeze

        network, info = fixed_network(config.features, splits.info, config.seed)
        if config.groups is None:
            # Built before extraction, which may take hours, so that misfits are refused at once.
            method = _method(config, info, splits.device)
        with torch.random.fork_rng():  # training draws the same numbers if the features are cached
            splits = freeze(splits, network, config.features, config.dataset, config.paths.data)
        if config.groups is None:
            return splits, method
    splits = with_grouping(config, directory or config.directory, splits, _untrained_on)
    return splits, _method(config, splits.info, splits.device)


def _refuse_missing_weights(config: TrainConfig, source: DataSource) -> None:
    """Check that pretrained weights exist first, since decoding photographs may take hours."""
    size = getattr(source.transform, "size", None)
    if size is None:  # no photographs
        return
    info = DataInfo(GroupSpec(("0", "1"), ("0",)), (3, size, size), torch.ones(2))
    for node in (config.backbone, *([config.features.backbone] if config.features else [])):
        refuse_missing(node, info)


def _method(config: TrainConfig, info: DataInfo, place: torch.device) -> Method:
    options = config.train
    torch.manual_seed(config.seed)
    info = dataclasses.replace(info, loss=options.loss, class_weights=options.class_weights)
    backbone = config.backbone.build(info=info)
    backbone.name = f"backbone={config.choices['backbone']}"
    backbone.freeze(info.shape)
    method: Method = config.method.build(backbone=backbone, info=info)
    try:
        method.phases()
    except ValueError as error:
        raise UserError(f"method.{error}") from error
    backbone.lr_factor = options.backbone_lr_factor
    backbone.autocast = torch.bfloat16 if options.precision == "bf16" else None
    backbone.channels_last = options.channels_last
    if options.channels_last:
        method.to(memory_format=torch.channels_last)
    if options.compile:
        backbone.compile()
    return method.to(place)


def _untrained_on(directory: Path, splits: Splits) -> Method:
    """Return the untrained method of another run, with the groups that it was trained by."""
    config, annotated = read_config(directory), dataclasses.replace(splits, grouping=None)
    own = with_grouping(config, directory, annotated, _untrained_on)
    return _method(config, own.info, splits.device)


def start_from(directory: Path, splits: Splits, method: Method) -> Method:
    """Load last backbone and head of a finished run into a method; return that run's own network.

    The two may differ, since the method may add parts of its own. Raises UserError if the run was
    trained on other splits or has no validation metrics.
    """
    result = read_result(directory)
    refuse_leak(result["run"]["splits"], splits)
    if result["val"] is None:
        raise UserError(
            f"method.init={directory} has no validation metrics: it was trained on val, or not at"
            " all; start from another run"
        )
    last = directory / "last.safetensors"
    checkpoint.load_trained(method, last)
    with torch.random.fork_rng():
        origin = _untrained_on(directory, splits)
    checkpoint.load_trained(origin, last)
    return origin


def validate(config: TrainConfig) -> None:
    """Build all cheap objects of a configuration, so that bad values are found before a sweep."""
    config.dataset.build()
    for node in (config.groups, config.dfr):
        if node is not None:
            node.build()
    Analyses.build(config.analysis)
    Trackers.build(config.tracker, config.paths.outputs)
    _optimizers(config)


def context_of(config: TrainConfig, splits: Splits, directory: Path) -> RunContext:
    """Return the context of a run's phases; also checks optimiser and schedule."""
    optimizer, schedule = _optimizers(config)
    batch_size, untrained = config.train.batch_size, functools.partial(_untrained, config, splits)
    return RunContext(
        splits,
        config.seed,
        batch_size,
        directory,
        optimizer,
        schedule,
        untrained,
        config.train.accumulate,
        config.train.clip_norm,
    )


def _untrained(config: TrainConfig, splits: Splits, draw: int) -> Method:
    """Return the untrained method under the initialisation number `draw`; 0 is the run's own.

    The global random state is left untouched.
    """
    seed = derive_seed(config.seed, "draw", draw) if draw else config.seed
    with torch.random.fork_rng():
        return _method(dataclasses.replace(config, seed=seed), splits.info, splits.device)


def _optimizers(config: TrainConfig) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return factories of optimiser and schedule, tried once on a dummy parameter."""

    def optimizer(parameters: Any) -> Any:
        built = config.optimizer.build(params=list(parameters))
        for group in built.param_groups:
            group["lr"] *= group.get("lr_factor", 1.0)
        return built

    def schedule(optimizer: Any, epochs: int) -> Any:
        total = {"T_max": epochs} if config.schedule.takes("T_max") else {}
        return config.schedule.build(optimizer=optimizer, **total)

    schedule(optimizer([torch.nn.Parameter(torch.zeros(1))]), 1)
    return optimizer, schedule
