"""ISIC with and without extensions in its table."""

import generators_photos as made
import pytest
from generators_photos import ROWS, SMALL, check, edit, told

from spurcor.datasets.isic import Isic


def isic(**options):
    return Isic(transform=SMALL, store="disk", **options)


@pytest.mark.parametrize("extension", ["", ".jpg"])
@pytest.mark.parametrize("folder", ["isic", ".", "isic/archive"])
def test_isic(extension, folder, tmp_path):
    made.put(tmp_path / folder, made.isic(ROWS, extension))
    for name in (".DS_Store", "Thumbs.db", "._ISIC_0000001.jpg"):
        (tmp_path / folder / "multi_groups" / name).write_text("")
    splits = check(isic(), tmp_path)
    spec = splits["train"].spec
    assert spec.names == [
        "benign/no_patch",
        "benign/patch",
        "malignant/no_patch",
        "malignant/patch",
    ]
    assert spec.is_aligned().tolist() == [False, True, True, False]
    part = isic(subset_size=4, drop_groups=("malignant/patch",), target_fraction=0.4)
    counts = {name: s.group_counts.tolist() for name, s in part.splits(tmp_path).items()}
    assert counts["train"][3] == 0
    assert sum(counts["train"]) == sum(counts["val"]) == sum(counts["test"]) == 4
    assert counts["target"] == [1, 1, 1, 1]


def test_bad_isic_is_told(tmp_path):
    told(isic(), tmp_path, f"{tmp_path / 'isic'} has no raw_val_4groups.csv", "isic-archive.com")
    made.put(tmp_path / "isic", made.isic(ROWS))
    images = tmp_path / "isic" / "multi_groups"
    (images / "ISIC_0000003.jpg").unlink()
    (images / "ISIC_0000007.jpg").unlink()
    told(isic(), tmp_path, "lacks 2 of ", "ISIC_0000003", "ISIC_0000007")
    made.put(images, {"ISIC_0000004.png": b"", "ISIC_0000009.jpeg": b""})
    told(isic(), tmp_path, "names several files in 2 of 31 rows", "ISIC_0000009", "extension")


def test_a_lesion_with_and_without_extension_is_there_twice(tmp_path):
    made.put(tmp_path / "isic", made.isic(ROWS))
    table = tmp_path / "isic" / "raw_val_4groups.csv"
    name = table.read_text().splitlines()[1].split(",")[1]
    edit(table, lambda lines: lines.append(f"99,{name}.jpg,torso,0,0,0"))
    told(isic(), tmp_path, "isic_id is listed more than once in 2 of 32 rows", f"{name}.jpg")
