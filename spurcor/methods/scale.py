"""SCALE (Spurious Correlation via Auxiliary LEarning): two gradients, gated per parameter group.

TRAIN, with its shortcut, is an auxiliary task for TARGET, which has none. A train and a target
batch give two gradients of the shared backbone; that of TRAIN is weighted, group of parameters by
group, by how well it agrees with that of TARGET.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spurcor.data.groups import Batch, DataInfo, Split
from spurcor.data.streams import Stream
from spurcor.errors import UserError
from spurcor.models.backbone import Backbone
from spurcor.models.losses import make_head
from spurcor.presentation.pictures import draw_histograms
from spurcor.system.files import write_json
from spurcor.training.method import Method, Phase, RunContext

log = logging.getLogger(__name__)
BINS = 40  # of the histogram of cosines, over [-1, 1]
EPSILON = 1e-8  # the least that a length counts as, as in torch's CosineSimilarity, SCALE's own
GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda c: (c + 1) / 2,
    "relu": lambda c: c.clamp(min=0),
    "identity": lambda c: c,
    "step": lambda c: (c > 0).to(c.dtype),
}


class Scale(Method):
    """A shared backbone with a head for each stream; the target's head predicts.

    `group_size` kernels of a convolution, consecutive in (out, in), are a group, and what is left
    over another; each filter of the first layer is one, and so is each tensor of one or two
    dimensions.
    """

    revision = 2  # cosines of short gradients are not shortened

    def __init__(
        self,
        backbone: Backbone,
        info: DataInfo,
        epochs: int,
        gate: Literal["linear", "relu", "identity", "step"] = "linear",
        group_size: int = 64,
    ) -> None:
        super().__init__(backbone, info)
        if group_size < 1:
            raise ValueError(f"group_size={group_size} must be at least 1")
        self.epochs, self.gate, self.group_size = epochs, gate, group_size
        self.train_head = make_head(backbone, info)
        self.channels = info.shape[0]

    def phases(self) -> Sequence[Phase]:
        """One phase."""
        return [TwoStreams(self, self.epochs)]


class Groups:
    """How one tensor is cut into groups: `count` of `length` elements, and a shorter rest."""

    def __init__(self, weight: Tensor, group_size: int, channels: int) -> None:
        kernels = weight.shape[:2].numel() if weight.dim() > 2 else 1
        if weight.dim() > 2 and weight.shape[1] == channels:  # the first layer
            group_size = channels
        self.too_large = 1 < kernels < group_size
        size = min(group_size, kernels)
        self.length = size * (weight.numel() // kernels)
        self.count, rest = divmod(kernels, size)
        self.cut = self.count * self.length
        self.total = self.count + (rest > 0)

    def cosines(self, g_tr: Tensor, g_ta: Tensor) -> Tensor:
        """c_j = <g_tr,j, g_ta,j> / (max(|g_tr,j|, 1e-8) max(|g_ta,j|, 1e-8)), (total,)."""
        parts = [_cosine(*(self._whole(g) for g in (g_tr, g_ta)))]
        if self.total > self.count:
            parts.append(_cosine(*(g.flatten()[None, self.cut :] for g in (g_tr, g_ta))))
        return torch.cat(parts)

    def combine(self, g_tr: Tensor, g_ta: Tensor, w: Tensor) -> None:
        """g_ta,j <- w_j g_tr,j + g_ta,j, in place."""
        self._whole(g_ta).addcmul_(self._whole(g_tr), w[: self.count, None])
        if self.total > self.count:
            rest = g_ta.view(-1)[self.cut :]
            rest.addcmul_(g_tr.flatten()[self.cut :], w[self.count :])

    def _whole(self, g: Tensor) -> Tensor:
        whole: Tensor = g.view(-1)[: self.cut].view(self.count, self.length)
        return whole


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Row by row, (G,)."""
    dot: Callable[[Tensor, Tensor], Tensor] = torch.linalg.vecdot
    of_a, of_b = (dot(x, x).sqrt().clamp(min=EPSILON) for x in (a, b))
    return dot(a, b) / (of_a * of_b)


def _gradient(g: Tensor | None, weight: Tensor) -> Tensor:
    """A gradient in the order of its numbers; 0 of a stream that has none."""
    return torch.zeros_like(weight).contiguous() if g is None else g.contiguous()


