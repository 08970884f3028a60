"""Builds the objects that a configuration describes."""

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
from spurcor.runs.lookup import read_config
from spurcor.runs.refusals import refuse_leak
from spurcor.runs.results import read_result
from spurcor.seeding import derive_seed
from spurcor.tracking import Trackers
from spurcor.training import checkpoint
from spurcor.training.method import Method, RunContext

DEFAULT_THREADS = torch.get_num_threads()  # before any run has set its own


def device(options: str) -> torch.device:
    """The named device; `auto` is the GPU if there is one."""
    if options == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with warnings.catch_warnings(action="ignore"):  # of what is refused anyway
            chosen = torch.device(options)
            torch.zeros(1, device=chosen).item()  # meta has no values
    except (RuntimeError, AssertionError, ImportError, ValueError, TypeError) as error:
        raise UserError(f"train.device={options} is not available here; use cpu or auto") from error
    return chosen


def build(config: TrainConfig) -> tuple[Splits, Method]:
    """Data and untrained method of a run; every draw of its initialisation is seeded."""
    options = config.train
    torch.set_num_threads(options.num_threads or DEFAULT_THREADS)
    source: DataSource = config.dataset.build()
    _refuse_missing_weights(config, source)
    splits = Splits.load(source, config.paths.data, device(options.device))
    if config.features is None:
        return splits, _method(config, splits.info, splits.device)
    from spurcor.models.features import fixed_network, freeze

    network, info = fixed_network(config.features, splits.info, config.seed)
    # Extraction may take hours: what does not fit features is refused before.
    method = _method(config, info, splits.device)
    with torch.random.fork_rng():  # what training draws is the same whether they are there or not
        splits = freeze(splits, network, config.features, config.dataset, config.paths.data)
    return splits, method


def _refuse_missing_weights(config: TrainConfig, source: DataSource) -> None:
    """Check pretrained weights first, since decoding photographs may take hours."""
    size = getattr(source.transform, "size", None)
    if size is None:  # no photographs
        return
    info = DataInfo(GroupSpec(("0", "1"), ("0",)), (3, size, size), torch.ones(2))
    for node in (config.backbone, *([config.features.backbone] if config.features else [])):
        refuse_missing(node, info)


def _method(config: TrainConfig, info: DataInfo, place: torch.device) -> Method:
    options = config.train
    torch.manual_seed(config.seed)
    info = dataclasses.replace(info, loss=options.loss)
    backbone = config.backbone.build(info=info)
    backbone.name = f"backbone={config.choices['backbone']}"
    method: Method = config.method.build(backbone=backbone, info=info)
    try:
        method.phases()
    except ValueError as error:
        raise UserError(f"method.{error}") from error
    backbone.autocast = torch.bfloat16 if options.precision == "bf16" else None
    backbone.channels_last = options.channels_last
    if options.channels_last:
        method.to(memory_format=torch.channels_last)
    if options.compile:
        backbone.compile()
    return method.to(place)


def start_from(directory: Path, splits: Splits, method: Method) -> Method:
    """Give a method the last backbone and head of a finished run, trained on the same splits.

    Returns that run's own network, since the method's may have parts that it had not.
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
        origin = _method(read_config(directory), splits.info, splits.device)
    checkpoint.load_trained(origin, last)
    return origin


def validate(config: TrainConfig) -> None:
    """Build whatever is cheap, so that bad values are found before a sweep starts."""
    config.dataset.build()
    if config.dfr is not None:
        config.dfr.build()
    Analyses.build(config.analysis)
    Trackers.build(config.tracker, config.paths.outputs)
    _optimizers(config)


def context_of(config: TrainConfig, splits: Splits, directory: Path) -> RunContext:
    """The context for the phases of a run; also tries out optimiser and schedule."""
    optimizer, schedule = _optimizers(config)
    batch_size, untrained = config.train.batch_size, functools.partial(_untrained, config, splits)
    return RunContext(splits, config.seed, batch_size, directory, optimizer, schedule, untrained)


def _untrained(config: TrainConfig, splits: Splits, draw: int) -> Method:
    """The method as `build` makes it, by the run's seed where `draw` is 0; leaves no trace."""
    seed = derive_seed(config.seed, "draw", draw) if draw else config.seed
    with torch.random.fork_rng():
        return _method(dataclasses.replace(config, seed=seed), splits.info, splits.device)


def _optimizers(config: TrainConfig) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Factories of optimisers and schedules, tried once on a dummy parameter."""

    def optimizer(parameters: Any) -> Any:
        return config.optimizer.build(params=list(parameters))

    def schedule(optimizer: Any, epochs: int) -> Any:
        total = {"T_max": epochs} if config.schedule.takes("T_max") else {}
        return config.schedule.build(optimizer=optimizer, **total)

    schedule(optimizer([torch.nn.Parameter(torch.zeros(1))]), 1)
    return optimizer, schedule
