"""Waterbirds in every form in which it is handed around; options; tables with mistakes in them."""

import functools
import logging
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import generators_photos as made
import pytest
import torch
from generators_photos import NAMES, ROWS, SMALL, cell, check, edit, told
from training import read

from spurcor.data.archives import folder_of
from spurcor.data.transforms import Photo
from spurcor.datasets import waterbirds as module
from spurcor.datasets.waterbirds import Waterbirds
from spurcor.errors import UserError

COMPLETE = "waterbird_complete95_forest2water2"
BIRDS = made.waterbirds(ROWS)
BIRD_FORMS = {
    "folder": (made.put, COMPLETE, BIRDS),
    "folder, one deeper": (made.put, f"waterbirds/{COMPLETE}", BIRDS),
    "authors' archive": (made.put_tar, f"{COMPLETE}.tar.gz", made.below(COMPLETE, BIRDS)),
    "WILDS folder": (made.put, "waterbirds_v1.0", {**BIRDS, "RELEASE_v1.0.txt": b""}),
    "WILDS archive": (made.put_tar, "waterbirds_v1.0.tar.gz", made.below(".", BIRDS)),
    "WILDS archive inside": (made.put_tar, "waterbirds_v1.0/waterbirds_v1.0.tar.gz", BIRDS),
    "WILDS blob": (made.put_tar, "blob", made.below(COMPLETE, BIRDS)),
    "WILDS blob inside": (made.put_tar, "waterbirds_v1.0/blob", BIRDS),
    "Kaggle": (made.put_zip, "waterbirds_v1.0/archive.zip", made.below("waterbird", BIRDS)),
    "folder, doubled": (made.put, f"{COMPLETE}/{COMPLETE}", BIRDS),
    "Kaggle, extracted one deeper": (made.put, "waterbirds_v1.0/archive/waterbird", BIRDS),
    "archive, one deeper": (
        made.put_zip,
        "waterbirds/archive.zip",
        made.below(f"archive/{COMPLETE}", {**BIRDS, "Thumbs.db": b""}),
    ),
    "archive of Windows": (
        made.put_zip,
        "waterbirds/archive.zip",
        {f"{COMPLETE}\\{k}".replace("/", "\\"): v for k, v in BIRDS.items()},
    ),
    "Kaggle, extracted": (made.put, "waterbirds_v1.0/waterbird", BIRDS),
}


def waterbirds(**options):
    return Waterbirds(transform=SMALL, store="disk", **options)


@pytest.fixture
def birds(tmp_path):
    made.put(tmp_path / COMPLETE, BIRDS)
    return tmp_path


@pytest.mark.parametrize("form", BIRD_FORMS)
def test_waterbirds_in_every_form(form, tmp_path):
    put, name, files = BIRD_FORMS[form]
    put(tmp_path / name, files)
    splits = check(waterbirds(), tmp_path)
    spec = splits["train"].spec
    assert spec.names == ["landbird/land", "landbird/water", "waterbird/land", "waterbird/water"]
    assert spec.is_aligned().tolist() == [True, False, False, True]
    assert splits["train"].group_counts.tolist() == list(made.COUNTS[0])


def test_waterbirds_are_extracted_once(tmp_path, capsys):
    archive = tmp_path / "waterbirds_v1.0" / "archive.zip"
    made.put_zip(archive, made.below("waterbird", BIRDS))
    first = check(waterbirds(), tmp_path)
    assert (folder_of(archive) / "waterbird" / "metadata.csv").is_file()
    assert "extracting" in capsys.readouterr().out
    second = check(waterbirds(), tmp_path)
    assert capsys.readouterr().out == ""
    assert first["test"].fingerprint == second["test"].fingerprint


def test_a_folder_goes_before_an_archive(birds):
    made.put_tar(birds / "blob", {"other": b""})
    check(waterbirds(), birds)
    assert not folder_of(birds / "blob").exists()


@pytest.fixture(autouse=True)
def mirrors(monkeypatch):
    """Nobody to download from: a port that nobody listens on."""
    monkeypatch.setattr(module, "MIRRORS", ("http://127.0.0.1:9/birds.tar.gz",))


