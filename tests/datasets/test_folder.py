"""Photographs of one's own: names, splits, alignment, and what can be wrong with them."""

import re

import generators_photos as made
import pandas as pd
import pytest
from generators_photos import NAMES, ROWS, SMALL, cell, check, edit, told
from training import read

from spurcor.data import listing
from spurcor.data.tables import CsvTable
from spurcor.datasets.folder import Columns, Folder
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


# --- tables with other columns, or fewer ----------------------------------------------------------

MANY = made.make_rows({0: (20, 20, 20, 20)})


def table_of(rows, *columns):
    """Some of the columns of a table: filename, split, y, a, and person (two images each)."""
    values = {
        "filename": lambda row: f"pictures/{row.index}.jpg",
        "split": lambda row: NAMES[row.split],
        "y": lambda row: WORDS["y"][row.y],
        "a": lambda row: WORDS["a"][row.a],
        "person": lambda row: f"p{row.index // 2}",
    }
    lines = [[values[column](row) for column in columns] for row in rows]
    return made.csv(",".join(columns), lines)


def put_many(root, *columns, rows=MANY):
    files = own(rows)
    files["labels.csv"] = table_of(rows, *columns)
    made.put(root / "mine", files)


def test_columns_have_the_names_that_are_typed(tmp_path):
    files = own(ROWS)
    header, rest = files["labels.csv"].split(b"\n", 1)
    assert header == b"filename,a,split,y"
    made.put(tmp_path / "mine", {**files, "labels.csv": b"path,site,fold,label\n" + rest})
    columns = Columns(filename="path", split="fold", y="label", a="site")
    splits = check(folder(columns=columns), tmp_path, flipped(ROWS))
    assert splits["train"].spec.attributes == ("land", "sea")
    told(folder(), tmp_path, "lacks the columns filename, y", "has path", "dataset.columns.y=")
    told(folder(columns=Columns("path", "fold", "label", "sight")), tmp_path, "columns sight")
    typed = "dataset.columns={y: label, a: site, filename: path, split: fold}"
    read_columns = read("dataset=folder", typed).dataset.arguments["columns"]
    assert read_columns == columns


def test_without_an_attribute_the_groups_are_the_classes(tmp_path, caplog):
    put_many(tmp_path, "filename", "split", "y", rows=ROWS)
    splits = folder().splits(tmp_path)
    spec = splits["train"].spec
    assert spec.names == ["gull/any", "wren/any"]
    assert not spec.known
    assert "dataset.columns.a=" in caplog.text
    with pytest.raises(UserError, match="method=x needs groups"):
        spec.require_groups("method=x")
    spec.require_classes("method=x")
    caplog.clear()
    assert folder(columns=Columns(a=None)).splits(tmp_path)["train"].spec == spec
    assert not caplog.text
    told(folder(aligned=("gull/any", "wren/any")), tmp_path, "dataset.aligned=", "needs groups")


def test_defaults_without_groups_are_those_that_need_none(tmp_path):
    put_many(tmp_path, "filename", "split", "y", rows=ROWS)
    typed = ("dataset=folder", "dataset.csv=mine/labels.csv", f"paths.data={tmp_path}")
    cfg = read(*typed)
    assert (cfg.dfr, cfg.choices["dfr"], cfg.train.selection) == (None, "none", "val/worst_class")
    cfg = read(*typed, "dfr=val", "train.selection=val/average")
    assert (cfg.choices["dfr"], cfg.train.selection) == ("val", "val/average")
    with pytest.raises(UserError, match=r"dfr\.num_retrains=3: .* no repair by default"):
        read(*typed, "dfr.num_retrains=3")
    put_many(tmp_path, "filename", "split", "y", "a", rows=ROWS)
    assert read(*typed, "dfr.num_retrains=3").dfr.arguments["num_retrains"] == 3
    cfg = read(*typed)
    assert cfg.dfr.hashed() == read("dfr=val").dfr.hashed()
    assert (cfg.choices["dfr"], cfg.train.selection) == ("val", "val/worst")
    assert read(*typed, "dataset.columns.a=null").dfr is None
    (tmp_path / "mine" / "labels.csv").unlink()  # told later
    assert read(*typed).train.selection == "val/worst"


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("dfr=val", "dfr.balance=groups "),
        ("dfr=train dfr.balance=none", "dfr.criterion=worst "),
        ("method=group_dro", "method=group_dro "),
        ("method=iw", "method=iw "),
        ("method.sampling=subsampled", "method.sampling=subsampled "),
        ("train.selection=val/worst", "train.selection=val/worst "),
        ("train.selection=val/group/gull/any", "train.selection=val/group/gull/any "),
        ("train.early_stopping={patience: 2, metric: val/balanced}", "metric=val/balanced "),
        ("dataset.drop_groups=[gull/any]", "dataset.drop_groups=['gull/any'] "),
        ("analysis=gap_dynamics", "needs groups"),
    ],
)
def test_what_needs_groups_is_refused_without_them(typed, sentence, tmp_path, command_line):
    put_many(tmp_path, "filename", "split", "y", rows=ROWS)
    ended = train(command_line, tmp_path, *([typed] if "{" in typed else typed.split()))
    assert ended.code == 2, ended.out + ended.err
    assert sentence in ended.err
    assert "needs groups" in ended.err
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.parametrize(
    "typed",
    [
        (),
        ("method.sampling=class_subsampled",),
        ("dfr=val", "dfr.balance=none", "dfr.criterion=average", "dfr.num_retrains=1"),
    ],
)
def test_what_needs_only_classes_runs_without_groups(typed, tmp_path, command_line):
    put_many(tmp_path, "filename", "split", "y", rows=ROWS)
    ended = train(command_line, tmp_path, *typed)
    assert ended.code == 0, ended.out + ended.err


