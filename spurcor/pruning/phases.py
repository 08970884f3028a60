"""Phases that prune a network on a de-biasing set, and train what is left of it."""

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
    """Learn the logits of gates on all weights, by Adam; the weights are left alone.

    Batch norm goes on counting, as upstream, and `Retrain` counts anew with the fixed masks.
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
        """`terms`: what is minimised the sum of, of a batch, its clusters (B,), and all logits."""
        self.method, self.epochs, self.lr = method, epochs, lr
        self.mask_logit, self.debiasing, self.terms = mask_logit, debiasing, terms

    def check(self, run: RunContext) -> None:
        """Clusters can be made, or those given fit."""
        self.debiasing.check(run)

    def setup(self, run: RunContext) -> None:
        """Gates on all weights; Adam on their logits, whatever optimiser the weights have."""
        gates.attach(self.method, self.mask_logit)
        self.logits = [gate.logit for gate in gates.gates_of(self.method).values()]
        self.optimizer = torch.optim.Adam(self.logits, lr=self.lr)

    def begin(self, run: RunContext) -> None:
        """Clusters and the de-biasing set; the gates are all open, so this sees the dense net."""
        self.debiasing.make(self.method.backbone, run)

    def streams(self, run: RunContext) -> Mapping[str, Stream]:
        """The de-biasing set."""
        stream, self.clusters = self.debiasing.stream(run, self.name)
        return {self.name: stream}

    def step(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """One step on the sum of the terms, which has a gradient for the logits alone."""
        batch = batches[self.name]
        terms = self.terms(batch, self.clusters[batch.index], self.logits)
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.stack(list(terms.values())).sum()
        torch.autograd.backward(loss, inputs=self.logits)
        self.optimizer.step()
        return {name: term.detach() for name, term in terms.items()} | kept_shares(self.method)

    def end_epoch(self) -> None:
        """The rate is constant."""

    def end(self, run: RunContext) -> None:
        """What the gates keep."""
        save_gates(self.method, run.directory)

    def state_dict(self) -> dict[str, Any]:
        """The optimiser; logits are in the method, clusters and set in the run's directory."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The optimiser."""
        self.optimizer.load_state_dict(state["optimizer"])


class Retrain(Supervised):
    """Train what the masks leave, at a rate of its own; without masks, the dense network."""

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
        super().__init__("retrain", method, epochs, reduce, split=split, lr=lr, lr_key=key)
        self.on, self.debiasing = on, debiasing

    def check(self, run: RunContext) -> None:
        """The split is there, and clusters can be made."""
        super().check(run)
        self.debiasing.check(run)

    def setup(self, run: RunContext) -> None:
        """The gates stay as they are; the optimiser is of the weights again."""
        for gate in gates.gates_of(self.method).values():
            gate.logit.requires_grad_(False)
        super().setup(run)

    def begin(self, run: RunContext) -> None:
        """Clusters and the de-biasing set, where nothing was pruned on them."""
        if not gates.gates_of(self.method):
            self.debiasing.make(self.method.backbone, run)

    def streams(self, run: RunContext) -> Mapping[str, Stream]:
        """TRAIN, VAL or the de-biasing set, in an order of their own."""
        self.shares = kept_shares(self.method)
        if self.on == "set":
            return {"train": self.debiasing.stream(run, self.name)[0]}
        return {"train": run.stream(self.split, self.name)}

    def step(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """An ordinary step, logged with what is kept."""
        return super().step(batches) | self.shares
