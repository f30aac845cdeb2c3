"""Unpacks a tar, compressed or not, as safely as zip_file.py does a zip."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from earshot.competition import zip_file

LARGEST_HEADER = 1 << 20  # most bytes of a header, which holds a long name and a few numbers
LARGEST_GLOBAL = 4 << 20  # ... of all headers that apply to the whole tar
ENDS = 1 << 20  # bytes at each end that a signature reads


class StrictTarInfo(tarfile.TarInfo):
    """A member with a small header; a damaged header is an error, which tarfile would take for the end."""

    @classmethod
    def fromtarfile(cls, archive):
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None

    def _proc_member(self, archive):
        headers = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
        if self.size < 0 or self.type in (*headers, tarfile.SOLARIS_XHDTYPE) and self.size > LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        if self.type == tarfile.XGLTYPE:
            archive.of_all = getattr(archive, "of_all", 0) + self.size
            if archive.of_all > LARGEST_GLOBAL:
                raise tarfile.ReadError("too many global headers")
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a sparse file")
        return super()._proc_member(archive)  # type: ignore[misc]

    def _proc_gnusparse_10(self, *_):
        raise tarfile.ReadError("a sparse file")  # whose map may take any memory


def unpack_archive(path: Path, into: Path) -> Path:
    """Unpack a tar into the folder `into`, or find it unpacked there; returns its single top folder, else
    `into`.

    Raises:
        UserError: not a readable tar, or one with a link, a path that leads outside, or an implausible size.
    """
    into = Path(into)
    with zip_file.report_errors(path, into), open_archive(path) as archive:
        state = compute_signature(archive, path)
        if not zip_file.has_content(into, state):
            members = check_members(archive, path)
            zip_file.fill_folder(
                into, state, lambda partial: extract_members(archive, members, partial, path)
            )
    return zip_file.find_content_root(into)


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[tarfile.TarFile]:
    """The open tar; NotWhole if it is damaged or not a tar."""
    try:
        with tarfile.open(path, "r:*", tarinfo=StrictTarInfo) as archive:
            yield archive
    except tarfile.TarError as error:
        reason = str(error).splitlines()[0].strip(": ")  # the reasons of all decoders follow
        raise zip_file.DamagedArchive(
            f"{path} is not a complete tar file ({reason}): download it again"
        ) from None


def check_members(archive: tarfile.TarFile, path: Path) -> list[tuple[tarfile.TarInfo, str]]:
    """The files to unpack with their relative paths; UserError for a tar that is not safe to unpack."""
    members, total = [], 0
    for number, info in enumerate(archive, 1):
        zip_file.check_count(path, number)
        name = zip_file.check_name(path, info.name, info.name, info.isreg() or info.isdir())
        if info.isreg() and not any(map(zip_file.is_mac_file, name.split("/"))):
            total += info.size
            zip_file.check_size(path, total)  # now: to find the next member, its bytes are unpacked
            members.append((info, name))
    return members


def compute_signature(archive: tarfile.TarFile, path: Path) -> str:
    """A signature of a tar, from its size, time and both ends (a compressed one ends in a checksum); listing
    its members would mean unpacking all of it."""
    status = os.stat(path)
    digest = hashlib.sha256(f"tar {status.st_size} {status.st_mtime_ns}".encode())
    with open(path, "rb") as file:
        digest.update(file.read(ENDS))
        file.seek(max(status.st_size - ENDS, 0))
        digest.update(file.read(ENDS))
    return digest.hexdigest()


def extract_members(
    archive: tarfile.TarFile, members: list[tuple[tarfile.TarInfo, str]], folder: Path, path: Path
) -> None:
    """Write the members below the folder."""
    left = zip_file.get_size_limit(path)
    zip_file.make_room(folder, path, sum(info.size for info, _ in members))
    for info, name in members:
        source = archive.extractfile(info)
        assert source is not None  # it is a file
        with source:
            left = zip_file.copy_member(source, folder / name, left, path)