def test_no_waterbirds(tmp_path):
    root, page = tmp_path / "data", "http://127.0.0.1:9/birds.tar.gz"
    told(waterbirds(), root, f"paths.data={root}", page, "refused")
    assert not root.exists()
    made.put_tar(root / "blob", {"x/other.csv": b""})
    told(waterbirds(), root, page, f"{root / 'blob'} has no metadata.csv")
    made.put_tar(root / f"{COMPLETE}.tar.gz", {"x/other.csv": b""})
    told(waterbirds(), root, page, f"{root / COMPLETE}.tar.gz has no metadata.csv")


def test_what_is_there_is_told_before_a_download(tmp_path, caplog):
    made.put(tmp_path / COMPLETE, {"001.Black/x.jpg": b""})
    with caplog.at_level(logging.WARNING):
        told(waterbirds(), tmp_path, f"{tmp_path / COMPLETE} has no metadata.csv")
    (record,) = caplog.records
    assert f"{tmp_path / COMPLETE} " in record.getMessage()
    assert "trying to download" in record.getMessage()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path):
    """A web server on loopback for the files below `web`."""
    (tmp_path / "web").mkdir()
    handler = functools.partial(Quiet, directory=tmp_path / "web")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()
        thread.join()


def test_waterbirds_are_downloaded_from_the_first_mirror_that_has_them(
    tmp_path, server, monkeypatch
):
    made.put_tar(tmp_path / "web" / "birds.tar.gz", made.below(COMPLETE, BIRDS))
    addresses = ("http://127.0.0.1:9/birds.tar.gz", f"{server}/gone", f"{server}/birds.tar.gz")
    monkeypatch.setattr(module, "MIRRORS", addresses)
    root = tmp_path / "data"
    check(waterbirds(), root)
    assert (root / f"{COMPLETE}.tar.gz").is_file()
    monkeypatch.setattr(module, "MIRRORS", ("http://127.0.0.1:9/gone",))
    check(waterbirds(), root)


def test_a_download_that_is_something_else_is_told(tmp_path, server, monkeypatch):
    (tmp_path / "web" / "birds.tar.gz").write_text("<html>busy</html>")
    monkeypatch.setattr(module, "MIRRORS", (f"{server}/birds.tar.gz",))
    told(waterbirds(), tmp_path / "data", f"{COMPLETE}.tar.gz is a web page", "download it again")


def test_every_mirror_that_fails_is_named(tmp_path, server, monkeypatch):
    monkeypatch.setattr(module, "MIRRORS", (f"{server}/gone", "http://127.0.0.1:9/x"))
    told(waterbirds(), tmp_path / "data", "/gone: 404 File not found", "127.0.0.1:9/x: ")


def test_counts_that_are_not_the_published_ones_are_told(birds, caplog):
    with caplog.at_level(logging.WARNING):
        waterbirds().splits(birds)
        waterbirds().splits(birds)  # the next run
    assert [record.getMessage() for record in caplog.records] == [
        f"{birds / COMPLETE}: the table has 31 of the 11,788 published images"
    ]


def test_the_published_counts_pass(birds, caplog):
    """A whole copy; only some of it is decoded."""
    table = birds / COMPLETE / "metadata.csv"
    official = {
        0: (3498, 184, 56, 1057),
        1: (467, 466, 133, 133),
        2: (2255, 2255, 642, 642),
    }
    rows = made.make_rows(official)
    assert len(rows) == 11788
    lines = [
        (row.index, f"{row.index}.jpg", row.y, row.split, row.a, f"/o/ocean/{row.index:08d}.jpg")
        for row in rows
    ]
    table.write_bytes(made.csv("img_id,img_filename,y,split,place,place_filename", lines))
    with caplog.at_level(logging.WARNING):
        loaded = waterbirds().load(birds)
    assert not caplog.records
    assert {name: len(members) for name, members in loaded.members.items()} == {
        "train": 4795,
        "val": 1199,
        "test": 5794,
    }


# --- options --------------------------------------------------------------------------------------


def prints(splits):
    return {name: split.fingerprint for name, split in splits.items()}


