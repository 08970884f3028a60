"""Check a composed configuration before Hydra acts on it.

Through callbacks, launcher, sweeper, logging, search path and environment, a configuration makes
Hydra build classes, import modules and set variables. Someone else's sweep file must not run code.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import hydra._internal.hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from spurcor.config.packages import HOW, WORD
from spurcor.errors import UserError

SUBMITIT = "hydra_plugins.hydra_submitit_launcher.submitit_launcher"
PLUGINS = {
    "launcher": (
        "hydra_plugins.spurcor.InProcess",
        "hydra_plugins.spurcor.LocalPool",
        "hydra_plugins.spurcor.Slurm",
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        f"{SUBMITIT}.LocalLauncher",
        f"{SUBMITIT}.SlurmLauncher",
    ),
    "sweeper": (
        "hydra_plugins.spurcor.Points",
        "hydra_plugins.spurcor.Optuna",
        "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    ),
}
INSTRUCTIONS = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")
LOGGING_CLASSES = ("logging.StreamHandler", "logging.FileHandler", "logging.NullHandler")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
# Launcher options that a shell executes.
SHELL = ("setup", "additional_parameters", "srun_args", "python")
MOST_POINTS = 100_000  # composing this many takes hours


def install() -> None:
    """Make Hydra load configurations with `CheckedLoader`; it has no setting for this."""
    vars(hydra._internal.hydra)["ConfigLoaderImpl"] = CheckedLoader


class CheckedLoader(ConfigLoaderImpl):
    """Loader that refuses configurations that would run foreign code."""

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """See `ConfigLoaderImpl`."""
        if run_mode == RunMode.MULTIRUN:
            parser = OverridesParser.create(config_loader=self)
            refuse_impossible_sweep(parser.parse_overrides(overrides))
        cfg = super().load_configuration(
            config_name, overrides, run_mode, from_shell, validate_sweep_overrides
        )
        refuse_foreign(cfg.hydra)
        self._refuse_shell_lines(cfg, overrides)
        return cfg

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig:
        """See `ConfigLoaderImpl`."""
        for override in sweep_overrides:
            if override.lstrip("+~ ").startswith(("hydra.", "hydra/", "hydra=", "hydra@")):
                raise UserError(
                    f"{override} sets an option of Hydra, which a single point of a sweep cannot"
                    " change; remove it from hydra.sweeper and pass it for the whole sweep"
                )
            if override.lstrip("+~ ").startswith(WORD):
                raise UserError(f"{override}: a point of a sweep cannot load code; {HOW}")
        return super().load_sweep_config(master_config, sweep_overrides)

    def _process_config_searchpath(
        self, config_name: str | None, parsed_overrides: list[Override], repo: Any
    ) -> None:
        file = None if config_name is None else repo.load_config(config_path=config_name)
        asked = [o.value() for o in parsed_overrides if o.get_key_element() == "hydra.searchpath"]
        if file is not None and OmegaConf.is_dict(file.config):
            asked.append(_plain(file.config, "hydra.searchpath"))
        for _, place in _entries("", asked):
            if isinstance(place, str) and "://" in place and not place.startswith("file://"):
                raise UserError(
                    f"hydra.searchpath={place} would import Python code; use a folder, or pass"
                    " --config-dir <folder>"
                )
        super()._process_config_searchpath(config_name, parsed_overrides, repo)
        self._sources = repo

    def _refuse_shell_lines(self, cfg: DictConfig, overrides: Sequence[str]) -> None:
        """Refuse shell options set neither in a site or launcher file nor on the command line."""
        typed = [override.lstrip("+~ ").partition("=")[0] for override in overrides]
        files = [self._chosen(cfg, group) for group in ("site", "hydra/launcher")]
        for group in ("site", "hydra.launcher"):
            node = _plain(cfg, group)
            for key in SHELL if isinstance(node, Mapping) else ():
                value, names = node.get(key), (f"site.{key}", f"hydra.launcher.{key}")
                trusted = any(value == file.get(key) for file in files)
                if value and not trusted and not any(one.startswith(names) for one in typed):
                    raise UserError(
                        f"{group}.{key}={value} would run in a shell; set it in"
                        f" conf/site/<name>.yaml or on the command line with {group}.{key}=..."
                    )

    def _chosen(self, cfg: DictConfig, group: str) -> Mapping[str, Any]:
        """Return the unresolved content of the file chosen in a group."""
        option = cfg.hydra.runtime.choices.get(group)
        file = self._sources.load_config(f"{group}/{option}") if option else None
        tree = None if file is None else OmegaConf.to_container(file.config)
        return tree if isinstance(tree, dict) else {}  # type: ignore[return-value]


def refuse_foreign(cfg: DictConfig) -> None:
    """Refuse a `hydra` node that would build foreign classes or set environment variables."""
    if OmegaConf.select(cfg, "callbacks"):
        raise UserError(
            f"hydra.callbacks={list(cfg.callbacks)} would run arbitrary code; remove them"
        )
    for role, allowed in PLUGINS.items():
        _refuse_other_plugin(f"hydra.{role}", _plain(cfg, role), allowed)
    for name in ("job_logging", "hydra_logging"):
        _refuse_factories(f"hydra.{name}", OmegaConf.select(cfg, name))
    for name in ("env_copy", "env_set"):
        if OmegaConf.select(cfg, f"job.{name}"):
            raise UserError(
                f"hydra.job.{name}={list(cfg.job[name])} would change the environment; set"
                " variables in the shell"
            )


def _plain(cfg: DictConfig, key: str) -> Any:
    """Return a value as Hydra will read it, with interpolations resolved."""
    value = OmegaConf.select(cfg, key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _refuse_other_plugin(path: str, value: Any, allowed: Sequence[str]) -> None:
    """Refuse a class that is not allowed, also in arguments, since Hydra builds those too."""
    if value is None:
        return
    arguments = dict(value) if isinstance(value, Mapping) else {}
    target = arguments.pop("_target_", None)
    if target not in allowed:
        said = f"{path}={value}" if target is None else f"{path}._target_={target}"
        group = path.replace(".", "/")
        raise UserError(f"{said} is neither spurcor's nor Hydra's; choose one with {group}=...")
    for key, _ in _entries("", arguments):
        if key.rpartition(".")[2] in INSTRUCTIONS:
            raise UserError(
                f"{path}.{key} would build an object; remove it, {path} takes plain values only"
            )


def _refuse_factories(path: str, value: Any) -> None:
    """Refuse logging options that make `logging.config` look up and call other objects."""
    for key, item in _resolved("", value):
        name = key.rpartition(".")[2]
        refused = name in ("()", "queue", "listener") or key.endswith(".")
        refused |= name == "class" and item not in LOGGING_CLASSES
        refused |= isinstance(item, str) and "://" in item and item not in STREAMS
        if refused:
            raise UserError(
                f"{path}.{key}={item} is not allowed: logging may use {', '.join(LOGGING_CLASSES)}"
                f" on {' or '.join(STREAMS)}; pass hydra/{path.partition('.')[2]}=none to turn it"
                " off"
            )


def _resolved(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield `_entries` resolved, except for paths in the output folder, which is not known yet.

    Leaving them unresolved is safe: they begin with /, which no class name does."""
    if not isinstance(value, DictConfig | ListConfig):
        return
    for key in value if isinstance(value, DictConfig) else range(len(value)):
        raw = OmegaConf.to_container(value)[key]  # type: ignore[index]
        later = isinstance(raw, str) and raw.startswith("${hydra.runtime.output_dir}")
        item = raw if later or raw == "???" else value[key]  # type: ignore[index]
        dotted = f"{path}.{key!s}" if path else str(key)
        yield dotted, item
        yield from _resolved(dotted, item)


