"""Spherical k-means: clusters by direction, in bounded memory, on the device of the data."""

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 2048  # rows per chunk
MOST_STEPS = 100
TOLERANCE = 1e-4  # on the total squared movement of the centres


def spherical_kmeans(x: Tensor, num_clusters: int, seed: int, raw: bool = False) -> Tensor:
    """Return clusters (N,) int64 of x (N, D) by cosine similarity; deterministic given the seed.

    Each step assigns every sample to the centre of highest cosine, and sets every centre to the
    normalised mean direction of its samples; Euclidean k-means on unit vectors would leave centres
    inside the sphere. Starts from random distinct samples and ends when the centres stop moving or
    after 100 steps; a centre that loses all its samples stays where it is.

    `raw`, as in kmeans_pytorch: a centre is the mean of the unnormalised samples, so that longer
    vectors count more, and the movement of these means decides convergence.
    """
    if not 1 <= num_clusters <= len(x):
        raise ValueError(f"num_clusters={num_clusters} must be between 1 and the {len(x)} samples")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(x), generator=generator)[:num_clusters].to(x.device)
    centres = x[chosen] if raw else F.normalize(x[chosen], dim=1)
    weight = torch.cat([chunk.norm(dim=1) for chunk in torch.split(x, CHUNK)])
    weight = torch.ones_like(weight) if raw else weight.clamp(min=1e-12).reciprocal()
    for _ in range(MOST_STEPS):
        sums, counts = torch.zeros_like(centres), torch.zeros_like(centres[:, :1])
        directions = F.normalize(centres, dim=1) if raw else centres
        for chunk, factors in zip(torch.split(x, CHUNK), torch.split(weight, CHUNK), strict=True):
            member = F.one_hot((chunk @ directions.T).argmax(dim=1), num_clusters).to(x.dtype)
            sums += (member * factors[:, None]).T @ chunk
            counts += member.sum(dim=0)[:, None]
        filled = (counts if raw else sums.norm(dim=1, keepdim=True)) > 0
        means = sums / counts.clamp(min=1) if raw else F.normalize(sums, dim=1)
        moved = torch.where(filled, means, centres)
        shift = moved - centres
        centres = moved
        if float(shift.norm(dim=1).sum() ** 2 if raw else shift.square().sum()) < TOLERANCE:
            break
    directions = F.normalize(centres, dim=1) if raw else centres
    return torch.cat([(chunk @ directions.T).argmax(dim=1) for chunk in torch.split(x, CHUNK)])
