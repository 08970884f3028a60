"""Mutated tables of the photograph data sets: read, or refused in one sentence.

python -m scripts.battery.tables [--seconds 60] [--seed 0] [--cases 1000]

The tables of folder, waterbirds, celeba (three forms) and isic, with cells, rows and columns
changed, in other encodings, cut off, overwritten by noise, or replaced by what is no table. What is
read of a folder must be what Python's own csv module reads. See fuzz.py for what must hold.
"""

import csv
import gzip
import io
import os
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import generators_photos as made

from scripts.battery.fuzz import Case, fuzz
from spurcor.data.photographs import Photographs
from spurcor.data.source import DataSource
from spurcor.datasets.celeba import CelebA
from spurcor.datasets.folder import Folder
from spurcor.datasets.isic import Isic
from spurcor.datasets.waterbirds import Waterbirds

ROWS = made.make_rows({0: (3, 2, 2, 3), 1: (1, 1, 1, 1), 2: (1, 1, 1, 1)})
CELLS = (
    *("", " ", "nan", "NaN", "None", "NA", "null", "inf", "-inf", "-1", "+1", "1.0", "1.5", "1e0"),
    *("1e400", "0x1", "01", "1_0", "True", "9" * 25, "9" * 400, "2", "3", "é", "ß", "²", "\u0661"),
    *("\U0001d7d9", "\0", "a\0b", "\t", "\r", "\x1b[31m", "\u202e", "\ufeff", "\ufffd"),
    *('"', '""', "'", "\\", ";", "#", "# x", ".", "..", "/", "a/b", "a//b", "./0.jpg", "../0.jpg"),
    *("/etc/passwd", "/dev/zero", "/dev/stdin", "x" * 300, "x/" * 2000, "~", "$HOME", "*", "{x}"),
    *("train", "TRAIN", "val", "test", "target", "snow", "a,b", "1,0", '"1', "=1+1", "0.jpg "),
    "../../outside/file",
)


@dataclass(frozen=True)
class Layout:
    """A data set: its files, which of them are tables, and how they are read."""

    files: Mapping[str, bytes]
    tables: tuple[str, ...]
    source: DataSource
    words: tuple[str, ...]


def _layouts() -> dict[str, Layout]:
    lines = [(f"{r.index}.jpg", made.NAMES[r.split], r.y, r.a) for r in ROWS]
    own = {f"folder/{r.index}.jpg": made.jpeg(r.index, (16, 14)) for r in ROWS}
    own["folder/metadata.csv"] = made.csv("filename,split,y,a", lines)
    faces = made.below("celeba", made.faces(ROWS))
    folder = Folder(transform=made.SMALL, csv="folder/metadata.csv", store="disk")
    celeba = CelebA(transform=made.SMALL, store="disk")
    found = {
        "folder": (own, folder, ("dataset=folder",)),
        "waterbirds": (
            made.below("waterbirds_v1.0", made.waterbirds(ROWS)),
            Waterbirds(transform=made.SMALL, store="disk"),
            ("dataset=waterbirds",),
        ),
        "isic": (
            made.below("isic", made.isic(ROWS)),
            Isic(transform=made.SMALL, store="disk"),
            ("dataset=isic",),
        ),
    }
    for name, of in (("txt", made.celeba_txt), ("csv", made.celeba_csv)):
        files = {**faces, **made.below("celeba", of(ROWS))}
        found[f"celeba-{name}"] = (files, celeba, ("dataset=celeba",))
    files = {**faces, **made.below("celeba", made.celeba_metadata(ROWS))}
    found["celeba-metadata"] = (files, celeba, ("dataset=celeba",))
    return {
        name: Layout(files, tuple(f for f in files if f.endswith((".csv", ".txt"))), source, words)
        for name, (files, source, words) in found.items()
    }


# --- mutations of a text --------------------------------------------------------------------------


