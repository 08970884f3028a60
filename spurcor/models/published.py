"""State dicts of weights: a user's file, a package, a cache, or a download."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from spurcor.errors import Damaged, UserError
from spurcor.system.files import decoding

State = dict[str, Tensor]
# Keys under which training scripts keep the state dict in a checkpoint.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")


@dataclass(frozen=True)
class Published:
    """Weights that `pretrained` calls by a name, and how to get them."""

    name: str
    url: str
    fetch: Callable[[], State]  # from a package or a cache, else by download
    is_here: Callable[[], bool]  # whether `fetch` needs no network
    where: str  # the file and the place where `fetch` looks for it, in an error message
    otherwise: str = ""  # another way to get them, the end of an error message

    def state(self, pretrained: str) -> State:
        """Return the state dict that `backbone.pretrained` refers to, never a substitute.

        Raises a `UserError` if the weights cannot be found, read or downloaded.
        """
        if pretrained != self.name:
            return self._read(pretrained)
        try:
            return self.fetch()
        except Exception as error:  # network, cache and decoder raise many types
            raise UserError(
                f"backbone.pretrained={pretrained} needs {self.where} and cannot be downloaded"
                f" here; get it from {self.url} and put it there, or set backbone.pretrained to"
                f" its path (none starts from random weights){self.otherwise}"
            ) from error

    def _read(self, pretrained: str) -> State:
        path = Path(pretrained).expanduser()
        if not path.is_file():
            raise UserError(
                f"backbone.pretrained={pretrained} is not a file; use {self.name}, none, or the"
                f" path of a copy of {self.url}"
            )
        try:
            with decoding(path):
                if path.suffix == ".safetensors":
                    return load_file(path)
                loaded = torch.load(path, map_location="cpu", weights_only=True)
        except Damaged as error:
            raise UserError(
                f"backbone.pretrained={pretrained} cannot be read as a state dict"
                f"{_hint(error.__cause__)}"
            ) from error
        return _unwrapped(loaded, pretrained)


def on_the_web(name: str, url: str, otherwise: str = "") -> Published:
    """Return weights in torch's cache or at `url`; a hash in the file's name is verified."""
    file = url.rpartition("/")[2]

    def fetch() -> State:
        state: State = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", check_hash=True, weights_only=True
        )
        return state

    def is_here() -> bool:
        return (_cache() / file).is_file()

    where = f"{file}, which is not in {_cache()}"
    return Published(name, url, fetch, is_here, where, otherwise)


def in_package(package: str, file: str) -> Path | None:
    """Return the file of an installed package, which is not imported, or None."""
    found = importlib.util.find_spec(package)
    places = found.submodule_search_locations if found is not None else None
    path = Path(next(iter(places or [""]))) / file
    return path if path.is_file() else None


def _cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _hint(error: BaseException | None) -> str:
    """Return what to do about a checkpoint that holds objects whose loading could run code."""
    if "Unsupported" not in str(error):
        return ""
    return (
        ": it also holds other Python objects, and loading these could run code; save its tensors"
        " alone, as in torch.save(checkpoint['state_dict'], 'weights.pth')"
    )


def _unwrapped(loaded: Any, pretrained: str) -> State:
    """Return the tensors by name, from wherever a checkpoint keeps them."""
    while isinstance(loaded, Mapping):
        tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
        inner = next((key for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            if not tensors:
                break
            return tensors
        loaded = loaded[inner]
    raise UserError(f"backbone.pretrained={pretrained} is not a state dict of tensors")
