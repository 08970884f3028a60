"""Shared parts of the group analyses: pairs of groups, schedules, rates and files."""

import itertools
import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from spurcor.analysis.contract import Analysis, FinishedRun
from spurcor.analysis.statistics import GroupStatistics, Request, Samples
from spurcor.data.groups import GroupSpec
from spurcor.data.splits import Splits
from spurcor.errors import UserError
from spurcor.presentation.curves import Panel, draw
from spurcor.training.method import Method
from spurcor.training.metrics import none_if_undefined
from spurcor.training.moments import Moment

log = logging.getLogger(__name__)

# --- pairs of groups ------------------------------------------------------------------------------


def is_square(spec: GroupSpec) -> bool:
    """Return whether there are two classes and two attributes, so that y and a are -1 or +1."""
    return (spec.num_classes, len(spec.attributes)) == (2, 2)


def signs(spec: GroupSpec) -> tuple[Tensor, Tensor]:
    """Return y and a (G,), -1 or +1, of the groups of two classes and two attributes."""
    y = torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    a = torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    return y, a


Pairs = tuple[tuple[str, str], ...]


def pairs_of(spec: GroupSpec, named: Pairs | None, same_class: bool) -> dict[str, tuple[int, int]]:
    """Return pairs of group indices by the name of the pair.

    The default pairs each conflicting group with the aligned group of its class and, with two
    classes and two attributes (unless `same_class`), with the aligned group of its attribute.
    Raises UserError for unknown names, for pairs across classes under `same_class`, and where there
    are no aligned groups to build the default from.
    """
    names = spec.names
    if named is not None:
        for name in itertools.chain.from_iterable(named):
            if name not in names:
                raise UserError(f"pairs: {name} is not a group; choose from {', '.join(names)}")
        chosen = [(names.index(one), names.index(other)) for one, other in named]
        for one, other in chosen if same_class else ():
            if one // len(spec.attributes) != other // len(spec.attributes):
                raise UserError(
                    f"pairs: {names[one]} and {names[other]} are of different classes; a pair needs"
                    " two groups of one class"
                )
    elif not spec.aligned:
        raise UserError("pairs=null: this data set does not define aligned groups; list the pairs")
    else:
        chosen = _usual_pairs(spec, same_class)
    return {f"{names[one]}-{names[other]}": (one, other) for one, other in chosen}


