"""SCALE (Spurious Correlation via Auxiliary LEarning): two gradients, gated per parameter group.

TRAIN, with its shortcut, is an auxiliary task for TARGET, which has none. A train and a target
batch give two gradients of the shared backbone; the train gradient is weighted, per parameter
group, by how well it agrees with the target gradient.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spurcor.config.ranges import require_at_least
from spurcor.data.groups import Batch, DataInfo, Split
from spurcor.data.streams import Stream
from spurcor.models.backbone import Backbone
from spurcor.models.losses import make_head
from spurcor.training.cosines import CosineHistogram
from spurcor.training.kernels import GroupedWeights
from spurcor.training.method import Method, Phase, RunContext

EPSILON = 1e-8  # lower bound on norms, as in torch's CosineSimilarity, which SCALE uses


class Scale(Method):
    """A shared backbone with one head per stream; the target head predicts."""

    revision = 2  # cosines of short gradients are no longer shrunk

    def __init__(
        self,
        backbone: Backbone,
        info: DataInfo,
        epochs: int,
        gate: Literal["linear", "relu", "identity", "step"] = "linear",
        group_size: int = 64,
    ) -> None:
        super().__init__(backbone, info)
        require_at_least(1, group_size=group_size)
        self.epochs, self.gate, self.group_size = epochs, gate, group_size
        self.train_head, self.channels = make_head(backbone, info), info.shape[0]

    def phases(self) -> Sequence[Phase]:
        """Return the single phase `scale`, on both streams."""
        return [TwoStreams(self, self.epochs)]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return c_j = <a_j, b_j> / (max(|a_j|, 1e-8) max(|b_j|, 1e-8)), row by row."""
    dot: Callable[[Tensor, Tensor], Tensor] = torch.linalg.vecdot
    of_a, of_b = (dot(x, x).sqrt().clamp(min=EPSILON) for x in (a, b))
    return dot(a, b) / (of_a * of_b)


GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda c: (c + 1) / 2,
    "relu": lambda c: c.clamp(min=0),
    "identity": lambda c: c,
    "step": lambda c: (c > 0).to(c.dtype),
}


def combine(g_tr: Tensor, g_ta: Tensor, w: Callable[[Tensor], Tensor]) -> Tensor:
    """Set g_ta,j <- w(c_j) g_tr,j + g_ta,j, row by row, in place; return c."""
    c = cosine(g_tr, g_ta)
    g_ta.addcmul_(g_tr, w(c)[:, None])
    return c


class TwoStreams(Phase):
    """One update per pair of a train and a target batch, by the run's optimiser."""

    name, accumulates = "scale", True
    method: Scale

    def __init__(self, method: Scale, epochs: int) -> None:
        require_at_least(1, epochs=epochs)
        self.method, self.epochs = method, epochs
        self.shared = GroupedWeights(method.backbone, method.group_size, method.channels)

    def check(self, run: RunContext) -> None:
        """Check that a batch of TARGET can be drawn without replacement."""
        run.require_batch(Split.TARGET)

    def setup(self, run: RunContext) -> None:
        """Build one optimiser over backbone and heads, and empty histograms of cosines."""
        super().setup(run)
        self.shared.warn_of_few_kernels()
        self.cosines = CosineHistogram(self.shared, self.epochs)

    def streams(self, run: RunContext) -> Mapping[str, Stream]:
        """Return both streams; TRAIN paces the epoch, each target batch is an independent draw."""
        target = run.stream(Split.TARGET, sampling="independent")
        return {"train": run.stream(Split.TRAIN), "target": target}

    def step(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Replace the gradient by d_j = w(c_j) g_tr,j + g_ta,j, then step the optimiser."""
        self.optimizer.zero_grad(set_to_none=True)
        loss_train = self._backward(batches["train"], self.method.train_head)
        g_train = self.shared.take_gradients()  # the heads keep their gradients
        loss_target = self._backward(batches["target"], self.method.head)
        gate = GATES[self.method.gate]
        c = self.shared.pair(g_train, lambda g_tr, g_ta: combine(g_tr, g_ta, gate))
        self.update()
        return {"loss": loss_target, "loss_train": loss_train, **self.cosines.add(c)}

    def _backward(self, batch: Batch, head: nn.Module) -> Tensor:
        """Back-propagate the mean loss of a batch and return it; batch norm sees both streams."""
        network = nn.Sequential(self.method.backbone, head)
        return self.backward(batch, network, lambda losses, _: losses.mean()).mean()

    def end_epoch(self) -> None:
        """Step the schedule and start the next epoch's histogram."""
        super().end_epoch()
        self.cosines.epoch += 1

    def end(self, run: RunContext) -> None:
        """Write cosines.json and a picture of the cosines."""
        self.cosines.write(run.directory)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser, the schedule, and the cosines counted so far."""
        return super().state_dict() | self.cosines.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        super().load_state_dict(state)
        self.cosines.load_state_dict(state)