def test_strength_1_leaves_the_minority_groups_out_of_train(birds):
    splits = waterbirds(strength=1.0, target_fraction=0.5).splits(birds)
    kept = [item for item in made.expected(ROWS, 0) if item[1] == item[2]]
    assert made.seen(splits["train"]) == kept
    assert splits["train"].group_counts.tolist() == [5, 0, 0, 4]
    assert splits["target"].group_counts.tolist() == [2, 1, 1, 1]
    both = made.seen(splits["val"]) + made.seen(splits["target"])
    assert sorted(both) == sorted(made.expected(ROWS, 1))
    assert made.seen(splits["test"]) == made.expected(ROWS, 2)
    dropped = ("landbird/water", "waterbird/land")
    other = waterbirds(drop_groups=dropped, target_fraction=0.5).splits(birds)
    assert prints(other) == prints(splits)
    few = {"num_train": 5, "num_val": 6}
    smaller = waterbirds(strength=1.0, **few).splits(birds)
    assert prints(smaller) == prints(waterbirds(drop_groups=dropped, **few).splits(birds))
    assert smaller["train"].group_counts.tolist() == [3, 0, 0, 2]


@pytest.mark.parametrize("strength", [0.9, 0.96, 0, 2])
def test_another_strength_is_refused(strength):
    sentence = f"strength={float(strength)} must be 0.95.* or 1,"
    with pytest.raises(UserError, match=sentence):
        read("dataset=waterbirds", f"dataset.strength={strength}").dataset.build()


def test_the_published_strength_renames_no_run():
    plain, typed, other = (
        read("dataset=waterbirds", *more).identity
        for more in ((), ("dataset.strength=0.95",), ("dataset.strength=1",))
    )
    assert plain == typed != other


def test_scale_and_its_baseline_have_the_same_splits_as_typed(birds):
    scale, erm_target = (
        read("dataset=waterbirds", f"method={method}").dataset.build().splits(birds)
        for method in ("scale", "erm_target")
    )
    assert prints(scale) == prints(erm_target)
    assert scale["train"].group_counts.tolist() == [5, 0, 0, 4]
    assert len(scale["target"]) == 5


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"num_train": 6}, (6, 9, 10)),
        ({"subset_size": 5}, (5, 5, 5)),
        ({"subset_size": 5, "num_test": 9}, (5, 5, 9)),
    ],
)
def test_sizes(birds, options, sizes):
    splits = waterbirds(**options).splits(birds)
    assert tuple(len(split) for split in splits.values()) == sizes
    for code, name in NAMES.items():
        assert set(made.seen(splits[name])) <= set(made.expected(ROWS, code))
        assert splits[name].group_counts.min() >= 1
    other = waterbirds(**options, split_seed=1).splits(birds)
    assert any(made.seen(other[name]) != made.seen(splits[name]) for name in NAMES.values())


def test_the_published_transform_loads_as_it_is_configured(birds):
    photo = Photo(resize=256, crop=224, augment=True, scale=(0.7, 1.0), ratio=(0.75, 4 / 3))
    train = Waterbirds(transform=photo, store="disk").splits(birds)["train"]
    assert len(train.train_images.sizes(train.train_rows).unique(dim=0)) == len(made.SHAPES)
    assert train.fetch(torch.arange(2)).x.shape == (2, 3, 224, 224)
    assert made.seen(train) == made.expected(ROWS, 0)


def test_a_store_elsewhere(birds, tmp_path_factory, monkeypatch):
    """Nothing is written beside the photographs where SPURCOR_STORE says so."""
    elsewhere = tmp_path_factory.mktemp("stores")
    monkeypatch.setenv("SPURCOR_STORE", str(elsewhere))
    before = sorted(birds.rglob("*"))
    check(waterbirds(), birds)
    assert sorted(birds.rglob("*")) == before
    assert any(elsewhere.iterdir())


# --- bad tables, of whatever data set -------------------------------------------------------------


def test_a_missing_column_is_told(birds):
    table = birds / COMPLETE / "metadata.csv"

    def change(lines):
        lines[0] = lines[0].replace("place,", "background,").replace(",y,", ",Y,")

    edit(table, change)
    told(waterbirds(), birds, str(table), "lacks the columns y, place", "it has img_id, img_f")


