"""A set of training images whose classes are balanced within clusters of a representation."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from spurcor.data.groups import GroupedDataset, Split, members_by
from spurcor.data.streams import Stream
from spurcor.errors import RunError, UserError
from spurcor.models.backbone import Backbone
from spurcor.pruning import clusters as clustering
from spurcor.seeding import derive_seed
from spurcor.training.method import RunContext

log = logging.getLogger(__name__)
Sampling = Literal["balanced", "minority"]
FOLDER = "clusters"  # in the run's directory


@dataclass(frozen=True)
class DebiasingSet:
    """A subset of TRAIN drawn by `sampling` from `num_clusters` clusters, or from those in a file.

    It is made once and then read from the run's directory by every phase that trains on it.
    """

    clusters: Path | None
    num_clusters: int
    sampling: Sampling
    centres: clustering.Centres = "directions"

    def check(self, run: RunContext) -> None:
        """Raise UserError for too few samples to cluster, or for a file that does not fit TRAIN.

        A file whose clusters each hold a single class is refused too.
        """
        train = run.splits[Split.TRAIN]
        if self.clusters is not None:
            try:
                self.draw(clustering.read_clusters(self.clusters, train), run)
            except RunError as error:
                raise UserError(f"method.clusters={self.clusters}: {error}") from error
        elif self.num_clusters > len(train):
            raise UserError(
                f"method.num_clusters={self.num_clusters} is more than the {len(train)} samples of"
                " train; make it smaller"
            )

    def make(self, backbone: Backbone, run: RunContext) -> None:
        """Cluster the representation of a backbone in eval mode, describe it, and draw the set."""
        train, folder = run.splits[Split.TRAIN], run.directory / FOLDER
        x = clustering.represent(backbone, train, run.splits.transform)
        if self.clusters is None:
            clusters = clustering.cluster(x, self.num_clusters, run.seed, self.centres)
        else:
            clusters = clustering.read_clusters(self.clusters, train)
        picture = run.directory / "plots" / "clusters.png"  # trackers look there
        clustering.describe(folder, picture, x, train, clusters)
        drawn = self.draw(clusters, run)
        self._warn(train, clusters, drawn, run.batch_size)
        clustering.write_clusters(folder, train, clusters, drawn)

    def draw(self, clusters: Tensor, run: RunContext) -> Tensor:
        """Return the positions (M,) of the set; raise RunError if it is empty."""
        drawn = debiasing_set(run.splits[Split.TRAIN].y.cpu(), clusters, self.sampling, run.seed)
        if not len(drawn):
            fewer = "a smaller method.num_clusters"
            if self.clusters is not None:
                fewer = "a file of fewer clusters (spurcor.clusters run=<run> num_clusters=<k>)"
            raise RunError(
                f"each of the {len(torch.unique(clusters))} clusters contains a single class, so"
                f" there is nothing to balance; try {fewer}, or a network trained for fewer epochs"
                " (one that has memorised TRAIN separates the classes everywhere)"
            )
        return drawn

    def _warn(
        self, train: GroupedDataset, clusters: Tensor, drawn: Tensor, batch_size: int | None
    ) -> None:
        """Warn if the set is smaller than a batch, lacks a class, or has one class per cluster."""
        y = train.y.cpu()
        log.info("the de-biasing set has %d of the %d images", len(drawn), len(y))
        if len(drawn) < (batch_size or 0):
            log.warning(
                "the de-biasing set has %d images, fewer than a batch of %d: clusters hardly mix"
                " the classes; try a smaller method.num_clusters, or fewer epochs of ERM",
                len(drawn),
                batch_size,
            )
        absent = sorted(set(y.tolist()) - set(y[drawn].tolist()))
        if absent:
            names = ", ".join(train.spec.classes[k] for k in absent)
            log.warning(
                "the de-biasing set has no sample of %s: no cluster mixes it with another class",
                names,
            )
        if int((contingency(y[drawn], clusters[drawn]) > 0).sum(dim=1).max()) < 2:
            log.warning(
                "no cluster of the de-biasing set contains two classes, so the contrastive term is"
                " 0; method.sampling=balanced keeps them together"
            )

    def stream(self, run: RunContext, role: str) -> tuple[Stream, Tensor]:
        """Return batches of the set, and the cluster (M,) of each of its samples."""
        train, folder = run.splits[Split.TRAIN], run.directory / FOLDER
        drawn = clustering.read_drawn(folder)
        clusters = clustering.read_clusters(folder / "clusters.csv", train)[drawn]
        stream = run.stream(Split.TRAIN, role, dataset=train.subset(drawn))
        return stream, clusters.to(train.y.device)


def contingency(y: Tensor, clusters: Tensor) -> Tensor:
    """Return the number of samples (C, K) of each class in each non-empty cluster."""
    names, clusters = torch.unique(clusters, return_inverse=True)
    num_classes = int(y.max()) + 1
    counts = torch.bincount(clusters * num_classes + y, minlength=len(names) * num_classes)
    return counts.view(len(names), num_classes)


def debiasing_set(y: Tensor, clusters: Tensor, sampling: Sampling, seed: int) -> Tensor:
    """Return ascending positions (M,) of samples drawn from clusters with two or more classes.

    `balanced`: from each class in a cluster, as many samples as its rarest class has. `minority`:
    all samples of the classes that are smaller than the cluster's largest class (of all classes if
    they are equally large). Classes are then subsampled to equal totals. Empty if every cluster has
    one class.
    """
    clusters = torch.unique(clusters, return_inverse=True)[1]  # numbers in a file are arbitrary
    counts = contingency(y, clusters)
    mixed = (counts > 0).sum(dim=1) > 1
    rarest = torch.where(counts > 0, counts, len(y)).amin(dim=1)
    largest = counts.amax(dim=1)
    if sampling == "balanced":
        quota = torch.where(counts > 0, rarest[:, None], 0)
    else:
        quota = torch.where((counts < largest[:, None]) | (rarest == largest)[:, None], counts, 0)
    quota = torch.where(mixed[:, None], quota, 0).flatten()
    generator = torch.Generator().manual_seed(derive_seed("de-biasing set", seed))
    order = torch.randperm(len(y), generator=generator)
    cell = clusters * counts.shape[1] + y
    drawn = [m[: quota[cell[m[0]]]] for m in members_by(cell, order)]
    chosen = torch.cat(drawn)
    if not len(chosen):
        return chosen
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    by_class = members_by(y[chosen], place[chosen].argsort())  # in the same random order
    smallest = min(map(len, by_class))
    return torch.cat([chosen[members[:smallest]] for members in by_class]).sort()[0]
