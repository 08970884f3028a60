"""Photographs of one's own: names, splits, alignment, and what can be wrong with them."""

import generators_photos as made
import pandas as pd
import pytest
from generators_photos import NAMES, ROWS, SMALL, cell, check, edit, told
from training import read

from spurcor.data import listing
from spurcor.data.tables import CsvTable
from spurcor.datasets.folder import Folder
from spurcor.errors import UserError

WORDS = {"y": ("wren", "gull"), "a": ("sea", "land")}


def own(rows, split=lambda row: NAMES[row.split], label=lambda key, value: WORDS[key][value]):
    lines = [
        (f"pictures/{row.index}.jpg", label("a", row.a), split(row), label("y", row.y))
        for row in rows
    ]
    images = {f"pictures/{row.index}.jpg": made.jpeg(row.index, (40, 30)) for row in rows}
    return {"labels.csv": made.csv("filename,a,split,y", lines), **images}


def folder(csv="mine/labels.csv", **options):
    return Folder(transform=SMALL, csv=csv, store="disk", **options)


def flipped(rows):
    """Both names of WORDS sort the other way round: wren is 1, sea is 1."""
    return [made.Row(row.index, 1 - row.y, 1 - row.a, row.split) for row in rows]


@pytest.mark.parametrize("numbers", [False, True])
def test_a_folder_of_ones_own(numbers, tmp_path):
    split = (lambda row: row.split) if numbers else (lambda row: NAMES[row.split])
    made.put(tmp_path / "mine", own(ROWS, split))
    aligned = ("wren/land", "gull/sea")
    splits = check(folder(aligned=aligned), tmp_path, flipped(ROWS))
    spec = splits["train"].spec
    assert spec.names == ["gull/land", "gull/sea", "wren/land", "wren/sea"]
    assert spec.is_aligned().tolist() == [False, True, True, False]
    assert not folder().splits(tmp_path)["train"].spec.is_aligned().any()


def test_names_are_sorted_and_not_by_appearance(tmp_path):
    made.put(tmp_path / "mine", own(ROWS))
    before = folder().splits(tmp_path)["train"].spec
    table = tmp_path / "mine" / "labels.csv"
    edit(table, lambda lines: lines.__setitem__(slice(1, None), lines[:0:-1]))
    assert folder().splits(tmp_path)["train"].spec == before


def test_numbers_are_sorted_by_size(tmp_path):
    values = {"y": (10, 9), "a": (100, -2)}
    made.put(tmp_path / "mine", own(ROWS, label=lambda key, value: values[key][value]))
    splits = check(folder(), tmp_path, flipped(ROWS))
    assert splits["train"].spec.classes == ("9", "10")
    assert splits["train"].spec.attributes == ("-2", "100")


def test_a_class_that_only_test_has_keeps_its_number(tmp_path):
    odd = next(row for row in ROWS if row.split == 2)
    files = own(ROWS)
    table = files["labels.csv"].decode().splitlines()
    table[1 + odd.index] = f"pictures/{odd.index}.jpg,None,test,albatross"
    made.put(tmp_path / "mine", {**files, "labels.csv": "\n".join(table).encode()})
    splits = folder().splits(tmp_path)
    spec = splits["train"].spec
    assert spec.classes == ("albatross", "gull", "wren")
    assert spec.attributes == ("None", "land", "sea")
    assert set(splits["train"].y.tolist()) == {1, 2}
    assert (odd.index, 0, 0) in made.seen(splits["test"])


def test_named_test_sets_and_a_target(tmp_path):
    def split(row):
        names = {0: "train", 1: "val", 2: "test", 3: "target", 4: "snow", 5: "far.away"}
        return names[row.split]

    rows = made.make_rows({code: (1, 2, 1, 1) for code in range(6)})
    made.put(tmp_path / "mine", own(rows, split))
    splits = folder(num_test=4).splits(tmp_path)
    assert list(splits) == ["train", "target", "val", "test", "far.away", "snow"]
    assert made.seen(splits["target"]) == made.expected(flipped(rows), 3)
    assert set(made.seen(splits["snow"])) < set(made.expected(flipped(rows), 4))
    assert len(splits["snow"]) == len(splits["test"]) == 4
    told(folder(target_fraction=0.5), tmp_path, "dataset.target_fraction=0.5")


