"""Unpacks the archives in a competition's folder, outside it: nothing is written to that folder."""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from earshot.competition import archive_names, link_folder, parquet, tar_file, zip_file
from earshot.competition.file_index import walk_folder
from earshot.competition.names import normalise_name
from earshot.core import disk_space
from earshot.core.errors import TemporaryError, UserError, raise_if_temporary
from earshot.core.file_names import format_ids, is_audio, to_text
from earshot.core.files import hash_value

LEVELS, DEEP = 2, 2  # levels of archives in archives; levels of folders that are searched for archives
LINKS, INNER_LINKS, STORE = "unpacked", "unpacked_inner", ".archives"
OVERHEAD = 1 << 10  # bytes of disk that even a small file takes


@dataclass
class Archive:
    """A zip or tar in a folder.

    path: of its file. place: its path relative to the competition. into: the folder that it is unpacked to.
    members: the files to unpack; None where it is unpacked.
    """

    path: Path
    place: str
    into: Path
    kind: ModuleType | None = None
    members: list[tuple[Any, str]] | None = None
    state: str = ""

    def inspect(self) -> bool:
        """List its members; False if its files lie beside it already.

        Raises:
            UserError: it can't be read, or is not safe to unpack.
        """
        assert self.kind is not None
        with zip_file.report_errors(self.path, self.into), self.kind.open_archive(self.path) as archive:
            self.state = self.kind.compute_signature(archive, self.path)
            if zip_file.has_content(self.into, self.state):
                return True
            self.members = self.kind.check_members(archive, self.path)
        names = [name for _, name in self.members]
        if not any(is_audio(n) or n.lower().endswith((".csv", ".tsv")) or is_unpackable(n) for n in names):
            self.members = []  # pictures, documents: an empty folder marks the archive as done
        return not self.members or not self._is_unpacked_beside()

    def _is_unpacked_beside(self) -> bool:
        """Do files of the same names and sizes lie where the user may have unpacked it?"""
        sizes = {posixpath.normpath(name): self.get_member_size(info) for info, name in self.members or ()}
        beside, below = (
            self.path.parent,
            self.path.parent / archive_names.strip_archive_suffix(self.path.name),
        )

        def has_all(folder: Path, cut: int) -> bool:
            paths = {folder / "/".join(name.split("/")[cut:]): size for name, size in sizes.items()}
            return all(get_size(path) == size for path, size in paths.items())

        if has_all(beside, 0) or has_all(below, 0):
            return True
        # in a folder of the archive's name, without its single top folder
        return len({name.split("/")[0] for name in sizes}) == 1 and has_all(below, 1)

    def get_member_size(self, info: Any) -> int:
        """Bytes of a member."""
        return info.file_size if self.kind is zip_file else info.size

    def count_bytes(self) -> int:
        """Bytes that it unpacks to, at least one disk block for each file."""
        if self.members is not None:
            return sum(self.get_member_size(info) + OVERHEAD for info, _ in self.members)
        paths = (Path(folder, name) for folder, _, names in os.walk(self.into) for name in names)
        return sum(max(get_size(path), 0) + OVERHEAD for path in paths)

    def unpack(self) -> None:
        """Unpack it, unless that is done."""
        assert self.kind is not None
        module, members = self.kind, self.members
        if members is not None:
            with zip_file.report_errors(self.path, self.into), module.open_archive(self.path) as archive:
                zip_file.fill_folder(
                    self.into, self.state, lambda to: module.extract_members(archive, members, to, self.path)
                )

    def get_visible_path(self) -> str:
        """The folder in which its files appear: the archive's own if all lie in a folder of its name, or are
        one table; else one with the archive's name."""
        tops = link_folder.list_visible(self.into)
        parent, name = posixpath.split(self.place)
        stem = archive_names.strip_archive_suffix(name)
        if len(tops) == 1:
            if normalise_name(tops[0]) == normalise_name(stem) or tops[0].lower().endswith((".csv", ".tsv")):
                return parent
        return posixpath.join(parent, stem)

    def list_hidden_paths(self) -> list[str]:
        """The paths to hide once it is unpacked."""
        return [self.place]


