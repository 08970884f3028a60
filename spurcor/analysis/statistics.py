"""Group gradients and mean Jacobians of a network: one pass over a split for all analyses.

Every quantity of the gradient-flow analyses is an inner product of two linear combinations of the
vectors grad_g = d L_g / d theta and m_g = d E_g[f] / d theta. A pass therefore returns only the
matrix of their inner products; the vectors stay on the device. G groups, P weights, V vectors.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spurcor.analysis.linear_layers import (
    LinearLayer,
    LinearLayers,
    add_products,
    slope_of,
    uncompiled,
)
from spurcor.config.schema import Loss
from spurcor.data.groups import GroupedDataset, GroupSpec, members_by
from spurcor.data.splits import Splits
from spurcor.seeding import derive_seed
from spurcor.training.method import Method

BLOCK = 1 << 16  # weights per block of products, in float64
VANISHING = 1e-9  # smaller norms count as zero
CHUNK, VALUES = 512, 1 << 22  # most samples per chunk, and most values of their images
Samples = tuple[str, int | None, int | None]


@dataclass(frozen=True)
class Request:
    """A request for statistics of at most `num_samples` of each group of a split."""

    split: str
    num_samples: int | None
    chunk_size: int | None
    gradients: bool
    jacobians: bool

    @property
    def samples(self) -> Samples:
        """The key of a pass: requests that share it are served by one pass."""
        return self.split, self.num_samples, self.chunk_size


@dataclass(frozen=True)
class GroupStatistics:
    """Group statistics of a network on a split; NaN where a group has no sample.

    `count` (G,) int64 of all samples; `loss` (G,) float64, the mean loss; `mean`, `std` (G,)
    float64, mean and sample standard deviation (n - 1) of f, NaN unless there are two classes;
    `gram` (2G, 2G) float64, inner products of [grad_1 ... grad_G, m_1 ... m_G], valid where
    `present` (2G,).
    """

    spec: GroupSpec
    kind: Loss
    count: Tensor
    loss: Tensor
    mean: Tensor
    std: Tensor
    gram: Tensor
    present: Tensor

    @classmethod
    def unknown(cls, method: Method) -> "GroupStatistics":
        """Return the statistics of a split without samples: counts are 0, all else is NaN."""
        groups = method.spec.num_groups
        nan = torch.full((groups,), torch.nan, dtype=torch.float64)
        count = torch.zeros(groups, dtype=torch.int64)
        present = torch.zeros(2 * groups, dtype=torch.bool)
        gram = torch.full((2 * groups, 2 * groups), torch.nan, dtype=torch.float64)
        return cls(method.spec, method.loss, count, nan, nan, nan, gram, present)

    @property
    def share(self) -> Tensor:
        """The group frequencies pi (G,) of the split."""
        return self.count.double() / self.count.sum()

    def gradient(self, weights: Tensor) -> Tensor:
        """Return sum_g weights_g grad_g as coefficients (2G,), for weights (G,)."""
        return torch.cat([weights.double(), torch.zeros(len(weights), dtype=torch.float64)])

    def jacobian(self, weights: Tensor) -> Tensor:
        """Return sum_g weights_g m_g as coefficients (2G,), for weights (G,)."""
        return torch.cat([torch.zeros(len(weights), dtype=torch.float64), weights.double()])

    def products(self, gradients: bool, jacobians: bool) -> Tensor:
        """Return `gram` restricted to one kind of vector (G, G), or in full for both."""
        rows = torch.tensor([gradients, jacobians]).repeat_interleave(len(self.share))
        return self.gram[rows][:, rows]

    def dot(self, u: Tensor, v: Tensor) -> Tensor:
        """Return <u, v> of two combinations (2G,); NaN if either needs an absent vector."""
        if bool((((u != 0) | (v != 0)) & ~self.present).any()):
            return torch.tensor(torch.nan, dtype=torch.float64)
        return u @ self.gram @ v

    def norm(self, u: Tensor) -> Tensor:
        """Return |u| of a combination (2G,)."""
        return self.dot(u, u).clamp(min=0).sqrt()

    def cosine(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the cosine between two combinations (2G,); NaN if either vanishes."""
        norms = self.norm(u), self.norm(v)
        if min(norms) < VANISHING:
            return torch.tensor(torch.nan, dtype=torch.float64)
        return self.dot(u, v) / (norms[0] * norms[1])


# --- the pass -------------------------------------------------------------------------------------


def collect(
    requests: Iterable[Request], method: Method, splits: Splits
) -> dict[Samples, GroupStatistics]:
    """Return statistics by `Request.samples`, with one pass for all requests of the same samples.

    The statistics of an absent split are NaN.
    """
    merged: dict[Samples, Request] = {}
    for request in requests:
        known = merged.get(request.samples, request)
        merged[request.samples] = dataclasses.replace(
            known,
            gradients=known.gradients or request.gradients,
            jacobians=known.jacobians or request.jacobians,
        )
    with uncompiled(method):
        return {
            key: collect_one(request, method, splits)
            if request.split in splits.data
            else GroupStatistics.unknown(method)
            for key, request in merged.items()
        }


