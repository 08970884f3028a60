"""Entry points: argv, Hydra, exit codes.

0 done, 1 the run or the sweep failed, 2 the user's mistake, told in one sentence.
"""

import difflib
import os
import re
import sys
from collections.abc import Callable

import hydra
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spurcor import config, launcher
from spurcor.errors import PointError, RunError, UserError
from spurcor.signals import Interrupted, interrupting


def run(main: Callable[[DictConfig], int], config_name: str) -> int:
    """Compose the configuration named, hand it to `main`; returns the exit code."""
    show_trace = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing: we say what happened
    code = 0
    refused: UserError | RunError | None = None

    def task(cfg: DictConfig) -> None:
        nonlocal code, refused
        try:
            code = max(code, main(cfg))
            if code and _is_job():
                raise RunError(f"the run ended with exit code {code}")
        except (UserError, RunError) as error:  # Hydra would print its own line about it
            if _is_job():
                raise
            refused = error

    overrides: list[str] = []
    try:
        config.register()
        arguments = get_args_parser().parse_intermixed_args(sys.argv[1:])
        overrides = list(arguments.overrides)
        for override in overrides:  # Hydra ends in a traceback over a group that is null
            group, _, value = override.partition("=")
            if value == "null" and (config.CONF / group).is_dir():
                options = sorted(path.stem for path in (config.CONF / group).glob("*.yaml"))
                raise UserError(f"{override} names no option; choose one of {', '.join(options)}")
        if arguments.help:
            print(_help(config_name, overrides))
            return 0
        Plugins.instance().class_name_to_class.update(launcher.PLUGINS)
        sys.argv[1:] = _flags_first(sys.argv[1:])
        composed = hydra.main(
            version_base="1.3", config_path=str(config.CONF), config_name=config_name
        )
        with interrupting():
            composed(task)()
        if refused is not None:
            raise refused
        return code
    except Interrupted as interrupted:
        print(f"spurcor: {interrupted}", file=sys.stderr)
        return interrupted.exit_code
    except KeyboardInterrupt:
        print("spurcor: interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code
    except (UserError, RunError, PointError, HydraException, OmegaConfBaseException) as error:
        if show_trace:
            raise
        wrapped = not isinstance(error, UserError | RunError)
        if wrapped and isinstance(error.__cause__, UserError):  # while Hydra built a launcher
            error = error.__cause__
        sentence = str(error)
        if isinstance(error, PointError) and error.__cause__ is not None:
            point = error.overrides
            sentence = f"{' '.join(point)}: {_explain(error.__cause__, config_name, point)}"
        elif not isinstance(error, UserError | RunError):
            sentence = _explain(error, config_name, overrides)
        print(f"spurcor: {sentence}", file=sys.stderr)
        return 1 if isinstance(error, RunError) else 2
    finally:
        if not show_trace:
            del os.environ["HYDRA_FULL_ERROR"]


def _is_job() -> bool:
    """Whether a launcher that is not ours runs this as a job: it sees what is raised, no more."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _help(config_name: str, overrides: list[str]) -> str:
    """Commands, groups with their options, and the composed configuration.

    Hydra's own help composes anew for every group there is, which takes seconds.
    """
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        composed = compose(config_name, overrides)
    header = (config.CONF / f"{config_name}.yaml").read_text().split("\ndefaults:")[0]
    groups = []
    for folder in sorted(path for path in config.CONF.iterdir() if path.is_dir()):
        options = sorted(path.stem for path in folder.glob("*.yaml"))
        if options and folder.name in composed:
            groups.append(f"{folder.name}: {', '.join(options)}")
            for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
                options = sorted(path.stem for path in inner.glob("*.yaml"))
                if len(options) > 1:
                    groups.append(f"{folder.name}/{inner.name}: {', '.join(options)}")
    sweeps = [str(p.relative_to(config.CONF / "sweeps"))[:-5] for p in config.sweep_files()]
    lines = [line.removeprefix("#").removeprefix(" ") for line in header.splitlines()]
    lines += ["", "Groups, chosen by group=option", *(f"  {group}" for group in groups)]
    if "sweep" in composed and "method" in composed:
        lines += [f"  +sweeps (with -m): {', '.join(sweeps)}"]
    lines += ["", "Configuration, changed by key=value"]
    lines += [f"  {line}" for line in OmegaConf.to_yaml(composed).splitlines()]
    return "\n".join([*lines, "", "Also: --cfg job, --multirun (-m), --hydra-help"])


def _flags_first(arguments: list[str]) -> list[str]:
    """Overrides may stand on both sides of a flag such as -m; Hydra takes them in one block."""
    overrides = get_args_parser().parse_intermixed_args(arguments).overrides
    rest = list(arguments)
    for override in overrides:
        rest.remove(override)
    return rest + list(overrides)


def _explain(error: BaseException, config_name: str, overrides: list[str]) -> str:
    """Hydra's and OmegaConf's errors in one sentence."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        return f"{group}={name} does not exist; choose one of {', '.join(sorted(error.options))}"
    if match := re.search(r"Could not (?:load|find) '([^']+)'", text):
        return _missing_option(match[1])
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be read; quote a value with brackets, commas or spaces"
    if match := re.search(r"Could not (?:override|delete from config\. ) ?'([^']+)'", text):
        return _unknown_override(match[1], config_name, overrides)
    if match := re.search(r"An item is already at '([^']+)'", text):
        return _added_twice(match[1], overrides)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _missing_option(path: str) -> str:
    """Of several options of a group, or of a folder in it: one has no file."""
    group, _, name = path.rpartition("/")
    while not (config.CONF / group).is_dir():
        group, _, end = group.rpartition("/")
        name = f"{end}/{name}"
    options = sorted(
        str(file.relative_to(config.CONF / group).with_suffix(""))
        for file in (config.CONF / group).rglob("*.yaml")
    )
    return f"{group}={name} does not exist; choose one of {', '.join(options)}"


def _added_twice(key: str, overrides: list[str]) -> str:
    """A + before a key that exists; one letter short of +sweeps it is a sweep file."""
    typed = next(o for o in overrides if o.lstrip("+").partition("=")[0] == key)
    value = typed.partition("=")[2]
    if key == "sweep" and (config.REPO / "sweeps" / f"{value}.yaml").exists():
        return f"{typed}: sweep names the sweep; to run the sweep file say +sweeps={value}"
    return f"{typed}: {key} exists already; say {key}={value}"


def _unknown_override(key: str, config_name: str, overrides: list[str]) -> str:
    """Name the options of the group that have the key, or the key nearest to it."""
    parent, _, name = key.rpartition(".")
    group, chosen, names, unlisted = parent.replace(".", "/"), None, [], []
    beside = f"{parent}." if parent else key
    others = [o for o in overrides if not o.lstrip("+~").startswith(beside) and "," not in o]
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        try:
            composed = compose(config_name, others, return_hydra_config=True)
            chosen = composed.hydra.runtime.choices.get(group)
            node = OmegaConf.select(composed, parent) if parent else composed
            names = [str(each) for each in node if each not in ("_target_", "hydra")]
            if "_target_" in node:
                taken = config.arguments_of(node["_target_"], parent)
                unlisted = [each for each in taken if each not in names]
        except (HydraException, OmegaConfBaseException, UserError, TypeError):
            pass
    if name in unlisted:
        return f"{key} has its default, which {group}={chosen} does not list; say +{key}=..."
    files = sorted((config.CONF / group).glob("*.yaml")) if chosen else []
    takers = [path.stem for path in files if name in (yaml.safe_load(path.read_text()) or {})]
    if takers:
        return f"{key} is no key of {group}={chosen}; say {group}={' or '.join(takers)} too"
    if (near := difflib.get_close_matches(name, [*names, *unlisted], 1)) and near[0] in unlisted:
        return f"{key} is no key; did you mean +{parent}.{near[0]}?"
    return config.unknown_key(key, [*names, *unlisted])
