"""HAM10000 in every form in which it is handed around, its options, and files with mistakes."""

import logging
import re

import generators_photos as made
import pytest
import torch
from generators_photos import SMALL, told
from training import read

from spurcor.data.groups import usual_values
from spurcor.datasets.ham10000 import Ham10000
from spurcor.errors import UserError

# y malignant, a the clinic; rosendahl has more malignant lesions.
ROWS = made.make_rows({0: (20, 40, 40, 25)})
IMAGES = made.ham_images(ROWS)
TABLE = made.csv(made.HAM_HEADER, [made.ham_line(row) for row in ROWS])
KAGGLE = made.csv(
    made.HAM_HEADER.rpartition(",")[0], [made.ham_line(row)[:-1] for row in ROWS]
)  # no clinics


def quoted():
    """Dataverse's .tab: separated by tabs, names in quotation marks."""
    lines = [[f'"{c}"' if c[0].isalpha() else c for c in made.ham_line(row)] for row in ROWS]
    header = "\t".join(f'"{name}"' for name in made.HAM_HEADER.split(","))
    return "\n".join([header, *("\t".join(line) for line in lines)]).encode() + b"\n"


def part(number):
    """The images of one part without their folder."""
    prefix = f"HAM10000_images_part_{number}/"
    return {k.removeprefix(prefix): v for k, v in IMAGES.items() if k.startswith(prefix)}


def zipped(tmp_path, nested=False):
    """The archives of both parts, as bytes."""
    files = {}
    for number in (1, 2):
        name = f"HAM10000_images_part_{number}"
        inside = made.below(name, part(number)) if nested else part(number)
        made.put_zip(tmp_path / "made" / f"{name}.zip", inside)
        files[f"{name}.zip"] = (tmp_path / "made" / f"{name}.zip").read_bytes()
    return files


DOUBLED = {f"{name.partition('/')[0]}/{name}": content for name, content in IMAGES.items()}
TWICE = IMAGES | made.ham_images(ROWS, "ham10000_images_part_{}")
FORMS = {
    "folders": (made.put, "ham10000", {"HAM10000_metadata.csv": TABLE, **IMAGES}),
    "tab": (made.put, "ham10000", {"HAM10000_metadata.tab": quoted(), **IMAGES}),
    "endings in the table": (
        made.put,
        "ham10000",
        {"HAM10000_metadata.csv": re.sub(rb"(ISIC_\d+)", rb"\1.jpg", TABLE), **IMAGES},
    ),
    "no ending": (made.put, "ham10000", {"HAM10000_metadata": TABLE, **IMAGES}),
    "doubled folders": (made.put, "HAM10000", {"HAM10000_metadata.csv": TABLE, **DOUBLED}),
    "one folder": (
        made.put,
        "ham10000/data",
        {"HAM10000_metadata.csv": TABLE, **made.below("images", part(1) | part(2))},
    ),
    "Kaggle's folders": (
        made.put,
        "skin-cancer-mnist-ham10000",
        {"HAM10000_metadata.csv": TABLE, "hmnist_8_8_L.csv": b"pixel0000,label\n", **TWICE},
    ),
    "Kaggle's archive": (
        made.put_zip,
        "ham10000/archive.zip",
        {"HAM10000_metadata.csv": TABLE, **TWICE},
    ),
}


def ham(**options):
    return Ham10000(transform=SMALL, store="disk", **options)


@pytest.fixture
def lesions(tmp_path):
    made.put(tmp_path / "ham10000", {"HAM10000_metadata.csv": TABLE, **IMAGES})
    return tmp_path


def check(root, **options):
    """Every image is used once, with the labels of its row."""
    splits = ham(balance=False, **options).splits(root)
    assert list(splits) == ["train", "val", "test"]
    seen = sorted(row for split in splits.values() for row in made.seen(split))
    assert seen == [(row.index, row.y, row.a) for row in ROWS]
    return splits


@pytest.mark.parametrize("form", FORMS)
def test_every_form(form, tmp_path):
    put, name, files = FORMS[form]
    put(tmp_path / name, files)
    splits = check(tmp_path)
    spec = splits["train"].spec
    assert spec.names == [
        "benign/rosendahl",
        "benign/vidir_modern",
        "malignant/rosendahl",
        "malignant/vidir_modern",
    ]
    assert spec.aligned == (1, 0)
    assert [len(split) for split in splits.values()] == pytest.approx([75, 19, 31], abs=4)


