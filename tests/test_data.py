"""Groups, splits and streams."""

import itertools

import pytest
import torch

from spurcor.data import DataInfo, GroupedDataset, GroupSpec, Split, Splits, Stream, derive_seed
from spurcor.errors import UserError
from spurcor.transforms import CropFlip, Normalize

SPEC = GroupSpec(("a", "b"), ("x", "y", "z"), aligned=(2, 0))
PLAIN = Normalize((0.0,), (1.0,))
AUGMENT = CropFlip(PLAIN, padding=1)


def make(num_samples=11, spec=SPEC, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return GroupedDataset(
        spec,
        torch.randint(256, (num_samples, 1, 4, 4), generator=generator, dtype=torch.uint8),
        torch.randint(spec.num_classes, (num_samples,), generator=generator),
        torch.randint(len(spec.attributes), (num_samples,), generator=generator),
        torch.arange(num_samples),
    )


def take(stream, count, position=0):
    return list(itertools.islice(stream.start(position), count))


def same(one, other):
    names = ("x", "y", "a", "g", "index")
    return all(torch.equal(getattr(one, n), getattr(other, n)) for n in names)


def order(stream, epoch=0):
    return torch.cat([b.index for b in take(stream, len(stream), epoch * len(stream))]).tolist()


# --- groups ---------------------------------------------------------------------------------------


def test_groups_are_numbered_class_by_class():
    y, a = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1, 2, 0, 1, 2])
    assert SPEC.group(y, a).tolist() == [0, 1, 2, 3, 4, 5]
    assert SPEC.names == ["a/x", "a/y", "a/z", "b/x", "b/y", "b/z"]
    assert (SPEC.num_classes, SPEC.num_groups) == (2, 6)


def test_aligned_groups():
    assert SPEC.is_aligned().tolist() == [False, False, True, True, False, False]
    assert not GroupSpec(("a", "b"), ("x",)).is_aligned().any()


def test_empty_groups_keep_their_place():
    y, a = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([2, 2, 0, 0, 1])
    images = torch.zeros(5, 1, 2, 2, dtype=torch.uint8)
    data = GroupedDataset(SPEC, images, y, a, torch.arange(5))
    assert data.g.tolist() == [2, 2, 3, 3, 4]
    assert data.group_counts.tolist() == [0, 0, 2, 2, 1, 0]


def test_images_must_be_bytes():
    with pytest.raises(TypeError, match="float32"):
        GroupedDataset(SPEC, torch.zeros(1, 1, 2, 2), *[torch.zeros(1)] * 3)


# --- splits ---------------------------------------------------------------------------------------


def test_fetch_gathers_in_the_order_asked_for():
    data, indices = make(), torch.tensor([7, 0, 7, 3])
    batch = data.fetch(indices)
    assert batch.x.dtype == torch.uint8
    for row, i in enumerate([7, 0, 7, 3]):
        assert torch.equal(batch.x[row], data.images[i])
        assert (batch.y[row], batch.a[row]) == (data.y[i], data.a[i])
        assert batch.g[row] == 3 * data.y[i] + data.a[i]
    assert torch.equal(batch.index, indices)


def test_fingerprint_tells_apart_what_matters():
    y, a, source = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), torch.arange(4)
    images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)

    def fingerprint(y=y, a=a, source=source, keep=slice(None)):
        parts = (part[keep] for part in (images, y, a, source))
        return GroupedDataset(SPEC, *parts).fingerprint

    others = [
        fingerprint(y=1 - y),
        fingerprint(a=1 - a),
        fingerprint(y=a, a=y),
        fingerprint(source=source + 1),
        fingerprint(source=source.flip(0)),
        fingerprint(keep=slice(3)),
    ]
    assert len({fingerprint(), *others}) == 7
    assert fingerprint() == fingerprint(y=y.clone(), source=source.clone())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_fingerprint_of_a_split_on_a_gpu():
    data = make()
    assert data.to(torch.device("cuda")).fingerprint == data.fingerprint


def test_splits():
    data = {Split.TRAIN: make(11), Split.TARGET: make(5), Split.VAL: make(6), "odd": make(7)}
    splits = Splits(data, PLAIN, torch.device("cpu"))
    assert splits["train"] is data[Split.TRAIN]
    assert list(splits.evaluated) == ["val", "odd"]
    assert splits.fingerprints["odd"] == data["odd"].fingerprint
    info = splits.info
    assert isinstance(info, DataInfo)
    assert info.shape == (1, 4, 4)
    assert info.group_counts.tolist() == data[Split.TRAIN].group_counts.tolist()
    with pytest.raises(UserError, match="no test split; it has train, target, val, odd"):
        splits["test"]


