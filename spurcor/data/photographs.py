"""Labelled photographs stored as image files."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spurcor.data.groups import GroupedDataset, GroupSpec, Split
from spurcor.data.images import Images, RaggedImages
from spurcor.data.listing import located
from spurcor.data.store import open_store, place_of
from spurcor.data.transforms import Transform

log = logging.getLogger(__name__)

ENLARGED = 1.5  # tolerated factor per side; CelebA's published 178 to 224 pixels is below it


@dataclass(frozen=True)
class Photographs:
    """Labelled image files under `root`, and the rows of each split.

    `names` (M) are relative to `root`, y is (M,) or for `multilabel` (M, L), a is (M,), and
    `members` maps each split to its rows. `units` (M,) numbers what must not cross splits: people,
    lesions.
    """

    spec: GroupSpec
    root: Path
    names: Sequence[str]
    y: Tensor
    a: Tensor
    members: Mapping[str, Tensor]
    units: Tensor | None = None

    @property
    def groups(self) -> dict[str, Tensor]:
        """Group numbers (N,) of each split."""
        g = self.spec.group(self.y, self.a)
        return {name: g[rows] for name, rows in self.members.items()}

    def open(
        self, members: Mapping[str, Tensor], transform: Transform, *, augmented: bool = True
    ) -> dict[str, GroupedDataset]:
        """Return splits of the given rows, with images in decoded stores.

        Training and evaluation use separate stores only if the transform stores training images
        differently and they are to be `augmented`.
        """
        used = torch.unique(torch.cat(list(members.values())))
        names = located(self.root, [self.names[row] for row in used.tolist()])
        images = open_store(self.root, names, transform.stored)
        _warn_of_enlarging(images, transform)
        stores = dict.fromkeys(members, (images, used))
        if augmented and transform.stored_train != transform.stored:
            trained = [members[name] for name in (Split.TRAIN, Split.TARGET) if name in members]
            rows = torch.unique(torch.cat(trained))
            trained_names = [names[i] for i in torch.searchsorted(used, rows).tolist()]
            train_images = open_store(self.root, trained_names, transform.stored_train)
            stores |= dict.fromkeys((Split.TRAIN, Split.TARGET), (train_images, rows))
        return {
            name: GroupedDataset(
                self.spec,
                images,
                self.y[rows],
                self.a[rows],
                rows,
                torch.searchsorted(used, rows),
                stores[name][0],
                torch.searchsorted(stores[name][1], rows),
            )
            for name, rows in members.items()
        }

    def warn_of_counts(self, official: Mapping[str, Sequence[int]]) -> None:
        """Warn once about a subset, or else groups whose sizes differ from the published ones."""
        if self.warn_of_size(sum(map(sum, official.values()))):
            return
        told = []
        for name, g in self.groups.items():
            found = torch.bincount(g, minlength=self.spec.num_groups).tolist()
            differences = [
                f"{group} {have:,} instead of {want:,}"
                for group, have, want in zip(self.spec.names, found, official[name], strict=True)
                if have != want
            ]
            if differences:
                told.append(f"{name} has {', '.join(differences)}")
        if told:
            told_all = "; ".join(told)
            warn_once(self.root, f"{self.root}: the splits are not the published ones: {told_all}")

    def warn_of_size(self, published: int) -> bool:
        """Warn once, and return True, if there are fewer images than were published."""
        fewer = len(self.names) < published
        if fewer:
            have = f"{len(self.names):,} of the {published:,} published images"
            warn_once(self.root, f"{self.root}: the table has {have}")
        return fewer

    def warn_of_empty_groups(self) -> None:
        """Warn once about groups without samples in TRAIN, from which no method can learn."""
        counts = torch.bincount(self.groups[Split.TRAIN], minlength=self.spec.num_groups)
        empty = [name for name, n in zip(self.spec.names, counts.tolist(), strict=True) if not n]
        if empty:
            warn_once(
                self.root,
                f"{self.root}: train has no samples of {', '.join(empty)}, so methods that balance"
                " or weight groups do without",
            )


def warn_once(root: Path, sentence: str) -> None:
    """Warn about a data set unless the same was said before."""
    if _is_news(place_of(root), sentence):
        log.warning("%s", sentence)


def _is_news(folder: Path, sentence: str) -> bool:
    """Return whether a warning about a data set is new; `folder` records those already shown."""
    told = folder / f".told-{hashlib.sha256(sentence.encode()).hexdigest()[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        told.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # not writable: the warning is repeated
        return True
    return True


def _warn_of_enlarging(images: Images, transform: Transform) -> None:
    """Warn if the transform enlarges the images: interpolated pixels cost as much as real ones."""
    if isinstance(images, RaggedImages):
        return
    stored = images.take(torch.zeros(1, dtype=torch.int64))
    before, after = (x.shape[2] * x.shape[3] for x in (stored, transform(stored)))
    if after > ENLARGED**2 * before:
        height, width = stored.shape[2:]
        log.warning(
            "dataset.transform enlarges stored images of %d x %d pixels, which adds no detail and"
            " makes every step about %.1f times as long; set dataset.transform.size=%d, or larger"
            " values of resize and crop",
            height,
            width,
            after / before,
            min(height, width),
        )
