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
from spurcor.training.losses import sample_losses


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

    def check(self, run: RunContext) -> None:  # noqa: B027 - most phases need TRAIN only
        """Refuse data that the phase cannot work with; called before anything is written."""

    def setup(self, run: RunContext) -> None:
        """Build the optimiser, the schedule and all else `step` needs; also called on resume."""
        self.optimizer = run.optimizer(self.method.weights())
        if self.lr is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr
        self.schedule = run.schedule(self.optimizer, self.epochs)

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

    def __init__(self, backbone: Backbone, info: DataInfo) -> None:
        super().__init__()
        self.backbone = backbone
        self.spec, self.loss = info.spec, info.loss
        self.head = make_head(backbone, info)

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
        """Return per-sample losses (B,) of logits (B, K), by the run's loss."""
        return sample_losses(logits, y, self.spec, self.loss)

    def weights(self) -> list[nn.Parameter]:
        """Return the weights that ERM trains and that analyses differentiate."""
        return [weight for weight in self.parameters() if weight.requires_grad]


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
    ) -> None:
        """Create the phase; `reduce` maps losses (B,) and their batch to a scalar.

        `sampling` sets how batches of `split` are drawn. `lr` overrides the optimiser's learning
        rate, and `lr_key` is the option that sets it. Instead of `sampling`, `repeats` or `weights`
        may return a table of the split's samples (see `Stream`), for example one made by an earlier
        phase: it is called when the phase starts and when it resumes.
        """
        require_at_least(1, epochs=epochs)
        self.name, self.method, self.epochs = name, method, epochs
        self.reduce, self.sampling, self.split = reduce, sampling, split
        self.lr, self.lr_key = lr, lr_key or ("optimizer.lr" if lr is None else None)
        self.repeats, self.drawn_by = repeats, weights
        self.consumed = (split,) if split is Split.VAL else ()

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
        batch = batches["train"]
        losses = self.method.losses(self.method.predict(batch.x), batch.y)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.reduce(losses, batch))
        self.optimizer.step()
        return {"loss": losses.detach().mean()}


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
