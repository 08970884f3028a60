"""Photographs decoded once: what is stored, by whom, and what is noticed."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPO
from photos import opened, write_photo, write_photos
from PIL import Image
from torchvision import transforms

from spurcor.data import store
from spurcor.data.images import Images, RaggedImages
from spurcor.data.store import open_store
from spurcor.data.transforms import Photo, Prefix
from spurcor.errors import UserError

RESIZE = Prefix(resize=(32, 32))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "photos"


@pytest.fixture(autouse=True)
def beside(monkeypatch):
    monkeypatch.delenv("SPURCOR_STORE", raising=False)


def folders(root):
    return sorted(path.name for path in (root.parent / ".spurcor" / root.name).iterdir())


def stores(root):
    return [name for name in folders(root) if not name.startswith(".") and ".lock" not in name]


def refuse_decoding(monkeypatch):
    def refuse(*args):
        raise AssertionError("decoded again")

    monkeypatch.setattr(store, "_decode", refuse)


# --- what is stored -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "theirs"),
    [
        (Prefix(resize=(32, 32)), transforms.Resize((32, 32))),
        (Prefix(crop=24), transforms.CenterCrop(24)),
        (
            Prefix(resize=(40, 40), crop=33),
            transforms.Compose([transforms.Resize((40, 40)), transforms.CenterCrop(33)]),
        ),
        (Prefix(resize=(20, 30)), transforms.Resize((20, 30))),
        (
            Prefix(shorter=256, crop=224),
            transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)]),
        ),
        (
            Prefix(shorter=20, crop=17),
            transforms.Compose([transforms.Resize(20), transforms.CenterCrop(17)]),
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_is_stored_is_what_torchvision_makes(root, prefix, theirs):
    names = write_photos(root, 7)
    images = open_store(root, names, prefix)
    assert isinstance(images, Images)
    assert images.mapped
    for i, name in enumerate(names):
        expected = np.asarray(theirs(opened(root, name)))
        assert np.array_equal(images.view(i).permute(1, 2, 0).numpy(), expected)
        assert prefix.size(*opened(root, name).size[::-1]) == expected.shape[:2]


def test_the_short_side_is_kept_with_its_aspect(root):
    sizes = [(60, 40), (40, 60), (30, 20), (33, 100)]
    for i, size in enumerate(sizes):
        write_photo(root / f"{i}.jpg", i, size)
    images = open_store(root, [f"{i}.jpg" for i in range(4)], Prefix(short=32))
    assert isinstance(images, RaggedImages)
    rows = torch.arange(4)
    assert images.sizes(rows).tolist() == [[32, 48], [48, 32], [20, 30], [96, 32]]
    for i in (0, 1, 3):  # the third is small and stays as it is
        expected = np.asarray(transforms.Resize(32)(opened(root, f"{i}.jpg")))
        assert np.array_equal(images.view(i).permute(1, 2, 0).numpy(), expected)
    expected = np.asarray(opened(root, "2.jpg"))
    assert np.array_equal(images.view(2).permute(1, 2, 0).numpy(), expected)


def test_grey_and_transparent_photographs_get_three_channels(root):
    root.mkdir()
    Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10)).save(root / "grey.png")
    Image.new("RGBA", (10, 10), (10, 20, 30, 40)).save(root / "clear.png")
    images = open_store(root, ["grey.png", "clear.png"], Prefix())
    assert images.view(0)[0].tolist() == images.view(0)[2].tolist()
    assert images.view(1)[:, 0, 0].tolist() == [10, 20, 30]


def test_prefixes_have_names_of_their_own():
    prefixes = [
        Prefix(),
        Prefix(resize=(256, 256)),
        Prefix(resize=(256, 128)),
        Prefix(resize=(256, 256), crop=224),
        Prefix(crop=178),
        Prefix(short=256),
        Prefix(shorter=256, crop=224),
    ]
    names = [prefix.name for prefix in prefixes]
    assert names == ["original", "resize256", "resize256x128", "resize256-crop224", *names[4:]]
    assert names[4:] == ["crop178", "short256", "shorter256-crop224"]


# --- once -----------------------------------------------------------------------------------------


def test_photographs_are_decoded_once_per_prefix(root, monkeypatch):
    names = write_photos(root, 5)
    first = open_store(root, names, RESIZE)
    open_store(root, names, Prefix(short=30))
    assert len(stores(root)) == 2
    refuse_decoding(monkeypatch)
    again = open_store(root, names, RESIZE)
    assert torch.equal(first.pixels, again.pixels)


def test_a_changed_photograph_is_noticed_and_the_old_store_goes(root):
    names = write_photos(root, 5)
    before = open_store(root, names, RESIZE)
    kept = before.pixels.clone()
    digest = before.digest(torch.arange(5))
    write_photo(root / names[3], 99, (47, 53))
    after = open_store(root, names, RESIZE)
    changed = (kept != after.pixels).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [3]
    assert after.digest(torch.arange(5)) != digest
    assert len(stores(root)) == 1


def test_a_touched_photograph_is_decoded_again_but_is_the_same_data(root):
    names = write_photos(root, 3)
    digest = open_store(root, names, RESIZE).digest(torch.arange(3))
    os.utime(root / names[0], (1, 1))
    assert open_store(root, names, RESIZE).digest(torch.arange(3)) == digest


def test_another_pillow_decodes_anew(root, monkeypatch):
    names = write_photos(root, 3)
    open_store(root, names, RESIZE)
    before = stores(root)
    monkeypatch.setattr(store, "_pillow", lambda: "0.0")
    open_store(root, names, RESIZE)
    assert len(stores(root)) == 1
    assert stores(root) != before


def test_stores_go_where_they_are_told(root, tmp_path, monkeypatch):
    names = write_photos(root, 3)
    monkeypatch.setenv("SPURCOR_STORE", str(tmp_path / "elsewhere"))
    open_store(root, names, RESIZE)
    assert len(list((tmp_path / "elsewhere").glob("*/resize32-*/store.json"))) == 1
    assert not (tmp_path / ".spurcor").exists()


# --- several processes, and killed ones -----------------------------------------------------------

BUILD = """
import sys, zlib
from pathlib import Path
import spurcor.data.store as store
from spurcor.data.transforms import Prefix
root, slow = Path(sys.argv[1]), float(sys.argv[2])
names = sorted(str(p.relative_to(root)) for p in root.rglob("*.jpg"))
decode = store._decode
def counted(*arguments):
    import os, time
    time.sleep(slow)
    with open(root.parent / "decoded", "a") as file:
        file.write("x\\n")
    return decode(*arguments)
