"""CelebA in every form in which it is handed around, its variants, and files with mistakes."""

import logging
import os

import generators_photos as made
import pytest
from generators_photos import NAMES, ROWS, SMALL, check, told

from spurcor.datasets.celeba import COUNTS, CelebA, CelebAScale

FACES = made.faces(ROWS)
TXT, CSV, METADATA = (
    made.celeba_txt(ROWS),
    made.celeba_csv(ROWS),
    made.celeba_metadata(ROWS),
)
DOUBLED = made.below("img_align_celeba", FACES)
FACE_FORMS = {
    "authors'": [(made.put, "celeba", {**FACES, **TXT})],
    "Kaggle's": [(made.put, "celeba", {**DOUBLED, **CSV})],
    "Kaggle's folder": [(made.put, "celeba/archive", {**DOUBLED, **CSV})],
    "Kaggle's archive": [(made.put_zip, "celeba/archive.zip", {**DOUBLED, **CSV})],
    "Kaggle's, extracted one deeper": [(made.put, "celeba/celeba-dataset", {**DOUBLED, **CSV})],
    "an archive one deeper": [
        (made.put_zip, "celeba/archive.zip", made.below("archive", {**FACES, **CSV}))
    ],
    "csv, images not doubled": [(made.put, "celeba/archive", {**FACES, **CSV})],
    "BalancingGroups'": [(made.put, "celeba", FACES), (made.put, ".", METADATA)],
    "SubpopBench's": [(made.put, "celeba", {**FACES, **METADATA})],
    "archive of images": [
        (made.put_zip, "celeba/img_align_celeba.zip", FACES),
        (made.put, "celeba", TXT),
    ],
    "as on the drive": [
        (made.put_zip, "celeba/Img/img_align_celeba.zip", FACES),
        (made.put, "celeba/Anno", {k: v for k, v in TXT.items() if "attr" in k}),
        (made.put, "celeba/Eval", {k: v for k, v in TXT.items() if "partition" in k}),
    ],
}


def celeba(**options):
    return CelebA(transform=SMALL, store="disk", **options)


def scale(**options):
    sizes = {"target_size": 8, "majority_size": 9} | options
    return CelebAScale(transform=SMALL, store="disk", **sizes)


@pytest.fixture
def faces(tmp_path):
    made.put(tmp_path / "celeba", {**FACES, **TXT})
    return tmp_path


@pytest.mark.parametrize("form", FACE_FORMS)
def test_celeba_in_every_form(form, tmp_path, caplog):
    for put, name, files in FACE_FORMS[form]:
        put(tmp_path / name, files)
    with caplog.at_level(logging.WARNING):
        splits = check(celeba(), tmp_path)
    spec = splits["train"].spec
    assert spec.names == ["not_blond/female", "not_blond/male", "blond/female", "blond/male"]
    assert spec.is_aligned().tolist() == [False, True, True, False]
    assert splits["train"].group_counts.tolist() == list(made.COUNTS[0])
    assert "has 31 of the 202,599 published images" in caplog.text


def test_published_counts_of_celeba_add_up():
    assert [sum(COUNTS[name]) for name in NAMES.values()] == [162770, 19867, 19962]


def test_tables_in_different_orders_are_joined(tmp_path):
    shuffled = made.celeba_csv(sorted(ROWS, key=lambda row: -row.index))["list_attr_celeba.csv"]
    made.put(tmp_path / "celeba", {**FACES, **CSV, "list_attr_celeba.csv": shuffled})
    splits = celeba().splits(tmp_path)
    for code, name in NAMES.items():
        assert made.seen(splits[name]) == made.expected(ROWS, code)[::-1]


