"""Checkpoints that are whole, execute nothing, and refuse what they could not load.

What is kept of a run for others is a plain network: a weight that torch parametrizes is written as
it acts in eval mode, under its own name.
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
        raise Damaged(path, f"is not a checkpoint of this version: it lacks {', '.join(missing)}")
    return state


def count_rows(path: Path) -> int:
    """How many rows of metrics.jsonl a checkpoint counts."""
    progress = load(path, ("progress",))["progress"]
    if not isinstance(progress, dict) or not isinstance(progress.get("rows"), int):
        raise Damaged(path, "is not a checkpoint of this version: it has no count of rows")
    return int(progress["rows"])


@contextmanager
def of_this_version(path: Path) -> Iterator[None]:
    """A checkpoint whose state the code does not know any more is told in a sentence."""
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
    """Go on with what an optimiser has gathered in a phase whose `state_dict` was kept."""
    state = load(path, ("optimizer",))
    with of_this_version(path):
        optimizer.load_state_dict(state["optimizer"])


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
