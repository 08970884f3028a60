"""Run the points of a sweep in this process."""

import logging
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from spurcor.config.schema import TrainConfig
from spurcor.errors import Damaged, RunError, UserError, of_system
from spurcor.sweeps.freeze import read_point
from spurcor.sweeps.manifest import Point, sweep_folder, write_manifest
from spurcor.sweeps.read import read
from spurcor.system.signals import Interrupted
from spurcor.system.terminal import log_to_terminal

if TYPE_CHECKING:
    from spurcor.runs.execute import Outcome
    from spurcor.training.moments import Enough

log = logging.getLogger(__name__)

HELD = 3  # exit code of a point that another process works on


def run_single(cfg: DictConfig) -> int:
    """Run a single point, adding it to the manifest of its sweep; return the exit code."""
    config = read(cfg, HydraConfig.get().runtime.choices)
    point = Point(tuple(HydraConfig.get().overrides.task), config)
    if config.dry:
        print(f"{'done' if point.done else 'not done'}: {config.directory}", flush=True)
        return 0
    log_to_terminal()
    warn_of_other_code([point])
    return _execute(config, on_start=lambda: write_manifest([point])).exit_code


def warn_of_other_code(points: Sequence[Point]) -> None:
    """Warn of finished points whose code has changed since, so that results may differ."""
    done = {point.config.directory: point.config for point in points if point.done}
    found = list(filter(None, map(_outdated, done.values())))
    if found:
        log.warning(
            "%s %s finished with other code for %s; pass rerun=true to set the old results, which"
            " are shown now, aside and to train again",
            f"{len(found)} of {len(done)} runs" if len(points) > 1 else next(iter(done)),
            "were" if len(found) > 1 else "was",
            ", ".join(dict.fromkeys(part for parts in found for part in parts)),
        )


def _outdated(config: TrainConfig) -> list[str]:
    from spurcor.runs.provenance import outdated

    try:
        return [] if config.rerun else outdated(config)
    except Damaged:  # reported when the run is opened
        return []


def run_points(paths: Iterable[Path]) -> int:
    """Run points of a submitted sweep from their frozen configurations.

    Returns the largest exit code, where a point that another process works on counts as `HELD`.
    """
    outcomes = carry_out([read_point(path) for path in paths])
    for one in outcomes.values():
        if one.status == "held":  # the launcher reads it in the log
            print(f"spurcor: {one.message}", file=sys.stderr, flush=True)
    codes = [HELD if one.status == "held" else one.exit_code for one in outcomes.values()]
    return max(codes, default=0)


def carry_out(configs: Iterable[TrainConfig]) -> dict[Path, "Outcome"]:
    """Run configurations one after another and return their outcomes by run directory.

    A failed run does not stop the next; an interrupt ends the loop.
    """
    from spurcor.runs.execute import Outcome

    outcomes: dict[Path, Outcome] = {}
    for config in configs:
        directory = config.directory
        try:
            outcome = _execute(config)
        except Interrupted as interrupted:
            print(f"spurcor: {directory}: {interrupted}", file=sys.stderr, flush=True)
            code = interrupted.exit_code
            outcomes[directory] = Outcome(
                "interrupted", directory, str(interrupted), exit_code=code
            )
            break
        except Exception as error:
            told = of_system(error) if isinstance(error, OSError) else error
            if not isinstance(told, UserError | RunError):
                traceback.print_exc()
            print(f"spurcor: {told}", file=sys.stderr, flush=True)
            message = str(told).partition("\n")[0]
            outcome = Outcome("failed", directory, message, exit_code=1)
        outcomes[directory] = outcome
    return outcomes


def _execute(config: TrainConfig, on_start: Callable[[], None] = lambda: None) -> "Outcome":
    """Run a configuration in this process."""
    import spurcor.runs.execute
    from spurcor.system.terminal import Terminal

    log_to_terminal()
    outcome = spurcor.runs.execute.execute(config, Terminal(), on_start, _judge_of(config))
    if outcome.status == "failed":
        print(f"spurcor: {outcome.directory}: {outcome.message}", file=sys.stderr, flush=True)
    return outcome


def _judge_of(config: TrainConfig) -> "Enough":
    """Return what decides whether a trial of a search goes on; other runs always do."""
    from spurcor.training.moments import never

    if config.trial is None:
        return never
    from spurcor.sweeps.pruning import Pruner

    return Pruner(sweep_folder(config), config.trial)