@pytest.mark.parametrize("form", ["authors'", "Kaggle's"])
def test_attributes_as_labels(form, tmp_path):
    for put, name, files in FACE_FORMS[form]:
        put(tmp_path / name, files)
    splits = celeba(num_labels=10).splits(tmp_path)
    spec = splits["train"].spec
    assert spec.task == "multilabel"
    assert spec.classes == tuple(made.HEADER.split()[:10])
    assert (spec.attributes, spec.aligned) == ((), ())
    for code, name in NAMES.items():
        members = [row for row in ROWS if row.split == code]
        labels = [[(v + 1) // 2 for v in made.attributes_of(row)[:10]] for row in members]
        assert splits[name].y.tolist() == labels
        assert [number for number, _, _ in made.seen(splits[name])] == [r.index for r in members]
        assert splits[name].a.tolist() == splits[name].g.tolist() == [0] * len(members)
    half = celeba(num_labels=3, subset_size=4, target_fraction=0.5).splits(tmp_path)
    assert {name: tuple(split.y.shape) for name, split in half.items()} == {
        "train": (4, 3),
        "val": (4, 3),
        "test": (4, 3),
        "target": (4, 3),
    }
    dropped = celeba(num_labels=3, drop_groups=("Bald",))
    told(dropped, tmp_path, "dataset.drop_groups=['Bald']", "3 labels")


def test_attributes_need_more_than_two(tmp_path):
    made.put(tmp_path / "celeba", {**FACES, **METADATA})
    told(celeba(num_labels=10), tmp_path, "list_attr_celeba.txt with list_eval_partition.txt")
    for number in (0, 41):
        with pytest.raises(ValueError, match=f"num_labels={number}"):
            celeba(num_labels=number)


@pytest.mark.parametrize("missing", [FACES, TXT])
def test_no_celeba(missing, tmp_path):
    page = "https://www.kaggle.com/datasets/jessicali9530/celeba-dataset"
    made.put(tmp_path / "celeba", TXT if missing is FACES else FACES)
    told(celeba(), tmp_path, f"{tmp_path / 'celeba'} has no", page)


BAD_FACES = {
    "label": ("list_attr_celeba.txt", " 1  1", " 0  1", "is not -1 or 1 in"),
    "count": ("list_attr_celeba.txt", "31\n", "30\n", "30 rows but has 31"),
    "attribute": ("list_attr_celeba.txt", "Blond_Hair", "Fair_Hair", "lacks the attribute Blond"),
    "split": ("list_eval_partition.txt", "001.jpg ", "001.jpg 1", "partition is not 0 or 1 or 2"),
    "name": ("list_eval_partition.txt", "000001", "900001", "000001.jpg' in row"),
}


@pytest.mark.parametrize("what", BAD_FACES)
def test_bad_files_of_celeba_are_told(what, faces):
    name, old, new, expected = BAD_FACES[what]
    path = faces / "celeba" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    if what == "label":  # some attribute is wrong in every row; those asked for are what counts
        told(celeba(num_labels=40), faces, str(path), expected)
    else:
        told(celeba(), faces, str(path), expected)


def test_attributes_without_the_number_of_images(faces):
    path = faces / "celeba" / "list_attr_celeba.txt"
    path.write_text(path.read_text().partition("\n")[2])
    check(celeba(), faces)
    assert celeba(num_labels=3).splits(faces)["train"].spec.classes == tuple(
        made.HEADER.split()[:3]
    )


@pytest.mark.parametrize("separator", [";", "\t"])
def test_tables_of_a_spreadsheet(separator, tmp_path):
    tables = {name: content.replace(b",", separator.encode()) for name, content in CSV.items()}
    made.put(tmp_path / "celeba", {**FACES, **tables})
    check(celeba(), tmp_path)
    assert len(celeba(num_labels=40).splits(tmp_path)["train"].spec.classes) == 40


@pytest.mark.parametrize("name", TXT)
def test_a_pipe_in_the_place_of_a_table_is_not_waited_for(name, faces):
    (faces / "celeba" / name).unlink()
    os.mkfifo(faces / "celeba" / name)
    told(celeba(), faces, f"{faces / 'celeba'} has no")


def test_a_file_that_was_cut_off_is_told(faces):
    path = faces / "celeba" / "list_attr_celeba.txt"
    path.write_text(path.read_text()[:-60])
    told(celeba(), faces, str(path))


# --- as in SCALE ----------------------------------------------------------------------------------

MANY = made.make_rows({0: (9, 16, 15, 7), 1: (5, 4, 3, 2), 2: (3, 3, 4, 2)}, seed=1)


@pytest.fixture
def many(tmp_path):
    made.put(tmp_path / "celeba", {**made.faces(MANY), **made.celeba_csv(MANY)})
    return tmp_path


def inverse(rows, code):
    """Gender is the class, and not being blond the attribute."""
    return {(row.index, row.a, 1 - row.y) for row in rows if row.split == code}


@pytest.mark.parametrize(
    ("strength", "minority"), [(1.0, 0), (0.9, 1), (0.75, 3), (0.8, 2), (0.65, 4), (0.6, 6)]
)
def test_scale_draws_its_splits_from_the_official_ones(strength, minority, many):
    if strength == 0.6:  # 6 + 2 of 7 images
        told(scale(strength=strength), many, "need 8 images of male/blond", "has 7")
        return
    splits = scale(strength=strength).splits(many)
    spec = splits["train"].spec
    assert spec.names == ["female/blond", "female/not_blond", "male/blond", "male/not_blond"]
    assert spec.is_aligned().tolist() == [True, False, False, True]
    counts = {name: split.group_counts.tolist() for name, split in splits.items()}
    assert counts == {
        "train": [9, minority, minority, 9],
        "target": [2, 2, 2, 2],
        "val": [2, 2, 2, 2],
        "test": [2, 2, 2, 2],
    }
    train, target = set(made.seen(splits["train"])), set(made.seen(splits["target"]))
    assert not train & target
    assert train | target <= inverse(MANY, 0)
    assert set(made.seen(splits["val"])) <= inverse(MANY, 1)
    assert set(made.seen(splits["test"])) <= inverse(MANY, 2)
    assert all(len(set(made.seen(split))) == len(split) for split in splits.values())


def test_scale_draws_anew_with_another_seed(many):
    first, again, other = (scale(split_seed=seed).splits(many) for seed in (0, 0, 1))
    assert made.seen(first["train"]) == made.seen(again["train"])
    assert made.seen(first["train"]) != made.seen(other["train"])
    sizes = {name: len(split) for name, split in first.items()}
    assert sizes == {name: len(split) for name, split in other.items()}


@pytest.mark.parametrize(("strength", "minority"), [(0.8, 2500), (0.95, 526), (0.9, 1111)])
def test_sizes_of_scale_are_exact_where_floats_are_not(strength, minority, tmp_path):
    """A conflicting group of 10,000 (1 - 0.8) / 0.8 has 2,500, in floats 2,499.99... images."""
    counts = {0: (10250, 10250, 10250, 3000), 1: (1, 1, 1, 1), 2: (1, 1, 1, 1)}
    made.put(tmp_path / "celeba", made.celeba_metadata(made.make_rows(counts)))
    (tmp_path / "celeba" / "img_align_celeba").mkdir()
    source = CelebAScale(strength=strength)  # sizes as published
    loaded = source.load(tmp_path)
    sizes = {name: g.bincount().tolist() for name, g in loaded.groups.items()}
    assert sizes["train"] == [10000, minority, minority, 10000]
    assert sizes["target"] == [250] * 4


@pytest.mark.parametrize(
    "options",
    [
        {"strength": 0},
        {"strength": 1.1},
        {"target_size": 6},
        {"target_size": 0},
        {"majority_size": 0},
        {"target_fraction": 0.5},
    ],
)
def test_impossible_options_of_scale_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}"):
        scale(**options)


def test_an_empty_group_leaves_nothing_to_balance(tmp_path):
    rows = made.make_rows({0: (9, 16, 15, 7), 1: (5, 4, 3, 0), 2: (3, 3, 4, 2)})
    made.put(tmp_path / "celeba", {**made.faces(rows), **made.celeba_csv(rows)})
    told(scale(), tmp_path, "val has an empty group")


# --- other pairs, and people ----------------------------------------------------------------------

HEADER = made.HEADER.split()


def labels_of(rows, code, label, attribute):
    """(number, y, a) of a split, by two of the attributes."""
    at = [HEADER.index(name) for name in (label, attribute)]
    chosen = [(row.index, made.attributes_of(row)) for row in rows if row.split == code]
    return [(number, *((values[i] + 1) // 2 for i in at)) for number, values in chosen]


@pytest.mark.parametrize("form", ["authors'", "Kaggle's"])
@pytest.mark.parametrize("pair", [("Smiling", "Young"), ("Blond_Hair", "Bald"), ("Male", "Bald")])
def test_any_pair_of_attributes(pair, form, tmp_path):
    for put, name, files in FACE_FORMS[form]:
        put(tmp_path / name, files)
    splits = celeba(label=pair[0], attribute=pair[1]).splits(tmp_path)
    for code, name in NAMES.items():
        assert made.seen(splits[name]) == labels_of(ROWS, code, *pair)
    spec = splits["train"].spec
    label, attribute = (name.lower() for name in pair)
    assert spec.classes == (f"not_{label}", label)
    assert spec.attributes == (f"not_{attribute}", attribute)
    n = splits["train"].group_counts.view(2, 2)
    together = n[0, 0] * n[1, 1] >= n[0, 1] * n[1, 0]
    assert spec.aligned == ((0, 1) if together else (1, 0))


def test_any_pair_as_in_scale(many):
    splits = scale(label="Smiling", attribute="Young", majority_size=1).splits(many)
    spec = splits["train"].spec
    assert spec.classes == ("not_smiling", "smiling")
    assert spec.attributes == ("not_young", "young")
    for code, name in ((0, "train"), (0, "target"), (1, "val"), (2, "test")):
        assert {*made.seen(splits[name])} <= {*labels_of(MANY, code, "Smiling", "Young")}
    assert splits["train"].group_counts.tolist() == spec.is_aligned().long().tolist()


@pytest.mark.parametrize("make", [celeba, scale])
@pytest.mark.parametrize(
    ("name", "hint"),
    [("blond", "Blond_Hair"), ("smiling", "Smiling"), ("Smilling", "Smiling"), ("x", "Wavy_Hair")],
)
def test_an_attribute_that_does_not_exist_is_refused(name, hint, make, faces):
    told(make(attribute=name, label="Young"), faces, f"dataset.attribute={name}: ", hint)
    told(make(label=name, attribute="Young"), faces, f"dataset.label={name}: ", hint)


def test_pairs_that_cannot_be_are_refused(tmp_path):
    made.put(tmp_path / "celeba", {**FACES, **METADATA})
    told(celeba(label="Smiling"), tmp_path, "dataset.label=Smiling: ", "only Blond_Hair and Male")
    told(scale(attribute="Young"), tmp_path, "dataset.attribute=Young: ", "list_attr_celeba.txt")
    for options in ({"label": "Male"}, {"label": "Smiling", "num_labels": 3}):
        with pytest.raises(ValueError, match="label"):
            celeba(**options)
    with pytest.raises(ValueError, match="fractions"):
        celeba(fractions=(0.9, 0.2, 0.1))


def test_a_group_that_train_lacks_is_named_once(tmp_path, caplog):
    rows = made.make_rows({0: (5, 2, 1, 0), 1: (3, 2, 2, 2), 2: (2, 3, 2, 3)})
    made.put(tmp_path / "celeba", {**made.faces(rows), **made.celeba_csv(rows)})
    with caplog.at_level(logging.WARNING):
        celeba().splits(tmp_path)
        celeba().splits(tmp_path)
    (once,) = [r for r in caplog.records if "has no samples of" in r.getMessage()]
    assert "blond/male" in once.getMessage()


PEOPLE = made.make_rows({0: (30, 20, 25, 15), 1: (9, 9, 9, 9), 2: (9, 9, 9, 9)})
IDENTITY = "".join(f"{made.face(row)} {row.index // 3 + 1}\n" for row in PEOPLE)


@pytest.fixture
def people(tmp_path):
    tables = {**made.celeba_txt(PEOPLE), "identity_CelebA.txt": IDENTITY.encode()}
    made.put(tmp_path / "celeba", {**made.faces(PEOPLE), **tables})
    return tmp_path


def persons(splits):
    return [{number // 3 for number in split.source.tolist()} for split in splits.values()]


@pytest.mark.parametrize("options", [{}, {"num_labels": 2}, {"label": "Smiling"}])
def test_no_person_is_in_two_splits(options, people):
    """Also where TARGET is taken from VAL; in the official splits of this copy they are."""
    splits = celeba(split="identity", target_fraction=0.5, **options).splits(people)
    assert sum(map(len, splits.values())) == len(PEOPLE)
    who = persons(splits)
    assert len(who) == 4
    assert sum(map(len, who)) == len(set.union(*who)) == len(PEOPLE) // 3
    official = persons(celeba(**options).splits(people))
    assert sum(map(len, official)) > len(set.union(*official))
    again = celeba(split="identity", split_seed=1, **options).splits(people)
    assert persons({"test": again["test"]}) != persons({"test": splits["test"]})


def test_people_that_are_not_known_are_told(people):
    path = people / "celeba" / "identity_CelebA.txt"
    path.write_text(IDENTITY.partition("\n")[2])
    told(celeba(split="identity"), people, str(path), "lacks 1 of 162 images, 000001.jpg")
    path.unlink()
    told(celeba(split="identity"), people, "dataset.split=identity", "identity_CelebA.txt")


def test_images_of_a_subset_must_all_be_there(faces):
    (faces / "celeba" / "img_align_celeba" / "000003.jpg").unlink()
    told(celeba(label="Smiling"), faces, "lacks 1 of 31 listed image files: 000003.jpg")
