"""Spherical k-means against a plain loop, and what it promises."""

import math

import pytest
import torch
from torch.nn import functional as F

from spurcor.pruning import kmeans
from spurcor.pruning.kmeans import spherical_kmeans


def reference(x, num_clusters, seed):
    """One sample, one number at a time, in double precision; as the method's description has it."""
    rows = [[float(v) for v in row] for row in x.double()]
    unit = [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in rows]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).tolist()
    centres = [unit[i] for i in order[:num_clusters]]
    while True:
        cosine = [[sum(a * b for a, b in zip(u, c, strict=True)) for c in centres] for u in unit]
        clusters = [max(range(num_clusters), key=row.__getitem__) for row in cosine]
        moved = []
        for k, old in enumerate(centres):
            members = [u for u, c in zip(unit, clusters, strict=True) if c == k]
            total = [sum(column) for column in zip(*members, strict=True)] or old
            length = math.sqrt(sum(v * v for v in total))
            moved.append([v / length for v in total])
        shift = sum(
            (a - b) ** 2
            for m, c in zip(moved, centres, strict=True)
            for a, b in zip(m, c, strict=True)
        )
        centres = moved
        if shift < 1e-4:
            cosine = [
                [sum(a * b for a, b in zip(u, c, strict=True)) for c in centres] for u in unit
            ]
            return [max(range(num_clusters), key=row.__getitem__) for row in cosine]


def blobs(seed=0, count=60, directions=5, dim=6):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(directions, dim, generator=generator)
    of = torch.randint(directions, (count,), generator=generator)
    lengths = torch.rand(count, 1, generator=generator) * 20 + 0.1
    return lengths * (centres[of] + 0.4 * torch.randn(count, dim, generator=generator)), of


@pytest.mark.parametrize("num_clusters", [1, 4, 7])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_clusters_are_those_of_the_reference(seed, num_clusters, monkeypatch):
    monkeypatch.setattr(kmeans, "CHUNK", 7)
    x, _ = blobs(seed)
    assert spherical_kmeans(x, num_clusters, seed).tolist() == reference(x, num_clusters, seed)


def raw_reference(x, num_clusters, seed):
    """kmeans_pytorch's: means of the rows as they are, until their movements add up to nothing."""
    x = x.double()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    centres = [x[i] for i in order[:num_clusters]]
    while True:
        clusters = [
            max(range(num_clusters), key=lambda k: float(F.cosine_similarity(row, centres[k], 0)))
            for row in x
        ]
        moved = [
            torch.stack([row for row, c in zip(x, clusters, strict=True) if c == k]).mean(0)
            for k in range(num_clusters)
        ]
        shift = sum(float((m - c).norm()) for m, c in zip(moved, centres, strict=True))
        centres = moved
        if shift**2 < 1e-4:
            return clusters


@pytest.mark.parametrize("num_clusters", [1, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_raw_centres_are_means_of_what_is_clustered(seed, num_clusters, monkeypatch):
    monkeypatch.setattr(kmeans, "CHUNK", 7)
    x, _ = blobs(seed)
    found = spherical_kmeans(x, num_clusters, seed, raw=True)
    assert found.tolist() == raw_reference(x, num_clusters, seed)


def test_long_samples_pull_raw_centres():
    x, _ = blobs(count=300)
    lengths = torch.tensor([1.0, 50.0]).repeat(150)[:, None]
    for raw in (False, True):
        before, after = (spherical_kmeans(z, 4, 0, raw) for z in (x, x * lengths))
        assert torch.equal(before, after) != raw


def test_the_chunks_change_nothing(monkeypatch):
    x, _ = blobs(count=300)
    whole = spherical_kmeans(x, 5, 0)
    monkeypatch.setattr(kmeans, "CHUNK", 13)
    assert torch.equal(spherical_kmeans(x, 5, 0), whole)
    assert torch.equal(spherical_kmeans(x.clone(), 5, 0), whole)
    assert not torch.equal(spherical_kmeans(x, 5, 1), whole)


def test_lengths_do_not_count_and_directions_do():
    """Two rays with short and long samples each: Euclidean k-means would part short from long."""
    short, long = torch.full((10, 1), 0.1), torch.full((10, 1), 100.0)
    rays = [torch.cat([short, long]) * torch.tensor(ray) for ray in ([1.0, 0.02], [0.9, 0.6])]
    found = spherical_kmeans(torch.cat(rays), 2, 3)
    assert len(found[:20].unique()) == len(found[20:].unique()) == 1
    assert found[0] != found[20]


def test_centres_are_normalised_at_each_step():
    """Without it, a cluster's centre is short where its samples spread, and wins too few by dot."""
    x, _ = blobs(seed=4, count=500)
    found = spherical_kmeans(x, 5, 4)
    unit = F.normalize(x, dim=1)
    centres = F.normalize(torch.stack([unit[found == k].sum(0) for k in range(5)]), dim=1)
    settled = (unit @ centres.T).argmax(1) == found
    assert settled.float().mean() > 0.99


def test_a_centre_that_loses_its_samples_and_samples_without_direction():
    x = torch.cat([torch.ones(5, 3), -torch.ones(5, 3), torch.zeros(2, 3)])
    found = spherical_kmeans(x, 4, 0)
    assert found.shape == (12,)
    assert found[0] != found[5]


@pytest.mark.parametrize("num_clusters", [0, 13])
def test_impossible_numbers_of_clusters(num_clusters):
    with pytest.raises(ValueError, match="must be between 1 and the 12 samples"):
        spherical_kmeans(torch.ones(12, 2), num_clusters, 0)
