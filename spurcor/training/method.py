"""The interface of a method: phases, each with its streams, its optimiser and its length."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from spurcor.config.ranges import require_at_least
from spurcor.data.groups import Batch, DataInfo, GroupedDataset, Split
from spurcor.data.splits import Splits
from spurcor.data.streams import Sampling, Stream
from spurcor.errors import UserError
from spurcor.models.backbone import Backbone
from spurcor.models.losses import make_head
from spurcor.training.losses import class_weight, sample_losses


@dataclass(frozen=True)
class RunContext:
    """What a phase gets from its run: data, seed, batch size, directory, optimiser and schedule."""

    splits: Splits
    seed: int
    batch_size: int | None
    directory: Path
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    schedule: Callable[[Optimizer, int], LRScheduler]  # from an optimiser and a number of epochs
    untrained: Callable[[int], "Method"] | None = None  # re-initialised method, by draw number
    accumulate: int = 1  # parts of a batch with a backward pass each
    clip_norm: float | None = None

    def stream(
        self,
        split: str,
        role: str | None = None,
        sampling: Sampling = "shuffled",
        dataset: GroupedDataset | None = None,
        repeats: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Stream:
        """Return training batches of a split in the order that `sampling` sets, see `Stream`.

        `dataset` replaces the split's own data, for a phase that changes images or selects samples.
        `repeats` and `weights` are tables (N,) of its samples.
        """
        return Stream(
            self.splits.trained(split) if dataset is None else dataset,
            self.splits.transform,
            self.batch_size,
            seed=self.seed,
            role=role or split,
            sampling=sampling,
            workers=self.splits.workers,
            repeats=repeats,
            weights=weights,
        )

    def require_batch(self, split: Split) -> None:
        """Raise UserError if a split has fewer samples than a batch drawn without replacement."""
        size, count = self.batch_size, len(self.splits[split])
        if size is not None and count < size:
            raise UserError(
                f"train.batch_size={size} is more than the {count} samples of {split}; make one of"
                " them fit"
            )

    def kept(self, phase: str) -> Path:
        """Return the folder of an earlier phase that has a `selection`.

        It holds `model.safetensors`, the selected weights; `last.safetensors`, the last weights;
        and `state.pt`, the phase's `state_dict`. The folder of the run that this run starts from
        holds metrics and predictions only.
        """
        return self.directory / "phases" / phase


class Phase(ABC):
    """One stage of a method.

    By default the run's optimiser trains all weights, and the run's schedule covers the phase's
    epochs.

    A phase is entered by `setup`, then `begin` if it starts or `load_state_dict` if it resumes,
    then `streams`.
    """

    name: str
    method: "Method"
    epochs: int
    lr: float | None = None  # overrides the optimiser's learning rate
    lr_key: str | None = "optimizer.lr"  # the option that sets its learning rate, if any
    selection: str | None = None  # criterion for the weights to keep, see `kept`
    consumed: tuple[str, ...] = ()  # evaluated splits it trains on; their metrics are not reported
    accumulates: bool = False  # whether `step` honours train.accumulate
    num_parts: int = 1  # set in `setup` from train.accumulate
    clip_norm: float | None = None  # set in `setup` from train.clip_norm

    def check(self, run: RunContext) -> None:  # noqa: B027 - most phases need TRAIN only
        """Refuse data that the phase cannot work with; called before anything is written."""

    def setup(self, run: RunContext) -> None:
        """Build the optimiser, the schedule and all else `step` needs; also called on resume."""
        self.optimizer = run.optimizer(self.method.weight_groups())
        if self.lr is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * group.get("lr_factor", 1.0)
        self.schedule = run.schedule(self.optimizer, self.epochs)
        self.num_parts, self.clip_norm = run.accumulate, run.clip_norm

    def begin(self, run: RunContext) -> None:  # noqa: B027 - most phases have no offline work
        """Do offline work once before the first step, in eval mode and without gradients."""

    @abstractmethod
    def streams(self, run: RunContext) -> Mapping[str, Stream]:
        """Return streams by role; the first sets the length of an epoch, the others repeat."""

    def constants(self) -> Mapping[str, float | Tensor]:
        """Return numbers that are logged once, such as the size of a training subset.

        Queried after `streams`; stored as `train/<name>` in the first evaluation row of the phase.
        """
        return {}

    @abstractmethod
    def step(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Make exactly one update; return detached scalars to be averaged over the epoch."""

    def backward(
        self,
        batch: Batch,
        logits: Callable[[Tensor], Tensor],
        reduce: Callable[[Tensor, Batch], Tensor],
    ) -> Tensor:
        """Add the gradient of the reduced losses of a batch, part by part; return losses (B,)."""
        parts, losses = batch.parts(self.num_parts), []
        for part in parts:
            each = self.method.losses(logits(part.x), part.y)
            loss = reduce(each, part)
            torch.autograd.backward(
                loss if len(parts) == 1 else loss * (len(part.y) / len(batch.y))
            )
            losses.append(each.detach())
        return torch.cat(losses)

    def update(self) -> None:
        """Clip the gradient if train.clip_norm asks for it, then step the optimiser."""
        if self.clip_norm is not None:
            weights = [
                weight for group in self.optimizer.param_groups for weight in group["params"]
            ]
            torch.nn.utils.clip_grad_norm_(weights, self.clip_norm)
        self.optimizer.step()

    def end_epoch(self) -> None:
        """Step the schedule."""
        self.schedule.step()

    def end(self, run: RunContext) -> None:  # noqa: B027 - most phases leave only weights
        """Do offline work after the last step, such as drawing plots."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes during the phase, except for the method itself."""
        return {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.optimizer.step()  # no gradients yet; avoids torch's warning about the order of steps
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if state.get("ended"):  # the first release stepped it at the next epoch
            self.end_epoch()


class Method(nn.Module, ABC):
    """A way of training a classifier: a backbone, a head, and a list of phases."""

    init: Path | None = None  # finished run to load backbone and head from
    additive: bool = False  # whether the loss of a batch is the mean of those of its samples

    class_weight: Tensor | None

    def __init__(self, backbone: Backbone, info: DataInfo) -> None:
        super().__init__()
        self.backbone = backbone
        self.spec, self.loss = info.reported or info.spec, info.loss
        self.head = make_head(backbone, info)
        weight = class_weight(info)
        self.register_buffer("class_weight", weight, persistent=False)  # not part of a checkpoint

    @abstractmethod
    def phases(self) -> Sequence[Phase]:
        """Return the phases in order; called on resume too, so it only constructs them."""

    @property
    def consumed(self) -> tuple[str, ...]:
        """Evaluated splits that a phase trains on: not used for fitting, selection or reporting."""
        return tuple(dict.fromkeys(name for phase in self.phases() for name in phase.consumed))

    def predict(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of inputs (B, C, H, W)."""
        return self.head(self.backbone(x))  # type: ignore[no-any-return]

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return per-sample losses (B,) of logits (B, K), by the run's loss and class weights."""
        losses = sample_losses(logits, y, self.spec, self.loss)
        return losses if self.class_weight is None else self.class_weight[y] * losses

    def weights(self) -> list[nn.Parameter]:
        """Return the weights that ERM trains and that analyses differentiate."""
        return [weight for weight in self.parameters() if weight.requires_grad]

    def weight_groups(self) -> list[Any]:
        """Return `weights` as an optimiser takes them: in groups where learning rates differ."""
        weights, factor = self.weights(), self.backbone.lr_factor
        if factor == 1:
            return list(weights)
        within = {id(weight) for weight in self.backbone.parameters()}
        groups: list[dict[str, Any]] = [
            {"params": [weight for weight in weights if id(weight) in within], "lr_factor": factor},
            {"params": [weight for weight in weights if id(weight) not in within]},
        ]
        return [group for group in groups if group["params"]]


class Supervised(Phase):
    """Minimise a reduction of the per-sample losses on one split over the method's weights."""

    def __init__(
        self,
        name: str,
        method: Method,
        epochs: int,
        reduce: Callable[[Tensor, Batch], Tensor],
        sampling: Sampling = "shuffled",
        split: Split = Split.TRAIN,
        lr: float | None = None,
        lr_key: str | None = None,
        repeats: Callable[[], Tensor] | None = None,
        weights: Callable[[], Tensor] | None = None,
        epochs_key: str = "epochs",
    ) -> None:
        """Create the phase; `reduce` maps losses (B,) and their batch to a scalar.

        `sampling` sets how batches of `split` are drawn. `lr` overrides the optimiser's learning
        rate, and `lr_key` is the option that sets it, as typed; `epochs_key` is the argument of the
        method that sets the epochs. Instead of `sampling`, `repeats` or `weights`
        may return a table of the split's samples (see `Stream`), for example one made by an earlier
        phase: it is called when the phase starts and when it resumes.
        """
        require_at_least(1, **{epochs_key: epochs})
        if lr is not None:
            require_at_least(0, **{(lr_key or "lr").removeprefix("method."): lr})
        self.name, self.method, self.epochs = name, method, epochs
        self.reduce, self.sampling, self.split = reduce, sampling, split
        self.lr, self.lr_key = lr, lr_key or ("optimizer.lr" if lr is None else None)
        self.repeats, self.drawn_by = repeats, weights
        self.consumed = (split,) if split is Split.VAL else ()
        self.accumulates = method.additive

    def check(self, run: RunContext) -> None:
        """Refuse a data set without the split."""
        run.splits[self.split]

    def streams(self, run: RunContext) -> Mapping[str, Stream]:
        """Return the stream of the split, as `train`."""
        repeats, weights = (t if t is None else t() for t in (self.repeats, self.drawn_by))
        stream = run.stream(self.split, sampling=self.sampling, repeats=repeats, weights=weights)
        return {"train": stream}

    def step(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Make one optimiser step on the reduced loss; log the plain mean loss."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.backward(batches["train"], self.method.predict, self.reduce)
        self.update()
        return {"loss": losses.mean()}


@contextmanager
def untouched(method: Method) -> Iterator[None]:
    """Run the block in eval mode; restore the training mode and the random state afterwards."""
    training = method.training
    method.eval()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        method.train(training)