def test_where_the_table_and_the_images_are(tmp_path):
    files = own(ROWS)
    made.put(tmp_path / "tables", {"labels.csv": files["labels.csv"]})
    made.put(tmp_path / "photos", files)
    check(folder("tables/labels.csv", images="photos"), tmp_path, flipped(ROWS))
    absolute = folder(str(tmp_path / "tables/labels.csv"), images=str(tmp_path / "photos"))
    check(absolute, tmp_path / "elsewhere", flipped(ROWS))
    told(folder("tables/labels.csv", images="nowhere"), tmp_path, "dataset.images=nowhere")
    told(folder("nothing.csv"), tmp_path, "dataset.csv=nothing.csv", str(tmp_path / "nothing.csv"))


@pytest.mark.parametrize("value", ["Train", "validation", "valid", "3", "a/b", "te", "-"])
def test_unknown_splits_are_told(value, tmp_path):
    made.put(tmp_path / "mine", own(ROWS))
    table = tmp_path / "mine" / "labels.csv"
    for row in (3, 6):
        edit(table, lambda lines, row=row: cell(lines, row, 2, value))
    some = f"'{value}' in row 3, '{value}' in row 6"
    told(folder(), tmp_path, f"{table}: split ", "2 of 31 rows", some)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_folder_needs_its_three_splits(split, tmp_path):
    made.put(tmp_path / "mine", own([row for row in ROWS if NAMES[row.split] != split]))
    told(folder(), tmp_path, f"{tmp_path / 'mine/labels.csv'} has no rows with split {split}")


def test_alignment_that_fits_no_table_is_told(tmp_path):
    made.put(tmp_path / "mine", own(ROWS))
    told(folder(aligned=("wren/air",)), tmp_path, "dataset.aligned=wren/air ", "gull/sea")
    told(folder(aligned=("wren/sea",)), tmp_path, "one group of each class", "gull, wren")
    twice = ("wren/sea", "wren/land", "gull/sea")
    told(folder(aligned=twice), tmp_path, "one group of each class")


@pytest.mark.parametrize("column", [0, 1, 2, 3])
def test_empty_cells_are_told(column, tmp_path):
    made.put(tmp_path / "mine", own(ROWS))
    edit(tmp_path / "mine" / "labels.csv", lambda lines: cell(lines, 9, column, ""))
    name = ("filename", "a", "split", "y")[column]
    told(folder(), tmp_path, f"{name} is empty in 1 of 31 rows (row 9)")


@pytest.mark.parametrize("absolute", [False, True])
def test_another_table_makes_another_run(absolute, tmp_path):
    """Rows that were edited are other data under the same name."""
    made.put(tmp_path / "mine", own(ROWS))
    table = tmp_path / "mine" / "labels.csv"
    name = table if absolute else "mine/labels.csv"
    command = ("dataset=folder", f"dataset.csv={name}", f"paths.data={tmp_path}")
    before = read(*command).identity
    assert read(*command).identity == before
    edit(table, lambda lines: cell(lines, 5, 1, "air"))
    assert read(*command).identity != before


@pytest.mark.parametrize(
    ("y", "a", "sentence"),
    [
        (("a", "a/b"), ("b/c", "c"), "two groups are called 'a/b/c'"),
        (("1", "1.0"), ("x", "z"), ": y has both 1 and 1.0"),
        (("x", "z"), ("00", "0"), ": a has both 00 and 0"),
    ],
)
def test_names_of_groups_that_coincide_are_refused(tmp_path, y, a, sentence):
    values = {"y": y, "a": a}
    made.put(tmp_path / "mine", own(ROWS, label=lambda key, value: values[key][value]))
    told(folder(), tmp_path, str(tmp_path / "mine/labels.csv"), sentence)


# --- tables as others write them ------------------------------------------------------------------

ACCENTS = {"y": ("Zaunkönig", "Möwe"), "a": ("See", "Küste")}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separators_and_encodings(separator, encoding, end, tmp_path):
    files = own(ROWS, label=lambda key, value: ACCENTS[key][value])
    table = files["labels.csv"].decode().replace(",", separator).replace("\n", end)
    made.put(tmp_path / "mine", {**files, "labels.csv": table.encode(encoding)})
    spec = folder().splits(tmp_path)["train"].spec
    assert (spec.classes, spec.attributes) == (("Möwe", "Zaunkönig"), ("Küste", "See"))


def test_blanks_after_separators_and_numbers_with_a_point(tmp_path):
    files = own(ROWS, split=lambda row: f"{row.split}.0")
    table = files["labels.csv"].replace(b",", b", ")
    made.put(tmp_path / "mine", {**files, "labels.csv": table})
    check(folder(), tmp_path, flipped(ROWS))