def collect_one(request: Request, method: Method, splits: Splits) -> GroupStatistics:
    """Make one pass: per chunk of a group, a forward pass and a backward pass per kind of vector.

    If all weights belong to linear layers, one backward pass serves both kinds (see
    `linear_layers`). Memory: a vector of P weights per group and kind, one more, and a chunk.
    """
    data = splits[request.split]
    count = data.group_counts.cpu()
    vectors = _Vectors(request, method.weights(), len(count))
    table = torch.full((3, len(count)), torch.nan, dtype=torch.float64)
    size = request.chunk_size or max(1, min(CHUNK, VALUES // math.prod(splits.info.shape)))
    for g, indices in _members(data, request).items():
        losses, outputs = [], []
        for chunk in torch.split(indices, size):
            batch = data.fetch(chunk)
            with torch.set_grad_enabled(vectors.wanted), LinearLayers() as linears:
                logits = method.predict(splits.transform(batch.x))
                loss, f = method.losses(logits, batch.y), logits[:, -1] - logits[:, 0]
            if layers := vectors.served_by(linears):
                slope = slope_of(method, logits, batch.y)
                vectors.add_products(g, f, slope, layers, len(indices))
            else:
                vectors.add_gradients(g, loss, f, len(indices))
            losses.append(loss.detach())
            outputs.append(f.detach())
        f = torch.cat(outputs).double()
        std = f.std() if len(f) > 1 else torch.full_like(f[0], torch.nan)  # torch would warn
        found = torch.stack([torch.cat(losses).double().mean(), f.mean(), std])
        table[:, g] = found.cpu()
    if data.spec.num_classes != 2:
        table[1:] = torch.nan
    loss, mean, std = table.unbind()
    present = (vectors.kinds[:, None] & (count > 0)).flatten()
    return GroupStatistics(data.spec, method.loss, count, loss, mean, std, vectors.gram(), present)


def _members(data: GroupedDataset, request: Request) -> dict[int, Tensor]:
    """Return the positions of each non-empty group's samples; always the same subset."""
    g = data.g.cpu()
    order = torch.arange(len(g))
    if request.num_samples is not None:
        seed = derive_seed("analysis", request.split)
        order = torch.randperm(len(g), generator=torch.Generator().manual_seed(seed))
    groups = [members[: request.num_samples] for members in members_by(g, order)]
    return {int(g[members[0]]): members for members in groups}


class _Vectors:
    """The requested kinds of [grad_1 ... grad_G] and [m_1 ... m_G], in a part (V, n) per weight.

    Vectors are accumulated over chunks of a group g with `num` samples in total.
    """

    def __init__(self, request: Request, weights: Sequence[Tensor], num_groups: int) -> None:
        self.kinds = torch.tensor([request.gradients, request.jacobians])
        self.weights, self.num_groups = weights, num_groups
        rows = num_groups * int(self.kinds.sum())
        self.wanted = rows > 0
        self.parts = [w.new_zeros(rows, w.numel()) for w in weights] if rows else []

    def served_by(self, linears: LinearLayers) -> list[LinearLayer]:
        """Return the layers for which one backward pass gives both kinds; empty if it cannot."""
        return linears.of(self.weights) if bool(self.kinds.all()) else []

    def add_gradients(self, g: int, loss: Tensor, f: Tensor, num: int) -> None:
        """Add the gradients of mean loss and mean output, from losses (B,) and outputs (B,)."""
        values = [v for v, wanted in zip((loss, f), self.kinds, strict=True) if wanted]
        for k, value in enumerate(values):
            found = torch.autograd.grad(
                value.sum() / num,
                self.weights,
                retain_graph=k + 1 < len(values),
                allow_unused=True,
            )
            for part, gradient in zip(self.parts, found, strict=True):
                if gradient is not None:
                    part[k * self.num_groups + g] += gradient.flatten()

    def add_products(
        self, g: int, f: Tensor, slope: Tensor, layers: Sequence[LinearLayer], num: int
    ) -> None:
        """Add the same for linear layers, both kinds by one backward pass."""
        parts = {id(w): part for w, part in zip(self.weights, self.parts, strict=True)}
        rows = g, self.num_groups + g
        add_products(parts, rows, f, slope, layers, num)

    def gram(self) -> Tensor:
        """Return the inner products (2G, 2G), float64, on the CPU; 0 for kinds not requested."""
        gram = torch.zeros(2 * self.num_groups, 2 * self.num_groups, dtype=torch.float64)
        if self.wanted:
            rows = torch.arange(2 * self.num_groups).view(2, -1)[self.kinds].flatten()
            products = self.parts[0].new_zeros(len(rows), len(rows), dtype=torch.float64)
            for part in self.parts:
                for block in torch.split(part, BLOCK, dim=1):
                    exact = block.double()
                    products += exact @ exact.T
            gram[rows[:, None], rows] = products.cpu()
        return gram
