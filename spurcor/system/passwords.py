"""Passwords in addresses: used, and handed on in the environment, but never written or shown.

Wherever an address is kept, its password is `***`. What needs the password looks for an address of
the same form in the environment, which child processes and jobs inherit.
"""

import os
import re
from collections.abc import Iterator
from typing import Any

from spurcor.errors import UserError

MASK = "***"
VARIABLES = ("SPURCOR_ADDRESSES", "MLFLOW_TRACKING_URI")  # the first is a list, of a line each
# After the user's name, and up to the last @ of the address: not all passwords are encoded.
_REST = r"(?:(?!\w+://)\S)*@"
_PASSWORD = re.compile(rf"((?<!http)(?<!https)://[^/?#\s:@]*):{_REST}")
_WEB_PASSWORD = re.compile(rf"(https?://[^/?#\s:@]*):(?!\d+(?:[/?#]|$)){_REST}")  # no port
_BARE_PASSWORD = re.compile(r"(?<=[=,'\"\s])(\w[\w.%+-]*):[^\s/@]+@(?=[\w.-]+:\d)")  # no scheme
_TOKEN = re.compile(r"(https?://)[^/?#\s:@]+@")  # in place of a name and a password
_QUERY = re.compile(
    r"([?&;][^=&;\s]*(?:pass|pwd|token|secret|key|sig|auth|cred)[^=&;\s]*=)[^&;#\s\"']+", re.I
)


def masked(text: str) -> str:
    """A text with its passwords masked."""
    for pattern in (_PASSWORD, _WEB_PASSWORD, _BARE_PASSWORD):
        text = pattern.sub(rf"\1:{MASK}@", text)
    text = _TOKEN.sub(rf"\1{MASK}@", text)
    return _QUERY.sub(rf"\1{MASK}", text)


def kept(address: str) -> str:
    """An address with its password masked, which from now on is in the environment."""
    hidden = masked(address)
    if hidden != address:
        known = dict.fromkeys([address, *os.environ.get(VARIABLES[0], "").splitlines()])
        os.environ[VARIABLES[0]] = "\n".join(known)
    return hidden


def whole(address: str, key: str) -> str:
    """The full address, from what `kept` has stored or from the user's environment."""
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
    """An override of the command line, of which addresses are kept, and without their passwords."""
    if masked(override) == override:
        return override
    for value in _values(override):
        kept(value)
    return masked(override)


def _values(override: str) -> Iterator[str]:
    """The texts in an override, and in each value of a sweep."""
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
