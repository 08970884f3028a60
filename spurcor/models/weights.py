"""Files of network weights, independent of the parametrizations in place when they were written."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spurcor.errors import Damaged, UserError
from spurcor.system.files import decoding, replacing


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write weights and buffers as safetensors."""
    tensors = {name: value.contiguous() for name, value in state.items()}
    with replacing(path) as beside:
        beside.write_bytes(serialise(tensors))


def load_state(path: Path) -> dict[str, Tensor]:
    """Return the state dict that `save_weights` wrote."""
    with decoding(path):
        return load_file(path)


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a file that `save_weights` wrote into a module.

    Parametrizations are removed first, since the file holds plain weights.
    """
    _fill(module, load_state(path), path)


def load_under(module: nn.Module, path: Path) -> None:
    """Load a file that `save_weights` wrote, keeping the module's parametrizations.

    The parametrizations must leave the loaded weights as they are, as an unchanged mask does;
    otherwise a `UserError` is raised.
    """
    state, own = load_state(path), module.state_dict()
    kept = {n: v for n, v in own.items() if plain_name(n) != n and not n.endswith(".original")}
    place = {plain_name(name): name for name in own}
    _load(module, {**kept, **{place.get(n, n): v for n, v in state.items()}}, path)
    if any(not torch.equal(value, state[name]) for name, value in snapshot(module).items()):
        raise UserError(f"{path} was written under different masks than the current ones")


def _fill(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    make_plain(module)
    _load(module, state, path)


def _load(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        raise Damaged(path, f"does not contain the weights of this run ({said})") from error


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of weights and buffers on the CPU, by their plain names."""
    found: dict[str, Tensor] = {}
    with torch.no_grad(), _evaluating(module):
        for path, value in module.state_dict().items():
            name = plain_name(path)
            if path.endswith(".original"):
                owner, _, tensor = name.rpartition(".")
                value = getattr(module.get_submodule(owner), tensor)
            elif name != path:  # belongs to a parametrization
                continue
            found[name] = value.detach().cpu().clone()
    return found


def make_plain(module: nn.Module) -> None:
    """Replace every parametrized weight by its value in eval mode, without parametrization."""
    with _evaluating(module):
        for part in list(module.modules()):
            if parametrize.is_parametrized(part):
                for name in list(part.parametrizations):  # type: ignore[arg-type]
                    parametrize.remove_parametrizations(part, name)


def plain_name(path: str) -> str:
    """Return the plain name: `conv.weight` for `conv.parametrizations.weight.original`."""
    return path.removesuffix(".original").replace("parametrizations.", "")


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
