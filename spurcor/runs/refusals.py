"""Checks, before anything is written, for runs that would fail or be meaningless."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spurcor.config.check import nearest
from spurcor.config.nodes import Node, content, flat, plain
from spurcor.config.schema import MACHINE, TrainConfig, TrainOptions
from spurcor.data.groups import FEW, GroupedDataset, GroupSpec, Split
from spurcor.data.splits import Splits
from spurcor.errors import UserError
from spurcor.repair.contract import LastLayer
from spurcor.training.method import Method, Phase

log = logging.getLogger(__name__)

INFERRED = "val/worst_inferred"  # the criterion of the groups that a run trains by
GROUP_METRICS = ("worst", "balanced", "adjusted", "aligned", "conflicting")
GROUPED = ("worst", "balanced", "group/", "aligned", "conflicting")  # criteria that need groups


def refuse_impossible_repair(dfr: LastLayer, splits: Splits, method: Method) -> None:
    """Refuse a repair that would only fail after training.

    Raises UserError if groups, splits or the layer are missing, or if the repair reads a split that
    the network is trained on.
    """
    data = {name: repaired(splits, dfr, name) for name in dfr.reads}
    if len(found := {split.spec for split in data.values()}) > 1:
        raise UserError(
            f"dfr.split={dfr.split} goes by inferred groups, which {' and '.join(dfr.reads)} do not"
            " share; infer them on both with groups.on=[train,val]"
        )
    (spec,) = found
    dfr.require(spec)
    for name in dfr.reads:
        if name in method.consumed:
            raise UserError(
                f"dfr reads {name}, on which the network is trained; choose a dfr that reads other"
                " splits, or dfr=none"
            )
    others = {} if spec != splits.spec else splits.data
    counts = {name: split.group_counts.cpu() for name, split in {**others, **data}.items()}
    dfr.check(counts, spec)
    method.backbone.layer(dfr.layer)
    method.backbone.size(dfr.layer, dfr.pooling)


def repaired(splits: Splits, dfr: LastLayer, name: str) -> GroupedDataset:
    """Return a split with the groups that a repair goes by.

    A repair that fits on balanced groups of TRAIN goes by those that the run trains by, others by
    the annotated ones, unless these are hidden.
    """
    inferred = _hidden(splits) or (dfr.by_groups and dfr.split is Split.TRAIN)
    return splits.trained(name) if inferred else splits[name]


def _hidden(splits: Splits) -> bool:
    return splits.grouping is not None and not splits.grouping.spec.known


def refuse_blind_criterion(config: TrainConfig) -> None:
    """Refuse a criterion of inferred groups that VAL will not have; called before any training."""
    stopping = config.train.early_stopping
    criteria = {"train.selection": config.train.selection}
    if stopping is not None:
        criteria["train.early_stopping.metric"] = stopping.metric
    for key, criterion in criteria.items():
        if criterion == INFERRED and (
            config.groups is None or "val" not in config.groups.build().on
        ):
            raise UserError(
                f"{key}={criterion}: no groups are inferred on val; choose groups other than"
                " annotated, with groups.on=[train,val]"
            )


def refuse_unknown_criterion(options: TrainOptions, splits: Splits) -> None:
    """Refuse criteria that VAL does not define: they would select the last epoch silently."""
    val = splits.data.get(Split.VAL)
    if val is None:
        return
    criteria = {"train.selection": options.selection}
    if options.early_stopping is not None:
        criteria["train.early_stopping.metric"] = options.early_stopping.metric
    there = [name for name, count in zip(val.spec.names, val.group_counts, strict=True) if count]
    for key, criterion in criteria.items():
        name = criterion.partition("/")[2]
        if name in GROUP_METRICS or name.startswith("group/"):
            of = splits.grouping.spec if _hidden(splits) and splits.grouping else val.spec
            _require_known(of, f"{key}={criterion}")
        if name.startswith("group/") and name.removeprefix("group/") not in there:
            near = nearest(name.removeprefix("group/"), there)
            hint = f"did you mean val/group/{near}?" if near else f"choose from {', '.join(there)}"
            raise UserError(f"{key}={criterion}: val has no such group; {hint}")
        if name in ("aligned", "conflicting") and not val.spec.aligned:
            raise UserError(
                f"{key}={criterion}: this data set does not define aligned groups; set"
                f" {key}=val/average"
            )


def _require_known(spec: GroupSpec, what: str) -> None:
    """Refuse a criterion of groups that are unknown; several labels have criteria per label."""
    if spec.task == "multiclass":
        spec.require_groups(f"{what} (val/worst_class does not)")


def refuse_blind_selection(options: TrainOptions, splits: Splits) -> None:
    """Refuse val/worst if a group has samples in only one of VAL and TEST."""
    key, criterion = "train.selection", options.selection
    if options.early_stopping is not None and criterion != "val/worst":
        key, criterion = "train.early_stopping.metric", options.early_stopping.metric
    val, test = (splits.data.get(name) for name in (Split.VAL, Split.TEST))
    if criterion != "val/worst" or val is None or test is None:
        return
    counts = zip(val.spec.names, val.group_counts.tolist(), test.group_counts.tolist(), strict=True)
    for name, in_val, in_test in counts:
        if bool(in_val) != bool(in_test):
            lacks, has = ("val", "test") if in_test else ("test", "val")
            raise UserError(
                f"{key}=val/worst: group {name} has no samples in {lacks} but"
                f" {max(in_val, in_test)} in {has}; add samples to {lacks}, or set"
                f" {key}=val/average"
            )


def warn_of_few(options: TrainOptions, splits: Splits) -> None:
    """Warn of groups in VAL with so few samples that their accuracy is mostly noise."""
    val = splits.data.get(Split.VAL)
    criterion = options.selection.partition("/")[2]
    if val is None or val.spec.task == "multilabel" or not criterion.startswith(GROUPED):
        return
    counts = zip(val.spec.names, val.group_counts.tolist(), strict=True)
    of = criterion.removeprefix("group/") if criterion.startswith("group/") else None
    few = [f"{n} of {name}" for name, n in counts if 0 < n < FEW and of in (None, name)]
    if few:
        log.warning(
            "train.selection=%s: val has only %s; with fewer than %d samples per group the"
            " selected epoch is mostly noise",
            options.selection,
            ", ".join(few),
            FEW,
        )


def refuse_blind_stopping(options: TrainOptions, phases: Sequence[Phase]) -> None:
    """Refuse early stopping in a phase that trains on VAL."""
    for phase in phases:
        if options.early_stopping is not None and Split.VAL in phase.consumed:
            raise UserError(
                f"train.early_stopping.metric={options.early_stopping.metric}: phase {phase.name}"
                " trains on val, so val cannot stop it; set train.early_stopping=null"
            )


def refuse_split_batches(options: TrainOptions, phases: Sequence[Phase]) -> None:
    """Refuse train.accumulate in a phase whose update needs the whole batch at once."""
    for phase in phases:
        if options.accumulate > 1 and not phase.accumulates:
            raise UserError(
                f"train.accumulate={options.accumulate}: phase {phase.name} needs whole batches;"
                " set train.accumulate=1 and a smaller train.batch_size"
            )


def refuse_changed_defaults(config: TrainConfig, before: TrainConfig) -> None:
    """Refuse to reuse a run whose defaults have changed: the identity leaves them out."""
    names = ("dataset", "groups", "backbone", "method", "optimizer", "schedule", "train")
    for name in (name for name in names if getattr(config, name) is not None):
        nodes = [getattr(c, name) for c in (before, config)]
        then, now = (_flat(name, n.arguments if isinstance(n, Node) else n) for n in nodes)
        # Identities are equal, so a key in only one of them is an unlisted, unchanged default.
        for key in sorted(then.keys() & now.keys()):
            files = content(then[key], before.paths.data), content(now[key], config.paths.data)
            if then[key] != now[key] and files[0] != files[1]:
                raise UserError(
                    f"{key}={now[key]} was {then[key]} by default when"
                    f" {config.directory} was made; set {key}={then[key]}, or rerun=true to"
                    " set that run aside"
                )


def _flat(name: str, values: Any) -> dict[str, Any]:
    """Return options by dotted key, without machine options and others that may differ."""
    elsewhere = ("store", "workers", "init", "run", *MACHINE)
    return flat(name, {key: v for key, v in plain(values).items() if key not in elsewhere})


def refuse_unfinished_origin(origin: Path | None) -> None:
    """Refuse to start from a run that is not finished."""
    if origin is not None and not (origin / "done").exists():
        raise UserError(f"method.init={origin} is not finished; run that first, then this again")


def refuse_leak(trained: Mapping[str, str], splits: Splits) -> None:
    """Refuse splits whose fingerprints differ from those that a run was trained with."""
    changed = [name for name, print_ in splits.fingerprints.items() if trained.get(name) != print_]
    if changed:
        raise UserError(
            f"the {', '.join(changed)} split is not the one this run was trained with, so"
            " training samples may now be tested on; restore the original data"
        )
