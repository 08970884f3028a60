"""CelebA: faces with 40 attributes; hair colour and gender are correlated."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from spurcor.config.check import nearest
from spurcor.data.archives import extracted, folders_in
from spurcor.data.groups import GroupSpec, Split, members_by, usual_values
from spurcor.data.partition import check_fractions, drawn
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
IDENTITIES = ("identity_CelebA.txt", "identity_CelebA.csv")
IDENTITY_URL = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
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
PUBLISHED = sum(map(sum, COUNTS.values()))  # images


@dataclass(kw_only=True)
class CelebA(DataSource):
    """Blond hair, with gender as the spurious attribute; or any other pair of the 40 attributes.

    `label` is the class and `attribute` the spurious attribute. With `num_labels` L, y is (M, L) of
    0 and 1 for the first L attributes instead, and there is no spurious attribute. `split` is
    official, or identity: whole people, drawn in the shares `fractions` of TRAIN, VAL and TEST.
    Liu, Luo, Wang, Tang (ICCV 2015); as a benchmark of groups, Sagawa et al. (ICLR 2020).
    """

    transform: Transform = field(default_factory=lambda: Photo(resize=256, crop=224))
    label: str = BLOND
    attribute: str = MALE
    split: Literal["official", "identity"] = "official"
    fractions: tuple[float, ...] = (0.8, 0.1, 0.1)
    num_labels: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.shares = check_fractions(self.fractions)
        _refuse_same(self.label, self.attribute)
        if self.num_labels is not None and (self.label, self.attribute) != (BLOND, MALE):
            raise ValueError(
                f"label={self.label} and attribute={self.attribute} need num_labels=null"
            )
        if self.num_labels is not None and not 1 <= self.num_labels <= 40:
            raise ValueError(f"num_labels={self.num_labels} must be between 1 and 40")

    def load(self, root: Path) -> Photographs:
        """Read images and labels from whichever distribution of the data set is present."""
        if self.num_labels is None:
            photographs = read_pair(root, self.label, self.attribute)
        else:
            photographs = read_labels(root, self.num_labels)
        if self.split == "identity":
            photographs = self._by_person(photographs, root)
        if self.num_labels is None:
            photographs = _with_usual(photographs)
            photographs.warn_of_empty_groups()
        return photographs

    def _by_person(self, photographs: Photographs, root: Path) -> Photographs:
        """Draw the splits anew, with all images of a person in one of them."""
        units = read_people(root, photographs.names)
        g = photographs.spec.group(photographs.y, photographs.a)
        seed = derive_seed("celeba/identity", self.split_seed)
        members = drawn(g, self.shares, seed, units, f"fractions={list(self.fractions)}")
        return replace(photographs, members=members, units=units)


@dataclass(kw_only=True)
class CelebAScale(DataSource):
    """Gender, with hair colour as spurious attribute, the easier of the two to learn, as in SCALE.

    Blond women and men who are not blond are aligned. `label` and `attribute` choose another pair,
    whose aligned groups are those that are over-represented in the official TRAIN.

    TARGET takes `target_size` / 4 images of each group of the official TRAIN. Of the others, TRAIN
    takes `majority_size` of each aligned group and majority_size (1 - strength) / strength, rounded
    down, of each conflicting group. VAL and TEST are reduced to the size of their smallest group in
    every group.
    """

    transform: Transform = field(default_factory=lambda: Photo(resize=224))
    label: str = MALE
    attribute: str = BLOND
    strength: float = 1.0
    target_size: int = 1000
    majority_size: int = 10000

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_same(self.label, self.attribute)
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
        """Read the official data set and draw its groups anew."""
        if (self.label, self.attribute) == (MALE, BLOND):
            official = read_pair(root, BLOND, MALE)
            spec = GroupSpec(("female", "male"), ("blond", "not_blond"), aligned=(0, 1))
            y, a = official.a, 1 - official.y
        else:
            official = _with_usual(read_pair(root, self.label, self.attribute))
            spec, y, a = official.spec, official.y, official.a
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


def read_pair(root: Path, label: str, attribute: str) -> Photographs:
    """Read two attributes as y and a (M,) in the official splits.

    Only for hair colour and gender does the spec have its aligned groups; see `_with_usual`.
    """
    images, paths = find(root, IMAGES)[0], find(root, [*ANNOTATIONS, (METADATA,)])
    if paths[0].name == METADATA:
        columns = {BLOND: "y", MALE: "a"}
        for key, name in (("label", label), ("attribute", attribute)):
            if name not in columns:
                raise UserError(
                    f"dataset.{key}={name}: {paths[0]} has only {BLOND} and {MALE}; put"
                    f" {' and '.join(ANNOTATIONS[0])} beside it"
                )
        table = CsvTable.read(paths[0], ["filename"], ["split", "y", "a"])
        y, a = (table.codes(columns[name], (0, 1)) for name in (label, attribute))
        names, members = table.names("filename"), table.splits("split")
    else:
        header = _attributes(paths[0])
        _refuse_unknown(paths[0], header, {"label": label, "attribute": attribute})
        names, labels, members = _read(paths, header, [label, attribute])
        y, a = labels.unbind(1)
    default = (label, attribute) == (BLOND, MALE)
    spec = SPEC if default else GroupSpec(_names(label), _names(attribute))
    photographs = Photographs(spec, images, names, y, a, members)
    if default:
        photographs.warn_of_counts(COUNTS)
    else:
        photographs.warn_of_size(PUBLISHED)
    return photographs


def _names(attribute: str) -> tuple[str, str]:
    return f"not_{attribute.lower()}", attribute.lower()


def _with_usual(photographs: Photographs) -> Photographs:
    """Return the data with the groups over-represented in TRAIN aligned, unless it has some."""
    spec = photographs.spec
    if spec.aligned:
        return photographs
    counts = torch.bincount(photographs.groups[Split.TRAIN], minlength=spec.num_groups)
    aligned = usual_values(counts.view(spec.num_classes, -1))
    return replace(photographs, spec=replace(spec, aligned=aligned))


def _refuse_same(label: str, attribute: str) -> None:
    if label == attribute:
        raise ValueError(f"attribute={attribute} must differ from label")


def read_people(root: Path, names: Sequence[str]) -> Tensor:
    """Return the number (M,) of the person on each image."""
    try:
        (path,) = find(root, [(name,) for name in IDENTITIES])
    except UserError as error:
        raise UserError(
            f"dataset.split=identity needs {IDENTITIES[0]} beside the other tables of"
            f" {root / 'celeba'}; get it from {IDENTITY_URL}, or set dataset.split=official"
        ) from error
    if path.suffix == ".csv":
        table = CsvTable.read(path, ["image_id"], ["identity"])
    else:
        table = read_columns(path, {0: "image_id", 1: "identity"})
    people = dict(zip(table.names("image_id"), table.whole("identity").tolist(), strict=True))
    if missing := [name for name in names if name not in people]:
        raise UserError(
            f"{path} lacks {len(missing):,} of {len(names):,} images, {missing[0]} first; get all"
            " tables from the same source"
        )
    return torch.tensor([people[name] for name in names])


def read_labels(root: Path, num_labels: int) -> Photographs:
    """Read the first `num_labels` attributes as y (M, L) in the official splits."""
    images, paths = find(root, IMAGES)[0], find(root, ANNOTATIONS)
    attributes = _attributes(paths[0])
    chosen = attributes[:num_labels]
    names, y, members = _read(paths, attributes, chosen)
    spec = GroupSpec(tuple(chosen), (), task="multilabel")
    a = torch.zeros(len(y), dtype=torch.int64)
    photographs = Photographs(spec, images, names, y, a, members)
    photographs.warn_of_size(PUBLISHED)
    return photographs


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


def _refuse_unknown(path: Path, header: Sequence[str], chosen: Mapping[str, str]) -> None:
    """Refuse options, by name, that are no attribute of the table; capitals do not hide a hint."""
    known = {name.lower(): name for name in header}
    for key, name in chosen.items():
        if name not in header:
            near = known.get(name.lower()) or known.get(nearest(name.lower(), known) or "")
            hint = f"did you mean {near}?" if near else f"it has {' '.join(header) or 'none'}"
            raise UserError(f"dataset.{key}={name}: {path} lacks the attribute {name}; {hint}")


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
