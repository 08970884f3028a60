"""CelebA: faces with 40 attributes; hair colour and gender are correlated."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from spurcor.data.archives import extracted, folders_in
from spurcor.data.groups import GroupSpec, Split, members_by
from spurcor.data.photographs import Photographs
from spurcor.data.source import DataSource
from spurcor.data.tables import CsvTable, columns_of, first_lines, read_columns
from spurcor.data.transforms import Photo, Transform
from spurcor.errors import UserError
from spurcor.seeding import derive_seed

URL = "https://www.kaggle.com/datasets/jessicali9530/celeba-dataset"
FACES = "img_align_celeba"
IMAGES = ((f"{FACES}/{FACES}",), (FACES,))
ANNOTATIONS = (
    ("list_attr_celeba.txt", "list_eval_partition.txt"),  # the authors' and torchvision's
    ("list_attr_celeba.csv", "list_eval_partition.csv"),  # Kaggle's
)
METADATA = "metadata_celeba.csv"  # from BalancingGroups; has hair colour and gender only
FOLDERS = ("celeba", "celeba/archive", "celeba/Anno", "celeba/Eval", "celeba/Img", "")
ARCHIVES = ("archive.zip", "img_align_celeba.zip")
BLOND, MALE = "Blond_Hair", "Male"
# Of the 162,770 training images 42 % show men: 48 % of the non-blond and 6 % of the blond ones. So
# gender predicts hair colour, although neither gender dominates among the non-blond.
SPEC = GroupSpec(("not_blond", "blond"), ("female", "male"), aligned=(1, 0))
COUNTS: dict[str, tuple[int, ...]] = {  # groups in the order of `GroupSpec.names`
    Split.TRAIN: (71629, 66874, 22880, 1387),
    Split.VAL: (8535, 8276, 2874, 182),
    Split.TEST: (9767, 7535, 2480, 180),
}


@dataclass(kw_only=True)
class CelebA(DataSource):
    """Blond hair, with gender as the spurious attribute; or the first attributes as labels.

    With `num_labels` L, y is (M, L) of 0 and 1 for the first L of the 40 attributes, and there is
    no spurious attribute. Official splits. Liu, Luo, Wang, Tang (ICCV 2015); as a benchmark of
    groups, Sagawa et al. (ICLR 2020).
    """

    transform: Transform = field(default_factory=lambda: Photo(resize=256, crop=224))
    num_labels: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_labels is not None and not 1 <= self.num_labels <= 40:
            raise ValueError(f"num_labels={self.num_labels} must be between 1 and 40")

    def load(self, root: Path) -> Photographs:
        """Read images and labels from whichever distribution of the data set is present."""
        if self.num_labels is None:
            return read_blond(root)
        return read_labels(root, self.num_labels)


@dataclass(kw_only=True)
class CelebAScale(DataSource):
    """Gender, with hair colour as spurious attribute, the easier of the two to learn, as in SCALE.

    Blond women and men who are not blond are aligned. TARGET takes `target_size` / 4 images of each
    group of the official TRAIN. Of the others, TRAIN takes `majority_size` of each aligned group
    and majority_size (1 - strength) / strength, rounded down, of each conflicting group. VAL and
    TEST are reduced to the size of their smallest group in every group.
    """

    transform: Transform = field(default_factory=lambda: Photo(resize=224))
    strength: float = 1.0
    target_size: int = 1000
    majority_size: int = 10000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength={self.strength} must be above 0 and at most 1")
        if self.target_size < 4 or self.target_size % 4:
            raise ValueError(
                f"target_size={self.target_size} must be a multiple of 4 and at least 4"
            )
        if self.majority_size < 1:
            raise ValueError(f"majority_size={self.majority_size} must be at least 1")
        if self.target_fraction and self.target_from == "val":
            raise ValueError(
                f"target_fraction={self.target_fraction} must be 0: TARGET already consists of"
                " target_size images; target_from=train replaces it with a share of TRAIN"
            )

    def load(self, root: Path) -> Photographs:
        """Read the official data set and swap the roles of hair colour and gender."""
        official = read_blond(root)
        spec = GroupSpec(("female", "male"), ("blond", "not_blond"), aligned=(0, 1))
        y, a = official.a, 1 - official.y
        generator = torch.Generator().manual_seed(derive_seed("celeba_scale", self.split_seed))
        groups = {
            name: _shuffled_groups(spec.group(y[rows], a[rows]), rows, spec, generator)
            for name, rows in official.members.items()
        }
        num_target = self.target_size // 4
        ratio = (1 - self.strength) / self.strength
        num_minority = int(self.majority_size * ratio + 1e-9)
        sizes = [self.majority_size if own else num_minority for own in spec.is_aligned().tolist()]
        for name, rows, size in zip(spec.names, groups[Split.TRAIN], sizes, strict=True):
            if num_target + size > len(rows):
                raise UserError(
                    f"dataset.target_size={self.target_size}, strength={self.strength} and"
                    f" majority_size={self.majority_size} need {num_target + size:,} images of"
                    f" {name}, but {official.root} has {len(rows):,}; use smaller sizes or a"
                    " larger strength"
                )
        trained = zip(groups[Split.TRAIN], sizes, strict=True)
        members = {
            str(Split.TRAIN): [rows[num_target : num_target + size] for rows, size in trained],
            str(Split.TARGET): [rows[:num_target] for rows in groups[Split.TRAIN]],
        }
        for name in map(str, (Split.VAL, Split.TEST)):
            smallest = min(len(rows) for rows in groups[name])
            if not smallest:
                raise UserError(
                    f"{official.root}: {name} has an empty group; use the complete data set"
                )
            members[name] = [rows[:smallest] for rows in groups[name]]
        drawn = {name: torch.cat(parts).sort()[0] for name, parts in members.items()}
        return replace(official, spec=spec, y=y, a=a, members=drawn)


def _shuffled_groups(
    g: Tensor, rows: Tensor, spec: GroupSpec, generator: torch.Generator
) -> list[Tensor]:
    """Return the `rows` (N,) of each of the G groups, in random order."""
    order = torch.randperm(len(g), generator=generator)
    shuffled = {int(g[members[0]]): rows[members] for members in members_by(g, order)}
    return [shuffled.get(group, rows[:0]) for group in range(spec.num_groups)]


# --- reading --------------------------------------------------------------------------------------


def read_blond(root: Path) -> Photographs:
    """Read hair colour y and gender a (M,) in the official splits."""
    images, paths = find(root, IMAGES)[0], find(root, [*ANNOTATIONS, (METADATA,)])
    if paths[0].name == METADATA:
        table = CsvTable.read(paths[0], ["filename"], ["split", "y", "a"])
        y, a = table.codes("y", (0, 1)), table.codes("a", (0, 1))
        names, members = table.names("filename"), table.splits("split")
    else:
        names, labels, members = _read(paths, _attributes(paths[0]), [BLOND, MALE])
        y, a = labels.unbind(1)
    photographs = Photographs(SPEC, images, names, y, a, members)
    photographs.warn_of_counts(COUNTS)
    return photographs


def read_labels(root: Path, num_labels: int) -> Photographs:
    """Read the first `num_labels` attributes as y (M, L) in the official splits."""
    images, paths = find(root, IMAGES)[0], find(root, ANNOTATIONS)
    attributes = _attributes(paths[0])
    chosen = attributes[:num_labels]
    names, y, members = _read(paths, attributes, chosen)
    spec = GroupSpec(tuple(chosen), (), task="multilabel")
    return Photographs(spec, images, names, y, torch.zeros(len(y), dtype=torch.int64), members)


def find(root: Path, alternatives: Iterable[Sequence[str]]) -> list[Path]:
    """Return the paths of the first alternative whose files and folders all exist.

    Archives are extracted only if no folder has them. A `UserError` is raised if nothing is found.
    """
    alternatives = list(alternatives)
    places = [root / folder for folder in FOLDERS]
    places += [inner for inner in folders_in(root / "celeba") if inner.name != FACES]
    if (found := _search(places, alternatives)) is not None:
        return found
    for place in list(places):
        for name in ARCHIVES:
            if place == root and name == "archive.zip":  # the name of every download from Kaggle
                continue
            if (folder := extracted(place / name)) is not None:
                places += [folder, *(inner for inner in folders_in(folder) if inner.name != FACES)]
                if (found := _search(places, alternatives)) is not None:
                    return found
    told = [" with ".join(Path(name).name for name in names) for names in alternatives]
    wanted = ", nor ".join(dict.fromkeys(told))
    raise UserError(
        f"{root / 'celeba'} has no {wanted}; download archive.zip from {URL} and put it there"
    )


def _search(places: Sequence[Path], alternatives: Sequence[Sequence[str]]) -> list[Path] | None:
    for names in alternatives:
        paths = [next((p / name for p in places if _is_there(p / name)), None) for name in names]
        found = [path for path in paths if path is not None]
        if len(found) == len(names):
            return found
    return None


def _is_there(path: Path) -> bool:
    """Return whether the path exists as a table (with a suffix) or as a folder of images."""
    return path.is_file() if path.suffix else path.is_dir()


def _attributes(path: Path) -> list[str]:
    """Return the names of the attributes in the file's order."""
    if path.suffix == ".csv":
        return [name for name in columns_of(path, "image_id") if name != "image_id"]
    lines = first_lines(path, 2)
    return lines[_num_counts(lines)].split() if len(lines) > 1 else []


