"""Pretrained weights into backbones: names matched, nothing left random in silence."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from spurcor.config.nodes import Node, locate
from spurcor.data.groups import DataInfo
from spurcor.errors import UserError
from spurcor.models.published import State

log = logging.getLogger(__name__)

SHOWN = 3  # names listed in a message
# What wrappers of networks put before the names of weights; DataParallel, Lightning and others.
PREFIXES = ("", "module.", "model.", "backbone.", "network.", "net.", "encoder.", "trunk.")


def refuse_missing(node: Node, info: DataInfo) -> None:
    """Refuse unavailable weights, or those of another backbone, before images are decoded.

    `info` describes the decoded images. Files in a cache or a package count as verified.
    """
    pretrained = node.arguments.get("pretrained", "none")
    found = locate(node.target).published(**node.arguments)  # type: ignore[attr-defined]
    if pretrained == "none" or found is None:
        return
    if pretrained == found.name and found.is_here():
        return
    with torch.random.fork_rng():
        node.build(info=info)


def fill(
    network: nn.Module,
    state: Mapping[str, Tensor],
    pretrained: str,
    what: str,
    heads: Sequence[str] = (),
    convert: Callable[[State], State] = dict,
) -> None:
    """Load every weight of a network from a state dict, with or without a wrapper's prefix.

    `convert` renames weights; those of `heads`, and of modules that the network does not have, are
    left out, which is logged. Raises a `UserError` with the names and shapes that do not match.
    """
    own = network.state_dict()
    prefix, converted = _best(state, own, convert)
    modules = {name.partition(".")[0] for name in own}
    left = [name for name in converted if _leads(name, heads)]
    left += [n for n in converted if n.partition(".")[0] not in modules and n not in left]
    found = {name: value for name, value in converted.items() if name not in left}
    problems = []
    for name, value in own.items():
        if name in found and found[name].shape != value.shape:
            problems.append(f"{name} is {_shape(found[name])}, not {_shape(value)}")
        elif name not in found and not name.endswith("num_batches_tracked"):  # older files lack it
            problems.append(f"{name} is missing")
    problems += [f"{name} is unknown" for name in found if name not in own]
    if problems:
        raise UserError(
            f"backbone.pretrained={pretrained} does not contain the weights of {what}:"
            f" {_first(problems)}"
        )
    network.load_state_dict(found, strict=False)
    left += [name for name in state if not name.startswith(prefix)]
    if prefix or any(not _leads(name, heads) for name in left):  # a head is left out as ever
        _tell(pretrained, what, len(found), prefix, _first(left) or "nothing")


def _best(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], convert: Callable[[State], State]
) -> tuple[str, State]:
    """Return the prefix without which most names are the network's own, and the state without."""
    best: tuple[str, State] = "", {}
    most = -1
    for prefix in dict.fromkeys(outer + inner for outer in PREFIXES for inner in PREFIXES):
        names = {n: n.removeprefix(prefix) for n in state if n.startswith(prefix)}
        if not names:
            continue
        try:
            converted = convert({short: state[name] for name, short in names.items()})
        except (LookupError, ValueError, RuntimeError, AttributeError):  # other names
            continue
        if (count := len(own.keys() & converted.keys())) > most:
            best, most = (prefix, converted), count
    return best


def _leads(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


@functools.cache  # once: a run may build a network several times
def _tell(pretrained: str, what: str, count: int, prefix: str, left: str) -> None:
    log.warning(
        "backbone.pretrained=%s: loaded %d tensors into %s%s; ignored: %s",
        pretrained,
        count,
        what,
        f" (their names begin with {prefix})" if prefix else "",
        left,
    )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _shape(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "a number"