def train(command_line, root, *typed):
    network = ("backbone=mlp", "backbone.width=8", "backbone.depth=1", "method.epochs=1")
    shape = ("dataset.transform.resize=16", "dataset.transform.crop=16")
    places = (f"paths.data={root}", f"paths.outputs={root / 'out'}", "tracker=none")
    data = ("dataset=folder", "dataset.csv=mine/labels.csv", *shape)
    return command_line.run("train", *data, *network, *places, *typed)


def test_splits_are_drawn_by_group_and_by_their_seed(tmp_path):
    put_many(tmp_path, "filename", "y", "a")
    splits = folder().splits(tmp_path)
    assert {name: s.group_counts.tolist() for name, s in splits.items()} == {
        "train": [14] * 4,
        "val": [2] * 4,
        "test": [4] * 4,
    }
    numbers = [number for s in splits.values() for number, _, _ in made.seen(s)]
    assert sorted(numbers) == list(range(len(MANY)))
    typed = folder(fractions=(0.5, 0.25, 0.25)).splits(tmp_path)
    named = folder(fractions={"test": 0.25, "train": 0.5, "val": 0.25}).splits(tmp_path)
    assert len(typed["train"]) == 40
    assert made.seen(typed["train"]) == made.seen(named["train"])  # in whatever order
    with_target = {"train": 0.4, "target": 0.2, "val": 0.2, "test": 0.2}
    assert len(folder(fractions=with_target).splits(tmp_path)["target"]) == 16
    same, other = (folder(split_seed=seed).splits(tmp_path) for seed in (0, 1))
    assert same["train"].fingerprint == splits["train"].fingerprint
    assert other["train"].fingerprint != splits["train"].fingerprint