def cells(rng: random.Random, text: bytes) -> bytes:
    """Another value in some cells, or two that are exchanged."""
    lines, by = _lines(text)
    for _ in range(rng.choice((1, 1, 1, 2, 5, len(lines)))):
        row = rng.choice(lines)
        column = rng.randrange(len(row))
        other = rng.choice(lines)
        known = other[min(column, len(other) - 1)]
        value = rng.choice((*CELLS, known, known.upper(), known[:-1], f" {known}", f'"{known}"'))
        row[column] = f'"{value}"' if rng.random() < 0.2 else value
    return _text(lines, by)


def rows(rng: random.Random, text: bytes) -> bytes:
    """Rows removed, doubled, moved, added, cut."""
    lines, by = _lines(text)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines))
        what = rng.randrange(8)
        if what == 0 and len(lines) > 1:
            del lines[at : at + rng.choice((1, 1, 3, len(lines)))]
            lines = lines or [[""]]
        elif what == 1:
            lines.insert(rng.randrange(len(lines) + 1), list(lines[at]))
        elif what == 2:
            rng.shuffle(lines)
        elif what == 3:
            lines.insert(at, rng.choice(([""], ["", ""], ["#"], [" "], ["# a comment"])))
        elif what == 4:
            lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)] or [""]
        elif what == 5:
            lines[at] = [*lines[at], *rng.choices(CELLS, k=rng.choice((1, 2, 500)))]
        elif what == 6:
            lines = lines[:1]
        else:
            lines *= rng.choice((2, 50))
    return _text(lines, by)


def columns(rng: random.Random, text: bytes) -> bytes:
    """Columns removed, doubled, exchanged, renamed, added."""
    lines, by = _lines(text)
    width = max(map(len, lines))
    one, other, what = rng.randrange(width), rng.randrange(width), rng.randrange(6)
    if what == 0:
        for row in lines:
            del row[one : one + 1]
    elif what == 1:
        for row in lines:
            row.insert(other, row[min(one, len(row) - 1)])
    elif what == 2:
        for row in lines:
            if max(one, other) < len(row):
                row[one], row[other] = row[other], row[one]
    elif what == 3:
        lines[0][min(one, len(lines[0]) - 1)] = rng.choice((*CELLS, lines[0][0].upper()))
    elif what == 4:
        for number, row in enumerate(lines):
            row.insert(0, "" if number == 0 else str(number - 1))
    else:
        for row in lines:
            row.extend(rng.choices(CELLS[:20], k=1) * rng.choice((1, 3, 2000)))
    return _text(lines, by)


def spelling(rng: random.Random, text: bytes) -> bytes:
    """The same in another encoding, with other ends of lines or other separators."""
    readable = text.decode("utf-8", "replace")
    return rng.choice(
        (
            readable.encode("utf-16"),
            readable.encode("utf-32"),
            readable.encode("utf-8-sig"),
            ("é" + readable).encode("latin-1", "replace"),
            readable.replace("\n", "\r\n").encode(),
            readable.replace("\n", "\r").encode(),
            readable.replace(",", ";").encode(),
            readable.replace(",", "\t").encode(),
            readable.replace(",", ", ").encode(),
            readable.replace(",", '","').encode(),
            readable.removesuffix("\n").encode(),
            f"sep=,\n{readable}".encode(),
        )
    )


def noise(rng: random.Random, text: bytes) -> bytes:
    """Bytes changed, removed, inserted, cut off."""
    found = bytearray(text or b"x")
    for _ in range(rng.choice((1, 1, 3, 30))):
        at = rng.randrange(len(found)) if found else 0
        what = rng.randrange(5)
        if what == 0 and found:
            found[at] = rng.randrange(256)
        elif what == 1:
            del found[at : at + rng.choice((1, 5, 100))]
        elif what == 2:
            found[at:at] = rng.randbytes(rng.choice((1, 4, 50)))
        elif what == 3:
            found[at:at] = rng.choice((b"\0", b'"', b"\n", b"\r", b",", b"\xff", b"\xed\xa0\x80"))
        elif rng.random() < 0.3:
            del found[at:]
    return bytes(found)


