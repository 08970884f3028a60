"""Batch transforms against plain per-sample computations."""

import inspect
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import yaml
from torch.nn import functional as F
from torchvision.transforms import functional
from training import read

from spurcor.config import explain
from spurcor.config.nodes import locate
from spurcor.data.transforms import AffineFlip, CropFlip, Normalize, Photo, Prefix, affine
from spurcor.errors import UserError
from spurcor.runs.refusals import refuse_changed_defaults
from spurcor.system.places import CONF

TRANSFORMS = sorted(path.stem for path in (CONF / "dataset" / "transform").glob("*.yaml"))
PHOTOS = [
    name
    for name in TRANSFORMS
    if "Photo" in (CONF / "dataset" / "transform" / f"{name}.yaml").read_text()
]

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SIZES = torch.tensor([9, 7]).expand(20_000, 2)


def images(num_samples=6, height=9, width=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = (num_samples, 3, height, width)
    return torch.randint(256, size, generator=generator, dtype=torch.uint8)


def reference(x, parameters, padding):
    """Pad, cut and flip one sample after the other."""
    height, width = x.shape[2:]
    cut = []
    for image, (down, right, flip) in zip(x.float(), parameters.tolist(), strict=True):
        padded = F.pad(image[None], (padding,) * 4, mode="reflect")[0]
        top, left = padding + down, padding + right
        window = padded[:, top : top + height, left : left + width]
        cut.append(window.flip(2) if flip else window)
    return torch.stack(cut)


def test_normalize_by_hand():
    x = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = torch.tensor([(0 - 0.4) / 0.2, (0.2 - 0.5) / 0.25, (1 - 0.6) / 0.3])
    torch.testing.assert_close(Normalize(MEAN, STD)(x), expected.view(1, 3, 1, 1))


def test_normalize_every_byte_and_position():
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    z = Normalize(MEAN, STD)(x)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, (x.float() / 255 - mean) / std, atol=1e-6, rtol=1e-6)


def test_unit_length():
    x = images(3)
    z = Normalize(unit_length=True)(x)
    assert z.shape == x.shape
    scaled = x.float() / 255
    lengths = scaled.flatten(1).norm(dim=1)
    torch.testing.assert_close(z, scaled / lengths[:, None, None, None])


def test_normalize_draws_nothing():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert Normalize(MEAN, STD).draw(SIZES[:5], generator) is None
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("padding", [1, 4])
def test_crop_and_flip_for_every_parameter(padding):
    reach = range(-padding, padding + 1)
    parameters = torch.tensor([[d, r, f] for d in reach for r in reach for f in (0, 1)])
    x = images(len(parameters))
    z = CropFlip((0.0,) * 3, (1 / 255,) * 3, padding)(x, parameters)
    torch.testing.assert_close(z, reference(x, parameters, padding), atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(32, 32), (9, 7), (8, 13)])
def test_rotations_and_shifts_are_those_of_torchvision(shape):
    cases = [
        (angle, down, right, flip)
        for angle in (-180.0, -15.0, -3.7, 0.01, 7.25, 14.99, 90.0)
        for down, right in ((0, 0), (3, -2), (-1, 4))
        for flip in (False, True)
    ]
    angle, down, right = (torch.tensor(v) for v in list(zip(*cases, strict=True))[:3])
    x = images(len(cases), *shape)
    sizes = torch.tensor(shape).expand(len(cases), 2)
    flips = torch.tensor([[case[3]] for case in cases]).long()
    parameters = torch.cat([affine(sizes, angle, down, right), flips], dim=1)
    z = AffineFlip(std=(1 / 255,))(x, parameters)
    for i, (degrees, dy, dx, flip) in enumerate(cases):
        image = functional.to_pil_image(x[i])
        image = functional.hflip(image) if flip else image
        image = functional.affine(image, degrees, [dx, dy], scale=1.0, shear=[0.0])
        expected = functional.pil_to_tensor(image).float()
        torch.testing.assert_close(z[i], expected, atol=1e-3, rtol=0, msg=str(cases[i]))


def test_affine_draws_are_those_of_torchvision():
    sizes = torch.tensor([32, 20]).expand(20_000, 2)
    drawn = AffineFlip(degrees=15.0, translate=0.1).draw(sizes, torch.Generator().manual_seed(1))
    angle = torch.rad2deg(torch.atan2(drawn[:, 1].double(), drawn[:, 0].double()))
    assert -15 <= angle.min() < -14.9
    assert 14.9 < angle.max() <= 15
    assert abs(angle.std() - 30 / 12**0.5) < 0.1
    assert drawn[:, 6].unique().tolist() == [0, 1]
    still = AffineFlip(degrees=0.0, translate=0.1).draw(sizes, torch.Generator().manual_seed(1))
    for column, reach in ((2, 2), (5, 3)):  # tenths of 20 and of 32, rounded
        assert (-(still[:, column] >> 16)).unique().tolist() == list(range(-reach, reach + 1))


def test_without_parameters_nothing_is_rotated():
    x = images()
    assert torch.equal(AffineFlip()(x), Normalize()(x))


@pytest.mark.parametrize("options", [{"degrees": 181.0}, {"degrees": -1.0}, {"translate": 1.5}])
def test_impossible_rotations_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        AffineFlip(**options)


