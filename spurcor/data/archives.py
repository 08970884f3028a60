"""Safe, one-time extraction of data set archives: zip, and plain or compressed tar.

An untrusted archive may try to write outside its folder or to fill the disk. The names and link
targets of its members must therefore be relative and free of `..`, and their bytes are counted
before and during extraction. Extraction is atomic.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, Protocol

from filelock import FileLock

from spurcor.errors import UserError, on_one_line
from spurcor.system.files import is_clutter, read_json, replacing_folder, write_json
from spurcor.system.shapes import Extracted

MAX_BYTES = 60 * 10**9  # in total; the largest data set here takes 2 GB
MAX_MEMBERS = 2_000_000  # CelebA has 202,599 images
BLOCK = 1 << 20
MAX_READ = 1 << 26  # bound on a single read: tar headers are read in one piece
COMPRESSIONS: Mapping[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
MARK = ".archive.json"  # in an extracted folder; holds the size of its archive
# Raised by the standard library on damaged or truncated archives.
BROKEN = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, UnicodeError)


def folder_of(archive: Path) -> Path:
    """Return the folder next to `archive` into which it is extracted."""
    return archive.with_name(f"{archive.name}.extracted")


def folders_in(folder: Path) -> list[Path]:
    """Return the subfolders that may hold the data one level deeper, without extracted archives."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and not is_clutter(path.name) and not path.name.endswith(".extracted")
    )


def extracted(
    archive: Path, max_bytes: int = MAX_BYTES, max_members: int = MAX_MEMBERS
) -> Path | None:
    """Return the folder with the contents of `archive`, extracting it on first use.

    None if there is no such archive; one that was deleted after its extraction still counts. A
    `UserError` is raised if the archive is damaged, unsafe or too large, if the disk is full or not
    writable, or if the folder was extracted from a file of another size.
    """
    folder = folder_of(archive)
    if not archive.is_file():
        return folder if (folder / MARK).is_file() else None
    try:
        if not folder.exists():
            _extract_once(archive, folder, max_bytes, max_members)
        fix = f"remove {folder} to extract it again"
        size = read_json(folder / MARK, Extracted, fix)["bytes"]
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{archive} cannot be extracted to {folder} ({reason}); remove that folder if it"
            f" exists, and make sure that {folder.parent} is writable"
        ) from error
    if size != archive.stat().st_size:
        raise UserError(
            f"{folder} was not extracted from the {archive.name} that is next to it now; remove"
            " the folder to extract it again"
        )
    return folder


def _extract_once(archive: Path, folder: Path, max_bytes: int, max_members: int) -> None:
    """Extract the archive in one process while any others wait."""
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if folder.exists():
            return
        for leftover in folder.parent.glob(f".{folder.name}.*/"):  # of a killed extraction
            shutil.rmtree(leftover)
        try:
            size, count = _inspect(archive, max_bytes, max_members)
            free = shutil.disk_usage(folder.parent).free
            if size > free:
                raise UserError(
                    f"extracting {archive} takes {size / 1e9:.2f} GB in {folder.parent}, which has"
                    f" {free / 1e9:.2f} GB free; free some space, or move it to a larger disk and"
                    " set paths.data"
                )
            with replacing_folder(folder) as beside:
                _write_all(archive, beside, count, max_bytes)
                write_json(beside / MARK, {"bytes": archive.stat().st_size})
        except (*BROKEN, NotImplementedError, RuntimeError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk is at fault, not the archive
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"{archive} is damaged or truncated ({reason}); download it again"
            ) from error


# --- members --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """One member of an archive, as its header describes it."""

    name: str
    kind: Literal["file", "folder", "link", "hard link", "special"]
    size: int = 0
    target: str = ""  # for links only

    @property
    def leads_out(self) -> bool:
        """Whether the member's name or link target could lie outside the folder."""
        paths = [PurePosixPath(self.name), PurePosixPath(self.target)]
        return any(path.is_absolute() or ".." in path.parts for path in paths)


class Reader(Protocol):
    """An open archive."""

    def members(self) -> Iterator[Member]:
        """Iterate over all members in archive order."""

    def contents(self) -> Iterator[tuple[Member, IO[bytes] | None]]:
        """Iterate over all members in archive order, regular files with an open byte stream."""


class ZipReader:
    """A zip archive; members that are neither files nor folders count as special."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive

    def members(self) -> Iterator[Member]:
        """Iterate over the members listed in the central directory."""
        for info in self.archive.infolist():
            yield self._member(info)

    def contents(self) -> Iterator[tuple[Member, IO[bytes] | None]]:
        """Iterate over the members; a file's checksum is verified once it is read to its end."""
        for info in self.archive.infolist():
            member = self._member(info)
            if member.kind != "file":
                yield member, None
                continue
            with self.archive.open(info) as file:
                yield member, file

    def _member(self, info: zipfile.ZipInfo) -> Member:
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 if the archive records no Unix modes
        name = info.filename.replace("\\", "/")  # some Windows tools violate the standard
        if name.endswith("/"):
            return Member(name, "folder")
        regular = kind in (0, stat.S_IFREG)
        return Member(name, "file" if regular else "special", info.file_size)