class TwoStreams(Phase):
    """One update per pair of a train and a target batch, by whatever optimiser the run has."""

    name, descends = "scale", True

    def __init__(self, method: Scale, epochs: int) -> None:
        if epochs < 1:
            raise ValueError(f"epochs={epochs} must be at least 1")
        self.method, self.epochs = method, epochs
        named = [(n, p) for n, p in method.backbone.named_parameters() if p.requires_grad]
        self.shared = [weight for _, weight in named]
        self.groups = [Groups(w, method.group_size, method.channels) for w in self.shared]
        self.convolutions = [i for i, weight in enumerate(self.shared) if weight.dim() > 2]
        self.layers = [named[i][0].removesuffix(".weight") for i in self.convolutions]

    def check(self, run: RunContext) -> None:
        """There are gradients to gate; a batch of TARGET is drawn without replacement."""
        if not self.shared:
            raise UserError(
                "method=scale gates the gradients of a backbone, and this one has no weights;"
                " choose another backbone"
            )
        size, target = run.batch_size, run.splits[Split.TARGET]
        if size is not None and len(target) < size:
            raise UserError(
                f"train.batch_size={size} is more than the {len(target)} samples of target; make"
                " one of them fit"
            )

    def setup(self, run: RunContext) -> None:
        """One optimiser over backbone and heads, one schedule; empty counts of cosines."""
        too_large = [
            n
            for n, i in zip(self.layers, self.convolutions, strict=True)
            if self.groups[i].too_large
        ]
        if too_large:
            log.warning(
                "method.group_size=%d is more kernels than %s has; each is one group",
                self.method.group_size,
                ", ".join(too_large),
            )
        self.optimizer = run.optimizer(self.method.weights())
        self.schedule = run.schedule(self.optimizer, self.epochs)
        device = self.shared[0].device
        shape = (self.epochs, len(self.layers), BINS)
        self.histogram = torch.zeros(shape, dtype=torch.int64, device=device)
        self.epoch = 0
        of = torch.tensor([self.groups[i].total for i in self.convolutions], dtype=torch.int64)
        self.layer_of = torch.repeat_interleave(torch.arange(len(of)), of).to(device)
        self.sizes = of.to(device)

    def streams(self, run: RunContext) -> Mapping[str, Stream]:
        """TRAIN paces the epoch; every target batch is a draw of its own."""
        return {
            "train": run.stream(Split.TRAIN),
            "target": run.stream(Split.TARGET, sampling="independent"),
        }

    def step(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """d_j = w(c_j) g_tr,j + g_ta,j in place of the gradient, then the optimiser's own step."""
        method = self.method
        self.optimizer.zero_grad(set_to_none=True)
        loss_train = self._backward(batches["train"], method.train_head)
        g_train = [weight.grad for weight in self.shared]
        for weight in self.shared:
            weight.grad = None  # the heads keep theirs
        loss_target = self._backward(batches["target"], method.head)
        cosines = self._gate(g_train)
        self.optimizer.step()
        return {"loss": loss_target, "loss_train": loss_train, **self._record(cosines)}

    def _backward(self, batch: Batch, head: nn.Module) -> Tensor:
        """Gradients of the mean loss of a batch; batch norm sees both streams."""
        logits = head(self.method.backbone(batch.x))
        loss = self.method.losses(logits, batch.y).mean()
        torch.autograd.backward(loss)
        return loss.detach()

    @torch.no_grad()
    def _gate(self, g_train: Sequence[Tensor | None]) -> list[Tensor]:
        """Combine both gradients in `grad`; returns the cosines of each tensor."""
        found = []
        for weight, groups, g_tr in zip(self.shared, self.groups, g_train, strict=True):
            if g_tr is None and weight.grad is None:  # takes no part: the optimiser leaves it alone
                found.append(weight.new_zeros(groups.total))
                continue
            # Kernels are told apart in the order (out, in), whatever the memory format.
            g_tr, g_ta = (_gradient(g, weight) for g in (g_tr, weight.grad))
            weight.grad = g_ta
            c = groups.cosines(g_tr, g_ta)
            groups.combine(g_tr, g_ta, GATES[self.method.gate](c))
            found.append(c)
        return found

    def _record(self, cosines: Sequence[Tensor]) -> dict[str, Tensor]:
        """Mean over convolutions of their mean cosine, the mean of each, the share of its groups
        whose gradients are opposed, and the histogram.
        """
        of_layers = [cosines[i] for i in self.convolutions]
        if not of_layers:
            return {"cosine": torch.cat(list(cosines)).mean()}
        means = torch.stack([c.mean() for c in of_layers])
        every = torch.cat(of_layers)
        opposed = torch.zeros_like(means).index_add_(0, self.layer_of, (every < 0).to(means.dtype))
        bins = ((every + 1) * (BINS / 2)).long().clamp_(0, BINS - 1)
        counts = self.histogram[self.epoch].view(-1)
        counts.scatter_add_(0, self.layer_of * BINS + bins, torch.ones_like(bins))
        layers = {f"cosine/{n}": mean for n, mean in zip(self.layers, means, strict=True)}
        shares = zip(self.layers, opposed / self.sizes, strict=True)
        return {"cosine": means.mean(), **layers, **{f"opposed/{n}": share for n, share in shares}}

    def end_epoch(self) -> None:
        """Step the schedule."""
        self.schedule.step()
        self.epoch += 1

    def end(self, run: RunContext) -> None:
        """A picture of the cosines of every layer, epoch by epoch, and cosines.json, its counts."""
        if not self.layers:
            return
        counts = self.histogram.transpose(0, 1).tolist()
        edges = [2 * i / BINS - 1 for i in range(BINS + 1)]
        by_layer = dict(zip(self.layers, counts, strict=True))
        write_json(run.directory / "cosines.json", {"edges": edges, "layers": by_layer})
        path = run.directory / "plots" / "cosines.png"
        draw_histograms(self.histogram.cpu(), self.layers, "cosine of both gradients", path)

    def state_dict(self) -> dict[str, Any]:
        """Optimiser, schedule, and the cosines counted so far."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "histogram": self.histogram,
            "epoch": self.epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """All of it."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.histogram.copy_(state["histogram"])
        self.epoch = state["epoch"]
