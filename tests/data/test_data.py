"""Groups, splits and streams."""

import itertools
from typing import get_args

import pytest
import torch

from spurcor.data.groups import DataInfo, GroupedDataset, GroupSpec, Split
from spurcor.data.splits import Splits
from spurcor.data.streams import Sampling, Stream
from spurcor.data.transforms import CropFlip, Normalize
from spurcor.errors import UserError
from spurcor.seeding import derive_seed

SPEC = GroupSpec(("a", "b"), ("x", "y", "z"), aligned=(2, 0))
PLAIN = Normalize((0.0,), (1.0,))
AUGMENT = CropFlip((0.0,), (1.0,), padding=1)
SAMPLINGS = get_args(Sampling)


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


@pytest.mark.parametrize(
    ("classes", "attributes", "sentence"),
    [
        (
            ("a", "a/b"),
            ("b/c", "c"),
            "two groups are called 'a/b/c': class 'a' with attribute value 'b/c', and class 'a/b'"
            " with attribute value 'c'; rename one",
        ),
        (("a", "b", "a"), ("x",), "the class 'a' "),
        (("a", "b"), ("x", "x"), "the attribute value 'x' "),
        (("a", " "), ("x",), "the class ' ' is empty"),
        (("a", "b"), ("x", ""), "the attribute value '' is empty"),
        (("a", "b\n"), ("x",), r"the class 'b\\n' "),
    ],
)
def test_names_that_coincide_or_cannot_be_read_are_refused(classes, attributes, sentence):
    with pytest.raises(UserError, match=sentence):
        GroupSpec(classes, attributes)


def test_names_with_strokes_that_tell_groups_apart_are_taken():
    spec = GroupSpec(("a", "a/b"), ("x", "y/z"))
    assert spec.names == ["a/x", "a/y/z", "a/b/x", "a/b/y/z"]


def test_a_label_is_named_once():
    assert GroupSpec(("a", "b"), (), task="multilabel").names == ["a", "b"]
    with pytest.raises(UserError, match="the class 'a' "):
        GroupSpec(("a", "a"), (), task="multilabel")


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
        assert torch.equal(batch.x[row], data.images.pixels[i])
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


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("transform", [PLAIN, AUGMENT], ids=["plain", "augmented"])
@pytest.mark.parametrize("batch_size", [None, 1, 4, 11, 50])
def test_start_is_the_tail_of_a_run_from_zero(batch_size, transform, sampling):
    stream = Stream(make(), transform, batch_size, seed=3, sampling=sampling)
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
        torch.testing.assert_close(batch.x, data.images.pixels / 255)


def test_rows_of_a_batch_belong_together():
    data = make()
    for batch in take(Stream(data, PLAIN, 4, seed=1), 6):
        torch.testing.assert_close(batch.x, data.images.pixels[batch.index] / 255)
        assert torch.equal(batch.g, data.g[batch.index])


def test_augmentation_goes_with_the_sample_drawn():
    data = make()
    stream = Stream(data, AUGMENT, 4, seed=5)
    epoch, reference = take(stream, 3), torch.Generator()
    reference.manual_seed(derive_seed(5, "train", 0))
    permutation = torch.randperm(11, generator=reference)
    parameters = AUGMENT.draw(data.images.sizes(permutation), reference)
    expected = AUGMENT(data.images.pixels[permutation], parameters)
    assert torch.equal(torch.cat([batch.x for batch in epoch]), expected)
    assert not torch.equal(expected, PLAIN(data.images.pixels[permutation]))


def test_seeds_and_roles_have_orders_of_their_own():
    def stream(**options):
        return Stream(make(40), AUGMENT, 8, **options)

    first = take(stream(seed=0), 5)
    assert all(map(same, first, take(stream(seed=0, role="train"), 5)))
    orders = {
        tuple(order(stream(seed=seed, role=role))) for seed in (0, 1) for role in ("train", "val")
    }
    assert len(orders) == 4


def uneven():
    """24 samples: groups 0 and 5 of SPEC with 16 and 2, groups 1 and 2 with 3 each."""
    y = torch.tensor([0] * 22 + [1] * 2)
    a = torch.tensor([0] * 16 + [1] * 3 + [2] * 5)
    images = torch.zeros(24, 1, 2, 2, dtype=torch.uint8)
    return GroupedDataset(SPEC, images, y, a, torch.arange(24))


def drawn(sampling, epochs=400, batch_size=8):
    stream = Stream(uneven(), PLAIN, batch_size, seed=0, sampling=sampling)
    batches = take(stream, epochs * len(stream))
    return stream, batches, torch.cat([batch.index for batch in batches])


@pytest.mark.parametrize(
    ("sampling", "labels", "expected"),
    [
        ("group_weighted", "g", [1 / 4, 1 / 4, 1 / 4, 0, 0, 1 / 4]),
        ("class_weighted", "y", [1 / 2, 1 / 2]),
    ],
)
def test_weighted_sampling_draws_every_label_equally_often(sampling, labels, expected):
    _, _, index = drawn(sampling)
    values = getattr(uneven(), labels)[index]
    share = torch.bincount(values, minlength=len(expected)) / len(index)
    torch.testing.assert_close(share, torch.tensor(expected), atol=0.03, rtol=0)
    of_one = torch.bincount(index, minlength=24)[:16] / len(index)  # within a group, all the same
    torch.testing.assert_close(of_one, torch.full((16,), float(of_one.mean())), atol=0.01, rtol=0)


def test_balanced_batches_have_as_many_of_each_group():
    stream, batches, index = drawn("balanced", epochs=9)
    assert len(stream) == 3
    for batch in batches:
        assert torch.bincount(batch.g, minlength=6).tolist() == [2, 2, 2, 0, 0, 2]
    epoch = index[:24]
    assert torch.bincount(epoch)[:16].max() == 1  # a large group repeats nobody
    assert torch.bincount(epoch)[16:19].tolist() == [2, 2, 2]  # a small one everybody equally often
    assert torch.bincount(index)[:16].min() > 0


@pytest.mark.parametrize(
    ("sampling", "labels", "count"), [("subsampled", "g", 2), ("class_subsampled", "y", 2)]
)
def test_subsampling_keeps_as_many_as_the_smallest_has(sampling, labels, count):
    stream, batches, index = drawn(sampling, epochs=5)
    values = getattr(uneven(), labels)
    kept = index[: stream.size]
    assert set(torch.bincount(values[kept]).tolist()) <= {0, count}
    assert stream.size == count * len(values.unique())
    assert len(kept.unique()) == stream.size
    for epoch in index.split(stream.size):  # the same samples, in a new order
        assert sorted(epoch.tolist()) == sorted(kept.tolist())
    assert len(batches) == 5 * len(stream)


def test_sampling_works_in_full_batches_too():
    (batch,) = take(Stream(uneven(), PLAIN, None, seed=0, sampling="subsampled"), 1)
    assert torch.bincount(batch.g, minlength=6).tolist() == [2, 2, 2, 0, 0, 2]
    (batch,) = take(Stream(uneven(), PLAIN, None, seed=0, sampling="group_weighted"), 1)
    assert len(batch.y) == 24


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("transform", [PLAIN, AUGMENT], ids=["plain", "augmented"])
def test_workers_change_nothing(workers, transform):
    alone = take(Stream(make(), transform, 4, seed=0), 7, position=2)
    helped = take(Stream(make(), transform, 4, seed=0, workers=workers), 7, position=2)
    assert all(map(same, alone, helped))


def test_the_global_generator_is_neither_read_nor_moved():
    stream = Stream(make(), AUGMENT, 4, seed=0, sampling="balanced")
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