@dataclass
class ParquetSplit(Archive):
    """The parquet files of one split, which may hold audio. names: of all of them, in the folder of the
    first."""

    names: tuple[str, ...] = ()
    split: str = ""
    rows: int = 0

    def inspect(self) -> bool:
        files = [self.path.with_name(name) for name in self.names]
        if not any(map(parquet.can_hold_audio, files)):
            return False
        self.state = parquet.compute_signature(files)
        if not zip_file.has_content(self.into, self.state):
            self.rows, size = parquet.check_files(files)
            self.members = [(size, "")]
        return True

    def get_member_size(self, info: Any) -> int:
        return info + self.rows * OVERHEAD

    def unpack(self) -> None:
        if self.members is not None:
            files = [self.path.with_name(name) for name in self.names]
            zip_file.fill_folder(
                self.into, self.state, lambda to: parquet.unpack_parquet(files, self.split, to)
            )

    def get_visible_path(self) -> str:
        return posixpath.dirname(self.place)

    def list_hidden_paths(self) -> list[str]:
        return [posixpath.join(posixpath.dirname(self.place), name) for name in self.names]


def is_unpackable(name: str) -> bool:
    """Whether a file name is that of an archive to unpack."""
    return archive_names.is_zip(name) or archive_names.is_tar(name) or parquet.is_parquet(name)


def get_size(path: Path) -> int:
    """Size of a file in bytes; -1 where there is none."""
    try:
        return os.path.getsize(path) if os.path.isfile(path) else -1
    except OSError as error:
        raise_if_temporary(path, error)
        return -1


def find_archives(folder: Path, place: str, store: Path) -> tuple[list[Archive], list[str]]:
    """The archives at most a few levels below a folder, and the names of those that Earshot can't read.

    Args:
        place: the folder's path in the competition, "" for its top. store: where archives are unpacked to.
    """
    archives: list[Archive] = []
    closed: list[str] = []
    for below, names in walk_folder(folder, deep=DEEP):
        tables: dict[str, list[str]] = {}
        parts = {n[:-4] for n in names if archive_names.PARTS.search(n) and n[-4:-2].lower() == ".z"}
        for name in names:
            at = posixpath.join(place, below, name)
            into = store / hash_value(at)[:16]
            if archive_names.is_unreadable_archive(name) or archive_names.is_zip(name) and name[:-4] in parts:
                closed.append(at)
            elif archive_names.is_zip(name):
                archives.append(Archive(folder / below / name, at, into, zip_file))
            elif archive_names.is_tar(name):
                archives.append(Archive(folder / below / name, at, into, tar_file))
            elif parquet.is_parquet(name):
                tables.setdefault(parquet.get_split(name), []).append(name)
        for split, split_files in tables.items():
            path = folder / below / split_files[0]
            at = posixpath.join(place, below, split_files[0])
            into = store / hash_value([posixpath.join(place, below), split])[:16]
            archives.append(ParquetSplit(path, at, into, names=tuple(split_files), split=split))
    return archives, closed


def find_original_folder(folder: Path) -> Path:
    """The original of a folder that Earshot unpacked or linked: the linked folder, or the top of a zip.

    Raises:
        TemporaryError: the linked folder is not there: its drive may be away.
    """
    source = zip_file.find_mirror_source(folder)
    if source is None:
        return zip_file.find_content_root(folder)
    if not source.is_dir():
        raise TemporaryError(f"{folder} links to the files of {source}, which is missing: bring it back")
    return source


