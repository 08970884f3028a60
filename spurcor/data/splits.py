"""All splits of a data set, placed on the training device."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from spurcor.data.grouping import Grouping
from spurcor.data.groups import DataInfo, GroupedDataset, GroupSpec, Split
from spurcor.data.images import Images
from spurcor.data.transforms import Transform
from spurcor.errors import UserError

if TYPE_CHECKING:
    from spurcor.data.source import DataSource

log = logging.getLogger(__name__)

DEVICE_SHARE = 0.5  # maximum share of the device's free memory for images


@dataclass(frozen=True)
class Splits:
    """All the data of a run: splits by name, their transform and the training device."""

    data: Mapping[str, GroupedDataset]
    transform: Transform
    device: torch.device
    workers: int = 0
    grouping: Grouping | None = None  # the groups to train by, if not the annotated ones

    @classmethod
    def load(
        cls, source: "DataSource", root: Path, device: torch.device, *, augmented: bool = True
    ) -> "Splits":
        """Read a data set from `root` and move it to the training device."""
        data = source.splits(root, augmented=augmented)
        arrays = {id(i): i for split in data.values() for i in (split.images, split.train_images)}
        placed = _place(arrays, source.store, device)
        data = {str(name): split.moved(device, placed) for name, split in data.items()}
        return cls(data, source.transform, device, source.workers)

    def __getitem__(self, name: str) -> GroupedDataset:
        if name not in self.data:
            hint = "; set dataset.target_fraction to create it" if name == Split.TARGET else ""
            have = ", ".join(self.data)
            raise UserError(f"this data set has no {name} split{hint}; it has {have}")
        return self.data[name]

    @property
    def spec(self) -> GroupSpec:
        """The annotated classes and attribute values, by which results are reported."""
        return self[Split.TRAIN].spec

    def trained(self, name: str) -> GroupedDataset:
        """Return a split with the groups that the run trains by."""
        split = self[name]
        return split if self.grouping is None else self.grouping.of(str(name), split)

    @property
    def info(self) -> DataInfo:
        """The facts about the data that constructors of methods and backbones need.

        A `UserError` is raised if the transform does not fit the images.
        """
        train = self[Split.TRAIN]
        x = train.fetch(torch.arange(1)).x
        # Refuses images too small for the random crop before anything is written.
        self.transform.draw(train.train_images.sizes(train.train_rows[:1]), torch.Generator())
        try:
            channels, height, width = self.transform(x).shape[1:]
        except RuntimeError as error:
            raise UserError(
                f"dataset.transform does not fit images of {x.shape[1]} channels ({error})"
            ) from error
        by, shape = self.trained(Split.TRAIN), (channels, height, width)
        counts = by.group_counts.cpu()
        return DataInfo(by.spec, shape, counts, num_train=len(train), reported=train.spec)

    @property
    def evaluated(self) -> dict[str, GroupedDataset]:
        """The splits that are evaluated: VAL, TEST and the named test sets."""
        trained = (Split.TRAIN, Split.TARGET)
        return {name: split for name, split in self.data.items() if name not in trained}

    def without(self, names: tuple[str, ...]) -> "Splits":
        """Return a copy without the splits named."""
        kept = {name: split for name, split in self.data.items() if name not in names}
        return replace(self, data=kept)

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of each split, see `GroupedDataset.fingerprint`."""
        return {name: split.fingerprint for name, split in self.data.items()}


def _place(arrays: Mapping[int, Images], store: str, device: torch.device) -> dict[int, Images]:
    """Return the image arrays on disk, in memory or on the device, as `store` says.

    They stay in memory if they would leave too little room for training on the device.
    """
    if store == "disk":
        return dict(arrays)
    if store == "device" and device.type == "cuda":
        needed = sum(images.num_bytes for images in arrays.values())
        free = torch.cuda.mem_get_info(device)[0]
        if needed > DEVICE_SHARE * free:
            log.warning(
                "dataset.store=device: the images take %.1f GB but %s has %.1f GB free; they stay"
                " in memory",
                needed / 1e9,
                device,
                free / 1e9,
            )
            device = torch.device("cpu")
    else:
        device = torch.device("cpu")
    return {key: images.to(device) for key, images in arrays.items()}
