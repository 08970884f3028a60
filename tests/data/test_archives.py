"""Archives, hostile and broken ones above all, leave nothing behind that they should not."""

import gzip
import io
import multiprocessing
import os
import stat
import tarfile
import tracemalloc
import zipfile

import generators
import numpy as np
import pytest

from spurcor.data import archives
from spurcor.datasets.sources import read_mnist
from spurcor.errors import UserError

FILES = {"birds/metadata.csv": b"a,b\n1,2\n", "birds/one/x.jpg": bytes(range(256)) * 5}
TARS = {"a.tar": "w", "a.tar.gz": "w:gz", "a.tar.bz2": "w:bz2", "a.tar.xz": "w:xz", "blob": "w:gz"}


def write_tar(path, files=FILES, mode="w:gz", extra=()):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in extra:
            archive.addfile(info)
    return path


def write_zip(path, files=FILES, extra=()):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for info, content in extra:
            archive.writestr(info, content)
    return path


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != archives.MARK
    }


def refused(path, match, **limits):
    """The archive is refused, and nothing but it is there afterwards, above its folder either."""
    top = path.parent.parent
    lock = path.with_name(f".{path.name}.extracted.lock")
    before = set(top.rglob("*")) | {lock}
    with pytest.raises(UserError, match=match) as caught:
        archives.extracted(path, **limits)
    assert set(top.rglob("*")) == before
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "above" / "data"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", TARS)
def test_a_tar_is_extracted_whatever_its_name(name, place):
    folder = archives.extracted(write_tar(place / name, mode=TARS[name]))
    assert folder == place / f"{name}.extracted"
    assert contents(folder) == FILES


@pytest.mark.parametrize("name", ["archive.zip", "blob"])
def test_a_zip_is_extracted_whatever_its_name(name, place):
    folder = archives.extracted(write_zip(place / name, {**FILES, "birds/empty/": b""}))
    assert contents(folder) == FILES
    assert (folder / "birds" / "empty").is_dir()


def test_a_zip_of_windows_has_folders(place):
    files = {name.replace("/", "\\"): content for name, content in FILES.items()}
    folder = archives.extracted(write_zip(place / "a.zip", {**files, "birds\\empty\\": b""}))
    assert contents(folder) == FILES
    assert (folder / "birds" / "empty").is_dir()


def test_others_may_read_what_was_extracted(place):
    umask = os.umask(0o022)
    try:
        folder = archives.extracted(write_zip(place / "a.zip"))
    finally:
        os.umask(umask)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_an_archive_is_extracted_once_and_may_then_go(place):
    path = write_tar(place / "a.tar.gz")
    folder = archives.extracted(path)
    (folder / "birds" / "metadata.csv").write_text("kept")
    assert archives.extracted(path) == folder
    assert (folder / "birds" / "metadata.csv").read_text() == "kept"
    path.unlink()
    assert archives.extracted(path) == folder
    assert archives.extracted(place / "other.zip") is None


def test_another_archive_of_the_same_name_is_told(place):
    path = write_zip(place / "a.zip")
    folder = archives.extracted(path)
    write_zip(path, {"other": b"more than before, and less alike" * 99})
    with pytest.raises(UserError, match=r"a\.zip\.extracted .*\ba\.zip\b"):
        archives.extracted(path)
    (folder / archives.MARK).unlink()
    with pytest.raises(UserError, match="is missing; remove "):
        archives.extracted(path)


def extract(path, barrier, queue):
    barrier.wait()
    queue.put(str(archives.extracted(path)))


