"""What an image file shows is what is stored: deep, turned, transparent and odd ones."""

import logging
import os
import shutil
import struct
import sys

import numpy as np
import pytest
import torch
from photos import write_photos
from PIL import Image, ImageOps, TiffImagePlugin

from spurcor.data import decoding, store
from spurcor.data.store import open_store
from spurcor.data.transforms import Prefix
from spurcor.errors import UserError

RAMP = np.linspace(0, 65535, 12 * 10).round().astype(np.uint16).reshape(10, 12)
SIX = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
ORIENTATION = 0x0112


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.delenv("SPURCOR_STORE", raising=False)
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


def stored(root, name, prefix=Prefix()):  # noqa: B008 - never changed
    images = open_store(root, [name], prefix)
    return images.view(0).permute(1, 2, 0).numpy()


def folders(root):
    place = root.parent / ".spurcor" / root.name
    return sorted(path.name for path in place.iterdir() if (path / "store.json").exists())


# --- depth ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_greys_of_16_bits_are_scaled(root, name):
    Image.fromarray(RAMP).save(root / name)
    expected = (RAMP >> 8).astype(np.uint8)
    assert np.array_equal(stored(root, name), np.stack([expected] * 3, axis=2))


def test_greys_of_12_bits_are_scaled_to_their_own_range(root):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    packed = bytearray()
    values = [0, 16, 2048, 4095]
    for low, high in ((0, 16), (2048, 4095)):
        packed += bytes([low >> 4, (low & 15) << 4 | high >> 8, high & 255])
    for tag, value in ((256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (277, 1), (278, 1)):
        tags[tag] = value
    tags[279] = len(packed)
    tags[273] = 0  # bytes after these tags
    (root / "x.tif").write_bytes(b"II*\0\x08\0\0\0" + tags.tobytes(8) + packed)
    with Image.open(root / "x.tif") as image:
        assert np.asarray(image).ravel().tolist() == values
    assert stored(root, "x.tif")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_deep_greys_where_white_is_zero(root):
    Image.fromarray(RAMP).save(root / "x.tif", tiffinfo={262: 0})
    with Image.open(root / "x.tif") as image:
        assert image.tag_v2[262] == 0
    assert np.array_equal(stored(root, "x.tif")[..., 0], 255 - (RAMP >> 8).astype(np.uint8))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_whose_range_is_unknown_are_refused_by_name(root, dtype):
    names = write_photos(root, 2)
    for name in ("deep.tif", "deeper.tif"):
        Image.fromarray(RAMP.astype(dtype)).save(root / name)
    with pytest.raises(UserError, match=r"2 files that have 32-bit .*: deep\.tif, d"):
        open_store(root, [*names, "deep.tif", "deeper.tif"], Prefix())
    assert not folders(root)


def test_colours_that_cannot_be_converted_are_refused_by_name(root):
    Image.new("LAB", (4, 4)).save(root / "lab.tif")
    with pytest.raises(UserError, match=r"1 files that .*RGB: lab\.tif"):
        stored(root, "lab.tif")


def test_shallow_greys_and_palettes_are_as_they_were(root):
    grey = Image.fromarray(SIX)
    for name, picture in (("l.png", grey), ("1.png", grey.convert("1")), ("p.gif", grey)):
        picture.save(root / name)
        with Image.open(root / name) as image:
            expected = np.asarray(image.convert("RGB"))
        assert np.array_equal(stored(root, name), expected)


# --- orientation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.webp", "x.tif"])
def test_photographs_are_turned_as_the_camera_says(root, name, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture = Image.fromarray(np.stack([SIX, 255 - SIX, SIX // 2], axis=2)).resize((24, 16))
    picture.save(root / name, exif=exif)
    with Image.open(root / name) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(stored(root, name), expected)
    assert expected.shape == ((24, 16, 3) if orientation >= 5 else (16, 24, 3))
    assert decoding.size_of(root / name) == expected.shape[:2]


def test_a_turned_photograph_is_turned_before_it_is_cropped(root):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(np.stack([SIX] * 3, axis=2)).resize((40, 20)).save(root / "x.png", exif=exif)
    assert stored(root, "x.png", Prefix(short=10)).shape == (20, 10, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_header_that_asks_for_more_memory_than_there_is_is_damage(root):
    begin = b"\x00\x00\x00\x0cjP  \r\n\x87\n" + struct.pack(
        ">I4s4sI4s", 20, b"ftyp", b"jp2 ", 0, b"jp2 "
    )
    (root / "x.jp2").write_bytes(begin + struct.pack(">I4sQ", 1, b"jp2h", 2**62) + bytes(50))
    assert decoding.size_of(root / "x.jp2") is None
    with pytest.raises(UserError, match=r"cannot be read as images.*x\.jp2"):
        open_store(root, ["x.jp2"], Prefix())


def test_notes_of_the_camera_that_are_damaged_turn_nothing(root):
    Image.fromarray(SIX).save(root / "x.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f broken")
    assert stored(root, "x.jpg").shape == (2, 3, 3)


# --- what is lost is told -------------------------------------------------------------------------


def remarks(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def write_transparent(path, alpha):
    picture = Image.fromarray(np.stack([SIX, SIX, SIX, SIX * 0 + 255], axis=2), "RGBA")
    picture.putpixel((0, 0), (10, 20, 30, alpha))
    picture.save(path)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "colour"])
def test_transparent_parts_are_told_once(root, kind, caplog):
    clear = Image.new("RGBA", (3, 2), (10, 20, 30, 40))
    if kind == "RGBA":
        clear.save(root / "x.png")
    elif kind == "LA":
        clear.convert("LA").save(root / "x.png")
    elif kind == "palette":
        Image.fromarray(SIX).convert("P").save(root / "x.png", transparency=0)
    else:
        Image.new("RGB", (3, 2), (10, 20, 30)).save(root / "x.png", transparency=(10, 20, 30))
    with Image.open(root / "x.png") as image:
        expected = np.asarray(image.convert("RGBA"))[..., :3]
    assert np.array_equal(stored(root, "x.png"), expected)
    (sentence,) = remarks(caplog)
    assert "1 files that have transparent parts" in sentence
    assert sentence.endswith("x.png")
    caplog.clear()
    stored(root, "x.png")
    assert not remarks(caplog)


def test_what_is_opaque_is_worth_no_word(root, caplog):
    Image.new("RGBA", (3, 2), (10, 20, 30, 255)).save(root / "x.png")
    assert stored(root, "x.png")[0, 0].tolist() == [10, 20, 30]
    assert not remarks(caplog)


@pytest.mark.parametrize("name", ["x.gif", "x.tif", "x.webp", "x.png"])
def test_all_but_the_first_of_several_frames_are_told(root, name, caplog):
    first, second = Image.fromarray(SIX).resize((16, 16)), Image.new("L", (16, 16), 200)
    options = {"lossless": True} if name == "x.webp" else {}
    first.save(root / name, save_all=True, append_images=[second], **options)
    with Image.open(root / name) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(stored(root, name), expected)
    (sentence,) = remarks(caplog)
    assert "1 files that have several frames" in sentence


def test_the_colours_of_print_are_told(root, caplog):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(root / "x.jpg", quality=100)
    red, green, blue = stored(root, "x.jpg")[4, 4].tolist()
    assert red > 240 > 15 > max(green, blue)
    (sentence,) = remarks(caplog)
    assert "CMYK" in sentence


# --- what is no picture ---------------------------------------------------------------------------


def test_a_program_in_the_place_of_a_picture_is_not_run(root, tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    bait, ran = tmp_path / "bin", tmp_path / "ran"
    bait.mkdir()
    (bait / "gs").write_text(f"#!{sys.executable}\nopen({str(ran)!r}, 'w')\n")
    (bait / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bait}:{os.environ['PATH']}")
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    (root / "x.jpg").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(UserError, match=r"1 files that cannot be read as images.*: x\.jpg"):
        stored(root, "x.jpg")
    assert not ran.exists()


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_told_and_not_waited_for(root, kind):
    names = write_photos(root, 2)
    odd = root / "odd.jpg"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "folder":
        odd.mkdir()
    else:
        odd.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"1 listed images that are folders, pipes .*: odd\.jpg"):
        open_store(root, [*names, "odd.jpg"], Prefix())


def test_many_names_are_counted_and_the_first_are_told(root):
    names = [f"{i:03}.jpg" for i in range(1200)]
    with pytest.raises(UserError) as caught:
        open_store(root, names, Prefix())
    assert (
        "lacks 1,200 of 1,200 listed image files: 000.jpg, 001.jpg, 002.jpg and 1,197 more; "
        in str(caught.value)
    )


# --- stores of the first decoder ------------------------------------------------------------------


@pytest.fixture
def built_before(root, monkeypatch):
    """Pretends that a store was built by the first decoder."""

    def build(names):
        with monkeypatch.context() as patch:
            patch.setattr(store, "DECODER", store.FORMER)
            images = open_store(root, names, Prefix())
            return images.digest(torch.arange(len(names)))

    return build


def test_a_store_of_pictures_that_are_stored_alike_is_kept(root, monkeypatch, built_before):
    names = write_photos(root, 3)
    write_transparent(root / "clear.png", 40)
    names.append("clear.png")
    digest = built_before(names)
    before = folders(root)
    monkeypatch.setattr(store, "_decode", None)
    images = open_store(root, names, Prefix())
    assert images.digest(torch.arange(4)) == digest
    assert len(folders(root)) == 1
    assert folders(root) != before


@pytest.mark.parametrize("kind", ["deep", "turned"])
def test_a_store_of_pictures_that_are_stored_otherwise_is_not_reused(root, kind, built_before):
    names = [*write_photos(root, 3), "odd.png"]
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    if kind == "deep":
        Image.fromarray(RAMP).save(root / "odd.png")
    else:
        Image.fromarray(SIX).save(root / "odd.png", exif=exif)
    built_before(names)
    before = folders(root)
    images = open_store(root, names, Prefix())
    assert not set(folders(root)) & set(before)
    alike = shutil.copytree(root, root.parent / "copy")
    again = open_store(alike, names, Prefix())
    assert again.digest(torch.arange(4)) == images.digest(torch.arange(4))


def test_pictures_that_are_stored_otherwise_are_other_data(root, monkeypatch):
    """What was trained on the white ones is not taken for what is trained on these."""
    names = [*write_photos(root, 2), "odd.png"]
    Image.fromarray(RAMP).save(root / "odd.png")
    images = open_store(root, names, Prefix())
    monkeypatch.setattr(decoding, "_is_deep", lambda image: False)
    monkeypatch.setattr(decoding, "CONVERTED", (*decoding.CONVERTED, "I;16"))
    shutil.rmtree(root.parent / ".spurcor")
    white = open_store(root, names, Prefix())
    assert images.signature[:2].tolist() == white.signature[:2].tolist()
    assert images.signature[2] != white.signature[2]
