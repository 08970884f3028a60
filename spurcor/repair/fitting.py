"""One repair: its samples, its random draws, and the heads fitted on them."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from spurcor.data.groups import GroupSpec, Split
from spurcor.errors import RunError
from spurcor.repair.heads import Array, FeatureTable, Indices, Linear, Problem, Scale, average
from spurcor.repair.options import DataOptions, HeadOptions, TuningOptions
from spurcor.repair.refusals import note_of_few
from spurcor.repair.sgd_head import fit_sgd
from spurcor.seeding import derive_seed
from spurcor.training.metrics import GroupMetrics, group_metrics, none_if_undefined

Weights = tuple[float, float]  # factors on the losses of two classes


@dataclass(frozen=True)
class Fit:
    """The averaged classifier and what was chosen for it on the tuning data.

    `c` is the inverse regularisation strength, None without a penalty; `class_weight` the factors
    on the losses of the two classes; `tuning` one row per candidate, or per epoch for head=sgd;
    `note` a caveat to read before trusting the fit; `chosen` further options that were tuned.
    """

    linear: Linear
    c: float | None = None
    class_weight: Weights | None = None
    tuning: Sequence[Mapping[str, Any]] = ()
    note: str = ""
    chosen: Mapping[str, float] = field(default_factory=dict)


class Fitting:
    """Samples of a repair, drawn by one generator: first the share of TRAIN, halves, then subsets.

    `table` is the reweighting data. To choose C, heads are fitted on `fitted` and compared on
    `judged`; `scale` standardises the features of the final fits.
    """

    def __init__(
        self,
        options: tuple[DataOptions, TuningOptions, HeadOptions],
        tables: Mapping[str, FeatureTable],
        spec: GroupSpec,
        rng: np.random.Generator,
    ) -> None:
        self.data, self.tuning, self.head = options
        self.tables, self.spec, self.rng = tables, spec, rng
        table = tables[self.data.source]
        if not self.data.whole:
            share = rng.permutation(len(table.y))[: max(1, int(self.data.ratio * len(table.y)))]
            table = table.take(share)
        self.table = table
        if self.tuning.tune == "val":
            self.fitted, self.judged = table, tables[Split.VAL]
        else:
            order, half = rng.permutation(len(table.y)), len(table.y) // 2
            self.judged, self.fitted = table.take(order[:half]), table.take(order[half:])
        scaler = self.data.scaler
        reference = tables[Split.TRAIN] if scaler == "train" else table
        self.scale = Scale.of(None if scaler == "none" else reference.x, table.x.shape[1])

    @property
    def few(self) -> str:
        """A sentence on groups with too few samples, or an empty string."""
        tables = self.table, self.fitted, self.judged
        return note_of_few(self.data, self.tuning, tables, self.spec)

    def regression(self) -> Fit:
        """Choose C, then average regressions on newly drawn subsets of all reweighting data."""
        chosen = self._choose()
        c = math.inf if chosen.c is None else chosen.c
        x = self.scale.apply(self.table.x)
        problems = []
        for _ in range(self.head.num_retrains):
            rows = self._subset(self.table)
            added = self._added(len(rows))
            gather = functools.partial(_gather, x, self.table.y, rows, added, self.scale)
            problems.append(Problem(gather, c, chosen.class_weight))
        head, note = average(self._solve(problems, self.scale)), ""
        if not head.weight.any():
            note = "every weight is 0, so it predicts the same class for all samples"
            if chosen.c is not None:
                note += (
                    f": the best of dfr.c_grid={list(self.tuning.c_grid)} was C={chosen.c}, which"
                    " keeps no feature; use larger values"
                )
        return dataclasses.replace(chosen, linear=head, note=note)

    def sgd(self, seed: int, device: torch.device) -> Fit:
        """Average heads trained by Adam, each on its own subset of `fitted`."""
        judged = self._standardised(self.judged)
        heads, tuning = [], []
        for i in range(self.head.num_retrains):
            part = self._standardised(self.fitted.take(self._subset(self.fitted)))
            own_seed = derive_seed("dfr/sgd", seed, i)
            head, curve = fit_sgd(part, judged, self.spec, self.head.sgd, own_seed, device)
            heads.append(self.scale.fold(head))
            tuning += [{"fit": i, **row} for row in curve]
        return Fit(average(heads), tuning=tuning)

    def _choose(self) -> Fit:
        """Return the candidate with the highest score; ties go to the first in grid order."""
        fitted = self.fitted.take(self._subset(self.fitted))
        added = self._added(len(fitted.y))
        scale = self._tuning_scale(fitted, added)
        x, everything = scale.apply(fitted.x), np.arange(len(fitted.y))
        gather = functools.partial(_gather, x, fitted.y, everything, added, scale)
        candidates = self._candidates()
        heads = self._solve([Problem(gather, c, side) for c, side in candidates], scale)
        scores, tuning = [], []
        for (c, side), head in zip(candidates, heads, strict=True):
            metrics = _judge(head, self.judged, self.spec)
            scores.append(getattr(metrics, self.tuning.criterion))
            row = {"c": none_if_undefined(c), "class_weight": None if side is None else list(side)}
            for name in dict.fromkeys(["worst", self.tuning.criterion]):
                row[name] = none_if_undefined(getattr(metrics, name))
            tuning.append(row)
        if not np.isfinite(scores).any():
            raise RunError(
                f"dfr.criterion={self.tuning.criterion} is undefined on the data that judge C;"
                " choose another"
            )
        best = int(np.nanargmax(scores))
        c, side = candidates[best]
        return Fit(heads[best], None if math.isinf(c) else c, side, tuning)

    def _tuning_scale(self, fitted: FeatureTable, added: FeatureTable | None) -> Scale:
        own = self.tuning.tune == "half" and self.tuning.tune_scaler == "half"
        if not own or self.data.scaler == "none":
            return self.scale
        together = fitted.x if added is None else np.concatenate([fitted.x, added.x])
        return Scale.of(together, fitted.x.shape[1])

    def _candidates(self) -> list[tuple[float, Weights | None]]:
        """Return every C with every pair of class weights, in the order of the grids."""
        grid = (math.inf,) if self.head.regression.penalty == "none" else self.tuning.c_grid
        weights = self.head.class_weights
        sides = [pair for w in weights for pair in dict.fromkeys([(1.0, w), (w, 1.0)])]
        pairs: list[Weights | None] = [*sides] or [None]
        return [(c, pair) for c in grid for pair in pairs]

    def _solve(self, problems: Sequence[Problem], scale: Scale) -> list[Linear]:
        """Return the fitted heads, converted to raw features."""
        heads = self.head.regression.fit(problems, self.spec.num_classes)
        return [scale.fold(head) for head in heads]

    def _standardised(self, table: FeatureTable) -> FeatureTable:
        return FeatureTable(self.scale.apply(table.x), table.y, table.g)

    def _subset(self, table: FeatureTable) -> Indices:
        """Draw, without replacement, as many samples per group as the smallest non-empty one has.

        With `balance=none`, all samples. Raises RunError if a class has no sample.
        """
        absent = np.bincount(table.y, minlength=self.spec.num_classes) == 0
        if absent.any():
            name = self.spec.classes[int(absent.argmax())]
            half = "half of " if self.tuning.tune == "half" else ""
            split = self.data.source
            raise RunError(
                f"dfr: {half}the {split} split, on which heads are fitted, has no sample of class"
                f" {name}"
            )
        if self.data.balance == "none":
            return np.arange(len(table.y))
        g = table.g if self.data.balance == "groups" else table.y
        groups = [np.flatnonzero(g == group) for group in np.unique(g)]
        smallest = min(len(members) for members in groups)
        return np.concatenate([self.rng.permutation(members)[:smallest] for members in groups])

    def _added(self, count: int) -> FeatureTable | None:
        """Draw `count` random samples of TRAIN, or all if it has fewer; None unless `add_train`."""
        if not self.data.add_train:
            return None
        train = self.tables[Split.TRAIN]
        return train.take(self.rng.permutation(len(train.y))[:count])


def _gather(
    x: Array, y: Indices, rows: Indices, added: FeatureTable | None, scale: Scale
) -> tuple[Array, Indices]:
    """Return the chosen rows of standardised features and classes, followed by added samples."""
    if added is None:
        return x[rows], y[rows]
    return (
        np.concatenate([x[rows], scale.apply(added.x)]),
        np.concatenate([y[rows], added.y]),
    )


def _judge(head: Linear, table: FeatureTable, spec: GroupSpec) -> GroupMetrics:
    logits = torch.from_numpy(head.logits(table.x))
    return group_metrics(logits, torch.from_numpy(table.y), torch.from_numpy(table.g), spec)
