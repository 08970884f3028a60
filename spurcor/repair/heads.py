"""Linear heads on feature tables, and the regressions that fit them.

Binary heads have a scalar f and the logits (-f/2, f/2); with three or more classes, each logit is a
one-vs-rest regression. Shapes: x (N, D), y (N,), weights (K, D), biases (K,).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from spurcor.repair import liblinear

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
LASSO_ITERATIONS = 10_000
CHUNK = 64


@dataclass(frozen=True)
class FeatureTable:
    """Features x (N, D), classes y (N,) and groups g (N,) of a split."""

    x: Array
    y: Indices
    g: Indices

    def take(self, indices: Indices) -> "FeatureTable":
        """Return the rows at `indices`."""
        return FeatureTable(self.x[indices], self.y[indices], self.g[indices])


@dataclass(frozen=True)
class Linear:
    """A linear classifier on raw features: weights (K, D) and biases (K,)."""

    weight: Array
    bias: Array

    def logits(self, x: Array) -> Array:
        """Return logits (N, K) of raw features (N, D)."""
        return x @ self.weight.T + self.bias


def average(heads: Sequence[Linear]) -> Linear:
    """Return the head with the mean weights and biases."""
    weight = np.mean([head.weight for head in heads], axis=0)
    return Linear(weight, np.mean([head.bias for head in heads], axis=0))


@dataclass(frozen=True)
class Scale:
    """Means and standard deviations (D,) that standardise features."""

    mean: Array
    std: Array

    @classmethod
    def of(cls, x: Array | None, num_features: int) -> "Scale":
        """Compute the statistics of reference features (N, D).

        Without any, means are 0 and deviations 1; a constant feature has deviation 1.
        """
        if x is None:
            return cls(np.zeros(num_features), np.ones(num_features))
        mean = x.mean(axis=0)
        squares = np.zeros(num_features)
        for rows in range(0, len(x), CHUNK):  # chunks that fit the processor's cache
            difference = x[rows : rows + CHUNK] - mean
            squares += np.einsum("nd,nd->d", difference, difference)
        std = np.sqrt(squares / len(x))
        rounding = len(x) * np.finfo(np.float64).eps * np.abs(mean)  # deviation of a constant
        return cls(mean, np.where(std > rounding, std, 1.0))

    def apply(self, x: Array) -> Array:
        """Return standardised features as a new array."""
        x = x - self.mean
        x /= self.std
        return x

    def fold(self, head: Linear) -> Linear:
        """Return the head on raw features that equals `head` on standardised ones."""
        weight = head.weight / self.std
        return Linear(weight, head.bias - weight @ self.mean)


@dataclass(frozen=True)
class Problem:
    """A fit to run: its data, inverse regularisation C, and factors on the loss of each class.

    `rows` returns standardised features and classes. The fitting thread calls it, so that only the
    subsets of running fits are in memory.
    """

    rows: Callable[[], tuple[Array, Indices]]
    c: float
    class_weight: tuple[float, float] | None = None


@dataclass(frozen=True)
class Regression:
    """The regression objective over w and b, with f = x w + b and labels s = -1, +1.

    `logistic`: C sum log(1 + exp(-s f)) + |w|_1 + |b| (l1) or + (|w|^2 + b^2) / 2 (l2), by
    liblinear, which penalises the intercept; the loss alone (none) by L-BFGS. `mse`, as in the
    gradient-flow code: scikit-learn's Ridge (l2) and Lasso (l1) with alpha = 1 / C, or least
    squares (none), with an unpenalised intercept. `max_iter` applies to the logistic solvers.
    """

    loss: Literal["logistic", "mse"] = "logistic"
    penalty: Literal["l1", "l2", "none"] = "l1"
    max_iter: int = 100

    def fit(self, problems: Sequence[Problem], num_classes: int) -> list[Linear]:
        """Return a head per problem, on its standardised features."""
        rows = [1] if num_classes == 2 else range(num_classes)
        tasks = [self._task(problem, k) for problem in problems for k in rows]
        found = liblinear.run(tasks)
        heads = []
        for i in range(0, len(found), len(rows)):
            weight = np.stack([w for w, _ in found[i : i + len(rows)]])
            bias = np.array([b for _, b in found[i : i + len(rows)]])
            if num_classes == 2:
                weight, bias = (np.concatenate([-v, v]) / 2 for v in (weight, bias))
            heads.append(Linear(weight, bias))
        return heads

    def _task(self, problem: Problem, k: int) -> Callable[[Any], tuple[Array, float]]:
        def task(estimator: Any) -> tuple[Array, float]:
            x, y = problem.rows()
            target = y == k
            if self.loss == "mse":
                return self._least_squares(x, target, problem)
            return self._logistic(estimator, x, target, problem)

        return task

    def _logistic(
        self, estimator: Any, x: Array, target: NDArray[np.bool_], problem: Problem
    ) -> tuple[Array, float]:
        weights = problem.class_weight
        model = estimator(
            C=problem.c,
            l1_ratio=1.0 if self.penalty == "l1" else 0.0,
            solver="lbfgs" if self.penalty == "none" else "liblinear",
            class_weight=None if weights is None else {False: weights[0], True: weights[1]},
            max_iter=self.max_iter,
            random_state=0,
        )
        model.fit(x, target)
        return model.coef_[0], float(model.intercept_[0])

    def _least_squares(
        self, x: Array, target: NDArray[np.bool_], problem: Problem
    ) -> tuple[Array, float]:
        from sklearn.linear_model import Lasso, LinearRegression, Ridge

        model: Any = LinearRegression()
        if self.penalty == "l2":
            model = Ridge(alpha=1 / problem.c)
        elif self.penalty == "l1":
            model = Lasso(alpha=1 / problem.c, max_iter=LASSO_ITERATIONS)
        weights = problem.class_weight
        factors = None if weights is None else np.where(target, weights[1], weights[0])
        model.fit(x, np.where(target, 1.0, -1.0), sample_weight=factors)
        return model.coef_, float(model.intercept_)