def _usual_pairs(spec: GroupSpec, same_class: bool) -> list[tuple[int, int]]:
    num_attributes = len(spec.attributes)
    usual = [y * num_attributes + a for y, a in enumerate(spec.aligned)]
    others = [g for g in range(spec.num_groups) if g not in usual]
    pairs = [(g, usual[g // num_attributes]) for g in others]
    if is_square(spec) and not same_class:
        of_attribute = {g % 2: g for g in usual}
        pairs += [(g, of_attribute[g % 2]) for g in others if g % 2 in of_attribute]
    return pairs


# --- the analyses ---------------------------------------------------------------------------------


@dataclass(kw_only=True)
class GroupAnalysis(Analysis):
    """An analysis that is a function of the group statistics of `splits`.

    `epochs`: epochs after which it measures, 0 being before the first; null: every `every`-th; []:
    none. `num_samples`: samples read per group; null: all. `chunk_size`: samples per forward pass;
    null: 512, or fewer so that their images have at most 4 million values.
    """

    splits: tuple[str, ...] = ("train",)
    epochs: tuple[int, ...] | None = None
    every: int = 1
    num_samples: int | None = None
    chunk_size: int | None = None

    gradients: ClassVar[bool] = False
    jacobians: ClassVar[bool] = False
    scalar: ClassVar[bool] = False  # whether it needs the scalar output f of two classes

    def __post_init__(self) -> None:
        for name in ("every", "num_samples", "chunk_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.epochs and min(self.epochs) < 0:
            raise ValueError(
                f"epochs={list(self.epochs)} must not be negative; 0 is before the first epoch"
            )
        if not self.splits:
            raise ValueError("splits=[] leaves nothing to analyse; list at least one")

    def check(self, method: Method, splits: Splits) -> None:
        """Check groups, splits and, if `scalar`, two classes; warn of values that will be NaN."""
        what = type(self).__name__
        spec = method.spec
        spec.require_groups(f"{what} (analysis=none turns it off)")
        if self.scalar and spec.num_classes != 2:
            raise ValueError(
                f"it needs the scalar output of two classes, but this data set has"
                f" {spec.num_classes} classes"
            )
        for name in self.splits:
            counts = splits[name].group_counts.tolist()
            if empty := [g for g, n in zip(spec.names, counts, strict=True) if not n]:
                log.warning(
                    "analysis: no samples of %s in %s; %s reports NaN for them",
                    ", ".join(empty),
                    name,
                    what,
                )
        phases = method.phases()
        if not phases:
            raise ValueError("it analyses training, but this method trains nothing")
        for phase in phases:
            if taken := [name for name in self.splits if name in phase.consumed]:
                log.warning(
                    "analysis: phase %s trains on %s; %s reports NaN for it in that phase",
                    phase.name,
                    ", ".join(taken),
                    what,
                )
        end = max(phase.epochs for phase in phases)
        if late := [epoch for epoch in self.epochs or () if epoch > end]:
            log.warning("%s: epochs=%s are after the last epoch, %d", what, late, end)
        self.check_spec(spec)

    def check_spec(self, spec: GroupSpec) -> None:
        """Raise UserError for groups that it cannot analyse."""

    @property
    def measures(self) -> bool:
        """Whether any epoch is requested."""
        return self.epochs != ()

    def due(self, epoch: int) -> bool:
        """Return whether `epochs`, or else `every`, includes the epoch."""
        return epoch % self.every == 0 if self.epochs is None else epoch in self.epochs

    def requests(self) -> list[Request]:
        """Return a request per split."""
        return [
            Request(name, self.num_samples, self.chunk_size, self.gradients, self.jacobians)
            for name in self.splits
        ]

    def measure(
        self, method: Method, splits: Splits, found: Mapping[Samples, GroupStatistics]
    ) -> dict[str, Tensor]:
        """Return the quantities of every split, and the arrays that they are computed from."""
        values: dict[str, Tensor] = {}
        for request in self.requests():
            statistics = found[request.samples]
            arrays = {"count": statistics.count, "loss": statistics.loss}
            if self.gradients or self.jacobians:
                arrays["gram"] = statistics.products(self.gradients, self.jacobians)
            quantities = {**arrays, **self.quantities(statistics)}
            values |= {f"{key}/{request.split}": value for key, value in quantities.items()}
        return values

    @abstractmethod
    def quantities(self, s: GroupStatistics) -> dict[str, Tensor]:
        """Return the quantities of one split by name."""

    @abstractmethod
    def panels(
        self, of: Callable[[str], Tensor], spec: GroupSpec, ended: FinishedRun
    ) -> list[Panel]:
        """Return the panels of one split; `of` gives a quantity's values (T, ...) over time."""

    def finish(self, ended: FinishedRun) -> dict[str, Any]:
        """Draw `plots/<analysis>-<split>.png` for each split; return the last values."""
        series = ended.series
        if not series.moments:
            return {"last": None}
        stacked, x = series.stacked(), positions(series.moments)
        name = ended.folder.name.rpartition("-")[0]
        for split in self.splits:
            spec = ended.splits[split].spec

            def of(key: str, split: str = split) -> Tensor:
                return stacked[f"{key}/{split}"]

            path = ended.folder / "plots" / f"{name}-{split}.png"
            draw(path, f"{name} on {split}", x, self.panels(of, spec, ended))
        last = series.moments[-1]
        numbers = {k: none_if_undefined(float(v[-1])) for k, v in stacked.items() if v.dim() == 1}
        return {"last": {"phase": last.phase, "epoch": last.epoch, "values": numbers}}


def positions(moments: Sequence[Moment]) -> list[int]:
    """Return for each moment the epochs since the run began.

    Earlier phases count up to their last measured epoch.
    """
    found: list[int] = []
    before = 0
    for last, moment in itertools.pairwise([moments[0], *moments]):
        before += last.epoch if moment.phase != last.phase else 0
        found.append(before + moment.epoch)
    return found


def flow_rate(ended: FinishedRun, values: Tensor) -> tuple[list[float], list[float]] | None:
    """Return the rate of change of values (T,) per unit of gradient-flow time, with its epochs.

    Rates are finite differences between consecutive moments of a phase; a step of plain full-batch
    gradient descent takes time lr. None if the optimiser, the schedule or the batch size differ
    from that, or if no phase with this learning rate has two moments.
    """
    config, moments = ended.config, ended.series.moments
    optimizer = config.optimizer.arguments
    constant = config.schedule.target == "torch.optim.lr_scheduler.ConstantLR"
    moved = constant and config.schedule.arguments.get("factor") == 1.0
    plain = config.optimizer.target == "torch.optim.SGD" and not any(
        optimizer.get(key) for key in ("momentum", "weight_decay", "nesterov", "maximize")
    )
    flows = {phase.name for phase in ended.method.phases() if phase.lr_key == "optimizer.lr"}
    pairs = [
        i
        for i, (one, other) in enumerate(itertools.pairwise(moments))
        if one.phase == other.phase and one.phase in flows and one.step < other.step
    ]
    if not (plain and moved and config.train.batch_size is None and pairs):
        return None
    x = torch.tensor(positions(moments), dtype=torch.float64)
    time = optimizer["lr"] * torch.tensor([moment.step for moment in moments]).double()
    rates = values.diff()[pairs] / time.diff()[pairs]
    return ((x[1:] + x[:-1]) / 2)[pairs].tolist(), rates.tolist()