def test_the_published_transforms_of_cifar10_and_of_prusc_are_configurations():
    node = read("dataset=cifar10", "dataset/transform=masktune_cifar10").dataset
    found = node.arguments["transform"].build()
    assert (found.degrees, found.translate, found.normalize.mean) == (15.0, 0.1, (0.0,))
    found = read("dataset=isic", "dataset/transform=prusc").dataset.arguments["transform"].build()
    assert found.stored == Prefix(shorter=256, crop=224)
    with pytest.raises(ValueError, match=r"resize=256 .* resize_short=256"):
        Photo(resize=256, resize_short=256)


def test_the_crop_is_normalized():
    x, parameters = images(2), torch.tensor([[1, -2, 1], [0, 3, 0]])
    normalize = Normalize(MEAN, STD)
    expected = normalize(reference(x, parameters, 4).to(torch.uint8))
    assert torch.equal(CropFlip(MEAN, STD)(x, parameters), expected)


def test_without_parameters_as_in_evaluation():
    normalize, x = Normalize(MEAN, STD), images()
    assert torch.equal(CropFlip(MEAN, STD)(x), normalize(x))


def test_stored_images_stay_as_they_are():
    x = images()
    before = x.clone()
    transform = CropFlip(MEAN, STD)
    transform(x, transform.draw(SIZES[: len(x)], torch.Generator().manual_seed(0)))
    assert torch.equal(x, before)


def test_draws_are_uniform_and_only_from_the_generator_given():
    transform = CropFlip(MEAN, STD, padding=2)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    drawn = transform.draw(SIZES, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert drawn.shape == (20_000, 3)
    for column in (0, 1):
        values, counts = drawn[:, column].unique(return_counts=True)
        assert values.tolist() == [-2, -1, 0, 1, 2]
        torch.testing.assert_close(counts / 20_000, torch.full((5,), 0.2), atol=0.015, rtol=0)
    assert drawn[:, 2].unique().tolist() == [0, 1]
    assert abs(drawn[:, 2].float().mean() - 0.5) < 0.02
    correlation = torch.corrcoef(drawn.T.float())
    torch.testing.assert_close(correlation, torch.eye(3), atol=0.03, rtol=0)
    again = transform.draw(SIZES, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, again)


# --- the size of the network's input --------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"resize": 256, "crop": 224}, 224),
        ({"resize": 256, "crop": 224, "size": None}, 224),
        ({"resize": 48, "crop": 40, "size": None}, 40),
        ({"resize": 48, "size": None}, 48),
        ({"crop": 178}, 224),
        ({"crop": 178, "size": None}, 178),
        ({"crop": 178, "size": 96}, 96),
    ],
)
def test_the_size_is_what_is_left_unless_it_is_given(options, size):
    assert Photo(**options).size == size


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize(
    ("typed", "derived", "published"),
    [
        ((), 224, 224),
        (("resize=48", "crop=48"), 48, 224),
        (("resize=48", "crop=null"), 48, 224),
        (("resize=48", "crop=40", "size=32"), 32, 32),
    ],
)
def test_files_derive_the_size_from_what_is_typed(name, typed, derived, published):
    """CelebA's are published with a central 178 that becomes 224, and say so."""
    overrides = [f"dataset.transform.{option}" for option in typed]
    if name == "prusc" and typed:  # the one that keeps the aspect
        overrides.append("dataset.transform.resize_short=null")
    config = read("dataset=waterbirds", f"dataset/transform={name}", *overrides)
    expected = published if "celeba" in name else derived
    assert config.dataset.arguments["transform"].build().size == expected


@pytest.mark.parametrize("name", PHOTOS)
def test_the_listed_size_renames_no_run(name):
    """The identity of the size that files did not list; another makes another run."""
    command = ("dataset=waterbirds", f"dataset/transform={name}")
    plain, whole, same, other = (
        read(*command, *typed).dataset.hashed()["transform"]
        for typed in ((), ("dataset.transform.size=224",), ("~dataset.transform.size",), SMALLER)
    )
    assert plain == whole == same != other


def test_a_run_from_before_files_listed_the_size_goes_on():
    """Another value of what both have is still told."""
    now = read("dataset=waterbirds")
    transform = now.dataset.arguments["transform"]
    listed = {key: value for key, value in transform.arguments.items() if key != "size"}
    for arguments, told in ((listed, False), ({**listed, "resize": 300}, True)):
        then = replace(
            now.dataset,
            arguments={
                **now.dataset.arguments,
                "transform": replace(transform, arguments=arguments),
            },
        )
        with (
            pytest.raises(UserError, match=r"dataset\.transform\.resize=256 was 300 by default")
            if told
            else nullcontext()
        ):
            refuse_changed_defaults(now, replace(now, dataset=then))


SMALLER = ("dataset.transform.resize=48", "dataset.transform.crop=48", "dataset.transform.size=48")


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_argument_is_listed_or_told_how_to_be_given(name):
    listed = yaml.safe_load((CONF / "dataset" / "transform" / f"{name}.yaml").read_text())
    arguments = inspect.signature(locate(listed["_target_"])).parameters
    chosen = ["dataset=waterbirds", f"dataset/transform={name}"]
    for argument in arguments.keys() - listed.keys():
        key = f"dataset.transform.{argument}"
        assert f"set it by +{key}=" in explain.unknown_override(key, "train", chosen)
        typo = explain.unknown_override(f"{key}s", "train", chosen)
        assert f"did you mean +{key}?" in typo
