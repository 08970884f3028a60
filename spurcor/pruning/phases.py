"""Phases that prune a network on a de-biasing set, and retrain what remains."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from spurcor.data.groups import Batch, Split
from spurcor.data.streams import Stream
from spurcor.pruning import gates
from spurcor.pruning.debiasing import DebiasingSet
from spurcor.pruning.sparsity import kept_shares, save_gates
from spurcor.training.method import Method, Phase, RunContext, Supervised

Terms = Callable[[Batch, Tensor, Sequence[Tensor]], dict[str, Tensor]]


class Prune(Phase):
    """Learn the logits of gates on all weights by Adam; the weights stay fixed.

    Batch norm keeps updating its statistics, as in the authors' code; `Retrain` updates them under
    the fixed masks.
    """

    name, lr_key = "prune", "method.prune_lr"
    lr: float

    def __init__(
        self,
        method: Method,
        epochs: int,
        lr: float,
        mask_logit: gates.MaskLogit,
        debiasing: DebiasingSet,
        terms: Terms,
    ) -> None:
        """Create the phase; it minimises the sum of the losses that `terms` returns.

        `terms` is called with a batch, its clusters (B,), and the logits of all gates.
        """
        self.method, self.epochs, self.lr = method, epochs, lr
        self.mask_logit, self.debiasing, self.terms = mask_logit, debiasing, terms

    def check(self, run: RunContext) -> None:
        """Check the de-biasing set, see `DebiasingSet.check`."""
        self.debiasing.check(run)

    def setup(self, run: RunContext) -> None:
        """Put gates on all weights; build Adam over their logits instead of the run's optimiser."""
        gates.attach(self.method, self.mask_logit)
        self.logits = [gate.logit for gate in gates.gates_of(self.method).values()]
        self.optimizer = torch.optim.Adam(self.logits, lr=self.lr)

    def begin(self, run: RunContext) -> None:
        """Make the de-biasing set from the dense network, since all gates are still open."""
        self.debiasing.make(self.method.backbone, run)

    def streams(self, run: RunContext) -> Mapping[str, Stream]:
        """Return the stream of the de-biasing set."""
        stream, self.clusters = self.debiasing.stream(run, self.name)
        return {self.name: stream}

    def step(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Make one step on the sum of the terms, for the logits only."""
        batch = batches[self.name]
        terms = self.terms(batch, self.clusters[batch.index], self.logits)
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.stack(list(terms.values())).sum()
        torch.autograd.backward(loss, inputs=self.logits)
        self.optimizer.step()
        return {name: term.detach() for name, term in terms.items()} | kept_shares(self.method)

    def end_epoch(self) -> None:
        """Do nothing: the learning rate is constant."""

    def end(self, run: RunContext) -> None:
        """Write the gates and the shares of weights that they keep."""
        save_gates(self.method, run.directory)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser state; the method holds the logits, the run's directory the set."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the optimiser state."""
        self.optimizer.load_state_dict(state["optimizer"])


class Retrain(Supervised):
    """Train the weights that the masks keep, or all without masks, at its own learning rate."""

    def __init__(
        self,
        method: Method,
        epochs: int,
        lr: float,
        on: Literal["train", "val", "set"],
        debiasing: DebiasingSet,
        reduce: Callable[[Tensor, Batch], Tensor],
    ) -> None:
        split = Split.VAL if on == "val" else Split.TRAIN
        key = "method.retrain_lr"
        super().__init__(
            "retrain",
            method,
            epochs,
            reduce,
            split=split,
            lr=lr,
            lr_key=key,
            epochs_key="retrain_epochs",
        )
        self.on, self.debiasing = on, debiasing

    def check(self, run: RunContext) -> None:
        """Check that the split exists, and the de-biasing set."""
        super().check(run)
        self.debiasing.check(run)

    def setup(self, run: RunContext) -> None:
        """Freeze the gates; build the optimiser over the weights."""
        for gate in gates.gates_of(self.method).values():
            gate.logit.requires_grad_(False)
        super().setup(run)

    def begin(self, run: RunContext) -> None:
        """Make the de-biasing set, unless pruning has made it."""
        if not gates.gates_of(self.method):
            self.debiasing.make(self.method.backbone, run)

    def streams(self, run: RunContext) -> Mapping[str, Stream]:
        """Return the stream of TRAIN, VAL or the de-biasing set, with its own order."""
        self.shares = kept_shares(self.method)
        if self.on == "set":
            return {"train": self.debiasing.stream(run, self.name)[0]}
        return {"train": run.stream(self.split, self.name)}

    def step(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Make an ordinary step; log the shares of kept weights too."""
        return super().step(batches) | self.shares
