"""The contract of a method: phases, each with its streams, its optimiser and its length."""

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
from spurcor.training.losses import sample_losses


@dataclass(frozen=True)
class RunContext:
    """What a phase gets from the run it is part of."""

    splits: Splits
    seed: int
    batch_size: int | None
    directory: Path
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    schedule: Callable[[Optimizer, int], LRScheduler]  # of an optimiser and a number of epochs
    untrained: Callable[[int], "Method"] | None = None  # this run's method, of the draw so numbered

    def stream(
        self,
        split: str,
        role: str | None = None,
        sampling: Sampling = "shuffled",
        dataset: GroupedDataset | None = None,
        repeats: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Stream:
        """Training batches of a split, shuffled or sampled as `Stream` knows it.

        `dataset` is read in its place, where a phase has made other images of it or chosen some;
        `repeats` or `weights` are tables of its samples.
        """
        return Stream(
            self.splits[split] if dataset is None else dataset,
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
        """Refuse a split that a batch cannot be drawn from without drawing a sample twice."""
        size, count = self.batch_size, len(self.splits[split])
        if size is not None and count < size:
            raise UserError(
                f"train.batch_size={size} is more than the {count} samples of {split}; make one of"
                " them fit"
            )

    def kept(self, phase: str) -> Path:
        """Folder of what the trainer keeps of an earlier phase that has a `selection`.

        `model.safetensors`, its weights by that; `last.safetensors`; `state.pt`, its `state_dict`.
        Of a run that is started from it holds what readers want only: figures and predictions.
        """
        return self.directory / "phases" / phase


class Phase(ABC):
    """One stage of a method.

    By default the run's optimiser trains all weights, with the run's schedule over its epochs.

    Entering a phase: `setup`, then `begin` when it starts afresh or `load_state_dict` when it is
    resumed, then `streams`.
    """

    name: str
    method: "Method"
    epochs: int
    lr: float | None = None  # takes the place of the optimiser's own
    lr_key: str | None = "optimizer.lr"  # the option that sets its learning rate, if one does
    selection: str | None = None  # a criterion: later phases want its best weights, see `kept`
    consumed: tuple[str, ...] = ()  # evaluated splits it trains on: no figure is reported of them

    def check(self, run: RunContext) -> None:  # noqa: B027 - most phases need TRAIN only
        """Refuse data that the phase cannot work on; called before anything is written."""

    def setup(self, run: RunContext) -> None:
        """Build what `step` needs, optimiser and schedule; called on resume too."""
        self.optimizer = run.optimizer(self.method.weights())
        if self.lr is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr
        self.schedule = run.schedule(self.optimizer, self.epochs)

    def begin(self, run: RunContext) -> None:  # noqa: B027 - most phases have no offline work
        """Offline work before the first step, once, in eval mode and without gradients."""

    @abstractmethod
    def streams(self, run: RunContext) -> Mapping[str, Stream]:
        """Roles; the first paces the epoch, the others repeat."""

    def constants(self) -> Mapping[str, float | Tensor]:
        """Numbers that the phase is told by once, such as the size of a set that it trains on.

        Under `train/<name>` in its first row of an evaluation; asked for after `streams`.
        """
        return {}

    @abstractmethod
    def step(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Exactly one update; returns detached scalars to be averaged over the epoch."""

    def end_epoch(self) -> None:
        """Step the schedule."""
        self.schedule.step()

    def end(self, run: RunContext) -> None:  # noqa: B027 - most phases leave only weights
        """Offline work after the last step: pictures of what happened."""

    def state_dict(self) -> dict[str, Any]:
        """All that changes during the phase and is not in the method."""
        return {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.optimizer.step()  # on no gradients: torch warns of schedules that step before it
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if state.get("ended"):  # the first release ended an epoch when the next one began
            self.end_epoch()


class Method(nn.Module, ABC):
    """A way of training a classifier: backbone, head, and a list of phases."""

    init: Path | None = None  # the finished run whose backbone and head it starts from

    def __init__(self, backbone: Backbone, info: DataInfo) -> None:
        super().__init__()
        self.backbone = backbone
        self.spec, self.loss = info.spec, info.loss
        self.head = make_head(backbone, info)

    @abstractmethod
    def phases(self) -> Sequence[Phase]:
        """The phases in order; pure construction, also on resume."""

    @property
    def consumed(self) -> tuple[str, ...]:
        """Evaluated splits that a phase trains on: nothing is fitted, selected or said by them."""
        return tuple(dict.fromkeys(name for phase in self.phases() for name in phase.consumed))

    def predict(self, x: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.head(self.backbone(x))  # type: ignore[no-any-return]

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """Losses (B,) of logits (B, K), by the run's loss."""
        return sample_losses(logits, y, self.spec, self.loss)

    def weights(self) -> list[nn.Parameter]:
        """What ERM trains and analyses differentiate."""
        return [weight for weight in self.parameters() if weight.requires_grad]


class Supervised(Phase):
    """Minimise a reduction of the losses of a split's samples over a method's weights."""

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
    ) -> None:
        """`reduce`: losses (B,) and batch to a scalar; `sampling`: how `split` is drawn.

        `lr` takes the place of the optimiser's own; `lr_key` is the option that it comes from. In
        the place of `sampling`, `repeats` or `weights` return a table of the split's samples (see
        `Stream`), which an earlier phase may have made: they are called as the phase begins, and
        when it is resumed.
        """
        require_at_least(1, epochs=epochs)
        self.name, self.method, self.epochs = name, method, epochs
        self.reduce, self.sampling, self.split = reduce, sampling, split
        self.lr, self.lr_key = lr, lr_key or ("optimizer.lr" if lr is None else None)
        self.repeats, self.drawn_by = repeats, weights
        self.consumed = (split,) if split is Split.VAL else ()

    def check(self, run: RunContext) -> None:
        """The split must be there."""
        run.splits[self.split]

    def streams(self, run: RunContext) -> Mapping[str, Stream]:
        """The one split, shuffled or sampled."""
        repeats, weights = (t if t is None else t() for t in (self.repeats, self.drawn_by))
        stream = run.stream(self.split, sampling=self.sampling, repeats=repeats, weights=weights)
        return {"train": stream}

    def step(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """One step of the optimiser on the reduced loss; logs the plain mean loss."""
        batch = batches["train"]
        losses = self.method.losses(self.method.predict(batch.x), batch.y)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.reduce(losses, batch))
        self.optimizer.step()
        return {"loss": losses.detach().mean()}


@contextmanager
def untouched(method: Method) -> Iterator[None]:
    """Eval mode without a trace: neither the mode nor the random state is changed for training."""
    training = method.training
    method.eval()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        method.train(training)
