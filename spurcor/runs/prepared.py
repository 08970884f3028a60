"""The objects that a run needs, built once and passed on."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spurcor.analysis.contract import Analyses
from spurcor.config.nodes import Node
from spurcor.config.schema import TrainConfig, dfr_name
from spurcor.data.splits import Splits
from spurcor.errors import UserError
from spurcor.repair.contract import LastLayer
from spurcor.runs.build import build, context_of, start_from
from spurcor.runs.refusals import (
    refuse_blind_selection,
    refuse_blind_stopping,
    refuse_impossible_repair,
    refuse_split_batches,
    refuse_unfinished_origin,
    refuse_unknown_criterion,
)
from spurcor.tracking import Trackers
from spurcor.training.method import Method, Phase, RunContext
from spurcor.training.moments import Enough, never


@dataclass(frozen=True)
class Repair:
    """A requested repair: its options and the object that fits it."""

    node: Node
    dfr: LastLayer

    @property
    def name(self) -> str:
        """Name of the repair's folder."""
        return dfr_name(self.node)


@dataclass
class Prepared:
    """A run that is ready to start, checked against its data."""

    config: TrainConfig
    directory: Path
    splits: Splits
    method: Method
    phases: Sequence[Phase]
    context: RunContext
    analyses: Analyses
    repair: Repair | None
    trackers: Trackers
    enough: Enough = never
    origin: Method | None = None  # network of the run named by method.init

    @property
    def guard(self) -> Path:
        """Path of the lock that is held while result.json is written."""
        return self.config.paths.outputs / ".guard"


def prepare(config: TrainConfig, trackers: Trackers) -> Prepared:
    """Build all objects for training, repair and analyses; UserError for impossible requests."""
    refuse_unfinished_origin(config.init)
    run = _built(config, config.directory, trackers)
    origin = None if config.init is None else start_from(config.init, run.splits, run.method)
    for phase in run.phases:
        phase.check(run.context)
    if run.phases:  # otherwise there is no epoch to select
        refuse_unknown_criterion(config.train, run.splits)
        refuse_blind_selection(config.train, run.splits)
        refuse_blind_stopping(config.train, run.phases)
        refuse_split_batches(config.train, run.phases)
    elif config.dfr is None:
        raise UserError("this method trains nothing and dfr=none repairs nothing; choose a dfr")
    _check_parts(run)
    return dataclasses.replace(run, origin=origin)


def prepare_finished(config: TrainConfig, directory: Path, trackers: Trackers) -> Prepared:
    """Build and check the objects for repairs or analyses of a finished run in `directory`."""
    run = _built(config, directory, trackers)
    _check_parts(run)
    return run


def _built(config: TrainConfig, directory: Path, trackers: Trackers) -> Prepared:
    splits, method = build(config, directory)
    return Prepared(
        config,
        directory,
        splits,
        method,
        method.phases(),
        context_of(config, splits, directory),
        Analyses.build(config.analysis),
        None if config.dfr is None else Repair(config.dfr, config.dfr.build()),
        trackers,
    )


def _check_parts(run: Prepared) -> None:
    if run.repair is not None:
        refuse_impossible_repair(run.repair.dfr, run.splits, run.method)
    run.analyses.check(run.method, run.splits)