def open_folder(root: Path, beside: Path) -> tuple[Path, list[str]]:
    """A competition's folder as if its archives were unpacked in place, and lines about that.

    Args:
        beside: the folder of the competition's outputs. The archives are unpacked there, and a folder of
            links joins their files with those of `root`.
    Returns:
        The folder of links, or `root` where there is nothing to unpack.
    Raises:
        UserError: there is no audio but in archives that cannot be read; the disk is full.
    """
    root, beside = Path(os.path.abspath(root)), Path(os.path.abspath(beside))
    in_zip = root.is_relative_to(beside / LINKS)
    store, links = beside / STORE, beside / (INNER_LINKS if in_zip else LINKS)
    archives, closed = find_archives(root, "", store)
    if not archives and not closed:
        return root, []
    done, unpacked, wrong = unpack_all(archives, closed, store, LEVELS - in_zip)
    notes = [f"warning: not used: {line}" for line in wrong]
    if unpacked:
        notes.append(f"not unpacked again: {format_ids(unpacked)}: the files lie beside it already")
    shown = root
    if done:
        more = [(archive.get_visible_path(), archive.into) for archive in done]
        hidden = [path for archive in done for path in archive.list_hidden_paths()]
        shadowed = link_folder.link_files(links, root, more, hidden)
        shown = links
        names = format_ids([to_text(archive.place) for archive in done], 5)
        notes.insert(0, f"unpacked: {names} -> {links} (with links to the other files in {root})")
        if shadowed:
            notes.append(
                f"warning: {format_ids(map(to_text, shadowed))} differs from the file of that name in an "
                "archive: the file beside it is used"
            )
    if (closed or wrong) and not any(any(map(is_audio, names)) for _, names in walk_folder(shown)):
        if not closed:
            raise UserError(f"no audio in {root}: {wrong[0]}")
        raise UserError(
            f"no audio in {root} except in archives that Earshot can't read: "
            f"{archive_names.format_unpack_hint(closed)}; unpack all of them, and give the folder that they "
            "are unpacked to"
        )
    return shown, notes


def unpack_all(
    archives: list[Archive], closed: list[str], store: Path, levels: int
) -> tuple[list[Archive], list[str], list[str]]:
    """Unpack archives and those in them.

    Their total size is limited as it is for one: many small archives, or nested ones, may be a zip bomb where
    each alone is none.

    Args:
        closed: receives the names of inner archives that Earshot can't read.
    Returns:
        The unpacked archives, now or earlier; the names of those whose files lie beside them; why others
        failed.
    """
    done: list[Archive] = []
    unpacked: list[str] = []
    wrong: list[str] = []
    packed_bytes = sum(max(get_size(archive.path), 0) for archive in archives)
    left = max(zip_file.MAX_SMALL, zip_file.MAX_RATIO * packed_bytes)
    for _ in range(levels):
        wanted = []
        for archive in archives:
            try:
                if not archive.inspect():
                    if not isinstance(archive, ParquetSplit):
                        unpacked.append(to_text(archive.place))
                    continue
                total = archive.count_bytes()
                if total > left:
                    raise UserError(
                        f"{archive.path} and the archives beside it would unpack to more than "
                        f"{zip_file.MAX_RATIO} times their size: unpack it yourself if you trust it"
                    )
                left -= total
                wanted.append(archive)
            except zip_file.UnpackError:
                raise
            except UserError as error:
                wrong.append(str(error))
        needed = sum(archive.count_bytes() for archive in wanted if archive.members)
        if needed:
            disk_space.check_space(store, needed, needed)
        archives = []
        for archive in wanted:
            try:
                archive.unpack()
            except zip_file.UnpackError:
                raise
            except UserError as error:  # damaged, encrypted
                wrong.append(str(error))
                continue
            if link_folder.list_visible(archive.into):
                done.append(archive)
                inner, unread = find_archives(archive.into, archive.get_visible_path(), store)
                archives += [] if isinstance(archive, ParquetSplit) else inner
                closed += unread
    return done, unpacked, wrong