def renamed(root, change):
    """The table with other names for its files."""
    edit(
        root / "mine" / "labels.csv",
        lambda lines: lines.__setitem__(
            slice(1, None),
            [
                ",".join([change(name), rest])
                for name, _, rest in (x.partition(",") for x in lines[1:])
            ],
        ),
    )


def test_paths_of_windows_and_absolute_ones(tmp_path):
    made.put(tmp_path / "mine", own(ROWS))
    before = folder().splits(tmp_path)
    renamed(tmp_path, lambda name: name.replace("/", "\\"))
    splits = check(folder(), tmp_path, flipped(ROWS))
    assert splits["train"].fingerprint == before["train"].fingerprint
    renamed(tmp_path, lambda name: str(tmp_path / "mine" / name.replace("\\", "/")))
    check(folder(), tmp_path, flipped(ROWS))
    check(folder(images=str(tmp_path)), tmp_path, flipped(ROWS))


def test_a_name_with_a_backslash_stays_where_it_is_a_file(tmp_path):
    files = own(ROWS)
    odd = {name.replace("/", "\\"): content for name, content in files.items()}
    made.put(tmp_path / "mine", odd)
    renamed(tmp_path, lambda name: name.replace("/", "\\"))
    check(folder(), tmp_path, flipped(ROWS))


@pytest.mark.parametrize("other", ["./pictures/0.jpg", "pictures//0.jpg", "pictures\\0.jpg", "abs"])
def test_two_names_of_one_file_are_told(other, tmp_path):
    made.put(tmp_path / "mine", own(ROWS))
    other = str(tmp_path / "mine/pictures/0.jpg") if other == "abs" else other
    edit(tmp_path / "mine" / "labels.csv", lambda lines: lines.append(f"{other},sea,test,gull"))
    told(folder(), tmp_path, "listed twice", "pictures/0.jpg", other)


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("pictures/0.JPG", "pictures/0.jpg"),
        ("Pictures/0.jpg", "pictures/0.jpg"),
        ("pictures/0.jpeg", "pictures/0.jpg"),
        ("pictures/0", "pictures/0.jpg"),
        ("pictures/0.jpg ", "pictures/0.jpg"),
        ("mine/pictures/0.jpg", "pictures/0.jpg"),
        ("/home/of/another/pictures/0.jpg", "pictures/0.jpg"),
        ("C:\\birds\\pictures\\0.jpg", "pictures/0.jpg"),
        ("pictures/Mo\u0308we.jpg", "pictures/M\u00f6we.jpg"),
    ],
)
def test_the_file_that_is_meant_is_named(written, there, tmp_path):
    made.put(tmp_path / "mine", {**own(ROWS), "pictures/M\u00f6we.jpg": b""})
    renamed(tmp_path, lambda name: written if name == "pictures/0.jpg" else name)
    told(folder(), tmp_path, "lacks 1 of ", f": '{written}' (there is '{there}')")


def test_what_is_nowhere_is_only_named(tmp_path):
    made.put(tmp_path / "mine", own(ROWS))
    renamed(tmp_path, lambda name: "nowhere/x.jpg" if name == "pictures/0.jpg" else name)
    told(folder(), tmp_path, "lacks 1 of ", ": nowhere/x.jpg;")


def test_a_table_of_more_columns_than_any_has_is_told_at_once(tmp_path):
    header = ",".join(["filename", "split", "y", "a", *["x"] * 200_000])
    made.put(tmp_path / "mine", {"labels.csv": f"{header}\n".encode()})
    with pytest.raises(UserError, match="200,004 columns"):
        folder().splits(tmp_path)


@pytest.mark.parametrize("name", ["x" * 300 + ".jpg", "x" * 300 + "\\y.jpg"])
def test_a_name_too_long_for_a_file_is_a_missing_file(tmp_path, name):
    assert listing.nearest(tmp_path, name) is None
    assert listing.located(tmp_path, [name]) == [name]


def test_odd_cells_are_told_on_one_line_and_not_in_full(tmp_path):
    table = CsvTable(tmp_path / "t.csv", pd.DataFrame({"y": ["a\x1b[2Jb\nc", "z" * 1000]}))
    with pytest.raises(UserError) as caught:
        table.codes("y", [0, 1])
    assert str(caught.value).isprintable()
    assert "z" * 100 not in str(caught.value)


def test_a_header_of_a_megabyte_is_told_and_not_repeated(tmp_path):
    made.put(tmp_path / "mine", {"labels.csv": b"x" * 1_000_000})
    with pytest.raises(UserError, match="lacks the columns filename, y") as caught:
        folder().splits(tmp_path)
    assert len(str(caught.value)) < 1000