@pytest.mark.parametrize("form", ["flat", "nested", "all in one", "table beside"])
def test_archives_of_dataverse(form, tmp_path):
    files = zipped(tmp_path, nested=form == "nested")
    if form == "table beside":
        made.put_zip(tmp_path / "ham10000" / "dataverse_files.zip", files)
        made.put(tmp_path / "ham10000", {"HAM10000_metadata.csv": TABLE})
    elif form == "all in one":
        whole = {**files, "HAM10000_metadata.tab": quoted()}
        made.put_zip(tmp_path / "ham10000" / "dataverse_files.zip", whole)
    else:
        made.put(tmp_path / "ham10000", {**files, "HAM10000_metadata.csv": TABLE})
    check(tmp_path)


def test_kaggles_table_has_no_clinics(tmp_path):
    made.put(tmp_path / "ham10000", {"HAM10000_metadata.csv": KAGGLE, **IMAGES})
    told(ham(), tmp_path, "the column dataset", "dataset.sources=[]", "dataset.attribute=sex")
    told(ham(attribute="sex"), tmp_path, "dataset.sources=[rosendahl, vidir_modern]")
    spec = ham(sources=(), attribute="sex").splits(tmp_path)["train"].spec
    assert spec.attributes == ("female", "male")


def test_val_and_test_are_balanced_and_a_strength_holds_in_train(lesions):
    natural, strong, whole = (
        ham(strength=strength).splits(lesions) for strength in (None, 0.9, 1.0)
    )
    for splits in (natural, strong, whole):
        for name in ("val", "test"):
            counts = splits[name].group_counts.tolist()
            assert min(counts) == max(counts) > 0
    counts = natural["train"].group_counts.tolist()
    assert counts == pytest.approx([12, 24, 24, 15], abs=3)
    kept = strong["train"].group_counts.tolist()
    assert kept == [round(counts[1] / 9), counts[1], counts[2], round(counts[2] / 9)]
    assert whole["train"].group_counts.tolist() == [0, counts[1], counts[2], 0]


