"""Arrays of images: gathering, resampling against Pillow, random boxes against torchvision."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision import transforms

from spurcor.data import images
from spurcor.data.images import Images, RaggedImages, crop, draw_boxes, resize
from spurcor.errors import UserError

SCALE, RATIO = (0.7, 1.0), (0.75, 4 / 3)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def planes(array):
    """(..., H, W, C) bytes as (..., C, H, W), a view as stores have it."""
    return torch.from_numpy(array).movedim(-1, -3)


def ragged(sizes):
    arrays = [noise(h, w, 3, seed=i) for i, (h, w) in enumerate(sizes)]
    pixels = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
    return arrays, RaggedImages(pixels, torch.tensor(sizes), torch.arange(len(sizes)))


def pil(array, size, box=None):
    return np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BILINEAR, box=box))


# --- arrays ---------------------------------------------------------------------------------------


def test_rows_are_gathered_in_the_order_asked_for():
    array = noise(5, 4, 6, 3)
    stored = Images(planes(array))
    taken = stored.take(torch.tensor([3, 0, 3]))
    assert taken.shape == (3, 3, 4, 6)
    assert torch.equal(taken, planes(array[[3, 0, 3]]))
    assert torch.equal(stored.view(2), planes(array)[2])
    assert stored.sizes(torch.tensor([1, 1])).tolist() == [[4, 6], [4, 6]]
    assert (len(stored), stored.num_bytes) == (5, 5 * 4 * 6 * 3)


def test_images_of_their_own_sizes():
    arrays, stored = ragged([(4, 6), (5, 3), (2, 9)])
    for i, array in enumerate(arrays):
        assert torch.equal(stored.view(i), planes(array))
    assert stored.sizes(torch.tensor([2, 0])).tolist() == [[2, 9], [4, 6]]
    assert (len(stored), stored.num_bytes) == (3, 3 * (24 + 15 + 18))
    with pytest.raises(UserError, match="different sizes; choose a dataset/transform that resizes"):
        stored.take(torch.tensor([0, 1]))


def test_a_mapped_array_leaves_the_disk():
    array = planes(noise(2, 3, 3, 3))
    mapped, resident = Images(array, mapped=True), Images(array)
    cpu = torch.device("cpu")
    assert mapped.to(cpu).pixels.data_ptr() != array.data_ptr()
    assert not mapped.to(cpu).mapped
    assert resident.to(cpu).pixels.data_ptr() == array.data_ptr()


def test_digests_tell_images_apart():
    array = planes(noise(4, 3, 3, 3))
    rows = torch.tensor([0, 2])
    changed = array.clone()
    changed[2, 0, 0, 0] += 1
    assert Images(array).digest(rows) == Images(array.clone()).digest(rows)
    assert Images(array).digest(rows) != Images(changed).digest(rows)
    assert Images(array).digest(rows) != Images(array).digest(rows.flip(0))
    signed = Images(array, torch.arange(4))
    assert signed.digest(rows) == Images(changed, torch.arange(4)).digest(rows)
    assert signed.digest(rows) != Images(array, torch.arange(4) + 1).digest(rows)


# --- resampling -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(178, 178, 224), (178, 218, 224), (256, 256, 224), (300, 200, 64), (7, 5, 31), (9, 9, 9)],
)
def test_resizing_is_pillows_to_the_bit(height, width, size):
    array = noise(2, height, width, 3)
    found = resize(planes(array), size)
    expected = np.stack([pil(one, (size, size)) for one in array])
    assert np.array_equal(found.permute(0, 2, 3, 1).numpy(), expected)


def test_crops_are_resampled_as_pillow_does_and_mirrored():
    arrays, stored = ragged([(60, 90), (80, 50), (70, 70)])
    rows = torch.tensor([2, 0, 1])
    boxes = torch.tensor([[0, 0, 70, 70], [5, 10, 40, 60], [20, 3, 55, 41]])
    flips = torch.tensor([False, True, False])
    found = stored.crop(rows, boxes, flips, 32)
    assert found.dtype == torch.uint8
    for x, row, (top, left, height, width), flip in zip(
        found, rows.tolist(), boxes.tolist(), flips.tolist(), strict=True
    ):
        window = np.ascontiguousarray(arrays[row][top : top + height, left : left + width])
        expected = pil(window, (32, 32)).astype(int)
        expected = expected[:, ::-1] if flip else expected
        assert np.abs(x.permute(1, 2, 0).numpy() - expected).max() <= 1


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_change_no_crop(num_threads):
    _, stored = ragged([(60 + i, 90 - i) for i in range(7)])
    rows = torch.arange(7)
    boxes = draw_boxes(stored.sizes(rows), SCALE, RATIO, torch.Generator().manual_seed(0))
    flips = torch.arange(7) % 2 == 0
    before = torch.get_num_threads()
    expected = torch.cat(
        [crop([stored.view(i)], boxes[i : i + 1], flips[i : i + 1], 24) for i in range(7)]
    )
    try:
        torch.set_num_threads(num_threads)
        assert torch.equal(stored.crop(rows, boxes, flips, 24), expected)
    finally:
        torch.set_num_threads(before)


def test_the_batched_resampling_of_other_devices_is_a_level_off_at_most():
    array = noise(6, 64, 80, 3)
    boxes = draw_boxes(
        torch.tensor([[64, 80]]).expand(6, 2), SCALE, RATIO, torch.Generator().manual_seed(1)
    )
    windows = [
        x[:, top : top + height, left : left + width]
        for x, (top, left, height, width) in zip(planes(array), boxes.tolist(), strict=True)
    ]
    batched = images._resample(windows, boxes[:, 2], boxes[:, 3], 48)
    single = crop(list(planes(array)), boxes, torch.zeros(6, dtype=torch.bool), 48)
    difference = (batched.int() - single.int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 0.02


# --- random boxes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((256, 384), SCALE, RATIO),
        ((218, 178), SCALE, (1.0, 4 / 3)),
        ((60, 200), (0.08, 1.0), RATIO),
        ((40, 400), (0.9, 1.0), RATIO),  # nothing fits: the centre
    ],
)
def test_boxes_are_distributed_as_torchvisions(size, scale, ratio):
    count = 2000
    torch.manual_seed(0)
    image = torch.zeros(1, *size)
    theirs = np.array(
        [
            transforms.RandomResizedCrop.get_params(image, list(scale), list(ratio))
            for _ in range(count)
        ]
    )
    sizes = torch.tensor([size]).expand(count, 2)
    ours = draw_boxes(sizes, scale, ratio, torch.Generator().manual_seed(0)).numpy()
    top, left, height, width = ours.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= size[0]).all()
    assert (left + width <= size[1]).all()
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    for one, other in ((0, 2), (1, 3), (2, 3)):  # and jointly
        mine, other = (b[:, one] - 0.5 * b[:, other] for b in (ours, theirs))
        assert ks_2samp(mine, other).pvalue > 1e-3


def test_boxes_come_from_the_generator_given_and_nothing_else():
    sizes = torch.tensor([[50, 60], [70, 40]])
    state = torch.get_rng_state()
    one = draw_boxes(sizes, SCALE, RATIO, torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, draw_boxes(sizes, SCALE, RATIO, torch.Generator().manual_seed(3)))