store._decode = counted
print("ready", flush=True)
sys.stdin.readline()
images = store.open_store(root, names, Prefix(resize=(32, 32)))
print("sum", zlib.crc32(images.pixels.contiguous().numpy().tobytes()), flush=True)
"""


def start_builder(root, slow=0.0):
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(root), str(slow)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPO,
    )


def checksum(root):
    builder = start_builder(root)
    output = builder.communicate("\n")[0]
    assert builder.returncode == 0
    return output.split()[-1]


@pytest.mark.cold
def test_four_processes_build_one_store(root):
    write_photos(root, 70)
    builders = [start_builder(root, slow=0.05) for _ in range(4)]
    for builder in builders:
        assert builder.stdout.readline() == "ready\n"
    for builder in builders:
        builder.stdin.write("\n")
        builder.stdin.flush()
    outputs = [builder.communicate()[0].split()[-1] for builder in builders]
    assert [builder.returncode for builder in builders] == [0] * 4
    assert len(set(outputs)) == 1
    chunks = -(-70 // store.CHUNK)
    assert len((root.parent / "decoded").read_text().split()) == chunks
    assert len(stores(root)) == 1


@pytest.mark.cold
def test_a_build_that_is_killed_leaves_no_wrong_store(root, tmp_path):
    """At ten moments of a build, from its beginning to its end."""
    names = sorted(write_photos(root, 10 * store.CHUNK))
    whole = tmp_path / "whole" / "photos"
    write_photos(whole, 10 * store.CHUNK)
    expected = open_store(whole, names, RESIZE).pixels
    killed = 0
    for moment in range(10):
        builder = start_builder(root, slow=0.03)
        assert builder.stdout.readline() == "ready\n"
        decoded = root.parent / "decoded"
        decoded.unlink(missing_ok=True)
        builder.stdin.write("\n")
        builder.stdin.flush()
        while not decoded.exists() or len(decoded.read_text().split()) <= moment:
            assert builder.poll() is None
            time.sleep(0.002)
        builder.send_signal(signal.SIGKILL)
        builder.wait()
        killed += not stores(root)
        for name in stores(root):  # it was faster than the signal
            assert moment == 9, name
    assert killed >= 9
    assert torch.equal(open_store(root, names, RESIZE).pixels, expected)
    assert len(stores(root)) == 1
    left = [name for name in folders(root) if name.startswith(".")]
    assert not left  # what killed builds left is gone


def test_what_builds_of_other_files_left_is_removed_unless_they_are_at_it(root):
    names = write_photos(root, 3)
    place = root.parent / ".spurcor" / root.name
    for name in ("resize64-aaaa-bbbb", "resize64-cccc-dddd"):
        (place / f".{name}.x1y2").mkdir(parents=True)
    with store.FileLock(place / "resize64-cccc-dddd.lock"):
        open_store(root, names, RESIZE)
    left = [name for name in folders(root) if name.startswith(".")]
    assert left == [".resize64-cccc-dddd.x1y2"]


def test_what_others_put_among_the_stores_stays(root):
    names = write_photos(root, 3)
    place = root.parent / ".spurcor" / root.name
    place.mkdir(parents=True)
    (place / ".DS_Store").write_text("x")
    (place / ".lock").write_text("")
    open_store(root, names, RESIZE)
    open_store(root, names, Prefix(short=30))
    assert (place / ".DS_Store").read_text() == "x"
    assert len(stores(root)) == 2


# --- what is refused ------------------------------------------------------------------------------


def test_truncated_photographs_are_all_named(root):
    names = write_photos(root, 9)
    for i in (2, 5):
        path = root / names[i]
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (root / names[7]).write_text("no image")
    with pytest.raises(UserError, match="3 files that cannot be read as images") as refused:
        open_store(root, names, RESIZE)
    for i in (2, 5, 7):
        assert names[i] in str(refused.value)
    assert names[0] not in str(refused.value)
    assert not stores(root)


def test_an_image_that_claims_to_be_enormous_is_named(root):
    names = write_photos(root, 3)
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (root / names[0]).write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    with pytest.raises(UserError, match=rf"1 files that cannot be read.*{names[0]}"):
        open_store(root, names, RESIZE)


def test_missing_photographs_are_all_named(root):
    names = write_photos(root, 4)
    (root / names[1]).unlink()
    (root / names[3]).unlink()
    with pytest.raises(UserError, match=f"lacks 2 of .*: {names[1]}, {names[3]}"):
        open_store(root, names, RESIZE)


def test_a_disk_without_room_is_told_before_anything_is_written(root, monkeypatch):
    names = write_photos(root, 4)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: type("", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"4 images takes 0\.0 MB .* 0\.0 MB free; set SPURCOR"):
        open_store(root, names, RESIZE)
    assert not stores(root)


def test_a_disk_that_fills_up_leaves_nothing(root, monkeypatch):
    names = write_photos(root, 4)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_sync", full)
    with pytest.raises(UserError, match=r"cannot be written .*No space left.*SPURCOR_STORE"):
        open_store(root, names, RESIZE)
    assert not stores(root)
    assert not [name for name in folders(root) if name.startswith(".")]


@pytest.mark.parametrize("part", ["pixels.bin", "sizes.npy", "signature.npy", "store.json"])
def test_a_damaged_store_is_told(root, part):
    names = write_photos(root, 4)
    open_store(root, names, RESIZE)
    (folder,) = stores(root)
    path = root.parent / ".spurcor" / root.name / folder / part
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"is damaged .*remove "):
        open_store(root, names, RESIZE)


def test_pickles_in_a_store_are_not_run(root):
    names = write_photos(root, 2)
    open_store(root, names, RESIZE)
    (folder,) = stores(root)
    path = root.parent / ".spurcor" / root.name / folder / "sizes.npy"
    np.save(path, np.array([{"a": 1}, None], object), allow_pickle=True)
    with pytest.raises(UserError, match="damaged"):
        open_store(root, names, RESIZE)


def test_a_large_store_opens_without_being_read(root, monkeypatch):
    """A file of 19 GB as that of all of CelebA, with holes in the place of images."""
    count = 202_599
    monkeypatch.setattr(store, "_look_at", lambda root, names: np.zeros((count, 2), np.int64))
    root.mkdir()
    names = [str(i) for i in range(count)]
    monkeypatch.setattr(store, "_build", lambda folder, *rest: make_large(folder, count))
    before = resident()
    begin = time.perf_counter()
    images = open_store(root, names, Prefix(crop=178))
    x = images.take(torch.tensor([0, count - 1]))
    assert time.perf_counter() - begin < 10  # the figure is the benchmark's; this is a safety net
    assert x.shape == (2, 3, 178, 178)
    assert images.num_bytes == count * 178 * 178 * 3
    assert resident() - before < 1e9


def make_large(folder, count):
    folder.mkdir(parents=True)
    np.save(folder / "sizes.npy", np.full((count, 2), 178, np.int32))
    np.save(folder / "signature.npy", np.arange(count))
    (folder / "store.json").write_text(json.dumps({"images": count, "interleaved": False}))
    with (folder / "pixels.bin").open("wb") as file:
        file.truncate(count * 178 * 178 * 3)


def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# --- the published transforms ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        (
            {"resize": 256, "crop": 224},
            [transforms.Resize((256, 256)), transforms.CenterCrop(224)],
        ),
        ({"crop": 178}, [transforms.CenterCrop(178), transforms.Resize(224)]),
        ({"resize": 224}, [transforms.Resize((224, 224))]),
    ],
    ids=["dfr", "group_dro_celeba", "scale"],
)
def test_the_evaluation_transform_is_torchvisions(root, options, theirs):
    names = write_photos(root, 3, lambda i: (178 + 60 * i, 218 + 10 * i))
    transform = Photo(**options)
    images = open_store(root, names, transform.stored)
    z = transform(images.take(torch.arange(3)))
    normalize = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    reference = transforms.Compose([*theirs, transforms.ToTensor(), normalize])
    expected = torch.stack([reference(opened(root, name)) for name in names])
    torch.testing.assert_close(z, expected, atol=1e-5, rtol=0)
    assert z.is_contiguous()
