"""The points of a sweep: the product of the swept keys, for each of a list of points."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from spurcor.config.composition import refuse_impossible_sweep
from spurcor.errors import UserError
from spurcor.sweeps import slurm
from spurcor.system.passwords import hidden


class Points(Sweeper):
    """Sweeper over the product of the swept keys, for each of a list of points; writes no files.

    A point is a string of overrides, so a random search is a list that anyone can read and rerun. A
    key that is typed or swept takes precedence over its value in a point; duplicates are dropped.
    """

    def __init__(self, points: Sequence[str] = (), params: dict[str, str] | None = None) -> None:
        if isinstance(points, str) or not isinstance(points or [], Sequence):
            raise UserError(f"hydra.sweeper.points={points} is not a list of strings")
        if not isinstance(params or {}, Mapping):
            raise UserError(f"hydra.sweeper.params={params} is not a mapping of keys to values")
        self.points = [_words(point) for point in points or ()] or [[]]
        self.params = params or {}
        self._loader: ConfigLoader | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Instantiate the launcher; called by Hydra."""
        self._loader = hydra_context.config_loader
        self.launcher = instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> None:
        """Launch all points; called by Hydra."""
        assert self.launcher is not None
        for job in self.launcher.launch(self.expand(arguments), initial_job_idx=0):
            _ = job.return_value  # raises the failure that a foreign launcher has stored

    def expand(self, arguments: list[str]) -> list[list[str]]:
        """Return the overrides of every point."""
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        params = [hidden(f"{key}={value}") for key, value in self.params.items()]
        parser = OverridesParser.create(config_loader=self._loader)
        typed = parser.parse_overrides([*params, *arguments])
        refuse_impossible_sweep(typed)
        (product,) = BasicSweeper.split_arguments(typed, None)
        keys = {override.get_key_element().lstrip("+~") for override in typed}
        listed = [
            [hidden(word) for word in point if word.partition("=")[0].lstrip("+~") not in keys]
            for point in self.points
        ]
        distinct = dict.fromkeys(map(tuple, listed))
        return [[*point, *rest] for point in distinct for rest in product]


def instantiate_launcher(
    hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
) -> Launcher:
    """Return the launcher that the configuration names; UserError if it cannot submit."""
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=hydra_context, task_function=task_function, config=config
    )
    if type(launcher).__name__ == "SlurmLauncher":  # its own error is a traceback
        slurm.require_slurm("submitit_slurm")
        slurm.try_submission({"additional_parameters": {}} | vars(launcher)["params"])
    return launcher


def _words(point: Any) -> list[str]:
    """Split a point, written as on the command line, into its overrides."""
    try:
        if isinstance(point, str):
            return shlex.split(point)
        problem = "it is not a string"
    except ValueError as error:
        problem = str(error).lower()
    raise UserError(
        f'hydra.sweeper.points: {point} is not a list of overrides such as "seed=0'
        f' optimizer.lr=0.1" ({problem})'
    )
