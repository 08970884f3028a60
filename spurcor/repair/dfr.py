"""Deep Feature Reweighting (Kirichenko, Izmailov, Wilson; ICLR 2023): refit the last layer.

A pure function of feature tables: linear heads on group-balanced subsets of the reweighting data,
averaged. It knows no network and no run.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from spurcor.data.groups import FEW, GroupSpec, Split
from spurcor.errors import RunError, UserError
from spurcor.repair.heads import Array, Indices, Linear, Problem, Regression, Scale, Table, average
from spurcor.repair.sgd_head import SgdOptions, fit_sgd
from spurcor.seeding import derive_seed
from spurcor.training.metrics import GroupMetrics, group_metrics, none_if_undefined

__all__ = ["Dfr", "Fit", "Linear", "Table"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """The averaged classifier, and what was chosen for it on the tuning data.

    `c` is the inverse regularisation, None without a penalty; `class_weight` the factors on the
    losses of the two classes. `tuning` holds a row per candidate, or per epoch of head=sgd, `note`
    what one must know of the fit before believing it.
    """

    linear: Linear
    c: float | None = None
    class_weight: tuple[float, float] | None = None
    tuning: Sequence[Mapping[str, Any]] = ()
    note: str = ""


class Dfr:
    """DFR with the published choices as options; defaults are DFR_Tr^Val of the paper's code.

    `split` is the reweighting data; `split_from_train` is a random `ratio` of TRAIN, which the
    network was trained on: its features are better separated there than on new images, so C is
    tuned on data that flatters. (`dataset.target_from=train` takes such a share out before
    training; `split=target` then fits on it.) C is chosen by `criterion` either on a random half
    that does not fit (`tune=half`, the paper's for VAL; of an odd number the smaller half) or on
    VAL (`tune=val`, for TRAIN). `class_weights` w are tried as factors (1, w) and (w, 1) on the
    losses of two classes. `add_train` appends as many random TRAIN samples to each subset as that
    has.

    `scaler` says whose features standardise the final fits. `tune=half` standardises by the
    balanced half that fits, with what is added to it (`tune_scaler=half`), or like the final fits
    (`same`). `loss`, `penalty` and `max_iter` are those of `heads.Regression`.
    `head=sgd` trains the layer by Adam instead, with `sgd`, and stops early on the tuning data.
    `layer`, `pooling` (null: the backbone's own) and `weights` say which features are read.
    """

    revision = 2  # which half of an odd number fits; scaling with added samples; int(ratio n)

    def __init__(
        self,
        split: Literal["val", "target", "train", "split_from_train"] = "val",
        tune: Literal["half", "val"] = "half",
        criterion: Literal["worst", "conflicting", "average"] = "worst",
        balance: Literal["groups", "none"] = "groups",
        scaler: Literal["train", "reweighting", "none"] = "train",
        penalty: Literal["l1", "l2", "none"] = "l1",
        c_grid: tuple[float, ...] = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01),
        num_retrains: int = 20,
        max_iter: int = 100,
        layer: int | str = -1,
        weights: Literal["last", "selected"] = "last",
        loss: Literal["logistic", "mse"] = "logistic",
        class_weights: tuple[float, ...] = (),
        add_train: bool = False,
        ratio: float = 0.2,
        head: Literal["regression", "sgd"] = "regression",
        sgd: SgdOptions | None = None,
        pooling: str | None = None,
        tune_scaler: Literal["half", "same"] = "half",
    ) -> None:
        if num_retrains < 1 or max_iter < 1:
            raise ValueError(
                f"num_retrains={num_retrains} and max_iter={max_iter} must be at least 1"
            )
        if not c_grid or min(c_grid) <= 0 or not all(map(math.isfinite, c_grid)):
            raise ValueError(f"c_grid={list(c_grid)} must hold positive numbers")
        if split == "val" and tune == "val":
            raise ValueError("tune=val would choose C on the data that it is fitted on; use half")
        if not 0 < ratio < 1:
            raise ValueError(f"ratio={ratio} must be between 0 and 1")
        self.whole = split != "split_from_train"
        self.split = Split(split) if self.whole else Split.TRAIN
        if class_weights:
            if min(class_weights) <= 0 or not all(map(math.isfinite, class_weights)):
                raise ValueError(f"class_weights={list(class_weights)} must hold positive numbers")
            if balance == "groups" and self.split is not Split.TRAIN:
                raise ValueError(
                    f"class_weights={list(class_weights)} are for balance=none and for split=train"
                )
        if add_train and self.split is Split.TRAIN:
            raise ValueError(f"add_train=true adds to val or target, and split={split} is of train")
        if head == "sgd" and (penalty, loss, len(class_weights)) != ("none", "logistic", 0):
            raise ValueError(
                "head=sgd is trained on cross-entropy: say penalty=none (sgd.weight_decay shrinks),"
                " loss=logistic and class_weights=[]"
            )
        self.tune, self.criterion, self.balance, self.scaler = tune, criterion, balance, scaler
        self.c_grid, self.num_retrains, self.penalty = c_grid, num_retrains, penalty
        self.class_weights, self.add_train, self.ratio = class_weights, add_train, ratio
        self.regression = Regression(loss, penalty, max_iter)
        self.head, self.sgd = head, sgd or SgdOptions()
        self.layer, self.weights, self.pooling = layer, weights, pooling
        self.tune_scaler = tune_scaler

    @property
    def reads(self) -> list[str]:
        """The splits whose features a fit needs."""
        needed = {str(self.split)}
        if self.scaler == "train" or self.add_train:
            needed.add(str(Split.TRAIN))
        if self.tune == "val":
            needed.add(str(Split.VAL))
        return sorted(needed)

    def check(self, counts: Mapping[str, Tensor], spec: GroupSpec) -> None:
        """Refuse what no fit can come of, from the group counts (G,) of every split."""
        spec.require_groups("Deep Feature Reweighting (dfr=none leaves it out)")
        if self.class_weights and spec.num_classes != 2:
            raise UserError(
                f"dfr.class_weights weigh two classes, and this data set has {spec.num_classes}"
            )
        if self.criterion == "conflicting" and not spec.aligned:
            raise UserError(
                "dfr.criterion=conflicting is undefined on this data set, which names no aligned"
                " groups; choose another"
            )
        own = counts[self.split]
        if self.criterion == "conflicting":
            judge = Split.VAL if self.tune == "val" else self.split
            if not counts[judge][~spec.is_aligned()].any():
                raise UserError(
                    f"dfr.criterion=conflicting is undefined: the {judge} split has no sample of a"
                    " conflicting group; choose another"
                )
        per_class = own.view(spec.num_classes, -1).sum(1).tolist()
        for name, count in zip(spec.classes, per_class, strict=True):
            if not count:
                raise UserError(
                    f"dfr.split={self.split}: the {self.split} split has no sample of class {name},"
                    " which a head fitted on it could not tell; choose other reweighting data"
                )
        if self.balance == "none":
            return
        others = counts.get(Split.TEST, own).tolist()
        for name, count, tested in zip(spec.names, own.tolist(), others, strict=True):
            if tested and not count:
                raise UserError(
                    f"dfr.split={self.split}: the {self.split} split has no sample of group {name},"
                    f" and test has {tested}; choose other reweighting data, or dfr.balance=none"
                )

    def fit(
        self,
        tables: Mapping[str, Table],
        spec: GroupSpec,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> Fit:
        """Choose C, then average `num_retrains` fits on fresh balanced subsets.

        Everything is drawn from one generator seeded by `seed`: first the share of
        `split_from_train`, then the halves, the tuning's subset, and a subset per fit.
        """
        rng = np.random.default_rng(derive_seed("dfr", seed))
        for name in self.reads:
            _refuse_broken(name, tables[name])
        data = tables[self.split]
        if not self.whole:
            share = rng.permutation(len(data.y))[: max(1, int(self.ratio * len(data.y)))]
            data = data.take(share)
        if self.tune == "val":
            fitted, judged = data, tables[Split.VAL]
        else:
            order, half = rng.permutation(len(data.y)), len(data.y) // 2
            judged, fitted = data.take(order[:half]), data.take(order[half:])
        few = self._few(data, fitted, judged, spec)
        reference = tables[Split.TRAIN] if self.scaler == "train" else data
        scale = Scale.of(None if self.scaler == "none" else reference.x, data.x.shape[1])
        if self.head == "sgd":
            fit = self._fit_sgd(fitted, judged, scale, spec, seed, torch.device(device), rng)
        else:
            chosen = self._choose(tables, fitted, judged, scale, spec, rng)
            fit = self._average(tables, data, chosen, scale, spec, rng)
        notes = [note for note in (few, fit.note) if note]
        for note in notes:
            log.warning("dfr: %s", note)
        return dataclasses.replace(fit, note="; ".join(notes))

    def _average(
        self,
        tables: Mapping[str, Table],
        data: Table,
        chosen: Fit,
        scale: Scale,
        spec: GroupSpec,
        rng: np.random.Generator,
    ) -> Fit:
        """The mean of the fits on fresh subsets of all of `data`, with what was chosen."""
        c = math.inf if chosen.c is None else chosen.c
        x = scale.apply(data.x)
        problems = []
        for _ in range(self.num_retrains):
            rows = self._subset(data, spec, rng)
            added = self._added(tables, len(rows), rng)
            gather = functools.partial(_gather, x, data.y, rows, added, scale)
            problems.append(Problem(gather, c, chosen.class_weight))
        heads = [scale.fold(head) for head in self.regression.fit(problems, spec.num_classes)]
        head, note = average(heads), ""
        if not head.weight.any():
            note = "every weight is 0, so that it gives all samples the same class"
            if chosen.c is not None:
                note += (
                    f": the best of dfr.c_grid={list(self.c_grid)} was C={chosen.c}, which leaves"
                    " no feature; give larger values"
                )
        return dataclasses.replace(chosen, linear=head, note=note)

    def _few(self, data: Table, fitted: Table, judged: Table, spec: GroupSpec) -> str:
        """A sentence on groups with so few samples that a fit, or the choice of C, is noise."""
        halves = self.tune == "half"
        split = f"{self.split}" if self.whole else f"the share of {self.split}"
        parts = [(split, data, data)]
        if halves:
            parts.append((f"the half of {split} that tuning fits", fitted, data))
        judge = f"the half of {split} that judges it" if halves else str(Split.VAL)
        parts.append((judge, judged, data if halves else judged))
        found = []
        for what, table, whole in parts:
            counts, of = (np.bincount(t.g, minlength=spec.num_groups) for t in (table, whole))
            few = np.flatnonzero((of > 0) & (counts < FEW))
            if len(few):
                groups = ", ".join(f"{counts[g]} of {spec.names[g]}" for g in few)
                found.append(f"{what} has {groups}")
        return f"fewer than {FEW} samples of a group are noise: {'; '.join(found)}" if found else ""

    def _choose(
        self,
        tables: Mapping[str, Table],
        fitted: Table,
        judged: Table,
        scale: Scale,
        spec: GroupSpec,
        rng: np.random.Generator,
    ) -> Fit:
        """The first candidate of the highest score, in the order of the grids."""
        fitted = fitted.take(self._subset(fitted, spec, rng))
        added = self._added(tables, len(fitted.y), rng)
        if self.tune == "half" and self.tune_scaler == "half" and self.scaler != "none":
            together = fitted.x if added is None else np.concatenate([fitted.x, added.x])
            scale = Scale.of(together, fitted.x.shape[1])
        x, everything = scale.apply(fitted.x), np.arange(len(fitted.y))
        gather = functools.partial(_gather, x, fitted.y, everything, added, scale)
        grid = (math.inf,) if self.penalty == "none" else self.c_grid
        sides = [pair for w in self.class_weights for pair in dict.fromkeys([(1.0, w), (w, 1.0)])]
        pairs: list[tuple[float, float] | None] = [*sides] or [None]
        candidates = [(c, side) for c in grid for side in pairs]
        problems = [Problem(gather, c, side) for c, side in candidates]
        heads = [scale.fold(head) for head in self.regression.fit(problems, spec.num_classes)]
        scores, tuning = [], []
        for (c, side), head in zip(candidates, heads, strict=True):
            metrics = _judge(head, judged, spec)
            scores.append(getattr(metrics, self.criterion))
            row = {"c": none_if_undefined(c), "class_weight": None if side is None else list(side)}
            for name in dict.fromkeys(["worst", self.criterion]):
                row[name] = none_if_undefined(getattr(metrics, name))
            tuning.append(row)
        if not np.isfinite(scores).any():
            raise RunError(
                f"dfr.criterion={self.criterion} is undefined on what judges C; choose another"
            )
        best = int(np.nanargmax(scores))
        c, side = candidates[best]
        return Fit(heads[best], None if math.isinf(c) else c, side, tuning)

    def _fit_sgd(
        self,
        fitted: Table,
        judged: Table,
        scale: Scale,
        spec: GroupSpec,
        seed: int,
        device: torch.device,
        rng: np.random.Generator,
    ) -> Fit:
        judged = Table(scale.apply(judged.x), judged.y, judged.g)
        heads, tuning = [], []
        for i in range(self.num_retrains):
            part = fitted.take(self._subset(fitted, spec, rng))
            part = Table(scale.apply(part.x), part.y, part.g)
            own_seed = derive_seed("dfr/sgd", seed, i)
            head, curve = fit_sgd(part, judged, spec, self.sgd, own_seed, device)
            heads.append(scale.fold(head))
            tuning += [{"fit": i, **row} for row in curve]
        return Fit(average(heads), tuning=tuning)

    def _subset(self, table: Table, spec: GroupSpec, rng: np.random.Generator) -> Indices:
        """As many of every group as the smallest group that occurs has, without replacement."""
        absent = np.bincount(table.y, minlength=spec.num_classes) == 0
        if absent.any():
            name = spec.classes[int(absent.argmax())]
            half = "half of " if self.tune == "half" else ""
            raise RunError(
                f"dfr: what is fitted of {half}the {self.split} split has no sample of class {name}"
            )
        g = table.g
        if self.balance == "none":
            return np.arange(len(g))
        groups = [np.flatnonzero(g == group) for group in np.unique(g)]
        smallest = min(len(members) for members in groups)
        return np.concatenate([rng.permutation(members)[:smallest] for members in groups])

    def _added(
        self, tables: Mapping[str, Table], count: int, rng: np.random.Generator
    ) -> Table | None:
        """`count` random samples of TRAIN, or all that it has, where they are asked for."""
        if not self.add_train:
            return None
        train = tables[Split.TRAIN]
        return train.take(rng.permutation(len(train.y))[:count])


def _gather(
    x: Array, y: Indices, rows: Indices, added: Table | None, scale: Scale
) -> tuple[Array, Indices]:
    """Rows of standardised features and classes, and below them what is added."""
    if added is None:
        return x[rows], y[rows]
    return (
        np.concatenate([x[rows], scale.apply(added.x)]),
        np.concatenate([y[rows], added.y]),
    )


def _judge(head: Linear, table: Table, spec: GroupSpec) -> GroupMetrics:
    logits = torch.from_numpy(head.logits(table.x))
    return group_metrics(logits, torch.from_numpy(table.y), torch.from_numpy(table.g), spec)


def _refuse_broken(name: str, table: Table) -> None:
    if not len(table.y):
        raise RunError(f"dfr: the {name} split is empty")
    broken = int((~np.isfinite(table.x)).any(axis=1).sum())
    if broken:
        raise RunError(
            f"dfr: the features of {broken:,} of {len(table.y):,} {name} samples are not finite;"
            " the network has diverged"
        )
