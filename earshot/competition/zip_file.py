"""Unpacks a zip safely; the checks, markers and errors are shared with other archives."""

import contextlib
import errno
import hashlib
import json
import lzma
import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from earshot.core.errors import UserError, raise_if_temporary
from earshot.core.files import hold_lock

MAX_MEMBERS = 500_000
MAX_RATIO = 100  # audio hardly compresses: a zip that grows a hundredfold is a zip bomb ...
MAX_SMALL = 2**30  # ... unless all of it is small (digital silence and csv files do compress)
MARKER = ".unpacked"
DAMAGED = (
    RuntimeError,
    NotImplementedError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    struct.error,
    ValueError,
    OverflowError,
)


class DamagedArchive(UserError):
    """An archive that is cut off or altered."""


class UnpackError(UserError):
    """The archive may be fine, but its content can't be written."""


def unpack_archive(path: Path, into: Path) -> Path:
    """Unpack a zip into the folder `into`, or find it unpacked there; returns its single top folder, else
    `into`.

    Unpacks beside `into` and renames, so that a killed run leaves nothing incomplete; a changed zip replaces
    it.

    Raises:
        UserError: not a readable zip, or one with a link, a path that leads outside, or an implausible size.
    """
    into = Path(into)
    with report_errors(path, into), zipfile.ZipFile(path) as archive:
        members = check_members(archive, path)
        fill_folder(
            into,
            compute_signature(archive, path),
            lambda partial: extract_members(archive, members, partial, path),
        )
    return find_content_root(into)


def open_archive(path: Path) -> zipfile.ZipFile:
    """The open zip."""
    return zipfile.ZipFile(path)


@contextlib.contextmanager
def report_errors(path: Path, into: Path) -> Iterator[None]:
    """Turn everything that keeps an archive from being unpacked into a UserError."""
    try:
        yield
    except zipfile.BadZipFile as error:
        raise DamagedArchive(f"{path} is not a complete zip file ({error}): download it again") from None
    except DAMAGED as error:  # encrypted, unknown compression, damaged
        error_class = (
            DamagedArchive if isinstance(error, (zlib.error, lzma.LZMAError, EOFError)) else UserError
        )
        raise error_class(f"can't unpack {path}: {error or type(error).__name__}") from None
    except OSError as error:
        raise_if_temporary(path, error)
        line = f"can't unpack {path} into {into}: {error.strerror or error}"
        # without an errno it is a decoder's error; or a name that no folder can hold
        error_class = (
            UnpackError
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
            else UserError
        )
        raise error_class(line) from None


def fill_folder(into: Path, state: str, write: Callable[[Path], None]) -> None:
    """Fill the folder `into` by `write`, which is given an empty folder, unless it is filled already.

    Args:
        state: its content, as `compute_signature` gives it.
    """
    if not has_content(into, state):
        with hold_lock(into.parent, "the unpacked zip in", wait=True):
            if not has_content(into, state):  # another process may have unpacked it while this one waited
                replace_folder(into, state, write)


def has_content(into: Path, state: str) -> bool:
    """Has the folder been unpacked from a zip of this signature?"""
    return (into / MARKER).is_file() and (into / MARKER).read_text() == state


def replace_folder(into: Path, state: str, write: Callable[[Path], None]) -> None:
    """Write beside the folder, then put it in its place."""
    if into.exists() and not (into / MARKER).is_file():
        raise UnpackError(f"{into} is in the way and was not unpacked by Earshot: move it away")
    partial = into.with_name(f".{into.name}.partial")
    remove_folder(partial)
    try:
        write(partial)
    except Exception:
        remove_folder(partial)
        raise
    (partial / MARKER).write_text(state)
    remove_folder(into)
    partial.rename(into)


def find_mirror_source(folder: Path) -> Path | None:
    """The original of a folder of links (made by inner_archives); None for any other folder."""
    try:
        with open(folder / MARKER, encoding="utf-8") as file:
            text = file.read(1 << 16)
        return Path(json.loads(text)["of"]) if text.startswith("{") else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find_content_root(into: Path) -> Path:
    """The top of an unpacked zip: its single top folder, else `into`."""
    top = [p for p in into.iterdir() if not p.name.startswith(".")]
    return top[0] if len(top) == 1 and top[0].is_dir() else into