class TarReader:
    """A tar archive, read once from beginning to end."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self.archive = archive

    def members(self) -> Iterator[Member]:
        """Iterate over the headers that precede the members."""
        for info in self.archive:
            yield self._member(info)

    def contents(self) -> Iterator[tuple[Member, IO[bytes] | None]]:
        """Iterate over the members, reading forwards: a compressed archive cannot be rewound."""
        for info in self.archive:
            yield self._member(info), self.archive.extractfile(info) if info.isreg() else None

    def _member(self, info: tarfile.TarInfo) -> Member:
        if info.isreg():
            return Member(info.name, "file", info.size)
        if info.isdir():
            return Member(info.name, "folder")
        if info.issym() or info.islnk():
            return Member(info.name, "link" if info.issym() else "hard link", 0, info.linkname)
        return Member(info.name, "special")


class Bounded(io.BufferedIOBase):
    """A stream of decompressed bytes that refuses the huge reads a forged header would cause."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def read(self, size: int | None = -1) -> bytes:
        """Read `size` bytes, at most MAX_READ; more raise a `tarfile.ReadError`."""
        if size is None or not 0 <= size <= MAX_READ:
            raise tarfile.ReadError("a header has an impossible size")
        return self.file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a position in the stream."""
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position in the stream."""
        return self.file.tell()


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[Reader]:
    """Open the archive with the reader for its actual format, whatever its name."""
    with archive.open("rb") as file:
        start = file.read(512)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        with zipfile.ZipFile(archive) as opened:
            yield ZipReader(opened)
        return
    decompress = next((f for magic, f in COMPRESSIONS.items() if start.startswith(magic)), open)
    with decompress(archive, "rb") as stream:
        try:
            opened_tar = tarfile.open(fileobj=Bounded(stream), mode="r:")  # noqa: SIM115 - below
        except tarfile.ReadError as error:
            page = start.lstrip().lower().startswith((b"<!doctype", b"<html"))
            what = "a web page" if page else "neither a zip nor a tar archive"
            raise UserError(
                f"{archive} is {what}, perhaps from a failed download; download it again"
            ) from error
        with opened_tar:
            yield TarReader(opened_tar)
        stream.read(MAX_READ)  # to the end, where the checksum of the stream is verified


# --- checking and writing -------------------------------------------------------------------------


def _inspect(archive: Path, max_bytes: int, max_members: int) -> tuple[int, int]:
    """Return total bytes and number of members; refuse a bad archive before anything is written."""
    size = count = 0
    with _opened(archive) as reader:
        for member in reader.members():
            size, count = size + member.size, count + 1
            if member.size < 0:
                raise tarfile.ReadError(f"{member.name} has {member.size} bytes")
            if member.leads_out:
                points = f", a link to {member.target}," if member.target else ""
                raise _refusal(archive, f"{member.name}{points} points outside the folder")
            if member.kind == "special":
                raise _refusal(archive, f"{member.name} is neither a file nor a folder")
            if count > max_members:
                raise _refusal(archive, f"it has more than {max_members:,} members")
            if size > max_bytes:
                raise _refusal(archive, f"it contains more than {max_bytes / 1e9:,.1f} GB")
    if not count:
        raise _refusal(archive, "it is empty")
    return size, count


def _refusal(archive: Path, reason: str) -> UserError:
    return UserError(
        f"{archive} was not extracted: {on_one_line(reason)}; if you trust it, extract it yourself"
        f" to {archive.parent}"
    )


def _write_all(archive: Path, folder: Path, count: int, max_bytes: int) -> None:
    from spurcor.system.terminal import tracked

    left = max_bytes
    title = f"extracting {archive} ({count:,} members)"
    with _opened(archive) as reader:
        for member, contents in tracked(reader.contents(), title, total=count):
            path = folder / member.name
            if member.kind == "folder":
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if contents is not None:
                left -= _copy(contents, path, member, archive, left)
            elif member.kind == "hard link":
                os.link(folder / member.target, path)
            else:
                os.symlink(member.target, path)


def _copy(contents: IO[bytes], path: Path, member: Member, archive: Path, left: int) -> int:
    """Write one file and return its size, which must match its header."""
    written = 0
    with path.open("wb") as file:
        while block := contents.read(BLOCK):
            written += len(block)
            if written > min(left, member.size):
                raise _refusal(archive, "it unpacks to more than its headers declare")
            file.write(block)
    if written != member.size:
        raise tarfile.ReadError(f"{member.name} has {written:,} bytes instead of {member.size:,}")
    return written
