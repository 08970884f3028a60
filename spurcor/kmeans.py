"""Spherical k-means: clusters by direction, in bounded memory, on whatever device the data is."""

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 2048  # rows that are looked at together
MOST_STEPS = 100
TOLERANCE = 1e-4  # of the squared movement of all centres together


def spherical_kmeans(x: Tensor, num_clusters: int, seed: int) -> Tensor:
    """Clusters (N,) int64 of x (N, D) by cosine similarity; the same for the same seed.

    Each step assigns every sample to the centre of the largest cosine and makes every centre the
    normalised mean of its samples' directions, where Euclidean k-means on unit vectors would leave
    it inside the sphere. Begins at distinct samples drawn at random, ends when the centres stand
    still or after 100 steps; a centre that loses all samples stays where it is.
    """
    if not 1 <= num_clusters <= len(x):
        raise ValueError(f"num_clusters={num_clusters} must be between 1 and the {len(x)} samples")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(x), generator=generator)[:num_clusters].to(x.device)
    centres = F.normalize(x[chosen], dim=1)
    inverse = (
        torch.cat([chunk.norm(dim=1) for chunk in torch.split(x, CHUNK)])
        .clamp(min=1e-12)
        .reciprocal()
    )
    for _ in range(MOST_STEPS):
        sums = torch.zeros_like(centres)
        for chunk, lengths in zip(torch.split(x, CHUNK), torch.split(inverse, CHUNK), strict=True):
            member = F.one_hot((chunk @ centres.T).argmax(dim=1), num_clusters).to(x.dtype)
            sums += (member * lengths[:, None]).T @ chunk
        moved = torch.where(sums.norm(dim=1, keepdim=True) > 0, F.normalize(sums, dim=1), centres)
        shift = float((moved - centres).square().sum())
        centres = moved
        if shift < TOLERANCE:
            break
    return torch.cat([(chunk @ centres.T).argmax(dim=1) for chunk in torch.split(x, CHUNK)])
