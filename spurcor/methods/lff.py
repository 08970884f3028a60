"""Learning from Failure (Nam et al., NeurIPS 2020): weigh by what a biased network finds hard."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spurcor.config.ranges import require_share
from spurcor.data.groups import Batch, DataInfo, Split
from spurcor.data.streams import Stream
from spurcor.errors import UserError
from spurcor.models.backbone import Backbone
from spurcor.training.method import Method, Phase, RunContext, Supervised


class Lff(Method):
    """Train a second, biased network B beside the network D, and weigh D's losses by B's.

    B minimises the generalised cross-entropy, whose gradient p^q grad(l) follows what is easy. D
    minimises sum_i W_i l_i, with W_i near 1 where B does worse than D. Only D is kept.
    """

    def __init__(
        self,
        backbone: Backbone,
        info: DataInfo,
        epochs: int,
        alpha: float = 0.7,
        q: float = 0.7,
    ) -> None:
        """Create the method; `alpha` is the weight of the past in the averages of losses."""
        super().__init__(backbone, info)
        info.spec.require_classes("method=lff")
        if info.loss != "cross_entropy":
            raise UserError(f"method=lff needs train.loss=cross_entropy, not {info.loss}")
        require_share(alpha=alpha, q=q)
        self.epochs, self.alpha, self.q = epochs, alpha, q

    def phases(self) -> Sequence[Phase]:
        """Return the single phase `lff`."""
        return [TwoNetworks(self)]


class TwoNetworks(Supervised):
    """One step of both networks per batch; B and the averages are part of the phase's state."""

    method: Lff

    def __init__(self, method: Lff) -> None:
        super().__init__("lff", method, method.epochs, lambda losses, batch: losses.mean())

    def setup(self, run: RunContext) -> None:
        """See `Phase`; B starts from weights of its own."""
        super().setup(run)
        assert run.untrained is not None
        self.biased = run.untrained(1).train()
        self.biased_optimizer = run.optimizer(self.biased.weight_groups())
        self.biased_schedule = run.schedule(self.biased_optimizer, self.epochs)
        self.y = run.splits[Split.TRAIN].y
        self.average_b = torch.zeros(len(self.y), device=self.y.device)
        self.average_d = torch.zeros_like(self.average_b)
        self.visited = torch.zeros_like(self.y, dtype=torch.bool)

    def streams(self, run: RunContext) -> Mapping[str, Stream]:
        """See `Phase`."""
        return {"train": run.stream(Split.TRAIN)}

    def step(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Update B and D on the same batch; log the mean of D's losses and of the weights."""
        batch = batches["train"]
        self.optimizer.zero_grad(set_to_none=True)
        self.biased_optimizer.zero_grad(set_to_none=True)
        logits_b = self.biased.predict(batch.x)
        losses_b = self.biased.losses(logits_b, batch.y)
        losses_d = self.method.losses(self.method.predict(batch.x), batch.y)
        weight = self.weights(losses_b.detach(), losses_d.detach(), batch)
        # q p^q l has the gradient of the authors' code: q times that of (1 - p^q) / q.
        p = logits_b.detach().softmax(1).gather(1, batch.y[:, None]).squeeze(1)
        loss_b = (self.method.q * p**self.method.q * losses_b).mean()
        torch.autograd.backward(loss_b + (weight * losses_d).mean())
        self.update()
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.biased.parameters(), self.clip_norm)
        self.biased_optimizer.step()
        return {"loss": losses_d.detach().mean(), "weight": weight.mean()}

    def weights(self, losses_b: Tensor, losses_d: Tensor, batch: Batch) -> Tensor:
        """Update m_i <- alpha m_i + (1 - alpha) l_i, at the first visit m_i <- l_i; return W (B,).

        W_i = M_b / (M_b + M_d), where M is m_i over the largest m of the class in all of TRAIN.
        """
        shares = []
        for average, losses in ((self.average_b, losses_b), (self.average_d, losses_d)):
            before, losses = average[batch.index], losses.to(average.dtype)
            past = torch.where(self.visited[batch.index], self.method.alpha, 0.0)
            average[batch.index] = past * before + (1 - past) * losses
            largest = average.new_zeros(self.method.spec.num_classes)
            largest.scatter_reduce_(0, self.y, average, "amax")
            shares.append(average[batch.index] / largest[batch.y].clamp(min=1e-8))
        self.visited[batch.index] = True
        share_b, share_d = shares
        return share_b / (share_b + share_d + 1e-8)

    def end_epoch(self) -> None:
        """Step both schedules."""
        super().end_epoch()
        self.biased_schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """See `Phase`."""
        return super().state_dict() | {
            "biased": self.biased.state_dict(),
            "biased_optimizer": self.biased_optimizer.state_dict(),
            "biased_schedule": self.biased_schedule.state_dict(),
            "averages": torch.stack([self.average_b, self.average_d]),
            "visited": self.visited,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Phase`."""
        super().load_state_dict(state)
        self.biased.load_state_dict(state["biased"])
        self.biased_optimizer.load_state_dict(state["biased_optimizer"])
        self.biased_schedule.load_state_dict(state["biased_schedule"])
        self.average_b, self.average_d = state["averages"].to(self.y.device).clone()
        self.visited = state["visited"].to(self.y.device).clone()
