"""Clusters within each class (GEORGE; Sohoni et al., NeurIPS 2020. SPARE; Yang et al., 2024)."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from spurcor.config.ranges import require_at_least
from spurcor.data.grouping import Grouping
from spurcor.data.groups import GroupSpec
from spurcor.errors import UserError
from spurcor.groups.contract import Inference, On, Table, grouped
from spurcor.seeding import derive_seed

MOST_JUDGED = 5_000  # samples whose silhouettes are computed: they take O(n^2)
MOST_FITTED = 20_000  # samples of a class that clusters are fitted on; all are assigned to them


class Clusters(Inference):
    """Clusters of the reference network's outputs within each class, numbered per class by size.

    `of`: its last features, its logits or their softmax (SPARE); `hardness` is the margin, the true
    logit minus the largest other one: of two classes the coordinate of GEORGE along the difference
    of the head's weights, up to shift and scale. `k`: the number of clusters, or null for that of
    2 to `max_k` with the best mean silhouette; ties go to the larger. `by`: k-means or a Gaussian
    mixture. The largest cluster of a class has number 0. A class with fewer clusters than another
    leaves groups empty. VAL is assigned to the clusters of TRAIN.
    """

    def __init__(
        self,
        epochs: int = 1,
        of: Literal["features", "logits", "softmax", "hardness"] = "features",
        k: int | None = 2,
        max_k: int = 10,
        by: Literal["kmeans", "mixture"] = "kmeans",
        normalize: bool = False,
        lr: float | None = None,
        weight_decay: float | None = None,
        run: str | None = None,
        on: On = ("train",),
    ) -> None:
        super().__init__(epochs, lr, weight_decay, run, on)
        require_at_least(2, k=2 if k is None else k, max_k=max_k)
        self.of, self.k, self.max_k, self.by, self.normalize = of, k, max_k, by, normalize
        self.needs_features = of == "features"

    def infer(self, tables: Mapping[str, Table], spec: GroupSpec, seed: int) -> Grouping:
        """See `Inference`; UserError for a class with fewer samples than clusters."""
        points = {name: self._points(table) for name, table in tables.items()}
        found = {name: torch.zeros_like(table.y) for name, table in tables.items()}
        most = 1
        for c in range(spec.num_classes):
            own = {name: (table.y == c).numpy() for name, table in tables.items()}
            of_train = points["train"][own["train"]]
            if not len(of_train):
                continue
            if len(of_train) < (self.k or 3):
                count = "null" if self.k is None else self.k
                raise UserError(
                    f"groups.k={count}: class {spec.classes[c]} has {len(of_train)} training"
                    " samples; use fewer clusters, or other groups"
                )
            model, k = self._fit(of_train, derive_seed(seed, "clusters", c) % 2**32)
            sizes = np.bincount(model.predict(of_train), minlength=k)
            order = np.argsort(np.argsort(-sizes, kind="stable"), kind="stable")
            for name, rows in own.items():
                if rows.any():
                    numbers = order[model.predict(points[name][rows])]
                    found[name][torch.from_numpy(rows)] = torch.from_numpy(numbers)
            most = max(most, k)
        return grouped(tuple(f"cluster {k + 1}" for k in range(most)), found, spec)

    def _points(self, table: Table) -> "np.ndarray[Any, Any]":
        """Return what is clustered (N, D)."""
        x: Tensor
        if self.of == "features":
            assert table.features is not None
            x = table.features.flatten(1)
        elif self.of == "hardness":
            x = margins(table)[:, None]
        else:
            x = table.logits.softmax(1) if self.of == "softmax" else table.logits
        if self.normalize:
            x = torch.nn.functional.normalize(x)
        return x.numpy()

    def _fit(self, x: "np.ndarray[Any, Any]", seed: int) -> tuple[Any, int]:
        """Return the fitted model and its number of clusters."""
        rng = np.random.default_rng(seed)
        x = _at_most(MOST_FITTED, x, rng)
        if self.k is not None:
            return self._model(self.k, seed).fit(x), self.k
        from sklearn.metrics import silhouette_score

        judged = _at_most(MOST_JUDGED, x, rng)
        best: tuple[float, Any, int] = (-np.inf, None, 0)
        for k in range(2, min(self.max_k, len(x) - 1) + 1):
            model = self._model(k, seed).fit(x)
            labels = model.predict(judged)
            score = silhouette_score(judged, labels) if len(np.unique(labels)) > 1 else -1.0
            if score >= best[0]:
                best = (score, model, k)
        return best[1], best[2]

    def _model(self, k: int, seed: int) -> Any:
        if self.by == "mixture":
            from sklearn.mixture import GaussianMixture

            return GaussianMixture(k, n_init=3, random_state=seed)
        from sklearn.cluster import KMeans

        return KMeans(k, n_init=3, random_state=seed)


def _at_most(
    count: int, x: "np.ndarray[Any, Any]", rng: np.random.Generator
) -> "np.ndarray[Any, Any]":
    return x if len(x) <= count else x[rng.choice(len(x), count, replace=False)]


def margins(table: Table) -> Tensor:
    """Return the true logit minus the largest other one (N,)."""
    true = table.logits.gather(1, table.y[:, None]).squeeze(1)
    others = table.logits.scatter(1, table.y[:, None], -torch.inf)
    return true - others.max(1).values