def another(rng: random.Random, text: bytes) -> bytes:
    """What is no such table at all."""
    return rng.choice(
        (
            b"",
            b"\n",
            b"\n" * 1000,
            b"\0" * 1000,
            b"<!DOCTYPE html><html>Quota exceeded</html>",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
            b'{"filename": ["0.jpg"]}',
            gzip.compress(text),
            b"PK\x03\x04" + text,
            rng.randbytes(500),
            text.partition(b"\n")[0],
            b"x" * 2_000_000,
            b",".join([b"x"] * 200_000),
            b'"' + text,
            text * 2,
        )
    )


MUTATIONS = (cells, cells, cells, rows, rows, columns, spelling, noise, another)


def _lines(text: bytes) -> tuple[list[list[str]], str]:
    """Rows of cells, and what is between these."""
    readable = text.decode("utf-8", "surrogateescape")
    by = "," if "," in readable else " "
    return [line.split(by) for line in readable.split("\n")], by


def _text(lines: list[list[str]], by: str) -> bytes:
    return "\n".join(by.join(row) for row in lines).encode("utf-8", "surrogateescape")


# --- cases ----------------------------------------------------------------------------------------


def special(rng: random.Random, path: Path) -> str:
    """Something that is no file in the place of one; returns what."""
    path.unlink()
    kind = rng.choice(("folder", "pipe", "loop", "dangling", "null", "endless"))
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        targets = {"loop": path.name, "dangling": "nowhere", "null": "/dev/null"}
        path.symlink_to(targets.get(kind, "/dev/zero"))
    return kind


LAYOUTS = _layouts()


def make(rng: random.Random, root: Path) -> Case:
    """A data set one of whose tables was mutated."""
    name = rng.choice(list(LAYOUTS))
    layout = LAYOUTS[name]
    made.put(root, layout.files)
    table = rng.choice(layout.tables)
    if rng.random() < 0.03:
        did = [special(rng, root / table)]
    else:
        chosen = rng.choices(MUTATIONS, k=rng.choice((1, 1, 1, 2, 3)))
        content = layout.files[table]
        for mutation in chosen:
            content = mutation(rng, content)
        (root / table).write_bytes(content)
        did = [mutation.__name__ for mutation in chosen]
    check = _same_as_csv if name == "folder" else _whole
    return Case(f"{table}: {', '.join(did)}", lambda: _load(layout, root, check), layout.words)


def _load(layout: Layout, root: Path, check: Callable[[Photographs, Path], None]) -> None:
    photographs = layout.source.load(root)
    assert isinstance(photographs, Photographs)
    check(photographs, root)
    for split in layout.source.splits(root).values():
        split.fetch(split.g.argsort()[:2])


def _whole(photographs: Photographs, root: Path) -> None:
    """Labels are within their ranges, and every row is in one split at most."""
    rows = [row for members in photographs.members.values() for row in members.tolist()]
    assert len(rows) == len(set(rows)) <= len(photographs.names)
    assert len(set(photographs.names)) == len(photographs.names)
    assert 0 <= int(photographs.y.min()) <= int(photographs.y.max()) < photographs.spec.num_classes


def _same_as_csv(photographs: Photographs, root: Path) -> None:
    _whole(photographs, root)
    try:
        text = (root / "folder" / "metadata.csv").read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:  # read as an older Windows program writes it: nothing to compare
        return
    by = max(",;\t", key=text.partition("\n")[0].count)
    read = list(csv.reader(io.StringIO(text, newline=""), delimiter=by, skipinitialspace=True))
    header = [name.strip() for name in read[0]]
    at = {name: header.index(name) for name in ("filename", "split", "y", "a")}
    lines = [row for row in read[1:] if any(cell.strip() for cell in row)]
    expected = {row[at["filename"]]: (row[at["y"]].strip(), row[at["a"]].strip()) for row in lines}
    spec = photographs.spec
    found = {
        name: (spec.classes[y], spec.attributes[a])
        for name, y, a in zip(
            photographs.names, photographs.y.tolist(), photographs.a.tolist(), strict=True
        )
    }
    assert found == expected, sorted(found.items() ^ expected.items())[:4]


if __name__ == "__main__":
    sys.exit(fuzz("tables", __doc__, make))
