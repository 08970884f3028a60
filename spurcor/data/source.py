"""The interface of a data set, and the options that every data set has."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from spurcor.data.association import Contingency
from spurcor.data.groups import GroupedDataset, GroupSpec, Split, members_by
from spurcor.data.partition import drawn
from spurcor.data.photographs import Photographs
from spurcor.data.transforms import Transform
from spurcor.errors import UserError
from spurcor.seeding import derive_seed

MOST_WORKERS = 256  # each is a process


@dataclass(kw_only=True)
class DataSource(ABC):
    """A data set, as built from a file in conf/dataset, with the options common to all.

    `drop_groups` (class/attribute) are removed from TRAIN. The fraction `target_fraction` of each
    group of VAL, or of TRAIN (`target_from`; this replaces a TARGET that the data set has), becomes
    TARGET. `num_train`, `num_val` and `num_test` (also for named test sets) limit a split to that
    many samples, keeping the group proportions and at least one sample per group; `subset_size`
    sets all three. `num_target` does so for TARGET; in conf/dataset it defaults to `subset_size`.
    `split_seed` seeds these draws. `store` keeps images on `disk` (memory-mapped), in `memory` or
    on the training `device`; `workers` processes load batches ahead.
    """

    transform: Transform
    target_fraction: float = 0.0
    target_from: Literal["val", "train"] = "val"
    subset_size: int | None = None
    num_train: int | None = None
    num_val: int | None = None
    num_test: int | None = None
    num_target: int | None = None  # `subset_size` did not limit TARGET in older runs
    drop_groups: tuple[str, ...] = ()
    split_seed: int = 0
    store: Literal["disk", "memory", "device"] = "device"
    workers: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.target_fraction < 1:
            raise ValueError(
                f"target_fraction={self.target_fraction} must be at least 0 and below 1"
            )
        for name in ("subset_size", "num_train", "num_val", "num_test", "num_target"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if not 0 <= self.workers <= MOST_WORKERS:
            raise ValueError(f"workers={self.workers} must be between 0 and {MOST_WORKERS}")

    @abstractmethod
    def load(self, root: Path) -> "dict[str, GroupedDataset] | Photographs":
        """Return all splits by name: the members of `Split` that exist, and any named test sets.

        Classes and attribute values come with the loaded data, since they may be read from a file
        under `root`.
        """

    def knows_groups(self, root: Path) -> bool:
        """Return whether the samples' attribute values are known, without reading all data."""
        return True

    def candidates(self, root: Path) -> Mapping[str, Contingency]:
        """Return the classes in TRAIN against each property of the samples that may be a shortcut.

        Empty if only the attribute is known.
        """
        return {}

    def splits(self, root: Path, *, augmented: bool = True) -> dict[str, GroupedDataset]:
        """Return the splits under `root` with all options applied, decoding images if needed.

        Without `augmented`, images are not decoded a second time for random crops.
        """
        loaded = self.load(root)
        if isinstance(loaded, Photographs):
            parts = self.select(loaded.groups, loaded.spec, self._units(loaded))
            members = {name: loaded.members[of][kept] for name, (of, kept) in parts.items()}
            return loaded.open(members, self.transform, augmented=augmented)
        groups = {name: split.g for name, split in loaded.items()}
        parts = self.select(groups, loaded[Split.TRAIN].spec)
        return {name: loaded[of].subset(kept) for name, (of, kept) in parts.items()}

    # --- options ----------------------------------------------------------------------------------

    def select(
        self,
        groups: Mapping[str, Tensor],
        spec: GroupSpec,
        units: Mapping[str, Tensor] | None = None,
    ) -> dict[str, tuple[str, Tensor]]:
        """Apply `drop_groups`, then `target_fraction`, then the size limits.

        `groups` are the group numbers (N,) of each loaded split, and `units` (N,) numbers what must
        not cross splits. Returns, for each resulting split,
        the name of the loaded split that its samples come from and their positions there.
        """
        kept = {name: torch.arange(len(g)) for name, g in groups.items()}
        origin = {name: name for name in groups}
        kept[Split.TRAIN] = self._without_dropped(groups[Split.TRAIN], spec)
        if self.target_fraction:
            if Split.TARGET in groups and self.target_from == "val":
                raise UserError(
                    f"dataset.target_fraction={self.target_fraction}: this data set has its own"
                    " TARGET; set dataset.target_fraction=0, or dataset.target_from=train to take"
                    " a share of TRAIN instead"
                )
            origin[Split.TARGET] = self.target_from
            remaining = kept[self.target_from]
            unit = units[self.target_from][remaining] if units else None
            rest, taken = self._take_target(groups[self.target_from][remaining], unit)
            kept[self.target_from], kept[Split.TARGET] = remaining[rest], remaining[taken]
        keys = {name: f"num_{name}" for name in map(str, (Split.TRAIN, Split.VAL, Split.TARGET))}
        for name in kept:
            key = keys.get(name, "num_test")
            size = getattr(self, key) or (self.subset_size if name != Split.TARGET else None)
            if size is not None and size < len(kept[name]):
                g = groups[origin[name]][kept[name]]
                kept[name] = kept[name][self._stratified(name, g, size, key)]
        return {name: (origin[name], positions) for name, positions in kept.items()}

    def _units(self, loaded: Photographs) -> dict[str, Tensor] | None:
        units = loaded.units
        return None if units is None else {n: units[rows] for n, rows in loaded.members.items()}

    def _generator(self, what: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(what, self.split_seed))

    def _without_dropped(self, g: Tensor, spec: GroupSpec) -> Tensor:
        if self.drop_groups:
            spec.require_groups(f"dataset.drop_groups={list(self.drop_groups)}")
        names = spec.names
        if unknown := [name for name in self.drop_groups if name not in names]:
            raise UserError(
                f"dataset.drop_groups={unknown[0]} is not a group; choose from {', '.join(names)}"
            )
        dropped = torch.tensor([names.index(name) for name in self.drop_groups], dtype=torch.int64)
        kept = (~torch.isin(g, dropped)).nonzero().squeeze(1)
        if not len(kept):
            dropped_all = list(self.drop_groups)
            raise UserError(f"dataset.drop_groups={dropped_all} leaves nothing to train on")
        return kept

    def _take_target(self, g: Tensor, unit: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the positions that stay in their split, and those that become TARGET."""
        if unit is not None:
            shares = {"rest": 1 - self.target_fraction, "target": self.target_fraction}
            option = f"target_fraction={self.target_fraction}"
            parts = drawn(g, shares, derive_seed("target", self.split_seed), unit, option)
            return parts["rest"], parts["target"]
        shuffled = torch.randperm(len(g), generator=self._generator("target"))
        taken = torch.zeros(len(g), dtype=torch.bool)
        for members in members_by(g, shuffled):
            taken[members[: round(self.target_fraction * len(members))]] = True
        if not taken.any() or taken.all():
            raise UserError(
                f"dataset.target_fraction={self.target_fraction} of {len(g)} {self.target_from}"
                f" samples leaves target or {self.target_from} empty; choose another fraction"
            )
        return (~taken).nonzero().squeeze(1), taken.nonzero().squeeze(1)

    def _stratified(self, name: str, g: Tensor, size: int, key: str) -> Tensor:
        """Return `size` positions in group proportions, at least one per group."""
        groups = members_by(g, torch.randperm(len(g), generator=self._generator(f"subset/{name}")))
        if size < len(groups):
            key = key if getattr(self, key) else "subset_size"
            raise UserError(
                f"dataset.{key}={size} is too small: {name} has {len(groups)} groups; use at least"
                f" {len(groups)}"
            )
        quotas = apportion(torch.tensor([len(members) for members in groups]), size).tolist()
        kept = [members[:quota] for members, quota in zip(groups, quotas, strict=True)]
        return torch.cat(kept).sort()[0]


def apportion(counts: Tensor, size: int) -> Tensor:
    """Divide `size` seats (G,) in proportion to positive `counts` (G,), at least one each.

    Largest-remainder method. `size` must lie between G and the sum of the counts.
    """
    shares = counts.double() * size / counts.sum()
    seats = shares.floor().long()
    seats[(shares - seats).sort(descending=True, stable=True)[1][: size - int(seats.sum())]] += 1
    for empty in (seats == 0).nonzero():
        seats[seats.argmax()] -= 1
        seats[empty] = 1
    return seats
