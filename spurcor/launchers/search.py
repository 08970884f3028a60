"""A search: points that an Optuna study draws one after another, judged on VAL."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from spurcor.config.check import check
from spurcor.config.schema import TrainConfig
from spurcor.errors import RunError, UserError
from spurcor.launchers.in_process import InProcess, command_words, report_sweep
from spurcor.launchers.points import instantiate_launcher
from spurcor.launchers.slurm import Slurm
from spurcor.sweeps.manifest import Point, sweep_folder
from spurcor.system.passwords import hidden
from spurcor.system.terminal import Terminal, log_to_terminal

if TYPE_CHECKING:
    from spurcor.sweeps.search_options import SearchOptions
    from spurcor.sweeps.space import Space, Values
    from spurcor.sweeps.study import Study

CONTINUES = "hydra.sweeper.continues=true"
# Typed words that a study does not name when it refuses other settings.
PLACES = ("paths.", "tracker", "site", "hydra", "sweep=", "dry=", "+sweeps=")


class Optuna(Sweeper):
    """Sweeper that carries out the trials of a study, as many at a time as the launcher allows."""

    def __init__(self, **options: Any) -> None:
        """See `SearchOptions`."""
        try:
            import optuna  # noqa: F401
        except ImportError as error:
            raise UserError(
                "hydra/sweeper=optuna needs Optuna: pip install 'spurcor[tune]'"
            ) from error
        from spurcor.sweeps.search_options import SearchOptions

        given = {key: _plain(value) for key, value in options.items()}
        if of_points := [key for key in ("points", "params", "zip") if given.get(key)]:
            raise UserError(
                f"hydra.sweeper.{of_points[0]} lists points, and a search draws its own; leave out"
                " hydra/sweeper=optuna, or the sweep file"
            )
        try:
            self.options = check(given, SearchOptions)
        except UserError as error:
            lines = str(error).splitlines()
            raise UserError("\n".join(f"hydra.sweeper.{line}" for line in lines)) from error

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Instantiate the launcher; called by Hydra."""
        self._loader = hydra_context.config_loader
        self.launcher = instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> None:
        """Carry out the trials that the study lacks; called by Hydra."""
        launcher = self.launcher
        if not isinstance(launcher, InProcess):
            raise UserError(
                "hydra/sweeper=optuna runs with hydra/launcher=in_process, local_pool or slurm;"
                " choose one"
            )
        parser = OverridesParser.create(config_loader=self._loader)
        typed = parser.parse_overrides(arguments)
        from spurcor.launchers.trials import Trials
        from spurcor.sweeps.space import parse_space
        from spurcor.sweeps.study import Study

        space = parse_space(self.options.search or {}, typed, parser)
        fixed = [str(one.input_line) for one in typed if not one.is_sweep_override()]
        _refuse_seeds(fixed)
        example = self._probed(launcher, space, fixed)
        if example.config.rerun:
            raise UserError(
                "rerun=true would train a run again whenever its values are drawn; choose another"
                " paths.outputs to search anew"
            )
        if example.config.dry:
            _show(space, self.options, example)
        else:
            launcher.refuse_impossible()
            log_to_terminal()
            folder = sweep_folder(example.config)
            typed_words = sorted(word for word in fixed if not word.startswith(PLACES))
            base = (example.config.identity, typed_words)
            study = Study(folder, space, self.options, base, example.config.choices)
            compose = functools.partial(self._points, launcher, fixed)
            trials = Trials(study, compose)
            if not isinstance(launcher, Slurm) or launcher.options.wait:
                trials.carry_out(launcher)
            elif jobs := trials.submit(launcher):
                launcher.go_on(folder, jobs, _continuing(example.config))
                return
            _conclude(study, example)

    # --- before anything is written -------------------------------------------------------------

    def _probed(self, launcher: InProcess, space: "Space", fixed: list[str]) -> Point:
        """Check that each key makes other runs, at both of its ends; return a point."""
        from spurcor.sweeps.space import ends

        seeds = self.options.seeds[:1]
        low = {key: ends(one)[0] for key, one in space.common.items()}
        (example,) = self._points(launcher, fixed, low, seeds)
        if self.options.sampler == "grid":
            next(space.grid(example.config.choices))
        for key, values, others in space.probes(example.config.choices):
            identities = {
                self._points(launcher, fixed, drawn, seeds)[0].config.identity
                for drawn in (values, *others)
            }
            if others and len(identities) == 1:
                raise UserError(
                    f"hydra.sweeper.search: {key} has no effect on training, so nothing can be"
                    " learnt from searching it; set it to one value"
                )
        return example

    def _points(
        self, launcher: InProcess, fixed: list[str], values: "Values", seeds: Sequence[int]
    ) -> list[Point]:
        drawn = [f"{key}={value}" for key, value in values.items()]
        return launcher.compose([[*map(hidden, fixed), *drawn, f"seed={seed}"] for seed in seeds])


def _refuse_seeds(words: Sequence[str]) -> None:
    """Refuse a typed seed: a search has its own."""
    if seeded := [word for word in words if word.partition("=")[0].lstrip("+~") == "seed"]:
        raise UserError(
            f"{seeded[0]}: the seeds of a search are those of hydra.sweeper.seeds; set that"
        )


def _show(space: "Space", options: "SearchOptions", example: Point) -> None:
    """Print what would be searched."""
    from spurcor.sweeps.space import described

    for name, section in {"": space.common, **space.conditional}.items():
        for key, one in section.items():
            print(f"{key}: {described(one)}" + f" (with {name})" * bool(name))
    number = options.n_trials
    if options.sampler == "grid":
        number = min(number, sum(1 for _ in space.grid(example.config.choices)))
    runs = len(options.seeds) * number
    print(f"{number} trials, {runs} runs, judged by {options.metric}", flush=True)


def _continuing(config: TrainConfig) -> list[str]:
    """Return the words of this command for a job that goes on with the search.

    The job's code is a copy elsewhere, so that paths must not depend on where that is. Passwords
    are masked, since the words are stored; the job inherits them in the environment.
    """
    places = {"paths.outputs=": config.paths.outputs, "paths.data=": config.paths.data}
    words = [hidden(word) for word in command_words() if not word.startswith(tuple(places))]
    words += [f"{key}{path.absolute()}" for key, path in places.items()]
    return [*(word for word in words if word != CONTINUES), CONTINUES]


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _conclude(study: "Study", example: Point) -> None:
    """Show the trials, the best first, and write the report; raise RunError if it is not done."""
    from spurcor.sweeps.search_files import run_tags, search_rows, write_search
    from spurcor.sweeps.tables import search_table

    ranked = study.ranked()
    terminal = Terminal()
    terminal.say("")
    terminal.console.print(search_table(study.options.metric, ranked))
    if importances := study.importances():
        shares = ", ".join(f"{key} {share:.2f}" for key, share in importances.items())
        terminal.say(f"importance: {shares}")
    files = write_search(study)
    terminal.say(f"search  {files[:2][-1]}")  # the picture, if there is one
    if any(trial.state == "done" for trial in ranked):
        report_sweep(example.config, files, search_rows(study), run_tags(study))
    missing = study.size - sum(trial.state != "running" for trial in ranked)
    if missing > 0:
        raise RunError(f"{missing} of {study.size} trials are not done")
    if not any(trial.state == "done" for trial in ranked):
        raise RunError(f"none of {len(ranked)} trials was trained to its end")