def _num_counts(lines: Sequence[str]) -> int:
    """Return 1 if the first line is the number of images, which some copies lack, otherwise 0."""
    return int(bool(re.fullmatch(r"[\d,.]*", lines[0].strip())))


def _read(
    paths: Sequence[Path], header: Sequence[str], labels: Sequence[str]
) -> tuple[list[str], Tensor, dict[str, Tensor]]:
    """Return file names (M,), labels (M, L) of 0 and 1, and the rows of each split."""
    attributes, partition = paths
    if missing := [label for label in labels if label not in header]:
        have = " ".join(header) or "none"
        raise UserError(f"{attributes} lacks the attributes {', '.join(missing)}; it has {have}")
    if attributes.suffix == ".csv":
        table = CsvTable.read(attributes, ["image_id"], labels)
        split = CsvTable.read(partition, ["image_id"], ["partition"])
    else:
        positions = {header.index(label) + 1: label for label in labels}
        said = _num_counts(first_lines(attributes, 1))
        table = read_columns(attributes, {0: "image_id", **positions}, skip=1 + said)
        split = read_columns(partition, {0: "image_id", 1: "partition"})
        if said:
            _check_count(attributes, len(table))
    names = table.names("image_id")
    split = _in_order(split, table)
    y = torch.stack([(table.codes(label, (-1, 1)) + 1) // 2 for label in labels], dim=1)
    return names, y, split.splits("partition")


def _check_count(path: Path, count: int) -> None:
    """Compare the number of rows with the one on the first line of the authors' file."""
    said = first_lines(path, 1)[0].strip()
    if said != str(count):
        raise UserError(f"{path} announces {said[:20]} rows but has {count:,}; download it again")


def _in_order(split: CsvTable, table: CsvTable) -> CsvTable:
    """Return the partition table in the order of the attribute table."""
    names, others = table.frame["image_id"], split.frame["image_id"]
    if names.equals(others):
        return split
    split.names("image_id")
    fix = "get both files from the same source"
    table.refuse(~names.isin(others), "image_id", f"is not in {split.path}", fix)
    split.refuse(~others.isin(names), "image_id", f"is not in {table.path}", fix)
    return CsvTable(split.path, split.frame.set_index("image_id").loc[names].reset_index())