def _entries(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every entry of nested mappings and lists with its dotted key."""
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, item in items:
        dotted = f"{path}.{key}" if path else str(key)
        yield dotted, item
        yield from _entries(dotted, item)


def refuse_impossible_sweep(overrides: Sequence[Override]) -> None:
    """Refuse a sweep over no values or over more than MOST_POINTS points."""
    total = 1.0
    for override in overrides:
        if not override.is_discrete_sweep():
            continue
        try:
            number = _number_of_values(override)
        except (ValueError, TypeError) as error:
            raise UserError(f"{override.input_line}: {error}") from error
        if number == 0:
            raise UserError(f"{override.input_line} sweeps over no values; list at least one")
        total *= number
        if not total <= MOST_POINTS:  # also true of NaN
            raise UserError(
                f"{override.input_line} makes more than {MOST_POINTS} points; use fewer values"
            )


def _number_of_values(override: Override) -> float:
    """Count the values of a sweep without listing a range, which may be infinite."""
    sweep = override.value()
    if isinstance(sweep, RangeSweep):
        start, stop, step = (float(v or 0) for v in (sweep.start, sweep.stop, sweep.step))
        if not step:
            raise ValueError("a step of 0 never ends")
        length = (stop - start) / step
        return max(0, math.ceil(length)) if math.isfinite(length) else math.inf
    return float(sum(1 for _ in override.sweep_iterator()))
