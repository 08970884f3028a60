"""Features in one file: formats, labels, splits, what trains on them, and what is refused."""

import generators_photos as made
import numpy as np
import pandas as pd
import pytest
import torch
from generators_photos import told
from safetensors.numpy import save_file
from small_data import write_embeddings
from training import read

from spurcor.datasets.embeddings import Embeddings
from spurcor.errors import UserError
from spurcor.runs import build

ROWS = made.make_rows({0: (30, 10, 10, 30), 1: (10, 10, 10, 10), 2: (10, 10, 10, 10)})
SCALE = ("backbone=mlp", "train.batch_size=16")
CODES = {"train": 0, "val": 1, "test": 2}


def source(name="x.npz", **options):
    return Embeddings(file=name, **options)


def write(root, name="x.npz", **changed):
    """The same arrays in the format of the file's name."""
    arrays = write_embeddings(root / "x.npz", ROWS, **changed)
    if name.endswith("safetensors"):
        numbers = {key: np.unique(arrays[key], return_inverse=True)[1] for key in ("y", "a")}
        split = np.array([CODES[one] for one in arrays["split"]])
        save_file({"features": arrays["features"], **numbers, "split": split}, root / name)
    if name.endswith("parquet"):
        features = arrays.pop("features")
        if "list" in name:
            columns = {"features": list(features)}
        else:
            columns = {f"f{i}": features[:, i] for i in range(features.shape[1])}
        pd.DataFrame({**arrays, **columns}).to_parquet(root / name)
    return name


def config(root, *overrides, name="x.npz"):
    places = (f"paths.data={root}", f"paths.outputs={root / 'out'}", "tracker=none")
    return ("dataset=embeddings", f"dataset.file={name}", *places, *overrides)


@pytest.mark.parametrize("name", ["x.npz", "x.safetensors", "x.parquet", "list.parquet"])
def test_every_format_holds_the_same(name, tmp_path):
    splits = source(write(tmp_path, name)).splits(tmp_path)
    arrays = write_embeddings(tmp_path / "again.npz", ROWS)
    spec = splits["train"].spec
    assert spec.names in (
        ["cat/day", "cat/night", "dog/day", "dog/night"],
        ["0/0", "0/1", "1/0", "1/1"],
    )
    assert spec.known
    for split, data in splits.items():
        rows = np.flatnonzero(arrays["split"] == split)
        x = data.fetch(torch.arange(len(data))).x
        assert x.shape == (len(rows), 6, 1, 1)
        np.testing.assert_array_equal(x[:, :, 0, 0].numpy(), arrays["features"][rows])
        assert data.y.tolist() == [ROWS[row].y for row in rows]
        assert data.a.tolist() == [ROWS[row].a for row in rows]
        assert data.source.tolist() == rows.tolist()


def test_numbers_are_labels_too_and_names_are_sorted_by_size(tmp_path):
    y = np.array([10.0, 9.0])[[row.y for row in ROWS]]
    a = np.array([True, False])[[row.a for row in ROWS]]
    spec = source(write(tmp_path, y=y, a=a)).splits(tmp_path)["train"].spec
    assert (spec.classes, spec.attributes) == (("9", "10"), ("False", "True"))


@pytest.mark.parametrize("kind", ["float16", "float64", "int64", "uint8", "bool"])
def test_features_of_any_number_become_floats(kind, tmp_path):
    x = np.random.default_rng(0).integers(0, 2, (len(ROWS), 3)).astype(kind)
    data = source(write(tmp_path, features=x)).splits(tmp_path)["train"]
    assert data.images.pixels.dtype == torch.float32
    assert data.images.pixels[:, :, 0, 0].tolist() == x.astype("float32").tolist()


def test_one_changed_value_makes_other_data_and_another_run(tmp_path):
    arrays = write_embeddings(tmp_path / "x.npz", ROWS)
    before = source().splits(tmp_path)
    identity = read(*config(tmp_path)).identity
    features = arrays["features"].copy()
    features[next(i for i, row in enumerate(ROWS) if row.split == 0), 3] += 1e-6
    write(tmp_path, features=features)
    after = source().splits(tmp_path)
    assert before["train"].fingerprint != after["train"].fingerprint
    assert before["test"].fingerprint == after["test"].fingerprint
    assert read(*config(tmp_path)).identity != identity
    assert (
        read(*config(tmp_path, "dataset.normalize=true")).identity
        != read(*config(tmp_path)).identity
    )


def test_features_of_length_one(tmp_path):
    made_of = source(write(tmp_path), normalize=True)
    x = made_of.splits(tmp_path)["val"].fetch(torch.arange(5)).x
    torch.testing.assert_close(made_of.transform(x).flatten(1).norm(dim=1), torch.ones(5))
    assert torch.equal(source().transform(x), x)


def test_splits_are_drawn_where_the_file_has_none(tmp_path):
    unit = np.arange(len(ROWS)) // 4
    splits = source(write(tmp_path, split=None)).splits(tmp_path)
    assert [len(split) for split in splits.values()] == [112, 16, 32]
    splits = source(write(tmp_path, split=None, unit=unit)).splits(tmp_path)
    units = [set(unit[split.source.numpy()]) for split in splits.values()]
    assert sum(map(len, units)) == len(set.union(*units))
    halves = source(fractions={"train": 0.5, "val": 0.25, "test": 0.25}).splits(tmp_path)
    assert len(halves["train"]) == 80
    write(tmp_path, unit=unit)
    told(source(), tmp_path, "unit ", "put all of its samples")
    write(tmp_path)
    told(source(fractions=(0.5, 0.25, 0.25)), tmp_path, "has an array split")


