"""Automatic Feature Reweighting (Qiu, Potapczynski, Izmailov, Wilson; ICML 2023)."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spurcor.config.ranges import require_at_least, require_positive
from spurcor.data.groups import GroupSpec, Split
from spurcor.errors import RunError, UserError
from spurcor.repair.contract import LastLayer, Tables
from spurcor.repair.fitting import Fit
from spurcor.repair.heads import Linear
from spurcor.repair.refusals import refuse_broken
from spurcor.training.metrics import group_metrics, none_if_undefined

CLIP = 1.0  # longest gradient, as in the authors' code


class Afr(LastLayer):
    """Refit the network's own last layer on data held out from training, without their groups.

    Full-batch gradient descent on sum_i mu_i l_i + l2 (|W - W_0|^2 + |b - b_0|^2), from W_0, b_0,
    with fixed weights mu_i proportional to exp(-gamma p_i) / n_{y_i}, of sum 1, where p_i is the
    probability that the network gives the true class. `gamma`, `l2` and the step are chosen on VAL
    by `criterion`; the authors use the worst group. Data are held out by
    dataset.target_from=train with dataset.target_fraction.
    """

    title = "AFR"

    def __init__(
        self,
        split: Literal["target", "train"] = "target",
        criterion: Literal["worst", "worst_class", "average"] = "worst",
        gammas: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0),
        l2: tuple[float, ...] = (0.0, 0.1),
        lr: float = 0.01,
        steps: int = 500,
        judge_every: int = 10,
        weights: Literal["last", "selected"] = "last",
    ) -> None:
        if not gammas or not l2 or min(*gammas, *l2) < 0:
            raise ValueError(f"gammas={list(gammas)} and l2={list(l2)} must be lists of at least 0")
        require_positive(lr=lr)
        require_at_least(1, steps=steps, judge_every=judge_every)
        self.of, self.criterion, self.grid = Split(split), criterion, (gammas, l2)
        self.lr, self.steps, self.judge_every = lr, steps, judge_every
        self.layer, self.pooling, self.weights = -1, None, weights

    @property
    def split(self) -> Split:
        """See `LastLayer`."""
        return self.of

    @property
    def reads(self) -> list[str]:
        """See `LastLayer`."""
        return sorted({str(self.of), str(Split.VAL)})

    def require(self, spec: GroupSpec) -> None:
        """See `LastLayer`."""
        spec.require_classes("dfr=afr (dfr=none leaves the repair out)")
        if self.criterion == "worst":
            spec.require_groups("dfr.criterion=worst (worst_class needs none)")

    def check(self, counts: Mapping[str, Tensor], spec: GroupSpec) -> None:
        """See `LastLayer`."""
        self.require(spec)
        per_class = counts[self.of].view(spec.num_classes, -1).sum(1).tolist()
        for name, count in zip(spec.classes, per_class, strict=True):
            if not count:
                raise UserError(
                    f"dfr.split={self.of}: the {self.of} split has no sample of class {name};"
                    " choose other data"
                )

    def fit(
        self,
        tables: Tables,
        spec: GroupSpec,
        seed: int,
        device: torch.device | str = "cpu",
        own: Linear | None = None,
    ) -> Fit:
        """See `LastLayer`; nothing is random, so that `seed` is not used."""
        del seed
        if own is None:
            raise RunError("dfr=afr starts from the network's own last layer, which is not linear")
        for name in self.reads:
            refuse_broken(name, tables[name])
        x, y = _on(tables[self.of].x, device), torch.from_numpy(tables[self.of].y).to(device)
        val = tables[Split.VAL]
        judged = _on(val.x, device), torch.from_numpy(val.y), torch.from_numpy(val.g), spec
        start = _on(own.weight, device), _on(own.bias, device)
        best, chosen, tuning = (-np.inf, start), {}, []
        for number, (gamma, l2) in enumerate(itertools.product(*self.grid)):
            mu = sample_weights(x @ start[0].T + start[1], y, gamma)
            for step, head in self._descend(x, y, mu, start, l2):
                found = self._judge(head, *judged)
                row = {"fit": number, "gamma": gamma, "l2": l2, "epoch": step, **found}
                tuning.append(row)
                if (score := found[self.criterion]) is not None and score > best[0]:
                    best, chosen = (score, head), {"gamma": gamma, "l2": l2, "step": step}
        weight, bias = (part.double().cpu().numpy() for part in best[1])
        return Fit(Linear(weight, bias), tuning=tuning, chosen=chosen)

    def _descend(
        self, x: Tensor, y: Tensor, mu: Tensor, start: tuple[Tensor, Tensor], l2: float
    ) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        """Yield (step, (W, b)) every `judge_every` steps and at the end."""
        head = [part.clone().requires_grad_() for part in start]
        descent = torch.optim.SGD(head, lr=self.lr)
        for step in range(1, self.steps + 1):
            with torch.enable_grad():
                losses = F.cross_entropy(x @ head[0].T + head[1], y, reduction="none")
                moved = sum((one - at).square().sum() for one, at in zip(head, start, strict=True))
                descent.zero_grad()
                torch.autograd.backward((mu * losses).sum() + l2 * moved)
            torch.nn.utils.clip_grad_norm_(head, CLIP)
            descent.step()
            if step % self.judge_every == 0 or step == self.steps:
                weight, bias = (part.detach().clone() for part in head)
                yield step, (weight, bias)

    def _judge(
        self, head: tuple[Tensor, Tensor], x: Tensor, y: Tensor, g: Tensor, spec: GroupSpec
    ) -> dict[str, float | None]:
        metrics = group_metrics((x @ head[0].T + head[1]).cpu(), y, g, spec)
        keys = dict.fromkeys(["worst", self.criterion])
        return {key: none_if_undefined(getattr(metrics, key)) for key in keys}


def sample_weights(logits: Tensor, y: Tensor, gamma: float) -> Tensor:
    """Return mu (N,), of sum 1, from the logits (N, K) of the network's own last layer."""
    p = logits.softmax(1).gather(1, y[:, None]).squeeze(1)
    mu = (-gamma * p).exp() / torch.bincount(y, minlength=logits.shape[1])[y]
    return mu / mu.sum()


def _on(values: "np.ndarray[Any, Any]", device: torch.device | str) -> Tensor:
    return torch.from_numpy(values).float().to(device)
