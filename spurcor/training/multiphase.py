"""What methods of more than one phase have in common.

A phase finds something out in `end`, leaves it in a table of the method, and the next one begins
with fresh weights in `setup`: both are as they were when a run is resumed.
"""

import torch
from torch import Tensor

from spurcor.data.groups import DataInfo, Split
from spurcor.training.method import Method, RunContext, untouched
from spurcor.training.metrics import apply


def logits_of(method: Method, run: RunContext, split: str = Split.TRAIN) -> Tensor:
    """Logits (N, K) of a split's un-augmented images, in its order; leaves no trace on training."""
    with untouched(method):
        return apply(method.predict, run.splits[split], run.splits.transform)


def keep_table(method: Method, name: str, info: DataInfo, fill: float) -> None:
    """Give a method a table (N,) of the samples of TRAIN, for its constructor.

    `fill` says what is in it at first, and with that its type: `False`, `0` or `0.0`. Phases write
    into it by `copy_`. It is a buffer: on the device of the weights, in every checkpoint, and so
    what it was when a run is resumed. A batch's part of it is `table[batch.index]`.
    """
    method.register_buffer(name, torch.full((info.num_train,), fill))


def restart(method: Method, run: RunContext, draw: int = 0) -> None:
    """Give backbone and head the weights that the method was made with, for a phase's `setup`.

    With `draw` they are others, drawn by the run's seed and that number, where they are drawn at
    all: pretrained ones come back. Tables and further parts of the method stay as they are. On
    resume the weights of the checkpoint follow, as they do after every `setup`.
    """
    assert run.untrained is not None, "made by runs.build.context_of"
    fresh = run.untrained(draw)
    method.backbone.load_state_dict(fresh.backbone.state_dict())
    method.head.load_state_dict(fresh.head.state_dict())
