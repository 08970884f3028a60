"""Explain errors of Hydra and OmegaConf in one sentence that names key, value and fix."""

import difflib
import re
import shlex
import traceback

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spurcor.config import check, packages
from spurcor.errors import UserError
from spurcor.system import places


def explain(error: BaseException, config_name: str, overrides: list[str]) -> str:
    """Return the message for an error that overrides of a configuration raised."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        return f"{group}={name} does not exist; choose one of {', '.join(sorted(error.options))}"
    if match := re.search(r"Could not (?:load|find) '([^']+)'", text):
        return _missing_option(match[1])
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if match := re.search(r"(Ambiguous value for argument|Sweep parameters) '(.*?)'\s", text):
        return _several_values(match[2], listed=match[1].startswith("Ambiguous"))
    if match := re.search(r"Could not (?:override|delete from config\. ) ?'([^']+)'", text):
        inner = re.search(r"full_key: (\S+)", f"{text}\n{error.__cause__}")
        key = inner[1] if inner and inner[1].startswith(f"{match[1]}.") else match[1]
        return unknown_override(key, config_name, overrides)
    if match := re.search(r"An item is already at '([^']+)'", text):
        return _added_twice(match[1], overrides)
    return _first_words(error)


def is_group(name: str) -> bool:
    """Return whether `name` is a config group, a folder of options."""
    return any((folder / name).is_dir() for folder in packages.conf_folders())


def _first_words(error: BaseException) -> str:
    """Return the most informative line of an error from Hydra or one of its libraries."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, HydraException | OmegaConfBaseException):
        said = lines[: 2 if lines and lines[0].endswith(":") else 1] or [type(error).__name__]
        cause = str(error.__cause__ or "").strip().splitlines()
        return " ".join(said) + "".join(f": {line}" for line in cause[:1] if line not in said[0])
    where = traceback.extract_tb(error.__traceback__)[-1].line  # for an assertion without a message
    return f"Hydra cannot do this ({type(error).__name__}: {' '.join(lines[:3]) or where})"


def _several_values(override: str, *, listed: bool) -> str:
    """Return the message for several values where one is expected."""
    key, _, value = override.partition("=")
    hint = f", or write {key}=[{value}] if you mean a list" if listed else ""
    return f"{override} gives several values; add -m to run each of them{hint}"


def _unreadable(error: OverrideParseException) -> str:
    """Return where Hydra fails to parse an override, and how to quote the value."""
    override, text = error.override, str(error.message)
    key, equals, value = override.partition("=")
    if "\r" in override or "\n" in override:
        return (
            f"{override} contains a line break; save a script with Windows line endings (\\r\\n)"
            " with Unix ones (\\n)"
        )
    if not equals:
        return f"{override} has no value; write {override}=..."
    if error.__cause__ is not None:
        return f"{override} cannot be read: {str(error.__cause__).splitlines()[0]}"
    escaped = value.replace('"', '\\"')
    quoted = shlex.quote(f'{key}="{escaped}"')
    return (
        f"{override} cannot be read{_place(text)}; to pass it literally, quote it twice: {quoted}"
    )


def _place(text: str) -> str:
    """Return where Hydra's parser failed, from its message; empty if it does not say."""
    caret = [line.index("^") for line in text.split("\n") if line.strip() == "^"]
    if caret:  # points into the first line
        return f" at {text.split(chr(10))[0][caret[0]]}"
    match = re.search(r"(?:extraneous|mismatched) input '(.*?)'", text)
    if match and match[1] != "<EOF>":
        return f" at {match[1]}"
    match = re.search(r"no viable alternative at input '(.*)'", text)
    return f" after {match[1]}" if match else ""


def _missing_option(path: str) -> str:
    """Return the message for an option without a file, also for one of several or a nested one."""
    group, _, name = path.rpartition("/")
    while not is_group(group):
        group, _, end = group.rpartition("/")
        name = f"{end}/{name}"
    options = sorted(
        str(file.relative_to(folder / group).with_suffix(""))
        for folder in packages.conf_folders()
        for file in (folder / group).rglob("*.yaml")
    )
    return f"{group}={name} does not exist; choose one of {', '.join(options)}"


def _added_twice(key: str, overrides: list[str]) -> str:
    """Return the message for a + before an existing key, such as +sweep instead of +sweeps."""
    typed = next(o for o in overrides if o.lstrip("+").partition("=")[0] == key)
    value = typed.partition("=")[2]
    if key == "sweep" and (places.REPO / "sweeps" / f"{value}.yaml").exists():
        return f"{typed}: sweep names the sweep; to run the sweep file, use +sweeps={value}"
    return f"{typed}: {key} already exists; use {key}={value}"


def unknown_override(key: str, config_name: str, overrides: list[str]) -> str:
    """Return the message for an unknown key: the options that have it, or a similar key."""
    parent, _, name = key.rpartition(".")
    group, chosen, names, unlisted = parent.replace(".", "/"), None, [], []
    beside = f"{parent}." if parent else key
    whole = "" if is_group(group) else parent  # an override of the parent may set the key
    keys = {one: one.lstrip("+~").partition("=")[0] for one in overrides if "," not in one}
    others = [o for o, typed in keys.items() if not typed.startswith(beside) and typed != whole]
    with initialize_config_dir(str(places.CONF), version_base="1.3"):
        try:
            composed = compose(config_name, others, return_hydra_config=True)
            chosen = composed.hydra.runtime.choices.get(group)
            node = OmegaConf.select(composed, parent) if parent else composed
            names = [str(each) for each in node if each not in ("_target_", "hydra")]
            if "_target_" in node:
                taken = check.arguments_of(node["_target_"], parent)
                unlisted = [each for each in taken if each not in names]
        except (HydraException, OmegaConfBaseException, UserError, TypeError):
            pass
    if name in unlisted:
        return f"{group}={chosen} does not list {key}, which has its default; set it by +{key}=..."
    folders = packages.conf_folders() if chosen else []
    files = sorted(path for folder in folders for path in (folder / group).glob("*.yaml"))
    takers = [
        path.stem
        for path in files
        if name in (yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    ]
    if takers:
        return (
            f"{group}={chosen} has no key {key}; to set it, also pass"
            f" {' or '.join(f'{group}={taker}' for taker in takers)}"
        )
    if (near := difflib.get_close_matches(name, [*names, *unlisted], 1)) and near[0] in unlisted:
        return f"unknown key {key}; did you mean +{parent}.{near[0]}?"
    return check.unknown_key(key, [*names, *unlisted])
