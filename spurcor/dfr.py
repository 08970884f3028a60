"""Deep Feature Reweighting (Kirichenko, Izmailov, Wilson; ICLR 2023): refit the last layer.

A pure function of feature tables: logistic regressions on group-balanced subsets of the reweighting
data, averaged. It knows no network and no run.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from spurcor.data import GroupSpec, Split
from spurcor.errors import RunError, UserError
from spurcor.metrics import group_metrics
from spurcor.seeding import derive_seed

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """Features x (N, D), classes y (N,) and groups g (N,) of a split."""

    x: Array
    y: Indices
    g: Indices

    def take(self, indices: Indices) -> "Table":
        """The rows at `indices`."""
        return Table(self.x[indices], self.y[indices], self.g[indices])


@dataclass(frozen=True)
class Linear:
    """Weights (K, D) and biases (K,) on raw features."""

    weight: Array
    bias: Array

    def logits(self, x: Array) -> Array:
        """(N, K)."""
        return x @ self.weight.T + self.bias


@dataclass(frozen=True)
class Fit:
    """The averaged classifier, and the inverse regularisation C that was chosen."""

    linear: Linear
    c: float


class Dfr:
    """DFR with the published choices as options; defaults are DFR_Tr^Val of the paper's code.

    `split` is the reweighting data. C is chosen by `criterion` either on a random half of it that
    does not fit (`tune=half`, the paper's for VAL) or on VAL (`tune=val`, the paper's for TRAIN).
    `scaler` says whose features standardise the final fits; `tune=half` standardises by the
    balanced half that fits. `layer` and `weights` say which features of which network are read.
    """

    def __init__(
        self,
        split: Literal["val", "target", "train"] = "val",
        tune: Literal["half", "val"] = "half",
        criterion: Literal["worst", "conflicting", "average"] = "worst",
        balance: Literal["groups", "none"] = "groups",
        scaler: Literal["train", "reweighting", "none"] = "train",
        penalty: Literal["l1", "l2"] = "l1",
        c_grid: tuple[float, ...] = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01),
        num_retrains: int = 20,
        max_iter: int = 100,
        layer: int | str = -1,
        weights: Literal["last", "selected"] = "last",
    ) -> None:
        if num_retrains < 1 or max_iter < 1:
            raise ValueError(
                f"num_retrains={num_retrains} and max_iter={max_iter} must be at least 1"
            )
        if not c_grid or min(c_grid) <= 0:
            raise ValueError(f"c_grid={list(c_grid)} must hold positive numbers")
        if split == "val" and tune == "val":
            raise ValueError("tune=val would choose C on the data that it is fitted on; use half")
        self.split, self.tune, self.criterion = Split(split), tune, criterion
        self.balance, self.scaler, self.penalty = balance, scaler, penalty
        self.c_grid, self.num_retrains, self.max_iter = c_grid, num_retrains, max_iter
        self.layer, self.weights = layer, weights

    @property
    def reads(self) -> list[str]:
        """The splits whose features a fit needs."""
        needed = {str(self.split)}
        if self.scaler == "train":
            needed.add(str(Split.TRAIN))
        if self.tune == "val":
            needed.add(str(Split.VAL))
        return sorted(needed)

    def fit(self, tables: Mapping[str, Table], spec: GroupSpec, seed: int) -> Fit:
        """Choose C, then average `num_retrains` fits on fresh balanced subsets."""
        rng = np.random.default_rng(derive_seed("dfr", seed))
        data = tables[self.split]
        scaler_data = {"train": Split.TRAIN, "reweighting": self.split}.get(self.scaler)
        scale = _standardise(None if scaler_data is None else tables[scaler_data].x, data.x)
        c = self._choose_c(tables, spec, scale, rng)
        fits = [
            self._fit(data.take(self._subset(data.g, rng)), c, scale, spec)
            for _ in range(self.num_retrains)
        ]
        weight = np.mean([fit.weight for fit in fits], axis=0)
        return Fit(Linear(weight, np.mean([fit.bias for fit in fits], axis=0)), c)

    def _choose_c(
        self,
        tables: Mapping[str, Table],
        spec: GroupSpec,
        scale: tuple[Array, Array],
        rng: np.random.Generator,
    ) -> float:
        data = tables[self.split]
        if self.tune == "val":
            fitted, judged = data, tables[Split.VAL]
        else:
            order = rng.permutation(len(data.y))
            judged, fitted = (data.take(half) for half in np.array_split(order, 2))
        fitted = fitted.take(self._subset(fitted.g, rng))
        if self.tune == "half":
            scale = _standardise(None if self.scaler == "none" else fitted.x, fitted.x)
        scores = []
        for c in self.c_grid:
            logits = torch.from_numpy(self._fit(fitted, c, scale, spec).logits(judged.x))
            y, g = torch.from_numpy(judged.y), torch.from_numpy(judged.g)
            scores.append(getattr(group_metrics(logits, y, g, spec), self.criterion))
        if not np.isfinite(scores).any():
            raise UserError(
                f"dfr.criterion={self.criterion} is undefined on this data; choose another"
            )
        return self.c_grid[int(np.nanargmax(scores))]

    def _subset(self, g: Indices, rng: np.random.Generator) -> Indices:
        """As many of every group as the smallest group that occurs has, without replacement."""
        if self.balance == "none":
            return np.arange(len(g))
        groups = [np.flatnonzero(g == group) for group in np.unique(g)]
        smallest = min(len(members) for members in groups)
        return np.concatenate([rng.permutation(members)[:smallest] for members in groups])

    def _fit(self, data: Table, c: float, scale: tuple[Array, Array], spec: GroupSpec) -> Linear:
        """One regression (one per class from three classes on), expressed on raw features."""
        mean, std = scale
        x = (data.x - mean) / std
        binary = spec.num_classes == 2
        targets = [data.y == k for k in ([1] if binary else range(spec.num_classes))]
        rows = [self._regression(x, target, c) for target in targets]
        weight = np.stack([w for w, _ in rows]) / std
        bias = np.array([b for _, b in rows]) - weight @ mean
        if binary:  # f becomes the logits (-f/2, f/2)
            weight, bias = (np.concatenate([-v, v]) / 2 for v in (weight, bias))
        return Linear(weight, bias)

    def _regression(self, x: Array, target: NDArray[np.bool_], c: float) -> tuple[Array, float]:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        if target.all() or not target.any():
            raise RunError(
                f"dfr: the {self.split} split has no two classes to tell apart in a balanced subset"
            )
        model = LogisticRegression(
            C=c,
            l1_ratio=1.0 if self.penalty == "l1" else 0.0,
            solver="liblinear",
            max_iter=self.max_iter,
            random_state=0,
        )
        with warnings.catch_warnings():
            # The paper's code stops liblinear at 100 iterations too, and averages what it has.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, target)
        return model.coef_[0], float(model.intercept_[0])


def _standardise(reference: Array | None, x: Array) -> tuple[Array, Array]:
    """Mean and deviation (D,) of the reference features; 0 and 1 without one."""
    if reference is None:
        return np.zeros(x.shape[1]), np.ones(x.shape[1])
    std = reference.std(axis=0)
    return reference.mean(axis=0), np.where(std > 0, std, 1.0)
