"""A last layer trained by Adam, the repair of Spurious-Correlations (MNIST with synthetic cues)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spurcor.data.groups import GroupSpec
from spurcor.errors import RunError
from spurcor.repair.heads import FeatureTable, Linear
from spurcor.training.metrics import group_metrics, none_if_undefined


@dataclass(frozen=True)
class SgdOptions:
    """Adam on the cross-entropy; stops after `patience` epochs without a lower tuning loss."""

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
    fitted: FeatureTable,
    judged: FeatureTable,
    spec: GroupSpec,
    options: SgdOptions,
    seed: int,
    device: torch.device,
) -> tuple[Linear, list[dict[str, Any]]]:
    """Train a newly initialised layer (K, D) on `fitted`; return the best epoch's head and a curve.

    The curve has the loss and worst-group accuracy on `judged` after each epoch; the best epoch has
    the lowest loss. Initialisation and batches depend only on the seed; torch's global generators
    are left untouched.
    """
    x, y = _on(fitted, device)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        layer = nn.Linear(x.shape[1], spec.num_classes).to(device)
        optimizer = torch.optim.Adam(
            layer.parameters(), lr=options.lr, weight_decay=options.weight_decay
        )
        judge = _Judge(judged, spec, device)
        for _ in range(options.epochs):
            order = torch.randperm(len(y), generator=generator).to(device)
            for indices in torch.split(order, options.batch_size):
                optimizer.zero_grad()
                torch.autograd.backward(F.cross_entropy(layer(x[indices]), y[indices]))
                optimizer.step()
            judge.look_at(layer)
            if judge.waited == options.patience:
                break
    return judge.best, judge.curve


class _Judge:
    """Tracks the layer with the lowest loss on the tuning data, and the curve over epochs."""

    def __init__(self, judged: FeatureTable, spec: GroupSpec, device: torch.device) -> None:
        self.spec = spec
        self.x, self.y = _on(judged, device)
        self.g = torch.from_numpy(judged.g)
        self.curve: list[dict[str, Any]] = []
        self.best, self.lowest = Linear(np.empty(0), np.empty(0)), float("inf")
        self.waited = 0  # epochs since the best one

    def look_at(self, layer: nn.Linear) -> None:
        """Evaluate the layer after one more epoch; raise RunError if the loss is not finite."""
        epoch = len(self.curve) + 1
        with torch.no_grad():
            logits = layer(self.x)
            loss = float(F.cross_entropy(logits, self.y))
        if not np.isfinite(loss):
            raise RunError(f"dfr: the loss is {loss} at epoch {epoch}; use a smaller dfr.sgd.lr")
        worst = group_metrics(logits.cpu(), self.y.cpu(), self.g, self.spec).worst
        self.curve.append({"epoch": epoch, "loss": loss, "worst": none_if_undefined(worst)})
        self.waited += 1
        if loss < self.lowest:
            weight, bias = (p.detach().double().cpu().numpy() for p in layer.parameters())
            self.best, self.lowest, self.waited = Linear(weight, bias), loss, 0


def _on(table: FeatureTable, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return features (float32) and classes on a device."""
    return torch.from_numpy(table.x).float().to(device), torch.from_numpy(table.y).to(device)
