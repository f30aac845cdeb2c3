"""A competition's raw files: a zip unpacked safely, a folder walked once, and the audio file that an id
means."""

import hashlib
import lzma
import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from pathlib import Path

from earshot.core.errors import UserError, unless_temporary
from earshot.core.files import locked

MAX_MEMBERS = 500_000
MAX_RATIO = 100  # audio hardly compresses: a zip that grows a hundredfold is a bomb ...
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


class NotWhole(UserError):
    """A zip that is cut off or altered."""


def unpack(path: Path, into: Path) -> Path:
    """Unpack a zip into the folder `into`, or find it unpacked there; returns its single top folder, else
    `into`.

    Unpacks beside `into` and renames, so that a killed run leaves nothing half-made; a changed zip replaces
    it.

    Raises:
        UserError: not a readable zip, or one with a link, a path that leads outside, or an implausible size.
    """
    into = Path(into)
    try:
        with zipfile.ZipFile(path) as archive:
            members = check(archive, path)
            state = signature(archive, path)
            if not holds(into, state):
                with locked(into.parent, "the unpacked zip in", wait=True):
                    if not holds(into, state):  # another process may have unpacked it while this one waited
                        replace(archive, members, into, path, state)
    except zipfile.BadZipFile as error:
        raise NotWhole(f"{path} is not a whole zip file ({error}): download it again") from None
    except DAMAGED as error:  # encrypted, unknown compression, damaged
        kind = NotWhole if isinstance(error, (zlib.error, lzma.LZMAError, EOFError)) else UserError
        raise kind(f"cannot unpack {path}: {error or type(error).__name__}") from None
    except OSError as error:
        unless_temporary(path, error)
        raise UserError(f"cannot unpack {path} into {into}: {error.strerror or error}") from None
    return unpacked(into)


def holds(into: Path, state: str) -> bool:
    """Has the folder been unpacked from a zip of this signature?"""
    return (into / MARKER).is_file() and (into / MARKER).read_text() == state


def replace(
    archive: zipfile.ZipFile, members: list[tuple[zipfile.ZipInfo, str]], into: Path, path: Path, state: str
) -> None:
    """Unpack beside the folder, then put it in its place."""
    if into.exists() and not (into / MARKER).is_file():
        raise UserError(f"{into} is in the way and was not unpacked by Earshot: move it away")
    partial = into.with_name(f".{into.name}.partial")
    remove(partial)
    try:
        extract(archive, members, partial, path)
    except Exception:
        remove(partial)
        raise
    (partial / MARKER).write_text(state)
    remove(into)
    partial.rename(into)


def unpacked(into: Path) -> Path:
    """Where the files of an unpacked zip begin: its single top folder, else `into`."""
    top = [p for p in into.iterdir() if not p.name.startswith(".")]
    return top[0] if len(top) == 1 and top[0].is_dir() else into


def check(archive: zipfile.ZipFile, path: Path) -> list[tuple[zipfile.ZipInfo, str]]:
    """The files to unpack with their relative paths; a UserError for a zip that is not to be trusted."""
    infos = archive.infolist()
    if len(infos) > MAX_MEMBERS:
        raise UserError(
            f"{path} has {len(infos)} members, more than {MAX_MEMBERS}: unpack it yourself if you trust it"
        )
    members = []
    for info in infos:
        name = name_of(info).replace("\\", "/")  # zips made on Windows
        if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
            raise UserError(
                f"{path} is not safe to unpack: its member {info.filename!r} leads outside the folder"
            )
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(
                f"{path} is not safe to unpack: its member {info.filename!r} is a link or a device"
            )
        if not name.endswith("/") and not any(map(of_a_mac, name.split("/"))):
            members.append((info, name))
    limit = max(MAX_SMALL, MAX_RATIO * os.path.getsize(path))
    total = sum(info.file_size for info, _ in members)
    if total > limit:
        raise UserError(
            f"{path} would unpack to {total / 1e9:.1f} GB, more than {MAX_RATIO} times its size: "
            "unpack it yourself if you trust it"
        )
    return members


def name_of(info: zipfile.ZipInfo) -> str:
    """A member's name: UTF-8 where its bytes are that, although the zip does not say so, as those of a Mac.

    Names without the flag are code page 437 by the standard, in which hardly any text is valid UTF-8 as well.
    """
    if info.flag_bits & 0x800 or info.filename.isascii():
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


def of_a_mac(part: str) -> bool:
    """Is a part of a path what a Mac adds for itself?"""
    return part == "__MACOSX" or part.startswith("._")


def signature(archive: zipfile.ZipFile, path: Path) -> str:
    """What a zip holds, from its size and central directory: cheap, and another download of the same zip is
    equal."""
    digest = hashlib.sha256(str(os.path.getsize(path)).encode())
    for info in archive.infolist():
        digest.update(f"{name_of(info)}\0{info.file_size}\0{info.CRC}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def extract(
    archive: zipfile.ZipFile, members: list[tuple[zipfile.ZipInfo, str]], folder: Path, path: Path
) -> None:
    """Write the members below the folder, counting real bytes: the sizes that a zip declares may lie."""
    left = max(MAX_SMALL, MAX_RATIO * os.path.getsize(path))
    total = sum(info.file_size for info, _ in members)
    folder.mkdir(parents=True)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise UserError(
            f"{path} needs {total / 1e9:.1f} GB and {folder.parent} has {free / 1e9:.1f} GB free: "
            "free some, or choose another --out"
        )
    for info, name in members:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(info) as source, open(target, "wb") as out:
            while block := source.read(2**20):
                left -= len(block)
                if left < 0:
                    raise UserError(f"{path} unpacks to more than it declares: not safe to unpack")
                out.write(block)


def remove(path: Path) -> None:
    """Delete a folder if it is there."""
    if path.exists():
        shutil.rmtree(path)
