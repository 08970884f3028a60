"""Passwords in addresses: used and passed on in the environment, but never saved or shown.

Saved addresses contain `***` instead of the password. Code that needs the password looks up the
matching full address in the environment, which child processes and jobs inherit.
"""

import os
import re
from collections.abc import Iterator
from typing import Any

from spurcor.errors import UserError

MASK = "***"
VARIABLES = ("SPURCOR_ADDRESSES", "MLFLOW_TRACKING_URI")  # the first has one address per line
# From the user name to the last @ of the address, since a password may contain an unencoded @.
_REST = r"(?:(?!\w+://)\S)*@"
_PASSWORD = re.compile(rf"((?<!http)(?<!https)://[^/?#\s:@]*):{_REST}")
_WEB_PASSWORD = re.compile(rf"(https?://[^/?#\s:@]*):(?!\d+(?:[/?#]|$)){_REST}")  # not a port
_BARE_PASSWORD = re.compile(r"(?<=[=,'\"\s])(\w[\w.%+-]*):[^\s/@]+@(?=[\w.-]+:\d)")  # no scheme
_TOKEN = re.compile(r"(https?://)[^/?#\s:@]+@")  # instead of name and password
_QUERY = re.compile(
    r"([?&;][^=&;\s]*(?:pass|pwd|token|secret|key|sig|auth|cred)[^=&;\s]*=)[^&;#\s\"']+", re.I
)


def masked(text: str) -> str:
    """Return a text with its passwords and tokens masked."""
    for pattern in (_PASSWORD, _WEB_PASSWORD, _BARE_PASSWORD):
        text = pattern.sub(rf"\1:{MASK}@", text)
    text = _TOKEN.sub(rf"\1{MASK}@", text)
    return _QUERY.sub(rf"\1{MASK}", text)


def kept(address: str) -> str:
    """Return an address with its password masked; the full one is kept in the environment."""
    hidden = masked(address)
    if hidden != address:
        known = dict.fromkeys([address, *os.environ.get(VARIABLES[0], "").splitlines()])
        os.environ[VARIABLES[0]] = "\n".join(known)
    return hidden


def whole(address: str, key: str) -> str:
    """Return the full address for a masked one, from `kept` or the user's environment.

    Raises UserError if neither has it.
    """
    if MASK not in address:
        return address
    for variable in VARIABLES:
        for known in os.environ.get(variable, "").splitlines():
            if masked(known) == address:
                return known
    raise UserError(
        f"{key}={address} needs a password, and passwords are never saved; set MLFLOW_TRACKING_URI"
        " to the full address"
    )


def hidden(override: str) -> str:
    """Return a command-line override with passwords masked, after passing its values to `kept`."""
    if masked(override) == override:
        return override
    for value in _values(override):
        kept(value)
    return masked(override)


def _values(override: str) -> Iterator[str]:
    """Yield the strings in an override, or in each value of a sweep."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        (parsed,) = OverridesParser.create().parse_overrides([override])
    except HydraException:  # reported later, for the masked override
        return
    if parsed.is_sweep_override():
        for value in parsed.sweep_string_iterator():
            yield from _values(f"value={value}")
    else:
        yield from _texts(parsed.value())


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)
    elif value is not None:
        yield str(value)
