"""Published weights: from the user's file, from torch's cache, or downloaded."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from spurcor.config.nodes import Node, locate
from spurcor.data.groups import DataInfo
from spurcor.errors import Damaged, UserError
from spurcor.system.files import decoding

SHOWN = 3  # mismatches listed in a message


def state_of(pretrained: str, name: str, url: str) -> dict[str, Tensor]:
    """Return the state dict that `backbone.pretrained` refers to, never a substitute.

    `name` stands for the weights published at `url`; any other value is the path of a file. Raises
    a `UserError` if the weights cannot be found, read or downloaded.
    """
    return _published(pretrained, url) if pretrained == name else _read(pretrained, name, url)


def refuse_missing(node: Node, info: DataInfo) -> None:
    """Refuse unavailable weights, or those of another backbone, before images are decoded.

    `info` describes the decoded images. Files in torch's cache count as verified.
    """
    pretrained = node.arguments.get("pretrained", "none")
    found = locate(node.target).published(**node.arguments)  # type: ignore[attr-defined]
    if pretrained == "none" or found is None:
        return
    name, url = found
    if pretrained == name and (_cache() / url.rpartition("/")[2]).is_file():
        return
    with torch.random.fork_rng():
        node.build(info=info)


def _cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def fill(network: nn.Module, state: Mapping[str, Tensor], pretrained: str, what: str) -> None:
    """Load a state dict, or raise a `UserError` with the names and shapes that do not match."""
    own = network.state_dict()
    problems = []
    for name, value in own.items():
        if name in state and state[name].shape != value.shape:
            problems.append(f"{name} is {_shape(state[name])}, not {_shape(value)}")
        elif name not in state and not name.endswith("num_batches_tracked"):  # older files lack it
            problems.append(f"{name} is missing")
    problems += [f"{name} is unknown" for name in state if name not in own]
    if problems:
        more = ", ..." if len(problems) > SHOWN else ""
        raise UserError(
            f"backbone.pretrained={pretrained} does not contain the weights of {what}:"
            f" {', '.join(problems[:SHOWN])}{more}"
        )
    network.load_state_dict(state, strict=False)


def _shape(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "a number"


def _read(pretrained: str, name: str, url: str) -> dict[str, Tensor]:
    path = Path(pretrained).expanduser()
    if not path.is_file():
        raise UserError(
            f"backbone.pretrained={pretrained} is not a file; use {name}, none, or the path of a"
            f" copy of {url}"
        )
    try:
        with decoding(path):
            if path.suffix == ".safetensors":
                return load_file(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Damaged as error:
        raise UserError(
            f"backbone.pretrained={pretrained} cannot be read as a state dict"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"backbone.pretrained={pretrained} is not a state dict of tensors")
    return state


def _published(pretrained: str, url: str) -> dict[str, Tensor]:
    """Load from torch's cache or download into it; a hash in the file's name is verified."""
    try:
        state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", check_hash=True, weights_only=True
        )
    except Exception as error:  # network, cache and decoder raise many types
        folder = _cache()
        raise UserError(
            f"backbone.pretrained={pretrained} needs {url.rpartition('/')[2]}, which is not in"
            f" {folder} and cannot be downloaded here; get it from {url} and put it there, or set"
            " backbone.pretrained to its path (none starts from random weights)"
        ) from error
    return state
