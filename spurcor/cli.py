"""Command-line entry points: arguments, Hydra and exit codes.

Exit code 0 means success, 1 that the run or sweep failed, 2 a user error, which is reported in one
sentence, and 128 + n that signal n stopped the command.
"""

import argparse
import io
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spurcor.config import composition, packages, resolvers
from spurcor.config.explain import explain, is_group
from spurcor.errors import PointError, RunError, UserError, of_system
from spurcor.launchers.hydra import PLUGINS
from spurcor.system import places
from spurcor.system.passwords import hidden, masked
from spurcor.system.signals import Interrupted, interrupting

EXPECTED = (UserError, RunError, PointError, HydraException, OmegaConfBaseException)


def run(main: Callable[[DictConfig], int], config_name: str) -> int:
    """Compose the configuration `config_name`, pass it to `main`, and return the exit code."""
    show_trace = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise, so that we report the error
    _mend_streams()
    command = _Command(main, config_name)
    try:
        command.carry_out()
        sys.stdout.flush()
        return command.code
    except Interrupted as interrupted:
        print(f"spurcor: {interrupted}", file=sys.stderr)
        return interrupted.exit_code
    except KeyboardInterrupt:
        print("spurcor: interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader closed the pipe, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return command.code
    except Exception as error:
        system = isinstance(error, OSError) and not isinstance(error, HydraException)
        if show_trace or not (system or isinstance(error, EXPECTED) or _from_hydra(error)):
            raise
        if isinstance(error, OSError) and system:
            return _tell_system(error)
        return _tell(error, command)
    except SystemExit as ended:  # Hydra has printed the reason
        if ended.code != 1 or not _from_hydra(ended):
            raise
        return 2
    finally:
        if not show_trace:
            del os.environ["HYDRA_FULL_ERROR"]


def _tell(error: Exception, command: "_Command") -> int:
    """Print the error in one sentence and return the exit code."""
    if not isinstance(error, UserError | RunError | PointError):
        # Hydra wraps errors raised while it instantiates a launcher.
        error = error.__cause__ if isinstance(error.__cause__, UserError) else error
    print(f"spurcor: {masked(_one_line(_sentence(error, command)))}", file=sys.stderr)
    return 1 if isinstance(error, RunError) else 2


def _tell_system(error: OSError) -> int:
    """Print an operating-system error in one sentence and return the exit code."""
    try:
        sys.stdout.flush()
    except OSError:  # disk full: Python would flush, and fail, again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    told = of_system(error)
    print(f"spurcor: {told}", file=sys.stderr)
    return 1 if isinstance(told, RunError) else 2


class _Command:
    """A command line, carried out by Hydra, which calls `main` with the composed configuration."""

    def __init__(self, main: Callable[[DictConfig], int], config_name: str) -> None:
        self.main, self.config_name = main, config_name
        self.overrides: list[str] = []
        self.code = 0
        self._refused: UserError | RunError | OSError | None = None

    def carry_out(self) -> None:
        """Parse the arguments and print the help or run the command; errors are raised."""
        sys.argv[1:] = map(hidden, packages.take(sys.argv[1:]))
        resolvers.register()
        composition.install()
        arguments = get_args_parser().parse_intermixed_args(sys.argv[1:])
        self.overrides = list(arguments.overrides)
        self.config_name = arguments.config_name or self.config_name
        _refuse_flags(arguments)
        for override in self.overrides:
            _refuse_no_option(override)
        if arguments.help:
            print(_help(self.config_name, self.overrides))
            return
        Plugins.instance().class_name_to_class.update(PLUGINS)
        sys.argv[1:] = ["--hydra-help"] if arguments.hydra_help else _flags_first(sys.argv[1:])
        decorate = hydra.main(
            version_base="1.3", config_path=str(places.CONF), config_name=self.config_name
        )
        with interrupting():
            decorate(self._task)()
        if self._refused is not None:
            raise self._refused

    def _task(self, cfg: DictConfig) -> None:
        """Run `main`; called by Hydra for a single run, or by a launcher that is not spurcor's."""
        try:
            self.code = max(self.code, self.main(cfg))
            if self.code and _is_job():
                raise RunError(f"the run ended with exit code {self.code}")
        except BrokenPipeError:
            raise
        except (UserError, RunError, OSError) as error:  # Hydra would print its own message
            if _is_job():
                raise
            self._refused = error


def _mend_streams() -> None:
    """Make printing safe: send closed streams to null, replace unencodable characters with ?."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # or the next file opened would get this descriptor
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _refuse_flags(arguments: argparse.Namespace) -> None:
    """Refuse Hydra flags that load code or replace spurcor's configuration."""
    if arguments.experimental_rerun is not None:
        raise UserError(
            f"--experimental-rerun {arguments.experimental_rerun} would load a pickle, which may"
            " run anything; repeat the command that made it"
        )
    if arguments.config_path is not None:
        raise UserError(
            f"--config-path {arguments.config_path} would replace spurcor's configuration; use"
            " --config-dir to add a folder of your own"
        )


def _refuse_no_option(override: str) -> None:
    """Refuse a value that cannot name an option of its config group; Hydra would crash on it."""
    (parsed,) = OverridesParser.create().parse_overrides([override])
    key = parsed.key_or_group
    if key == "hydra" and not parsed.is_delete():
        raise UserError(
            f"{override} would replace all of Hydra's options; set a single one, such as"
            " hydra.run.dir"
        )
    if parsed.is_sweep_override() or "." in key or not is_group(key):
        return
    value = parsed.value()
    named = isinstance(value, str) or (value is None and parsed.is_delete())
    several = isinstance(value, list) and all(isinstance(one, str) for one in value)
    if not (named or (several and not parsed.is_delete())):
        options = packages.options(key)
        raise UserError(f"{override} is not an option; choose one of {', '.join(options)}")


def _from_hydra(error: BaseException) -> bool:
    """Return whether Hydra itself rejected the configuration, not spurcor code that it called."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    package = Path(__file__).parent
    ours = [Path(file).stem for file in files if package in Path(file).parents]
    return ours[-1:] in (["cli"], ["composition"])


def _is_job() -> bool:
    """Return whether a foreign launcher runs this as a job; it sees a failure only if we raise."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _help(config_name: str, overrides: list[str]) -> str:
    """Return the help text: usage, config groups with their options, composed configuration.

    Hydra's own help composes the configuration once per group, which takes seconds.
    """
    with initialize_config_dir(str(places.CONF), version_base="1.3"):
        composed = compose(config_name, overrides)
    header = (
        (places.CONF / f"{config_name}.yaml").read_text(encoding="utf-8").split("\ndefaults:")[0]
    )
    groups = []
    for folder in sorted(path for path in places.CONF.iterdir() if path.is_dir()):
        options = packages.options(folder.name)
        if options and folder.name in composed:
            groups.append(f"{folder.name}: {', '.join(options)}")
            for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
                options = sorted(path.stem for path in inner.glob("*.yaml"))
                if len(options) > 1:
                    groups.append(f"{folder.name}/{inner.name}: {', '.join(options)}")
    sweeps = ["/".join(path.with_suffix("").parts[-2:]) for path in resolvers.sweep_files()]
    lines = [line.removeprefix("#").removeprefix(" ") for line in header.splitlines()]
    lines += ["", "Groups, chosen by group=option", *(f"  {group}" for group in groups)]
    if "sweep" in composed and "method" in composed:
        lines += [f"  +sweeps (with -m): {', '.join(sweeps)}"]
    lines += ["", "Configuration, changed by key=value"]
    lines += [f"  {line}" for line in OmegaConf.to_yaml(composed).splitlines()]
    return "\n".join([*lines, "", "Also: --cfg job, --multirun (-m), --hydra-help"])


def _flags_first(arguments: list[str]) -> list[str]:
    """Return the arguments with flags before overrides; Hydra needs all overrides in one block."""
    overrides = get_args_parser().parse_intermixed_args(arguments).overrides
    rest = list(arguments)
    for override in overrides:
        rest.remove(override)
    return rest + list(overrides)


def _sentence(error: BaseException, command: _Command) -> str:
    if isinstance(error, UserError | RunError):
        return str(error)
    if isinstance(error, PointError) and error.__cause__ is not None:
        point = error.overrides
        return f"{' '.join(point)}: {explain(error.__cause__, command.config_name, point)}"
    return explain(error, command.config_name, command.overrides)


def _one_line(text: str) -> str:
    """Return the text with control characters escaped and line breaks kept."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