# --- streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("transform", [PLAIN, AUGMENT], ids=["plain", "augmented"])
@pytest.mark.parametrize("batch_size", [None, 1, 4, 11, 50])
def test_start_is_the_tail_of_a_run_from_zero(batch_size, transform, weighted):
    weights = torch.arange(1.0, 12.0) if weighted else None
    stream = Stream(make(), transform, batch_size, seed=3, weights=weights)
    count = 3 * len(stream) + 2
    whole = take(stream, count)
    for position in range(count):
        tail = take(stream, count - position, position)
        assert all(map(same, tail, whole[position:])), position


def test_every_epoch_is_a_new_permutation_of_the_split():
    stream = Stream(make(), PLAIN, 4, seed=0)
    assert len(stream) == 3
    orders = [order(stream, epoch) for epoch in range(4)]
    assert all(sorted(indices) == list(range(11)) for indices in orders)
    assert len(set(map(tuple, orders))) == 4


def test_last_batch_is_smaller():
    stream = Stream(make(), PLAIN, 4, seed=0)
    assert [len(batch.y) for batch in take(stream, 6)] == [4, 4, 3, 4, 4, 3]
    assert len(Stream(make(12), PLAIN, 4, seed=0)) == 3
    assert len(Stream(make(), PLAIN, 50, seed=0)) == 1


def test_full_batch_is_the_split_in_its_order():
    data = make()
    stream = Stream(data, PLAIN, None, seed=0)
    assert len(stream) == 1
    for batch in take(stream, 3):
        assert same(batch, take(stream, 1)[0])
        assert batch.index.tolist() == list(range(11))
        torch.testing.assert_close(batch.x, data.images / 255)


def test_rows_of_a_batch_belong_together():
    data = make()
    for batch in take(Stream(data, PLAIN, 4, seed=1), 6):
        torch.testing.assert_close(batch.x, data.images[batch.index] / 255)
        assert torch.equal(batch.g, data.g[batch.index])


def test_augmentation_goes_with_the_sample_drawn():
    data = make()
    stream = Stream(data, AUGMENT, 4, seed=5)
    epoch, reference = take(stream, 3), torch.Generator()
    reference.manual_seed(derive_seed(5, "train", 0))
    permutation = torch.randperm(11, generator=reference)
    parameters = AUGMENT.draw(11, reference)
    expected = AUGMENT(data.images[permutation], parameters)
    assert torch.equal(torch.cat([batch.x for batch in epoch]), expected)
    assert not torch.equal(expected, PLAIN(data.images[permutation]))


def test_seeds_and_roles_have_orders_of_their_own():
    def stream(**options):
        return Stream(make(40), AUGMENT, 8, **options)

    first = take(stream(seed=0), 5)
    assert all(map(same, first, take(stream(seed=0, role="train"), 5)))
    orders = {
        tuple(order(stream(seed=seed, role=role))) for seed in (0, 1) for role in ("train", "val")
    }
    assert len(orders) == 4


def test_weights_draw_in_proportion_and_with_replacement():
    weights = torch.tensor([0.0, 1, 1, 2, 4])
    stream = Stream(make(5), PLAIN, 2, seed=0, weights=weights)
    assert len(order(stream)) == 5
    drawn = torch.tensor([order(stream, epoch) for epoch in range(800)]).flatten()
    share = torch.bincount(drawn, minlength=5) / len(drawn)
    assert share[0] == 0
    torch.testing.assert_close(share, weights / 8, atol=0.03, rtol=0)
    assert any(len(set(order(stream, epoch))) < 5 for epoch in range(5))


def test_weights_sample_in_full_batches_too():
    weights = torch.tensor([0.0, 0, 1, 0, 1])
    (batch,) = take(Stream(make(5), PLAIN, None, seed=0, weights=weights), 1)
    assert len(batch.y) == 5
    assert set(batch.index.tolist()) <= {2, 4}


def test_the_global_generator_is_neither_read_nor_moved():
    stream = Stream(make(), AUGMENT, 4, seed=0, weights=torch.ones(11))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = take(stream, 7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert all(map(same, first, take(stream, 7)))


def test_two_feeds_of_a_stream_do_not_disturb_each_other():
    stream = Stream(make(), AUGMENT, 4, seed=0)
    alone = take(stream, 6)
    one, other = stream.start(0), stream.start(2)
    pairs = [(next(one), next(other)) for _ in range(4)]
    assert all(
        same(left, alone[i]) and same(right, alone[i + 2]) for i, (left, right) in enumerate(pairs)
    )


def test_derived_seeds_are_stable_and_fit_torch():
    assert derive_seed("digits", 0) == 1172675740259517333
    seeds = {derive_seed(seed, role) for seed in range(20) for role in ("train", "target")}
    assert len(seeds) == 40
    assert all(0 <= seed < 2**63 for seed in seeds)
