"""Checkpoints: written atomically, loaded without executing code, limited to loadable types.

Weights kept for other runs belong to a plain network: a weight with a torch parametrization is
stored under its plain name with its eval-mode value.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from spurcor.errors import Damaged, RunError, UserError
from spurcor.models.weights import _fill, load_state, make_plain
from spurcor.system.files import decoding, reason, replacing

if TYPE_CHECKING:
    from spurcor.training.method import Method

PLAIN = (Tensor, int, float, str, bool, type(None))


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically; raise TypeError for values that `load` would refuse."""
    _refuse_unloadable(state, "checkpoint")
    with replacing(path) as beside, beside.open("wb") as file:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:  # torch fails to close the file and hides why
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load(path: Path, keys: Collection[str] = ()) -> dict[str, Any]:
    """Load a checkpoint to the CPU without executing code.

    Raises Damaged if the file is unreadable or lacks one of `keys`.
    """
    try:
        with decoding(path):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Damaged as error:  # torch's own message is a paragraph long
        raise Damaged(path, "is not a readable checkpoint") from error
    if not isinstance(state, dict):
        raise Damaged(path, "is not a checkpoint")
    if missing := [key for key in keys if key not in state]:
        raise Damaged(path, f"is not a checkpoint of this version: it lacks {', '.join(missing)}")
    return state


def count_rows(path: Path) -> int:
    """Return the number of rows of metrics.jsonl at the time of a checkpoint."""
    progress = load(path, ("progress",))["progress"]
    if not isinstance(progress, dict) or not isinstance(progress.get("rows"), int):
        raise Damaged(path, "is not a checkpoint of this version: it has no count of rows")
    return int(progress["rows"])


@contextmanager
def of_this_version(path: Path) -> Iterator[None]:
    """Raise UserError if loading the state of a checkpoint fails in this version of the code."""
    try:
        yield
    except (UserError, RunError, torch.cuda.OutOfMemoryError):  # not the checkpoint's fault
        raise
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path} does not fit this version of the code ({reason(error)}); continue"
            " with the one that wrote it, or pass rerun=true to set the run aside and start over"
        ) from error


def load_optimizer(optimizer: Optimizer, path: Path) -> None:
    """Load the optimiser state that a finished phase stored in its `state.pt`."""
    state = load(path, ("optimizer",))
    with of_this_version(path):
        optimizer.load_state_dict(state["optimizer"])


def load_trained(method: "Method", path: Path) -> None:
    """Load the backbone and head of another method from its weights file.

    Backbone weights that the file lacks keep their current values where `Backbone.fresh` allows it.
    The head is then not loaded either, since it has yet to learn what the new weights represent.
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


def random_state() -> dict[str, Any]:
    """Return the state of torch's global generators, the only global ones spurcor draws from."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Restore `random_state`; CUDA generators are skipped if the number of devices differs."""
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