def check_members(archive: zipfile.ZipFile, path: Path) -> list[tuple[zipfile.ZipInfo, str]]:
    """The files to unpack with their relative paths; UserError for a zip that is not safe to unpack."""
    infos = archive.infolist()
    check_count(path, len(infos))
    members = []
    for info in infos:
        file_type = stat.S_IFMT(info.external_attr >> 16)
        name = check_name(
            path, get_member_name(info), info.filename, file_type in (0, stat.S_IFREG, stat.S_IFDIR)
        )
        if not name.endswith("/") and not any(map(is_mac_file, name.split("/"))):
            members.append((info, name))
    check_size(path, sum(info.file_size for info, _ in members))
    return members


def check_name(path: Path, name: str, shown: str, plain: bool) -> str:
    """A member's relative path with / between its parts; UserError if it leads outside, or is a link or a
    device."""
    name = name.replace("\\", "/")  # zips made on Windows
    if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
        raise UserError(f"{path} is not safe to unpack: its member {shown!r} leads outside the folder")
    if not plain:
        raise UserError(f"{path} is not safe to unpack: its member {shown!r} is a link or a device")
    return name


def check_count(path: Path, count: int) -> None:
    """Raise UserError for too many members."""
    if count > MAX_MEMBERS:
        raise UserError(
            f"{path} has {count} members, more than {MAX_MEMBERS}: unpack it yourself if you trust it"
        )


def check_size(path: Path, total: int) -> None:
    """Raise UserError for more bytes than an archive of audio of this size unpacks to."""
    if total > get_size_limit(path):
        raise UserError(
            f"{path} would unpack to {total / 1e9:.1f} GB, more than {MAX_RATIO} times its size: "
            "unpack it yourself if you trust it"
        )


def get_size_limit(path: Path) -> int:
    """The most bytes that an archive may unpack to."""
    return max(MAX_SMALL, MAX_RATIO * os.path.getsize(path))


def get_member_name(info: zipfile.ZipInfo) -> str:
    """A member's name: UTF-8 where its bytes are valid UTF-8, even if the zip does not declare it, as on a
    Mac.

    Names without the flag are code page 437 by the standard, in which hardly any text is valid UTF-8.
    """
    if info.flag_bits & 0x800 or info.filename.isascii():
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


def is_mac_file(part: str) -> bool:
    """Is a part of a path one that macOS adds?"""
    return part == "__MACOSX" or part.startswith("._")


def compute_signature(archive: zipfile.ZipFile, path: Path) -> str:
    """A signature of a zip, from its size and central directory: cheap, and equal for another download of the
    same zip."""
    digest = hashlib.sha256(str(os.path.getsize(path)).encode())
    for info in archive.infolist():
        digest.update(
            f"{get_member_name(info)}\0{info.file_size}\0{info.CRC}\n".encode("utf-8", "surrogateescape")
        )
    return digest.hexdigest()


def extract_members(
    archive: zipfile.ZipFile, members: list[tuple[zipfile.ZipInfo, str]], folder: Path, path: Path
) -> None:
    """Write the members below the folder, counting real bytes, since the declared sizes may be wrong."""
    left = get_size_limit(path)
    make_room(folder, path, sum(info.file_size for info, _ in members))
    for info, name in members:
        with archive.open(info) as source:
            left = copy_member(source, folder / name, left, path)


def make_room(folder: Path, path: Path, total: int) -> None:
    """Make the folder, if its content will fit on the disk."""
    folder.mkdir(parents=True)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise UnpackError(
            f"{path} needs {total / 1e9:.1f} GB and {folder.parent} has {free / 1e9:.1f} GB free: "
            "free some, or choose another --out"
        )


def copy_member(source: IO[bytes], target: Path, left: int, path: Path) -> int:
    """Write a member of at most so many bytes; returns how many are left for the others."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as out:
        while block := source.read(2**20):
            left -= len(block)
            if left < 0:
                raise UserError(f"{path} unpacks to more than it declares: not safe to unpack")
            out.write(block)
    return left


def remove_folder(path: Path) -> None:
    """Delete a folder if it is there."""
    if path.exists():
        shutil.rmtree(path)
