"""Deep Feature Reweighting (Kirichenko, Izmailov, Wilson; ICLR 2023): refit the last layer.

A pure function of feature tables, without a network or a run: linear heads are fitted on
group-balanced subsets of the reweighting data and averaged.
"""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from spurcor.data.groups import GroupSpec, Split
from spurcor.errors import UserError
from spurcor.repair.contract import LastLayer
from spurcor.repair.fitting import Fit, Fitting
from spurcor.repair.heads import FeatureTable, Linear, Regression
from spurcor.repair.options import DataOptions, HeadOptions, TuningOptions, refuse_together
from spurcor.repair.refusals import refuse_absent, refuse_broken, refuse_criterion
from spurcor.repair.sgd_head import SgdOptions
from spurcor.seeding import derive_seed

__all__ = ["Dfr", "FeatureTable", "Fit", "Linear"]

log = logging.getLogger(__name__)


class Dfr(LastLayer):
    """DFR with the published variants as options; the defaults are DFR_Tr^Val of the paper's code.

    `split` is the reweighting data, of which `balance` draws equally many samples of each group, or
    of each class: the class-balanced retraining of LaBonte et al. (NeurIPS 2023), without groups.
    `split_from_train` is a random `ratio` of TRAIN, on which the network was trained: its features
    separate the classes better there than on new images, so C is tuned on optimistic data.
    (`dataset.target_from=train` takes such a share out before training; `split=target` then fits on
    it.) C is chosen by `criterion`, either on a random half held out from fitting (`tune=half`, the
    paper's choice for VAL; of an odd number, the smaller half) or on VAL (`tune=val`, for TRAIN).
    `class_weights` w are tried as factors (1, w) and (w, 1) on the losses of two classes.
    `add_train` adds random TRAIN samples to each subset, as many as the subset has.

    `scaler` sets whose features standardise the final fits. `tune=half` standardises by the
    balanced half being fitted, including added samples (`tune_scaler=half`), or like the final fits
    (`same`). `loss`, `penalty` and `max_iter` are passed to `heads.Regression`. `head=sgd` trains
    the layer by Adam instead, with the options `sgd`, and stops early on the tuning data. `layer`,
    `pooling` (null: the backbone's default) and `weights` select the features.
    """

    title = "DFR"
    revision = 2  # fits on the larger half; scales with added samples; int(ratio n)

    def __init__(
        self,
        split: Literal["val", "target", "train", "split_from_train"] = "val",
        tune: Literal["half", "val"] = "half",
        criterion: Literal["worst", "worst_class", "conflicting", "average"] = "worst",
        balance: Literal["groups", "classes", "none"] = "groups",
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
        self.data = DataOptions(split, ratio, balance, add_train, scaler)
        self.tuning = TuningOptions(tune, criterion, c_grid, tune_scaler)
        regression = Regression(loss, penalty, max_iter)
        self.head = HeadOptions(head, regression, class_weights, num_retrains, sgd or SgdOptions())
        refuse_together(self.data, self.tuning, self.head)
        self.layer, self.weights, self.pooling = layer, weights, pooling
        self.by_groups = balance == "groups"

    @property
    def split(self) -> Split:
        """The split that heads are fitted on."""
        return self.data.source

    @property
    def reads(self) -> list[str]:
        """The splits whose features a fit needs, sorted."""
        needed = {str(self.split)}
        if self.data.scaler == "train" or self.data.add_train:
            needed.add(str(Split.TRAIN))
        if self.tuning.tune == "val":
            needed.add(str(Split.VAL))
        return sorted(needed)

    def require(self, spec: GroupSpec) -> None:
        """Raise UserError if the data have no classes, or lack the groups that an option needs."""
        spec.require_classes("Deep Feature Reweighting (dfr=none leaves it out)")
        if self.data.balance == "groups":
            spec.require_groups("dfr.balance=groups (dfr=none leaves the repair out)")
        if self.tuning.criterion in ("worst", "conflicting"):
            spec.require_groups(f"dfr.criterion={self.tuning.criterion}")

    def check(self, counts: Mapping[str, Tensor], spec: GroupSpec) -> None:
        """Raise UserError if no fit is possible, given the group counts (G,) of each split."""
        self.require(spec)
        if self.head.class_weights and spec.num_classes != 2:
            raise UserError(
                f"dfr.class_weights is for two classes, but this data set has {spec.num_classes}"
            )
        refuse_criterion(self.data, self.tuning, counts, spec)
        refuse_absent(self.data, counts, spec)

    def fit(
        self,
        tables: Mapping[str, FeatureTable],
        spec: GroupSpec,
        seed: int,
        device: torch.device | str = "cpu",
        own: Linear | None = None,
    ) -> Fit:
        """Choose C, then average `num_retrains` fits, each on a newly drawn balanced subset.

        The network's `own` layer has no part in it. All draws come from one generator seeded by
        `seed`: first the share of `split_from_train`, then the halves, the subset for tuning, and a
        subset per fit.
        """
        del own
        rng = np.random.default_rng(derive_seed("dfr", seed))
        for name in self.reads:
            refuse_broken(name, tables[name])
        fitting = Fitting((self.data, self.tuning, self.head), tables, spec, rng)
        sgd = self.head.head == "sgd"
        fit = fitting.sgd(seed, torch.device(device)) if sgd else fitting.regression()
        notes = [note for note in (fitting.few, fit.note) if note]
        for note in notes:
            log.warning("dfr: %s", note)
        return dataclasses.replace(fit, note="; ".join(notes))
