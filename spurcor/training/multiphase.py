"""Building blocks of methods with more than one phase.

A phase computes something in `end` and stores it in a table of the method; the next phase reads the
table and restarts from fresh weights in `setup`. Both survive a resume.
"""

import torch
from torch import Tensor

from spurcor.data.groups import DataInfo, Split
from spurcor.training.method import Method, RunContext, untouched
from spurcor.training.metrics import apply


def logits_of(method: Method, run: RunContext, split: str = Split.TRAIN) -> Tensor:
    """Return logits (N, K) of a split's un-augmented images, in order; training is not affected."""
    with untouched(method):
        return apply(method.predict, run.splits[split], run.splits.transform)


def keep_table(method: Method, name: str, info: DataInfo, fill: float) -> None:
    """Register a table (N,) of the samples of TRAIN on a method; call it in the constructor.

    `fill` sets the initial value and, with it, the type: `False`, `0` or `0.0`. Phases write to the
    table by `copy_`. It is a buffer, so it is on the device of the weights and in every checkpoint,
    and a resumed run finds it unchanged. `table[batch.index]` gives the entries of a batch.
    """
    method.register_buffer(name, torch.full((info.num_train,), fill))


def restart(method: Method, run: RunContext, draw: int = 0) -> None:
    """Reset backbone and head to their initial weights; call it in a phase's `setup`.

    With `draw`, randomly initialised weights are drawn again by the run's seed and that number;
    pretrained weights return to their pretrained values. Tables and other parts of the method stay
    as they are. On resume the checkpoint's weights are loaded after every `setup`.
    """
    assert run.untrained is not None, "made by runs.build.context_of"
    fresh = run.untrained(draw)
    method.backbone.load_state_dict(fresh.backbone.state_dict())
    method.head.load_state_dict(fresh.head.state_dict())