@pytest.mark.parametrize(
    ("fractions", "sentence"),
    [
        ((0.5, 0.5), "must be three numbers"),
        ((0.5, 0.3, 0.3), "add up to 1"),
        ((1.5, -0.25, -0.25), "positive"),
        ({"train": 0.5, "test": 0.5}, "lacks val"),
        ({"train": 0.7, "val": 0.1, "test": 0.1, "valid": 0.1}, "fractions.valid is not a split"),
    ],
)
def test_fractions_that_make_no_splits_are_told(fractions, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        folder(fractions=fractions)


def test_fractions_that_cannot_be_drawn_are_told(tmp_path):
    put_many(tmp_path, "filename", "y", "a", rows=MANY[:6])
    told(folder(), tmp_path, "dataset.fractions={train: 0.7", "6 rows")
    put_many(tmp_path, "filename", "y", "a")
    told(folder(fractions=(0.98, 0.01, 0.01)), tmp_path, "fractions=[0.98, 0.01, 0.01]", "of val")


def test_own_splits_are_not_drawn_over_unless_that_is_asked(tmp_path):
    put_many(tmp_path, "filename", "split", "y", "a", rows=ROWS)
    told(folder(fractions=(0.5, 0.25, 0.25)), tmp_path, "splits of its own", "columns.split=null")
    put_many(tmp_path, "filename", "split", "y", "a")  # all of them train
    splits = folder(columns=Columns(split=None), fractions=(0.5, 0.25, 0.25)).splits(tmp_path)
    assert len(splits["val"]) == 20


def test_units_do_not_cross_splits(tmp_path):
    put_many(tmp_path, "filename", "y", "a", "person")
    splits = folder(columns=Columns(unit="person")).splits(tmp_path)
    people = [{number // 2 for number, _, _ in made.seen(s)} for s in splits.values()]
    assert sum(map(len, people)) == len(set.union(*people)) == len(MANY) // 2
    put_many(tmp_path, "filename", "split", "y", "a", "person", rows=ROWS)
    with pytest.raises(UserError, match=r"person (p\d+) is in (\w+) and (\w+); put all") as caught:
        folder(columns=Columns(unit="person")).splits(tmp_path)
    person, *crossed = re.search(r"(p\d+) is in (\w+) and (\w+)", str(caught.value)).groups()
    assert {NAMES[r.split] for r in ROWS if f"p{r.index // 2}" == person} == set(crossed)
    told(folder(columns=Columns(unit="patient")), tmp_path, "lacks the columns patient")


def test_several_attributes_are_combined_or_taken_one_by_one(tmp_path):
    lines = [
        (f"pictures/{r.index}.jpg", NAMES[r.split], r.y, "mf"[r.a], (9, 10, 11)[r.index % 3])
        for r in ROWS
    ]
    table = made.csv("filename,split,y,sex,site", lines)
    made.put(tmp_path / "mine", {**own(ROWS), "labels.csv": table})
    splits = folder(columns=Columns(a=("sex", "site"))).splits(tmp_path)
    spec = splits["train"].spec
    assert spec.attributes == ("f+9", "f+10", "f+11", "m+9", "m+10", "m+11")
    for number, _, a in made.seen(splits["train"]):
        row = next(row for row in ROWS if row.index == number)
        assert spec.attributes[a] == f"{'mf'[row.a]}+{(9, 10, 11)[number % 3]}"
    one = folder(columns=Columns(a="site")).splits(tmp_path)
    assert one["train"].spec.attributes == ("9", "10", "11")


# --- class folders --------------------------------------------------------------------------------


def class_folders(rows, split=True):
    return {
        f"{NAMES[r.split] + '/' if split else ''}{WORDS['y'][r.y]}/{r.index:03}.jpg": made.jpeg(
            r.index, (40, 30)
        )
        for r in rows
    }


CLUTTER = {
    ".DS_Store": b"",
    "readme.txt": b"",
    "train/.DS_Store": b"",
    "train/wren/Thumbs.db": b"",
    "train/wren/notes.txt": b"x",
    "__MACOSX/train/wren/._001.jpg": b"x",
    "train/wren/more/101.JPG": made.jpeg(101, (40, 30)),
}


def test_class_folders_without_a_table(tmp_path, caplog):
    made.put(tmp_path / "birds", {**class_folders(ROWS), **CLUTTER})
    splits = folder(None, images="birds").splits(tmp_path)
    assert list(splits) == ["train", "val", "test"]
    for code, name in NAMES.items():
        want = {(row.index, 1 - row.y, 0) for row in ROWS if row.split == code}
        want |= {(101, 1, 0)} if name == "train" else set()
        assert set(made.seen(splits[name])) == want
    assert splits["train"].spec.classes == ("gull", "wren")
    assert not splits["train"].spec.known
    assert "1 of .txt" in caplog.text
    typed = ("dataset.csv=null", "dataset.images=birds", f"paths.data={tmp_path}")
    assert read("dataset=folder", *typed).dfr is None
    told(folder(None, images="birds", fractions=(0.5, 0.25, 0.25)), tmp_path, "of its own")


def test_class_folders_without_splits(tmp_path):
    made.put(tmp_path / "birds", class_folders(MANY, split=False))
    splits = folder(None, images=str(tmp_path / "birds")).splits(tmp_path)
    assert {name: s.group_counts.tolist() for name, s in splits.items()} == {
        "train": [28] * 2,
        "val": [4] * 2,
        "test": [8] * 2,
    }


def test_folders_that_are_no_class_folders_are_told(tmp_path):
    made.put(tmp_path / "one", {"wren/1.jpg": b"", "gull/notes.txt": b""})
    told(folder(None, images="one"), tmp_path, str(tmp_path / "one"), "two classes")
    made.put(tmp_path / "two", class_folders([r for r in ROWS if r.split != 1]))
    told(folder(None, images="two"), tmp_path, "no rows with split val")
    made.put(tmp_path / "two", {"valid/wren/1.jpg": b""})
    told(folder(None, images="two"), tmp_path, "'valid'")
    told(folder(None, images="nowhere"), tmp_path, "dataset.images=nowhere")
    with pytest.raises(ValueError, match=r"csv=null needs dataset\.images"):
        folder(None)
    with pytest.raises(ValueError, match="columns names columns of a table"):
        folder(None, images="one", columns=Columns(y="label"))


# --- what may be a shortcut -----------------------------------------------------------------------


def test_prepare_names_the_columns_that_look_like_a_shortcut(tmp_path, command_line):
    lines = [
        (f"{r.index}.jpg", NAMES[r.split], WORDS["y"][r.y], "mf"[r.a], "AB"[r.y], r.index)
        for r in made.make_rows({0: (20, 20, 20, 20), 1: (2, 2, 2, 2), 2: (2, 2, 2, 2)})
    ]
    images = {line[0]: made.jpeg(line[-1], (40, 30)) for line in lines}
    table = made.csv("filename,split,y,a,scanner,number", lines)
    made.put(tmp_path / "mine", {"labels.csv": table, **images})
    found = folder().candidates(tmp_path)
    assert set(found) == {"a", "scanner"}  # every image has a number of its own
    assert found["scanner"].values == ("A", "B")
    assert found["scanner"].counts.tolist() == [[0, 40], [40, 0]]  # gull, wren
    typed = ("dataset=folder", "dataset.csv=mine/labels.csv", f"paths.data={tmp_path}")
    ended = command_line.run("prepare", *typed, f"paths.outputs={tmp_path / 'out'}")
    assert ended.code == 0, ended.err
    assert "scanner looks like a shortcut" in ended.out
    assert "a looks like a shortcut" not in ended.out
    assert (tmp_path / "out" / "previews" / "folder.png").exists()
