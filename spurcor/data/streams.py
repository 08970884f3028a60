"""Training batches: their order, their augmentation, and worker processes that load ahead."""

import itertools
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spurcor.data.groups import Batch, GroupedDataset, members_by
from spurcor.data.transforms import Transform
from spurcor.errors import RunError
from spurcor.seeding import derive_seed

Sampling = Literal[
    "shuffled",
    "balanced",
    "group_weighted",
    "class_weighted",
    "subsampled",
    "class_subsampled",
    "independent",
]
Window = tuple[Tensor, Tensor | None]  # indices (B,) and augmentation parameters (B, P)


class Stream:
    """Training batches of one split as a function of (seed, role, position).

    The permutation and augmentation of an epoch are drawn at once from a generator of their own, so
    a stream can start at any position, and neither `workers` nor any other random draw changes it.
    Sampling:

    - `shuffled`: every sample once per epoch.
    - `balanced`: every batch has equally many samples of each group, up to rounding; samples of
      rare groups repeat, each as often as any other of its group.
    - `group_weighted`, `class_weighted`: drawn with replacement, every group (class) equally likely
      (group_DRO's reweight_groups; RWG and RWY of Idrissi et al., CLeaR 2022).
    - `subsampled`, `class_subsampled`: every group (class) reduced to the size of the smallest,
      drawn once (SUBG and SUBY of the same).
    - `independent`: every batch is an independent draw from all samples, without replacement, and
      none is smaller (SCALE's target batches).

    Instead of a `sampling`, a table over the split's samples may be given: `repeats` (N,) is how
    often each occurs per epoch, `weights` (N,) its relative probability in N draws with
    replacement.
    """

    def __init__(
        self,
        dataset: GroupedDataset,
        transform: Transform,
        batch_size: int | None,
        *,
        seed: int,
        role: str = "train",
        sampling: Sampling = "shuffled",
        workers: int = 0,
        repeats: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """Create a stream; `batch_size` None means full-batch training."""
        self.dataset, self.transform = dataset, transform
        self.seed, self.role, self.sampling = seed, role, sampling
        if (sampling != "shuffled") + (repeats is not None) + (weights is not None) > 1:
            raise ValueError("choose only one of sampling, repeats and weights")
        self.weights = self._weights(weights)
        self.members = self._members(repeats)
        self.size = len(dataset) if self.members is None else len(self.members)
        self.full = batch_size is None
        self.batch_size = batch_size or self.size
        if sampling == "independent":
            self.batch_size = min(self.batch_size, self.size)
            self.size = len(self) * self.batch_size
        self.workers = workers if dataset.train_images.device.type == "cpu" else 0

    def __len__(self) -> int:
        """Number of batches per epoch; the last one may be smaller."""
        return -(-self.size // self.batch_size)

    def start(self, position: int) -> Iterator[Batch]:
        """Yield batches without end, from batch number `position` since the first epoch's start."""
        device = self.dataset.y.device
        ahead, windows = itertools.tee(self._windows(position))
        # Windows are drawn here, in step with the gathering; worker processes return pixels only.
        for (indices, parameters), x in zip(windows, self._gather(ahead), strict=True):
            moved = None if parameters is None else parameters.to(device, non_blocking=True)
            batch = self.dataset.label(x, indices)
            yield Batch(self.transform(batch.x, moved), batch.y, batch.a, batch.g, batch.index)

    def _windows(self, position: int) -> Iterator[Window]:
        epoch, step = divmod(position, len(self))
        while True:
            order, parameters = self._draw(epoch)
            for first in range(step * self.batch_size, self.size, self.batch_size):
                window = slice(first, first + self.batch_size)
                yield order[window], None if parameters is None else parameters[window]
            epoch, step = epoch + 1, 0

    def _gather(self, windows: Iterator[Window]) -> Iterator[Tensor]:
        """Yield the uint8 images of each window, loaded ahead if there are workers."""
        gather = _Gather(self.dataset, self.transform)
        if not self.workers:
            return map(gather.__getitem__, windows)
        loader: DataLoader[Any] = DataLoader(
            gather,
            sampler=windows,  # without a batch size, each window is one item
            batch_size=None,
            num_workers=self.workers,
            pin_memory=self.dataset.y.device.type == "cuda",
            generator=torch.Generator(),  # else it would advance the global generator
        )
        return iter(loader)

    # --- orders -----------------------------------------------------------------------------------

    def _draw(self, epoch: int) -> Window:
        """Draw the order (N,) and the augmentation parameters (N, P) of an epoch."""
        generator = torch.Generator()
        generator.manual_seed(derive_seed(self.seed, self.role, epoch))
        order = self._order(generator)
        rows = self.dataset.train_rows[order]
        return order, self.transform.draw(self.dataset.train_images.sizes(rows), generator)

    def _order(self, generator: torch.Generator) -> Tensor:
        if self.weights is not None:
            weights = self.weights
            return torch.multinomial(weights, self.size, replacement=True, generator=generator)
        if self.sampling == "balanced":
            return self._balanced(generator)
        if self.sampling == "independent" and not self.full:
            draws = (
                torch.randperm(len(self.dataset), generator=generator) for _ in range(len(self))
            )
            return torch.cat([draw[: self.batch_size] for draw in draws])
        members = torch.arange(self.size) if self.members is None else self.members
        return members if self.full else members[torch.randperm(self.size, generator=generator)]

    def _balanced(self, generator: torch.Generator) -> Tensor:
        """Return an order that cycles through the groups, each by successive permutations."""
        groups = members_by(self._labels())
        rounds = -(-self.size // len(groups))
        columns = []
        for members in groups:
            passes = range(-(-rounds // len(members)))
            shuffled = [members[torch.randperm(len(members), generator=generator)] for _ in passes]
            columns.append(torch.cat(shuffled)[:rounds])
        return torch.stack(columns, dim=1).flatten()[: self.size]

    def _weights(self, table: Tensor | None) -> Tensor | None:
        if table is not None:
            return self._checked("weights", table).float()
        weighted = self.sampling.endswith("weighted")
        return _inverse_counts(self._labels()) if weighted else None

    def _members(self, repeats: Tensor | None) -> Tensor | None:
        if repeats is not None:
            table = self._checked("repeats", repeats)
            return torch.repeat_interleave(torch.arange(len(table)), table)
        return self._subsample() if self.sampling.endswith("subsampled") else None

    def _checked(self, name: str, table: Tensor) -> Tensor:
        """Return the table on the CPU; refuse a wrong length, negative entries, and all zeros."""
        table = table.cpu()
        if len(table) != len(self.dataset) or bool((table < 0).any()):
            raise ValueError(
                f"{name} has {len(table)} numbers, the least {float(table.min()):g}; it needs one"
                f" of at least 0 for each of the {len(self.dataset)} samples"
            )
        if not table.any():
            raise RunError(f"{name} leave none of the {len(table)} samples to train on")
        return table

    def _subsample(self) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.role, "subsample"))
        groups = members_by(self._labels())
        smallest = min(map(len, groups))
        kept = [m[torch.randperm(len(m), generator=generator)][:smallest] for m in groups]
        return torch.cat(kept).sort()[0]

    def _labels(self) -> Tensor:
        """Return the group, or for class-wise sampling the class, of every sample."""
        of_class = self.sampling.startswith("class")
        return (self.dataset.y if of_class else self.dataset.g).cpu()


class _Gather(Dataset[Tensor]):
    """Map from windows to uint8 images: the part of a stream that a worker process holds."""

    def __init__(self, dataset: GroupedDataset, transform: Transform) -> None:
        self.images, self.rows = dataset.images, dataset.rows
        self.train_images, self.train_rows = dataset.train_images, dataset.train_rows
        self.transform = transform

    def __getitem__(self, window: Window) -> Tensor:
        indices, parameters = window
        if parameters is None:
            return self.images.take(self.rows[indices])
        return self.transform.gather(self.train_images, self.train_rows[indices], parameters)


def _inverse_counts(labels: Tensor) -> Tensor:
    """Return weights (N,) under which every label is equally likely to be drawn."""
    return torch.bincount(labels).clamp(min=1).float().reciprocal()[labels]
