"""Checks for data on which a repair cannot be fitted or would be mostly noise."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from spurcor.data.groups import FEW, GroupSpec, Split
from spurcor.errors import RunError, UserError
from spurcor.repair.heads import FeatureTable
from spurcor.repair.options import DataOptions, TuningOptions

Counts = Mapping[str, Tensor]  # samples per group (G,), by split


def refuse_criterion(
    data: DataOptions, tuning: TuningOptions, counts: Counts, spec: GroupSpec
) -> None:
    """Raise UserError if the criterion is undefined on the data that choose C."""
    if tuning.criterion != "conflicting":
        return
    if not spec.aligned:
        raise UserError(
            "dfr.criterion=conflicting is undefined on this data set, which names no aligned"
            " groups; choose another"
        )
    judge = Split.VAL if tuning.tune == "val" else data.source
    if not counts[judge][~spec.is_aligned()].any():
        raise UserError(
            f"dfr.criterion=conflicting is undefined: the {judge} split has no sample of a"
            " conflicting group; choose another"
        )


def refuse_absent(data: DataOptions, counts: Counts, spec: GroupSpec) -> None:
    """Raise UserError if the reweighting data lack a class, or a group to balance that TEST has."""
    split, own = data.source, counts[data.source]
    per_class = own.view(spec.num_classes, -1).sum(1).tolist()
    for name, count in zip(spec.classes, per_class, strict=True):
        if not count:
            raise UserError(
                f"dfr.split={split}: the {split} split has no sample of class {name},"
                " so a head fitted on it would never predict it; choose other reweighting data"
            )
    if data.balance != "groups":
        return
    others = counts.get(Split.TEST, own).tolist()
    for name, count, tested in zip(spec.names, own.tolist(), others, strict=True):
        if tested and not count:
            raise UserError(
                f"dfr.split={split}: the {split} split has no sample of group {name},"
                f" and test has {tested}; choose other reweighting data, or dfr.balance=none"
            )


def refuse_broken(name: str, table: FeatureTable) -> None:
    """Raise RunError for a table without samples or with features that are not finite."""
    if not len(table.y):
        raise RunError(f"dfr: the {name} split is empty")
    broken = int((~np.isfinite(table.x)).any(axis=1).sum())
    if broken:
        raise RunError(
            f"dfr: the features of {broken:,} of {len(table.y):,} {name} samples are not finite;"
            " the network has diverged"
        )


def note_of_few(
    data: DataOptions,
    tuning: TuningOptions,
    tables: tuple[FeatureTable, FeatureTable, FeatureTable],
    spec: GroupSpec,
) -> str:
    """Return a sentence on groups with so few samples that a fit, or the choice of C, is noise.

    `tables`: the reweighting data, the part fitted to choose C, and the data that C is chosen on.
    Empty if there are no such groups.
    """
    (whole, fitted, judged), halves = tables, tuning.tune == "half"
    split = f"{data.source}" if data.whole else f"the share of {data.source}"
    parts = [(split, whole, whole)]
    if halves:
        parts.append((f"the half of {split} that tuning fits", fitted, whole))
    judge = f"the half of {split} that judges it" if halves else str(Split.VAL)
    parts.append((judge, judged, whole if halves else judged))
    found = []
    for what, table, around in parts:
        counts, of = (np.bincount(t.g, minlength=spec.num_groups) for t in (table, around))
        few = np.flatnonzero((of > 0) & (counts < FEW))
        if len(few):
            groups = ", ".join(f"{counts[g]} of {spec.names[g]}" for g in few)
            found.append(f"{what} has {groups}")
    return (
        f"results from fewer than {FEW} samples of a group are mostly noise: {'; '.join(found)}"
        if found
        else ""
    )
