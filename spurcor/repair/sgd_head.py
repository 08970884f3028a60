"""A last layer trained by Adam, the repair of Spurious-Correlations (MNIST with synthetic cues)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from spurcor.data.groups import GroupSpec
from spurcor.errors import RunError
from spurcor.repair.heads import Linear, Table
from spurcor.training.metrics import group_metrics, none_if_undefined


@dataclass(frozen=True)
class SgdOptions:
    """Adam on cross-entropy; stops after `patience` epochs without a lower loss on judged data."""

    epochs: int = 5
    lr: float = 1e-3
    weight_decay: float = 0.0
    batch_size: int = 64
    patience: int = 5

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.lr <= 0 or self.weight_decay < 0:
            raise ValueError(f"lr={self.lr} must be positive, weight_decay not negative")


def fit_sgd(
    fitted: Table,
    judged: Table,
    spec: GroupSpec,
    options: SgdOptions,
    seed: int,
    device: torch.device,
) -> tuple[Linear, list[dict[str, Any]]]:
    """A re-initialised layer (K, D) trained on `fitted`, with the weights of the best epoch.

    Also returns loss and worst-group accuracy on `judged` after each epoch. Initialisation and
    batches are functions of the seed; nothing is drawn from the global generators.
    """
    x, y = torch.from_numpy(fitted.x).float().to(device), torch.from_numpy(fitted.y).to(device)
    to_judge = torch.from_numpy(judged.x).float().to(device)
    judged_y, judged_g = torch.from_numpy(judged.y).to(device), torch.from_numpy(judged.g)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        layer = nn.Linear(x.shape[1], spec.num_classes).to(device)
        optimizer = torch.optim.Adam(
            layer.parameters(), lr=options.lr, weight_decay=options.weight_decay
        )
        curve: list[dict[str, Any]] = []
        best, lowest, since = Linear(np.empty(0), np.empty(0)), float("inf"), 0
        for epoch in range(1, options.epochs + 1):
            order = torch.randperm(len(y), generator=generator).to(device)
            for indices in torch.split(order, options.batch_size):
                optimizer.zero_grad()
                torch.autograd.backward(F.cross_entropy(layer(x[indices]), y[indices]))
                optimizer.step()
            with torch.no_grad():
                logits = layer(to_judge)
                loss = float(F.cross_entropy(logits, judged_y))
            if not np.isfinite(loss):
                raise RunError(f"dfr: the loss is {loss} at epoch {epoch}; take a smaller sgd.lr")
            worst = group_metrics(logits.cpu(), judged_y.cpu(), judged_g, spec).worst
            curve.append({"epoch": epoch, "loss": loss, "worst": none_if_undefined(worst)})
            since += 1
            if loss < lowest:
                weight, bias = (p.detach().double().cpu().numpy() for p in layer.parameters())
                best, lowest, since = Linear(weight, bias), loss, 0
            if since == options.patience:
                break
    return best, curve
