"""Checkpoints that are whole, execute nothing, and refuse what they could not load.

What is kept of a run for others is a plain network: a weight that torch parametrizes is written as
it acts in eval mode, under its own name.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spurcor.errors import Damaged, RunError, UserError
from spurcor.files import decoding, reason, replacing

if TYPE_CHECKING:
    from spurcor.method import Method

PLAIN = (Tensor, int, float, str, bool, type(None))


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint as a whole."""
    _refuse_unloadable(state, "checkpoint")
    with replacing(path) as beside, beside.open("wb") as file:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:  # torch's own, about the file that it could not end either
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load(path: Path, keys: Collection[str] = ()) -> dict[str, Any]:
    """Read a checkpoint to the CPU, which must have `keys`; nothing in it is executed."""
    try:
        with decoding(path):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Damaged as error:  # of whose reason torch's own makes a paragraph
        raise Damaged(path, "is not a readable checkpoint") from error
    if not isinstance(state, dict):
        raise Damaged(path, "is no checkpoint")
    if missing := [key for key in keys if key not in state]:
        raise Damaged(path, f"is no checkpoint of this version: it lacks {', '.join(missing)}")
    return state


@contextmanager
def of_this_version(path: Path) -> Iterator[None]:
    """A checkpoint whose state the code does not know any more is told in a sentence."""
    try:
        yield
    except (UserError, RunError, torch.cuda.OutOfMemoryError):  # not the checkpoint's fault
        raise
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path} does not fit this version of the code ({reason(error)}); go on with the one"
            " that wrote it, or rerun=true sets the run aside and starts over"
        ) from error


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write weights and buffers as safetensors."""
    tensors = {name: value.contiguous() for name, value in state.items()}
    with replacing(path) as beside:
        beside.write_bytes(serialise(tensors))


def load_state(path: Path) -> dict[str, Tensor]:
    """Read what `save_weights` wrote."""
    with decoding(path):
        return load_file(path)


def load_weights(module: nn.Module, path: Path) -> None:
    """Load what `save_weights` wrote.

    What was parametrized is a plain weight afterwards, since it is the plain one that was written.
    """
    _fill(module, load_state(path), path)


def load_trained(method: "Method", path: Path) -> None:
    """Load backbone and head of another method.

    What its backbone has no weights for, where that is allowed (`Backbone.fresh`), stays as it is,
    and so does the head, which would have to learn what it means.
    """
    state = load_state(path)
    make_plain(method)
    own = method.backbone.state_dict()
    fresh = {n: v for n, v in own.items() if n.startswith(method.backbone.fresh)}
    missing = {n: v for n, v in fresh.items() if f"backbone.{n}" not in state}
    _fill(method.backbone, {**_part(state, "backbone."), **missing}, path)
    if not missing:
        _fill(method.head, _part(state, "head."), path)


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}


def load_under(module: nn.Module, path: Path) -> None:
    """Load what `save_weights` wrote, below the parametrizations that the module has and keeps.

    They must leave alone what they made: a fixed mask does, one that changed since does not.
    """
    state, own = load_state(path), module.state_dict()
    kept = {n: v for n, v in own.items() if plain_name(n) != n and not n.endswith(".original")}
    place = {plain_name(name): name for name in own}
    _load(module, {**kept, **{place.get(n, n): v for n, v in state.items()}}, path)
    if any(not torch.equal(value, state[name]) for name, value in snapshot(module).items()):
        raise UserError(f"{path} was written under other masks than those that are in force now")


def _fill(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    make_plain(module)
    _load(module, state, path)


def _load(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        raise Damaged(path, f"does not hold the weights of this run ({said})") from error


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of weights and buffers on the CPU, by their plain names."""
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
    """Leave every parametrized weight as it acts in eval mode, without its parametrization."""
    with _evaluating(module):
        for part in list(module.modules()):
            if parametrize.is_parametrized(part):
                for name in list(part.parametrizations):  # type: ignore[arg-type]
                    parametrize.remove_parametrizations(part, name)


def plain_name(path: str) -> str:
    """`conv.weight` of `conv.parametrizations.weight.original`."""
    return path.removesuffix(".original").replace("parametrizations.", "")


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def random_state() -> dict[str, Any]:
    """The state of torch's global generators, the only global ones that spurcor draws from."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Continue from `random_state`; generators of absent devices are left alone."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _refuse_unloadable(value: Any, path: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_unloadable(key, f"the key {key!r} of {path}")
            _refuse_unloadable(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _refuse_unloadable(item, f"{path}[{i}]")
    elif type(value) not in PLAIN and not isinstance(value, Tensor):
        raise TypeError(f"{path} is a {type(value).__name__}, which weights_only loading refuses")
