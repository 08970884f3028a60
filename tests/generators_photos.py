"""Small copies of the photograph data sets in every form in which they are handed around.

Each image is of one colour that tells its number, so that what was loaded can be compared with the
rows that were written, whatever was done to sizes and orders in between.
"""

import io
import random
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from spurcor.data.transforms import Photo
from spurcor.errors import UserError

STEPS = 6  # of each colour channel: 216 images can be told apart
SHAPES = [(300, 200), (200, 300), (225, 225), (61, 47), (500, 375)]  # width, height
HEADER = (  # of the authors' file, as it stands there
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose "
    "Black_Hair Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee "
    "Gray_Hair Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache Narrow_Eyes "
    "No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns Smiling "
    "Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace "
    "Wearing_Necktie Young "
)
COUNTS = {0: (5, 2, 1, 4), 1: (3, 2, 2, 2), 2: (2, 3, 2, 3)}  # per split and group


@dataclass(frozen=True)
class Row:
    """An image: its number, class, attribute and the number of its split."""

    index: int
    y: int
    a: int
    split: int


def make_rows(counts=COUNTS, seed=0):
    """Rows with `counts` of each group 2 y + a in each split, in no order of any of them."""
    labels = [
        (group // 2, group % 2, split)
        for split, groups in counts.items()
        for group, count in enumerate(groups)
        for _ in range(count)
    ]
    random.Random(seed).shuffle(labels)
    return [Row(index, *label) for index, label in enumerate(labels)]


def colour(index):
    digits = (index // STEPS**2, index // STEPS % STEPS, index % STEPS)
    return tuple(25 + 40 * digit for digit in digits)


def jpeg(index, size):
    file = io.BytesIO()
    Image.new("RGB", size, colour(index)).save(file, "JPEG", quality=95)
    return file.getvalue()


def seen(split):
    """(number, y, a) of what a split shows, in its order."""
    x = torch.cat([split.fetch(torch.tensor([i])).x for i in range(len(split))])
    digits = ((x.float().mean(dim=(2, 3)) - 25) / 40).round().long()
    numbers = digits @ torch.tensor([STEPS**2, STEPS, 1])
    return list(zip(numbers.tolist(), split.y.tolist(), split.a.tolist(), strict=True))


def expected(rows, split):
    return [(row.index, row.y, row.a) for row in rows if row.split == split]


ROWS = make_rows()
NAMES = {0: "train", 1: "val", 2: "test"}
SMALL = Photo(size=16, resize=16)


def check(source, root, rows=ROWS):
    """Every image is in its split, with its labels, in the order of the table."""
    splits = source.splits(root)
    assert list(splits) == list(NAMES.values())
    for code, name in NAMES.items():
        assert seen(splits[name]) == expected(rows, code), name
    return splits


def told(source, root, *parts):
    """What is wrong is told in one sentence that has all these parts."""
    with pytest.raises(UserError) as caught:
        source.splits(root)
    sentence = str(caught.value)
    assert "\n" not in sentence
    for part in parts:
        assert part in sentence, sentence


def edit(path, change):
    lines = path.read_text().splitlines()
    change(lines)
    path.write_text("\n".join(lines) + "\n")


def cell(lines, row, column, value):
    parts = lines[row].split(",")
    parts[column] = value
    lines[row] = ",".join(parts)


# --- files, as a mapping of names to bytes, and what becomes of them -----------------------------


def put(folder: Path, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def put_zip(path: Path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def put_tar(path: Path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def below(folder, files):
    return {f"{folder}/{name}": content for name, content in files.items()}


def csv(header, lines):
    return ("\n".join([header, *(",".join(map(str, line)) for line in lines)]) + "\n").encode()


# --- Waterbirds -----------------------------------------------------------------------------------


def waterbirds(rows):
    """metadata.csv and the folders of species beside it."""
    species = ("001.Black_footed_Albatross", "014.Indigo_Bunting")
    names = [f"{species[1 - row.y]}/Bird_{row.index:04d}_{row.index + 900}.jpg" for row in rows]
    lines = [
        (row.index + 1, name, row.y, row.split, row.a, f"/o/ocean/{row.index:08d}.jpg")
        for row, name in zip(rows, names, strict=True)
    ]
    header = "img_id,img_filename,y,split,place,place_filename"
    images = {
        name: jpeg(row.index, SHAPES[row.index % len(SHAPES)])
        for row, name in zip(rows, names, strict=True)
    }
    return {"metadata.csv": csv(header, lines), **images}


# --- CelebA: y blond, a male ----------------------------------------------------------------------


def face(row):
    return f"{row.index + 1:06d}.jpg"


def attributes_of(row):
    """The 40 of them, -1 or 1; all but hair colour and gender are drawn."""
    values = random.Random(row.index).choices((-1, 1), k=40)
    values[9], values[20] = 2 * row.y - 1, 2 * row.a - 1
    return values


def faces(rows):
    return {f"img_align_celeba/{face(row)}": jpeg(row.index, (178, 218)) for row in rows}


def celeba_txt(rows):
    """The authors' two files: a count, names, fixed columns; and no header at all."""
    lines = [f"{face(row)} " + " ".join(f"{v:2d}" for v in attributes_of(row)) for row in rows]
    head = [str(len(rows)), HEADER]
    partition = "".join(f"{face(row)} {row.split}\n" for row in rows)
    return {
        "list_attr_celeba.txt": ("\n".join([*head, *lines]) + "\n").encode(),
        "list_eval_partition.txt": partition.encode(),
    }


def celeba_csv(rows):
    """Kaggle's two files."""
    header = ",".join(["image_id", *HEADER.split()])
    return {
        "list_attr_celeba.csv": csv(header, [(face(row), *attributes_of(row)) for row in rows]),
        "list_eval_partition.csv": csv(
            "image_id,partition", [(face(row), row.split) for row in rows]
        ),
    }


def celeba_metadata(rows):
    """The file of BalancingGroups."""
    lines = [(row.index + 1, face(row), row.split, row.y, row.a) for row in rows]
    return {"metadata_celeba.csv": csv("id,filename,split,y,a", lines)}


# --- ISIC -----------------------------------------------------------------------------------------


def isic(rows, extension=""):
    """The table, with or without extensions in it, and the images."""
    names = [f"ISIC_{row.index:07d}" for row in rows]
    lines = [
        (i, f"{name}{extension}", "torso", row.y, row.split, row.a)
        for i, (name, row) in enumerate(zip(names, rows, strict=True))
    ]
    header = ",isic_id,anatom_site_general,benign_malignant,split,patches"
    images = {
        f"multi_groups/{name}.jpg": jpeg(row.index, SHAPES[row.index % len(SHAPES)])
        for name, row in zip(names, rows, strict=True)
    }
    return {"raw_val_4groups.csv": csv(header, lines), **images}


# --- HAM10000 -------------------------------------------------------------------------------------

HAM_HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"
HAM_DX = (("nv", "bkl", "df", "vasc"), ("mel", "bcc", "akiec"))


def ham_id(row):
    return f"ISIC_{24306 + row.index:07d}"


def ham_line(row):
    """A row of HAM10000_metadata: y malignant, a the clinic and the sex."""
    dx = HAM_DX[row.y][row.index % len(HAM_DX[row.y])]
    age = f"{20 + 5 * (row.index % 13)}.0"
    place = ("back", "lower extremity", "face")[row.index % 3]
    clinic = ("rosendahl", "vidir_modern")[row.a]
    lesion = f"HAM_{row.index:07d}"
    return (lesion, ham_id(row), dx, "histo", age, ("male", "female")[row.a], place, clinic)


def ham_images(rows, folder="HAM10000_images_part_{}"):
    """The two folders of images, each with half of the rows."""
    half = len(rows) // 2
    return {
        f"{folder.format(1 + (i >= half))}/{ham_id(row)}.jpg": jpeg(row.index, (60, 45))
        for i, row in enumerate(rows)
    }


def ham10000(rows):
    """Dataverse's table and folders."""
    table = csv(HAM_HEADER, [ham_line(row) for row in rows])
    return {"HAM10000_metadata.csv": table, **ham_images(rows)}