def lesions_of(split):
    return {(number // 3) for number, _, _ in made.seen(split)}


@pytest.mark.parametrize("origin", ["val", "train"])
def test_no_lesion_is_in_two_splits(origin, tmp_path):
    """Three images of each; also where TARGET is taken from another split."""
    lines = [(f"HAM_{row.index // 3}", *made.ham_line(row)[1:]) for row in ROWS]
    table = made.csv(made.HAM_HEADER, lines)
    made.put(tmp_path / "ham10000", {"HAM10000_metadata.csv": table, **IMAGES})
    options = {"target_fraction": 0.5, "target_from": origin}
    splits = ham(balance=False, fractions=(0.4, 0.4, 0.2), **options).splits(tmp_path)
    parts = [lesions_of(split) for split in splits.values()]
    assert len(parts) == 4
    assert sum(map(len, parts)) == len(set.union(*parts))
    other = ham(balance=False, split_seed=1).splits(tmp_path)
    assert lesions_of(other["test"]) != lesions_of(splits["test"])


def test_a_diagnosis_against_the_others(lesions):
    splits = ham(label="mel", attribute="age_60", balance=False).splits(lesions)
    spec = splits["train"].spec
    assert spec.classes == ("not_mel", "mel")
    assert spec.attributes == ("under_60", "60_or_older")
    by_number = {row.index: made.ham_line(row) for row in ROWS}
    for split in splits.values():
        for number, y, a in made.seen(split):
            line = by_number[number]
            assert (y, a) == (line[2] == "mel", float(line[4]) >= 60)


@pytest.mark.parametrize("unknown", ["unknown", "Unknown", "", " "])
def test_rows_whose_attribute_is_unknown_are_left_out(unknown, lesions, caplog):
    path = lesions / "ham10000" / "HAM10000_metadata.csv"
    for column in (5, 4):
        made.edit(path, lambda lines, c=column: [made.cell(lines, r, c, unknown) for r in (2, 5)])
    with caplog.at_level(logging.WARNING):
        for attribute in ("sex", "age_60"):
            splits = ham(attribute=attribute, balance=False).splits(lesions)
            assert sum(map(len, splits.values())) == len(ROWS) - 2
    lines = [
        r.getMessage() for r in caplog.records if "2 of 125 rows are left out" in r.getMessage()
    ]
    assert len(lines) == 2
    assert "sex" in lines[0]


def test_a_subset_is_counted_in_one_warning(lesions, caplog):
    with caplog.at_level(logging.WARNING):
        check(lesions)
        check(lesions)
    (record,) = caplog.records
    assert "125 of the 10,015 published images" in record.getMessage()


@pytest.mark.parametrize(
    ("aligned", "counts"),
    [
        ((1, 0), [[71629, 66874], [22880, 1387]]),  # CelebA's TRAIN
        ((0, 1), [[733, 100], [526, 355]]),
        ((0, 1), [[5, 5], [5, 5]]),  # independent
        ((0, 1), [[6, 3], [2, 1]]),
        ((1, 0, 2), [[1, 9, 1], [9, 1, 1], [1, 1, 9]]),
        ((2, 1), [[30, 10, 40, 0], [10, 30, 0, 0]]),
    ],
)
def test_aligned_values_are_those_over_represented(aligned, counts):
    assert usual_values(torch.tensor(counts)) == aligned


# --- refusals -------------------------------------------------------------------------------------


def test_no_ham10000(tmp_path):
    told(ham(), tmp_path, f"paths.data={tmp_path} has no folder ham10000", "10.7910/DVN/DBW86T")
    (tmp_path / "ham10000").mkdir()
    told(ham(), tmp_path, "has no HAM10000_metadata.csv")


def test_a_missing_part_is_told(tmp_path):
    half = {name: content for name, content in IMAGES.items() if "part_1" in name}
    made.put(tmp_path / "ham10000", {"HAM10000_metadata.csv": TABLE, **half})
    told(
        ham(), tmp_path, "image_id has no image in 63 of 125 rows", "HAM10000_images_part_1 and _2"
    )


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        (2, "scc", "dx is not one of akiec"),
        (1, "ISIC_0024306", "image_id is listed more than once"),
        (0, "", "lesion_id is empty"),
        (4, "old", "age is not a number"),
    ],
)
def test_bad_cells_are_told(column, value, expected, lesions):
    path = lesions / "ham10000" / "HAM10000_metadata.csv"
    made.edit(path, lambda lines: made.cell(lines, 9, column, value))
    told(ham(attribute="age_60" if column == 4 else "dataset"), lesions, str(path), expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"sources": ("rosendal", "vidir_modern")}, "dataset.sources=rosendal: "),
        ({"sources": ("rosendal", "vidir_modern")}, "did you mean rosendahl?"),
        ({"sources": ("molemax", "abc")}, "it has vidir_modern (65), rosendahl (60)"),
        ({"sources": ("rosendahl",), "attribute": "sex"}, "dataset.attribute=sex: "),
        ({"attribute": "localization", "strength": 0.9}, "dataset.strength=0.9 needs an attribute"),
        ({"fractions": (0.98, 0.01, 0.01)}, "dataset.fractions=[0.98, 0.01, 0.01]: "),
    ],
)
def test_options_that_do_not_fit_the_data_are_refused(options, expected, lesions):
    told(ham(**options), lesions, expected)


def test_an_empty_group_cannot_be_balanced(tmp_path):
    rows = made.make_rows({0: (30, 30, 30, 1)})
    made.put(tmp_path / "ham10000", made.ham10000(rows))
    told(ham(), tmp_path, "dataset.balance=true: ", "malignant/vidir_modern 0", "balance=false")
    assert ham(balance=False).splits(tmp_path)["train"].group_counts.sum() > 30


@pytest.mark.parametrize(
    "typed",
    ["label=mell", "attribute=sexx", "strength=0.5", "strength=1.1", "fractions=[0.5,0.5]"],
)
def test_unknown_options_are_refused_with_near_names(typed):
    with pytest.raises((UserError, ValueError), match=typed.partition("=")[0]) as caught:
        read("dataset=ham10000", f"dataset.{typed}").dataset.build()
    if typed in ("label=mell", "attribute=sexx"):
        assert f"did you mean {typed.partition('=')[2][:3]}?" in str(caught.value)
