"""The run whose network tells groups apart: an ordinary run of ERM, trained by whoever needs it."""

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from spurcor.config.nodes import Node
from spurcor.config.schema import TrainConfig
from spurcor.errors import RunError, UserError
from spurcor.groups.contract import Inference, Reference
from spurcor.runs.refusals import INFERRED
from spurcor.runs.results import read_result
from spurcor.system.lock import holder, lock_of

log = logging.getLogger(__name__)

PATIENCE = 1.0  # seconds between looks at a run that another process trains
ERM = "spurcor.methods.erm.Erm"
STORED = Path("groups", "groups.json")  # in a run's directory: its groups, once inferred


class Ended(Protocol):
    """How training of a run has ended."""

    @property
    def status(self) -> str:
        """`done`, `held` by another process, or another word."""

    @property
    def message(self) -> str:
        """What went wrong."""


def reference_of(config: TrainConfig) -> Reference | None:
    """Return the options of the network that the groups of a run are inferred with, if any."""
    if config.groups is None:
        return None
    inference: Inference = config.groups.build()
    return inference.reference


def reference_config(config: TrainConfig, reference: Reference) -> TrainConfig:
    """Return the configuration of the reference run: ERM on the same data, with the same seed.

    It has this run's backbone, optimiser and options of training, but no early stopping.
    """
    arguments = dict(config.optimizer.arguments)
    for key in ("lr", "weight_decay"):
        value = getattr(reference, key)
        if value is not None:
            if not config.optimizer.takes(key):
                name = config.choices.get("optimizer")
                raise UserError(
                    f"groups.{key}={value}: optimizer={name} has no {key}; leave it out"
                )
            arguments[key] = value
    own = config.train.selection
    selection = "val/average" if own == INFERRED else own  # it has no inferred groups
    return dataclasses.replace(
        config,
        method=Node("method", ERM, {"epochs": reference.epochs}),
        optimizer=dataclasses.replace(config.optimizer, arguments=arguments),
        train=dataclasses.replace(config.train, early_stopping=None, selection=selection),
        choices={**config.choices, "method": "erm", "groups": "annotated"},
        **{"groups": None, "dfr": None, "analysis": {}, "rerun": False, "trial": None},  # type: ignore[arg-type]
    )


def reference_directory(config: TrainConfig, reference: Reference) -> Path:
    """Return the directory of the reference run, which may not be finished."""
    if reference.run is not None:
        return Path(reference.run)
    return reference_config(config, reference).directory


def obtain(config: TrainConfig, train: Callable[[TrainConfig], Ended]) -> None:
    """Make sure that the reference run of a run is finished: train it, or wait for who does.

    A run whose groups are stored needs none. Raises RunError if it cannot be trained.
    """
    reference = reference_of(config)
    stored = (config.directory / STORED).exists() and not config.rerun
    if reference is None or reference.run is not None or stored:
        return
    wanted = reference_config(config, reference)
    told = False
    while not (wanted.directory / "done").exists():
        if (owner := holder(lock_of(wanted.directory))) is not None:
            if not told:
                log.info("waiting for %s, which process %s trains", wanted.directory, owner["pid"])
            told = True
            time.sleep(PATIENCE)
            continue
        outcome = train(wanted)
        if outcome.status not in ("done", "held"):
            raise RunError(
                f"the reference network of groups={config.choices['groups']} cannot be trained:"
                f" {outcome.message}"
            )


def reference_facts(config: TrainConfig) -> dict[str, Any]:
    """Return identity, images seen and seconds of the reference run, as part of a run's cost."""
    reference = reference_of(config)
    if reference is None:
        return {}
    before = read_result(reference_directory(config, reference))["run"]
    name = f"{before['identity']}/seed{before['seed']}"
    cost = {"images_seen": before["images_seen"], "seconds": before["seconds"]}
    return {"reference": {"run": name, **cost}}