def test_several_processes_extract_once(place, capfd):
    files = {f"f{i}": os.urandom(1000) for i in range(300)}
    path = write_tar(place / "a.tar.gz", files)
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(3), context.Queue()
    processes = [context.Process(target=extract, args=(path, barrier, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    assert {queue.get(timeout=60) for _ in processes} == {str(place / "a.tar.gz.extracted")}
    for process in processes:
        process.join(60)
    assert contents(place / "a.tar.gz.extracted") == files
    assert capfd.readouterr().out.count("extracting") == 1
    assert [p.name for p in place.iterdir() if p.is_dir()] == ["a.tar.gz.extracted"]


def test_what_a_killed_extraction_left_is_removed(place):
    leftover = place / ".a.zip.extracted.k1ll3d"
    leftover.mkdir()
    (leftover / "half").write_text("x")
    archives.extracted(write_zip(place / "a.zip"))
    assert not leftover.exists()


# --- hostile --------------------------------------------------------------------------------------

OUTSIDE_OF_ZIPS = ["..\\evil", "birds\\..\\..\\evil", "\\evil"]
OUTSIDE = ["../evil", "/tmp/spurcor-evil", "birds/../../evil", ".."]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out_are_refused(name, place):
    refused(write_tar(place / "a.tar.gz", {**FILES, name: b"x"}), "points outside")
    refused(write_zip(place / "a.zip", {**FILES, name: b"x"}), "points outside")


@pytest.mark.parametrize("name", OUTSIDE_OF_ZIPS)
def test_names_of_windows_that_lead_out_are_refused(name, place):
    refused(write_zip(place / "a.zip", {**FILES, name: b"x"}), "points outside")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["../../evil", "/etc/passwd", "birds/../../x"])
def test_links_that_lead_out_are_refused(kind, target, place):
    path = write_tar(place / "a.tar", mode="w", extra=[special("birds/link", kind, target)])
    refused(path, f"a link to {target}, points outside")


def test_links_that_climb_by_way_of_others_are_refused(place):
    extra = [
        special("here", tarfile.SYMTYPE, "."),
        special("up", tarfile.SYMTYPE, "here/.."),
    ]
    refused(write_tar(place / "a.tar", mode="w", extra=extra), "up, a link to here/..")


def test_links_inside_are_kept(place):
    extra = [
        special("birds/soft", tarfile.SYMTYPE, "metadata.csv"),
        special("birds/hard", tarfile.LNKTYPE, "birds/metadata.csv"),
    ]
    folder = archives.extracted(write_tar(place / "a.tar.gz", extra=extra))
    for name in ("soft", "hard"):
        assert (folder / "birds" / name).read_bytes() == FILES["birds/metadata.csv"]


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_device_files_are_refused(kind, place):
    path = write_tar(place / "a.tar.gz", extra=[special("dev", kind)])
    refused(path, "dev is neither a file nor a folder")


def test_links_in_a_zip_are_refused(place):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = write_zip(place / "a.zip", extra=[(link, "/etc/passwd")])
    refused(path, "link is neither a file nor a folder")


@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_bombs_are_refused(write, place):
    path = write(place / "a", {f"zeros{i}": bytes(1_000_000) for i in range(3)})
    assert path.stat().st_size < 20_000
    refused(path, r"more than 0\.0 GB", max_bytes=2_999_999)
    refused(path, "more than 2 members", max_members=2)
    assert len(contents(archives.extracted(path, max_bytes=3_000_000, max_members=3))) == 3


def test_bytes_are_counted_while_they_are_written(place, monkeypatch):
    """Headers that promise less than there is."""
    path = write_tar(place / "a.tar", {"small": bytes(10)}, mode="w")

    def contents(self):
        yield archives.Member("small", "file", 10), io.BytesIO(bytes(11))

    monkeypatch.setattr(archives.TarReader, "contents", contents)
    refused(path, "more than its headers declare")

    def many(self):
        yield archives.Member("one", "file", 10), io.BytesIO(bytes(10))
        yield archives.Member("two", "file", 10), io.BytesIO(bytes(10))

    monkeypatch.setattr(archives.TarReader, "contents", many)
    refused(path, "more than its headers declare", max_bytes=19)


def test_a_zip_whose_header_lies_is_refused(place):
    path = write_zip(place / "a.zip", {"zeros": bytes(5000)})
    whole = path.read_bytes()
    assert whole.count((5000).to_bytes(4, "little")) == 2
    path.write_bytes(whole.replace((5000).to_bytes(4, "little"), (50).to_bytes(4, "little")))
    refused(path, "is damaged")


def test_headers_that_would_fill_the_memory_are_refused(place):
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, archives.MAX_READ + 1
    path = place / "a.tar"
    path.write_bytes(write_tar(place / "b.tar", mode="w").read_bytes()[:1024] + info.tobuf())
    (place / "b.tar").unlink()
    refused(path, "impossible size")


def test_negative_sizes_do_not_make_room(place):
    info = tarfile.TarInfo("less")
    header = bytearray(info.tobuf())
    header[124:136] = b"\xff" * 8 + (2**32 - 512).to_bytes(4, "big")  # base 256
    header[148:156] = b" " * 8
    header[148:155] = b"%06o\0" % sum(header)
    path = write_tar(place / "a.tar", mode="w")
    path.write_bytes(path.read_bytes()[:1024] + bytes(header) + bytes(2048))
    refused(path, "less has -512 bytes")  # tarfile itself would read it for ever


# --- broken ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_tar, write_zip])
@pytest.mark.parametrize("keep", [0.3, 0.8, 0.99])
def test_an_archive_that_was_cut_off_is_told(write, keep, place):
    path = write(place / "a", {"x": os.urandom(50_000), "y": os.urandom(50_000)})
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    refused(path, "download it again")


@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_a_flipped_bit_is_told(write, place):
    path = write(place / "a", {"x": os.urandom(50_000)})
    whole = bytearray(path.read_bytes())
    whole[25_000] ^= 1
    path.write_bytes(whole)
    refused(path, "download it again")


def test_what_is_no_archive_is_told(place):
    (place / "blob").write_text("<!DOCTYPE html><html>Quota exceeded</html>")
    refused(place / "blob", "is a web page")
    (place / "noise").write_bytes(os.urandom(5000))
    refused(place / "noise", "neither a zip nor a tar archive")
    (place / "nothing").write_bytes(b"")
    refused(place / "nothing", "neither a zip nor a tar archive")
    write_zip(place / "empty.zip", {})
    refused(place / "empty.zip", "it is empty")


def test_an_encrypted_zip_is_told(place):
    path = write_zip(place / "a.zip", {"x": b"secret"})
    whole = bytearray(path.read_bytes())
    whole[6] |= 1  # the flag, in both headers
    whole[whole.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(whole)
    refused(path, "encrypted")


def test_a_full_disk_is_told(place, monkeypatch):
    path = write_zip(place / "a.zip")

    class Usage:
        free = 1000

    monkeypatch.setattr(archives.shutil, "disk_usage", lambda folder: Usage)
    refused(path, r"0\.00 GB free")


def test_a_disk_that_fills_up_is_told(place, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archives, "_copy", full)
    refused(write_zip(place / "a.zip"), "No space left on device")


def test_a_small_file_of_mnist_that_holds_gigabytes_of_zeros_is_not_read_to_its_end(place):
    generators.write_mnist(place, np.random.default_rng(0), compressed=True)
    path = place / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes() + gzip.compress(bytes(10**7)) * 20)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="is damaged"):
            read_mnist(place, train=True)
        assert tracemalloc.get_traced_memory()[1] < 10**8
    finally:
        tracemalloc.stop()


def test_a_member_whose_name_has_line_breaks_is_told_on_one_line(place):
    path = place / "archive.tar"
    write_tar(path, extra=[special("a\nb", tarfile.FIFOTYPE)])
    refused(path, r"a\\nb is neither a file nor a folder")
