"""Spherical k-means: clusters by direction, in bounded memory, on whatever device the data is."""

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 2048  # rows that are looked at together
MOST_STEPS = 100
TOLERANCE = 1e-4  # of the squared movement of all centres together


def spherical_kmeans(x: Tensor, num_clusters: int, seed: int, raw: bool = False) -> Tensor:
    """Clusters (N,) int64 of x (N, D) by cosine similarity; the same for the same seed.

    Each step assigns every sample to the centre of the largest cosine and makes every centre the
    normalised mean of its samples' directions, where Euclidean k-means on unit vectors would leave
    it inside the sphere. Begins at distinct samples drawn at random, ends when the centres stand
    still or after 100 steps; a centre that loses all samples stays where it is.

    `raw`, as in kmeans_pytorch: a centre is the mean of its samples as they are, in which long ones
    count more, and stands still by its own movement.
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
