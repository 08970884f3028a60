"""Convert a composed Hydra configuration to a checked one."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from spurcor.config.check import check, composed
from spurcor.config.grouped import chosen_repair
from spurcor.config.packages import used
from spurcor.config.schema import TrainConfig
from spurcor.errors import UserError

POINT = "@"  # how a method.init begins that means a point of the same sweep
GROUPS = (
    "dataset",
    "groups",
    "backbone",
    "method",
    "optimizer",
    "schedule",
    "features",
    "dfr",
    "site",
)


def read(cfg: DictConfig, choices: Mapping[str, Any], *, in_sweep: bool = False) -> TrainConfig:
    """Check a composed configuration and return it with the names chosen for its groups.

    With `in_sweep`, a `method.init` that means a point of the same sweep is left as it is. Raises
    UserError for unknown keys and bad values.
    """
    tree = composed(cfg)
    if "choices" in tree:
        raise UserError("unknown key choices; use dataset=..., method=... and so on")
    tree["choices"] = {group: str(choices[group]) for group in GROUPS if choices.get(group)}
    chosen_repair(tree)
    tree["plugins"] = used(tree)
    for group in ("groups", "dfr", "features", "analysis", "tracker"):
        tree[group] = tree.get(group) or {}
    config = _with_reference(check(tree, TrainConfig))
    init = config.method.arguments.get("init")
    if init is None:
        return config
    if str(init).startswith(POINT):
        if in_sweep:
            return config
        raise UserError(
            f"method.init={init} means a point of the same sweep, and this is a single run; give a"
            " finished run: its folder or its identity"
        )
    return _with_origin(config, str(init))


def _with_origin(config: TrainConfig, init: str) -> TrainConfig:
    """Replace `method.init`, in any of the forms of run=..., by the directory of that run.

    An identity without a seed refers to the run with the same seed. Raises UserError if the run is
    not finished or was moved.
    """
    return with_init(config, str(_finished(init, config, "method.init")))


def _with_reference(config: TrainConfig) -> TrainConfig:
    """Replace `groups.run` by the directory of that run, as `_with_origin` does.

    Options of the reference run that would be trained without it are left out.
    """
    if config.groups is None or (run := config.groups.arguments.get("run")) is None:
        return config
    directory = _finished(str(run), config, "groups.run")
    given = config.groups.arguments.items()
    arguments = {k: v for k, v in given if k not in ("epochs", "lr", "weight_decay")}
    arguments["run"] = str(directory)
    return dataclasses.replace(
        config, groups=dataclasses.replace(config.groups, arguments=arguments)
    )


def _finished(reference: str, config: TrainConfig, key: str) -> Path:
    from spurcor.runs import lookup
    from spurcor.runs.results import read_result

    if "/" not in reference and ":" not in reference and not Path(reference).exists():
        reference = f"{reference}/seed{config.seed}"
    directory = lookup.find_done(reference, config.paths.outputs, key)
    run = read_result(directory)["run"]
    if directory.parts[-2:] != (run["identity"], f"seed{run['seed']}"):
        raise UserError(
            f"{key}={reference} was moved from {run['identity']}/seed{run['seed']}; move it back"
        )
    return directory


def with_init(config: TrainConfig, init: str) -> TrainConfig:
    """Return the configuration with another `method.init`."""
    arguments = {**config.method.arguments, "init": init}
    return dataclasses.replace(
        config, method=dataclasses.replace(config.method, arguments=arguments)
    )