def test_without_an_attribute_nothing_is_repaired_and_classes_select(tmp_path):
    cfg = read(*config(tmp_path, name=write(tmp_path, a=None)))
    assert (cfg.dfr, cfg.train.selection) == (None, "val/worst_class")
    assert not source().splits(tmp_path)["train"].spec.known
    cfg = read(*config(tmp_path, name=write(tmp_path)))
    assert (cfg.choices["dfr"], cfg.train.selection) == ("val", "val/worst")


@pytest.mark.parametrize(
    "typed",
    [
        (),
        ("method=group_dro", "backbone=mlp", "backbone.width=16"),
        ("method=iw", "dfr=train"),
        ("method=scale", "dfr=none", "dataset.target_fraction=0.5", *SCALE),
        ("method=frozen",),
        ("analysis=[output_moments,selective]", "dfr=none"),
    ],
)
def test_methods_repairs_and_analyses_work_on_features(typed, tmp_path, command_line):
    write(tmp_path)
    epochs = () if "method=frozen" in typed else ("method.epochs=2",)
    ended = command_line.run("train", *config(tmp_path, *epochs, *typed))
    assert ended.code == 0, ended.out + ended.err


def test_a_linear_probe_is_the_default(tmp_path):
    method = build.build(read(*config(tmp_path, name=write(tmp_path))))[1]
    assert [tuple(p.shape) for p in method.parameters()] == [(2, 6), (2,)]


def test_prepare_draws_features_by_their_components(tmp_path, command_line):
    write(tmp_path)
    places = ("dataset.file=x.npz", f"paths.data={tmp_path}", f"paths.outputs={tmp_path / 'out'}")
    ended = command_line.run("prepare", "dataset=embeddings", *places)
    assert ended.code == 0, ended.err
    assert "attribute looks like a shortcut" in ended.out
    assert (tmp_path / "out" / "previews" / "embeddings.png").exists()


# --- refusals -------------------------------------------------------------------------------------

N = len(ROWS)


def broken(value, *rows):
    features = np.zeros((N, 4), "float64")
    features[list(rows), 1] = value
    return features


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"features": broken(np.nan, 6, 9)}, ("NaN or infinite in 2 of 160 rows", "row 7")),
        ({"features": broken(-np.inf, 3)}, ("NaN or infinite in 1 of 160 rows", "row 4")),
        ({"features": broken(1e300, 3)}, ("NaN or infinite in 1 ", "row 4")),  # too large
        ({"features": np.full((N, 2), "x")}, ("features are of type <U1",)),
        ({"features": np.zeros((N, 2), complex)}, ("features are of type complex128",)),
        ({"features": np.array([[object()]] * N)}, ("features is an array of objects",)),
        ({"features": np.zeros((N, 2, 2))}, ("shape (160, 2, 2)",)),
        ({"features": np.zeros(N)}, ("shape (160,)",)),
        ({"features": np.zeros((N, 0))}, ("shape (160, 0)",)),
        ({"features": None}, ("lacks features; it has y, a, split",)),
        ({"y": None}, ("lacks y",)),
        ({"y": np.zeros(N - 1, int)}, ("y has the shape (159,)", "160 rows")),
        ({"a": np.zeros((N, 2), int)}, ("a has the shape (160, 2)",)),
        ({"y": np.linspace(0, 1, N)}, ("y is 0.00", "row 2", "whole number")),
        ({"y": np.array([None, 1] * (N // 2))}, ("y is an array of objects",)),
        ({"y": np.array(["2020-01-01"] * N, "datetime64[D]")}, ("y is of type datetime64[D]",)),
        ({"a": np.where(np.arange(N) == 4, np.nan, 1)}, ("a is empty in 1 of 160 rows (row 5)",)),
        ({"split": np.array(["valid"] * N)}, ("'valid' in row 1", "is not a split")),
        ({"ids": np.zeros(N, int)}, ("ids is listed more than once",)),
    ],
)
def test_what_is_wrong_with_a_file_is_told(changed, parts, tmp_path):
    told(source(write(tmp_path, **changed)), tmp_path, str(tmp_path / "x.npz"), *parts)


def test_lists_of_features_that_differ_in_length_are_told(tmp_path):
    lists = [[1.0, 2.0]] * (N - 1) + [[1.0]]
    frame = pd.DataFrame({"features": lists, "y": [0, 1] * (N // 2)})
    frame.to_parquet(tmp_path / "x.parquet")
    told(source("x.parquet"), tmp_path, "between 1 and 2 values")


@pytest.mark.parametrize("name", ["x.npz", "x.safetensors", "x.parquet"])
def test_damaged_files_are_told(name, tmp_path):
    path = tmp_path / write(tmp_path, name)
    path.write_bytes(path.read_bytes()[:200])
    told(source(name), tmp_path, f"{path} is damaged")
    assert read(*config(tmp_path, name=name)).train.selection == "val/worst"
    path.unlink()
    told(source(name), tmp_path, f"dataset.file={name}: {path} does not exist")


def test_other_formats_and_transforms_of_images_are_refused(tmp_path):
    told(source("x.pkl"), tmp_path, "dataset.file=x.pkl is not .npz, .safetensors, .parquet")
    write(tmp_path)
    with pytest.raises(UserError, match="transform is for images"):
        read(*config(tmp_path, "+dataset/transform=dfr")).dataset.build()


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (("method=masktune", "backbone=mlp"), "method=masktune needs pixels"),
        (("features=frozen", "features/backbone=mlp"), "features=frozen needs pixels"),
    ],
)
def test_what_needs_pixels_is_refused(typed, sentence, tmp_path, command_line):
    write(tmp_path)
    ended = command_line.run("train", *config(tmp_path, *typed))
    assert ended.code == 2, ended.out + ended.err
    assert sentence in ended.err
    assert not (tmp_path / "out" / "runs").exists()
