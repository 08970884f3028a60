"""Type hints of options: which values they allow, and how to describe these."""

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

# Singular and plural descriptions of plain types, in the order in which they are listed.
PLAIN = {
    float: ("a number", "numbers"),
    int: ("an integer", "integers"),
    bool: ("true or false", "true or false"),
    str: ("a string", "strings"),
}


def allowed_types(hint: Any) -> set[Any]:
    """Return the types that a hint allows, including each member of a union."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return {kind for arg in typing.get_args(hint) for kind in allowed_types(arg)}
    if typing.get_origin(hint) is Literal:
        return {type(choice) for choice in typing.get_args(hint)}
    return {hint}


def choices(hint: Any) -> Iterator[Any]:
    """Yield the values that a hint lists in a `Literal`, at any depth."""
    if typing.get_origin(hint) is Literal:
        yield from typing.get_args(hint)
    for argument in typing.get_args(hint):
        yield from choices(argument)


def describe(hint: Any) -> str:
    """Return a description of the values that a hint allows, as the end of a sentence."""
    if listed := list(choices(hint)):
        return "one of " + ", ".join(map(str, listed))
    allowed = allowed_types(hint)
    known = [one for kind, (one, _) in PLAIN.items() if kind in allowed]
    known += [f"a list of {_several(kind)}" for kind in allowed if _element(kind) is not None]
    if types.NoneType in allowed:
        known.append("null")
    if known:
        return " or ".join(known)
    for kind in allowed:
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return f"a mapping of {', '.join(field.name for field in dataclasses.fields(kind))}"
    return f"a value of type {getattr(hint, '__name__', hint)}".replace("typing.", "")


def _element(hint: Any) -> Any:
    """Return the element type of a list or tuple hint; None for any other hint."""
    holds = typing.get_args(hint) if typing.get_origin(hint) in (list, tuple) else ()
    return holds[0] if holds else None


def _several(hint: Any) -> str:
    inner = _element(hint)
    return PLAIN[inner][1] if inner in PLAIN else f"lists of {_several(inner)}"