@pytest.mark.parametrize(
    ("column", "name", "value", "known"),
    [
        (2, "y", "2", "0 or 1"),
        (2, "y", "bird", "0 or 1"),
        (2, "y", "-1", "0 or 1"),
        (2, "y", "0.5", "0 or 1"),
        (2, "y", "NaN", "0 or 1"),
        (3, "split", "3", "0 or 1 or 2"),
        (3, "split", "train", "0 or 1 or 2"),
        (4, "place", "7", "0 or 1"),
    ],
)
def test_wrong_values_are_told(birds, column, name, value, known):
    table = birds / COMPLETE / "metadata.csv"
    wrong = [2, 3, 5, 7, 11, 13, 17]

    def change(lines):
        for row in wrong:
            cell(lines, row, column, value)

    edit(table, change)
    some = f"'{value}' in row 2, '{value}' in row 3"
    told(waterbirds(), birds, f"{table}: {name} is not {known} in 7 of 31 rows", some, "and 2 more")


def test_an_empty_value_is_told(birds):
    table = birds / COMPLETE / "metadata.csv"
    edit(table, lambda lines: cell(lines, 4, 2, ""))
    told(waterbirds(), birds, "y is not 0 or 1 in 1 of 31 rows (row 4)")
    edit(table, lambda lines: cell(lines, 4, 1, ""))
    told(waterbirds(), birds, "img_filename is empty in 1 of 31 rows (row 4)")


def test_whole_numbers_may_be_written_with_a_point(birds):
    table = birds / COMPLETE / "metadata.csv"

    def change(lines):
        for row in range(1, len(lines)):
            cell(lines, row, 2, lines[row].split(",")[2] + ".0")

    edit(table, change)
    check(waterbirds(), birds)


def test_a_file_named_twice_is_told(birds):
    table = birds / COMPLETE / "metadata.csv"
    edit(table, lambda lines: lines.append(lines[1]))
    name = table.read_text().splitlines()[1].split(",")[1]
    told(waterbirds(), birds, "more than once in 2 of 32 rows", f"'{name}' in row 1", "in row 32")


def test_an_empty_split_is_told(birds):
    table = birds / COMPLETE / "metadata.csv"
    edit(table, lambda lines: lines.__setitem__(slice(1, None), [lines[1]]))
    told(waterbirds(), birds, f"{table} has no rows for", "(split ", "test")
    edit(table, lambda lines: lines.__delitem__(1))
    told(waterbirds(), birds, "train (split 0), val (split 1), test (split 2)")


def test_files_that_are_not_there_are_told(birds):
    gone = sorted(path for path in (birds / COMPLETE).rglob("*.jpg"))[3:5]
    for path in gone:
        path.unlink()
    told(waterbirds(), birds, "lacks 2 of ", gone[0].name, gone[1].name)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00a", b"a,b\n1,2\n1,2,3,4\n"])
def test_what_is_no_table_is_told(birds, content):
    table = birds / COMPLETE / "metadata.csv"
    table.write_bytes(content)
    told(waterbirds(), birds, str(table))


def test_a_row_with_too_many_fields_is_told(birds):
    table = birds / COMPLETE / "metadata.csv"
    edit(table, lambda lines: lines.__setitem__(3, lines[3] + ",1,2,3"))
    told(waterbirds(), birds, f"{table} cannot be read as a table", "line 4")


def test_a_byte_order_mark_is_no_part_of_a_name(birds):
    table = birds / COMPLETE / "metadata.csv"
    lines = [line.partition(b",")[2] for line in table.read_bytes().splitlines()]
    table.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))  # before img_filename
    check(waterbirds(), birds)


@pytest.mark.parametrize("separator", [";", "\t"])
@pytest.mark.parametrize("number", ["{}", "{}.0", "{},0"])
def test_other_separators_and_spellings_of_numbers(birds, separator, number):
    """As spreadsheets write them, in some countries with a comma for the point."""
    table = birds / COMPLETE / "metadata.csv"

    def change(lines):
        for row in range(1, len(lines)):
            parts = lines[row].split(",")
            parts[2:5] = [number.format(value) for value in parts[2:5]]
            lines[row] = separator.join(parts)
        lines[0] = lines[0].replace(",", separator)

    edit(table, change)
    check(waterbirds(), birds)
