"""The points of a sweep: the product of the swept keys, for each of a list of points."""

import itertools
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
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

    A point is a string of overrides, so a random search is a list that anyone can read and rerun;
    several values of a key in it are several points. The keys of a string of `zip` take their
    values together: the first of each, the second of each, and so on. A key that is typed or swept
    takes precedence over its value in a point; duplicates are dropped.
    """

    def __init__(
        self,
        points: Sequence[str] = (),
        params: dict[str, str] | None = None,
        zip: Sequence[str] = (),  # the word that users type
        search: Any = None,
    ) -> None:
        if search is not None:
            raise UserError("hydra.sweeper.search needs a search; also pass hydra/sweeper=optuna")
        for key, value in (("points", points), ("zip", zip)):
            if isinstance(value, str) or not isinstance(value or [], Sequence):
                raise UserError(f"hydra.sweeper.{key}={value} is not a list of strings")
        if not isinstance(params or {}, Mapping):
            raise UserError(f"hydra.sweeper.params={params} is not a mapping of keys to values")
        self.points = [_words("points", point) for point in points or ()] or [[]]
        self.paired = [_words("zip", words) for words in zip or ()]
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
        params = [hidden(f"{key}={value}") for key, value in self.params.items()]
        parser = OverridesParser.create(config_loader=self._loader)
        typed = parser.parse_overrides([*params, *arguments])
        refuse_impossible_sweep(typed)
        keys = {override.get_key_element().lstrip("+~") for override in typed}

        def untyped(words: list[str]) -> list[str]:
            kept = (word for word in words if word.partition("=")[0].lstrip("+~") not in keys)
            return [hidden(word) for word in kept]

        listed = (one for point in self.points for one in _expanded(untyped(point), parser))
        rows = [_together(untyped(words), parser) for words in self.paired]
        axes = (dict.fromkeys(map(tuple, listed)), *rows, _product(typed))
        return [list(itertools.chain.from_iterable(parts)) for parts in itertools.product(*axes)]


def _expanded(words: list[str], parser: OverridesParser) -> list[list[str]]:
    """Return the points of a string of overrides: one, unless a key has several values."""
    overrides = parser.parse_overrides(words)
    if not any(override.is_sweep_override() for override in overrides):
        return [words]
    refuse_impossible_sweep(overrides)
    return _product(overrides)


def _product(overrides: list[Override]) -> list[list[str]]:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    (product,) = BasicSweeper.split_arguments(overrides, None)
    return [list(point) for point in product]


def _together(words: list[str], parser: OverridesParser) -> list[list[str]]:
    """Return the first values of all keys, the second values, and so on."""
    overrides = parser.parse_overrides(words)
    refuse_impossible_sweep(overrides)
    columns = [[word for (word,) in _product([override])] for override in overrides]
    if len({len(column) for column in columns}) > 1:
        said = ", ".join(
            f"{override.get_key_element()} has {len(column)}"
            for override, column in zip(overrides, columns, strict=True)
        )
        raise UserError(
            f"hydra.sweeper.zip: {' '.join(words)} pairs keys with different numbers of values"
            f" ({said}); give each as many"
        )
    return [list(row) for row in zip(*columns, strict=True)] or [[]]


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


def _words(key: str, point: Any) -> list[str]:
    """Split a point, written as on the command line, into its overrides."""
    try:
        if isinstance(point, str):
            return shlex.split(point)
        problem = "it is not a string"
    except ValueError as error:
        problem = str(error).lower()
    raise UserError(
        f'hydra.sweeper.{key}: {point} is not a list of overrides such as "seed=0'
        f' optimizer.lr=0.1" ({problem})'
    )
