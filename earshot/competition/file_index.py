"""The files of a competition, and how the ids of a csv match them."""

from __future__ import annotations

import filecmp
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from earshot.competition import name_tails
from earshot.competition.archive_names import is_tar, is_unreadable_archive, is_zip
from earshot.competition.names import find_side, normalise_name, parse_number, strip_suffix
from earshot.competition.zip_file import MARKER, find_mirror_source
from earshot.core.errors import UserError, to_temporary
from earshot.core.file_names import (
    format_ids,
    get_suffix,
    is_audio,
    is_document,
    list_decodable,
    list_readings,
    to_text,
)


def walk_folder(root: Path, closed: list[str] | None = None, deep: int | None = None):
    """Yield (relative folder, file names), sorted, without hidden entries, __MACOSX, this kit's own caches
    and its folders of links to files elsewhere.

    Args:
        closed: takes the folders that this user may not list. Raises OSError for one that fails otherwise.
        deep: at most so many folders deep.
    """

    def raise_error(error: OSError) -> None:
        if not isinstance(error, PermissionError):  # without its content clips would have no file
            raise to_temporary(error.filename, error) from None
        if closed is not None:
            closed.append(os.path.relpath(error.filename, root))

    seen = set()
    for folder, folders, names in os.walk(root, onerror=raise_error, followlinks=True):
        real = os.path.realpath(folder)
        relative = Path(os.path.relpath(folder, root)).as_posix()
        links = relative != "." and MARKER in names and find_mirror_source(Path(folder))
        names = sorted(name for name in names if not name.startswith("."))
        cache = relative != "." and "manifest.json" in names and not any(map(is_audio, names))
        if real in seen or cache or links:  # seen: a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        if deep is not None and relative.count("/") + (relative != ".") >= deep:
            folders.clear()
        yield ("" if relative == "." else relative), names


class Files:
    """The files below a folder, from one walk, relative to it: `audio`, `zips`, other archives (`packed`),
    `others` that may be meant as clips, and text `documents`, all sorted; `csvs` (.tsv too; at most two
    folders deep below those that all lie in) as they are opened.

    Raises:
        UserError: two names that are the same as text.
    """

    def __init__(self, root: Path):
        self.root = Path(root)
        self.audio: list[str] = []
        self.csvs: list[str] = []
        self.texts: list[str] = []  # .txt files that may be tables, as they are opened
        self.zips: list[str] = []
        self.packed: list[str] = []
        self.others: list[str] = []
        self.documents: list[str] = []
        self.alias: dict[str, str] = {}  # ids that a table or the end of a name maps to a file, and the file
        self.folders: list[str] = []
        self.closed: list[str] = []  # may not be listed
        self._disk: dict[str, str] = {}  # text -> name on the disk, of names that are not UTF-8
        parents: dict[str, str] = {}
        for folder, names in walk_folder(self.root, self.closed):
            self._describe_example(parents.setdefault(to_text(folder), folder), folder)
            if folder and "/" not in folder:
                self.folders.append(to_text(folder))
            for name in names:
                real = f"{folder}/{name}" if folder else name
                path = to_text(real)
                if path != real:
                    self._describe_example(self._disk.setdefault(path, real), real)
                index = self._classify_file(name, path)
                index.append(real if index is self.csvs else path)
        folders = {f"/{path.rpartition('/')[0]}" for path in (*self.audio, *self.csvs, *self.texts)}
        head = os.path.commonpath(folders or ["/"])
        deepest = 2 + head.rstrip("/").count("/")  # below the folders that all lie in
        for path in self.csvs:  # a csv further down is of one clip, such as its annotations
            if path.count("/") > deepest:
                index = self.documents if is_document(path) else self.others
                index.append(to_text(path))
        self.csvs = [path for path in self.csvs if path.count("/") <= deepest]
        self.texts = [path for path in self.texts if path.count("/") <= deepest]
        self.audio.sort()
        self.csvs.sort(key=lambda path: (path.count("/"), path))
        self.paths = set(self.audio)
        for path, real in self._disk.items():
            if os.path.lexists(self.root / path):
                self._describe_example(path, real)
        self.by_name, self.by_stem = {}, {}
        self.by_number: dict[int | None, list[str]] = {}
        self.claimed: set[str] = set()  # by ids that were resolved
        self.tail_notes: dict[str, str] = {}  # table -> a note where its ids are the ends of file names
        # id -> the file whose name equals it except for leading zeros
        self.renumbered: dict[str, str] = {}
        for path in self.audio:
            for reading in list_readings(self._disk.get(path, path)):
                name = reading.rpartition("/")[2]
                self.by_name.setdefault(normalise_name(name), []).append(path)
                self.by_stem.setdefault(normalise_name(strip_suffix(name)), []).append(path)
            self.by_number.setdefault(parse_number(path.rpartition("/")[2]), []).append(path)
        self.by_number.pop(None, None)

    def _classify_file(self, name: str, path: str) -> list[str]:
        if is_audio(name):
            return self.audio
        if name.lower().endswith((".csv", ".tsv")):
            return self.csvs
        if is_zip(name):
            return self.zips
        if name.lower().endswith(".txt"):
            self.texts.append(self._disk.get(path, path))
        if is_tar(name) or is_unreadable_archive(name):
            return self.packed
        return self.documents if is_document(name) else self.others

    def _describe_example(self, name: str, other: str) -> None:
        if name != other:
            raise UserError(
                f"{self.root} has two names that are {to_text(name)} as text, one of which is not UTF-8: "
                "rename one"
            )

    def to_absolute(self, path: str) -> str:
        """A file's absolute path, which opens it: bytes that are no UTF-8 are surrogates in it."""
        return os.path.join(self.root, self._disk.get(path, path))

    def to_relative(self, path: str) -> str:
        """The relative text of an absolute path."""
        return to_text(path.removeprefix(os.path.join(self.root, "")))

    def find_candidates(self, clip_id: str) -> list[str]:
        """The audio files that a csv's id may mean: by relative path, file name or stem, in any case."""
        wanted = clip_id.strip()
        if wanted in self.alias:
            return [self.alias[wanted]]
        if wanted != clip_id:
            exact = self.by_name.get(normalise_name(clip_id))
            if exact:  # the blank belongs to the file's name
                return exact
        # A backslash is Windows' separator, or the escape of a byte in a name that is no UTF-8.
        if self._disk and "\\" in wanted:
            escaped = self._look_up_candidates(wanted)
            if escaped:
                return escaped
        return self._look_up_candidates(wanted.replace("\\", "/").removeprefix("./"))

    def _look_up_candidates(self, wanted: str) -> list[str]:
        if wanted in self.paths:
            return [wanted]
        name = wanted.rpartition("/")[2]
        if not name:
            return []
        paths = (
            self.by_name.get(normalise_name(name))
            or self.by_stem.get(normalise_name(name))
            or self.by_stem.get(normalise_name(strip_suffix(name)), [])
        )
        # part of a path, or a path on another machine: the folders that both have must be equal
        if "/" in wanted:
            tail = normalise_name("/" + strip_suffix(wanted.lstrip("/")))
            root = normalise_name(to_text((find_mirror_source(self.root) or self.root).as_posix()))

            def agrees(path: str) -> bool:
                for reading in list_readings(self._disk.get(path, path)):
                    whole = normalise_name("/" + strip_suffix(reading))
                    if (root + whole).endswith(tail) or "/" in path and tail.endswith(whole):
                        return True
                return False

            paths = [path for path in paths if agrees(path)]
        exact = [path for path in paths if strip_suffix(path.rpartition("/")[2]) == strip_suffix(name)]
        return exact or paths

    def resolve_ids(self, ids: list[str], split: str) -> list[str]:
        """The audio file of each id as an absolute path, "" where there is none.

        Where train/ and test/ hold the same file name, an id takes the file of its own side; it never takes
        the other side's, unless no id at all is found otherwise (a csv of another naming). An id without a
        file takes the one whose name is the same number, where no other id means that file.

        Raises:
            UserError: an id that may mean two different files, or two ids that may mean one.
        """
        own = "train" if split == "train" else "subm"
        candidates = [self.find_candidates(clip_id) for clip_id in ids]
        if self.tail_notes:  # as the training ids are
            path_of = self.match_tails(ids, own)
            for row, clip_id in enumerate(map(str.strip, ids)):
                if clip_id in path_of and (clip_id in self.alias or not candidates[row]):
                    candidates[row] = [path_of[clip_id]]
        strict = [
            paths if paths == [clip_id] else _select_side(paths, own)
            for clip_id, paths in zip(ids, candidates, strict=True)
        ]
        self.claimed |= {path for paths in strict for path in paths}
        strict = self.match_numbers(ids, strict, own)
        if any(strict):
            candidates = strict
        self.claimed |= {path for paths in candidates for path in paths}
        return [self.pick_only(clip_id, paths) for clip_id, paths in zip(ids, candidates, strict=True)]

    def match_tails(self, ids: Iterable[str], own: str = "train") -> dict[str, str]:
        """The file of each id by the ends of both, as `name_tails.match_tails` finds it."""
        return name_tails.match_tails(self._index_tails, ids, own)

    @cached_property
    def _index_tails(self) -> dict[str, list[str]]:
        return name_tails.index_tails(self.audio)

    def match_other_suffix(self, ids: Iterable[str], own: str) -> str:
        """A line where most ids match files with another suffix (.npy, .png), which `alias` then holds; ""
        where they do not.

        Args:
            own: the side whose files are meant, as `side` has it.
        """
        path_of: dict[str, str] = {}
        ids = list(ids)
        for id in ids:
            stem, dot, suffix = id.strip().rpartition(".")
            if not dot or not re.fullmatch("[A-Za-z][A-Za-z0-9]{1,4}", suffix, re.ASCII):
                continue
            own_paths = _select_side(self.find_candidates(stem), own)
            if len(set(own_paths)) == 1:
                path_of[id.strip()] = own_paths[0]
        if 2 * len(path_of) <= len(ids):
            return ""
        self.alias |= path_of
        id, path = next(iter(path_of.items()))
        return f"the ids match the files except for their suffix: first {id} is {path}"

    def leave_out(self, paths: Iterable[str]) -> None:
        """Leave out audio files: no id matches them any more."""
        gone = set(paths)
        self.audio = [path for path in self.audio if path not in gone]
        self.paths -= gone
        for index in (self.by_name, self.by_stem, self.by_number):
            for name in [name for name, indexed in index.items() if gone.intersection(indexed)]:
                index[name] = [path for path in index[name] if path not in gone]
                if not index[name]:
                    del index[name]
        self.__dict__.pop("_index_tails", None)  # to be built again

    def find_by_number(self, clip_id: str) -> list[str]:
        """The audio files that are called by the same number as an id, whatever zeros stand before it."""
        return self.by_number.get(parse_number(clip_id), [])

    def match_numbers(self, ids: list[str], candidates: list[list[str]], own: str) -> list[list[str]]:
        """The files of each id; of an id without a file, those with the same number that match no other
        id."""
        matches: list[list[str]] = []
        owner: dict[str, str] = {}
        for clip_id, paths in zip(ids, candidates, strict=True):
            if paths:
                matches.append(paths)
                continue
            free = [path for path in self.find_by_number(clip_id) if path not in self.claimed]
            paths = _select_side(free, own)
            for path in paths:
                other = owner.setdefault(path, clip_id)
                if other != clip_id:
                    raise UserError(
                        f"{other} and {clip_id} may both be {path} in {self.root}: write the ids as the "
                        "files are called"
                    )
                self.renumbered[clip_id] = path
            matches.append(paths)
        return matches

    def describe_number_matches(self) -> list[str]:
        """A line about the ids that were matched by their number alone."""
        pairs = list(self.renumbered.items())
        return [
            f"{len(pairs)} ids match their files as numbers, except for leading zeros: first {clip_id} "
            f"is {path}"
            for clip_id, path in pairs[:1]
        ]

    def pick_only(self, clip_id: str, paths: list[str]) -> str:
        """The one file among the candidates (copies of it count as one), absolute; "" without any."""
        # of a video and its audio, the audio
        paths = [p for p in paths if get_suffix(p) in list_decodable()] or paths
        absolute = [self.to_absolute(p) for p in paths]
        for path, other in zip(paths[1:], absolute[1:], strict=True):
            if not filecmp.cmp(absolute[0], other, shallow=False):
                raise UserError(
                    f"{clip_id} may be {paths[0]} or {path} in {self.root}: "
                    "keep one of them, or give the ids in the csv with their folder"
                )
        return absolute[0] if absolute else ""

    @cached_property
    def _index_other_files(self) -> dict[str, str]:
        """Name, and for a possible clip the stem, of files that are not audio -> the path."""
        names = {normalise_name(path.rpartition("/")[2]): path for path in (*self.documents, *self.csvs)}
        for path in (*self.others, *self.zips, *self.packed):
            name = path.rpartition("/")[2]
            stem = name.rpartition(".")[0] or name
            for key in (name, stem, strip_suffix(stem)):
                names.setdefault(normalise_name(key), path)
        return names

    def explain_absence(self, clip_id: str) -> str:
        """Why no file was found for an id, in words that apply to many ids."""
        if not clip_id.strip():
            return "empty id"
        name = clip_id.strip().replace("\\", "/").rpartition("/")[2]
        if self.find_candidates(clip_id):
            return "no such file in its own split's folders"
        if name.startswith("._"):
            return "a Mac's companion file, not audio"
        others = self._index_other_files
        other = others.get(normalise_name(name)) or others.get(normalise_name(strip_suffix(name)))
        if other is None:
            return "no such file"
        suffix = get_suffix(other)
        return f"only a .{suffix} file, not audio" if suffix else "only a file without suffix"

    def describe_unused_files(self) -> list[str]:
        """Lines about files that are neither audio nor documents, and folders that may not be listed."""
        lines = []
        if self.others:
            several = len(self.others) > 1
            kind = "files that are not audio" if several else "file that is not audio"
            lines.append(f"not used: {len(self.others)} {kind}: {format_ids(self.others)}")
        if self.zips:
            few = format_ids(self.zips)
            lines.append(f"not used: {len(self.zips)} zip files (unpack them if they hold clips): {few}")
        if self.packed:
            few = format_ids(self.packed)
            lines.append(f"not used: {len(self.packed)} archives (unpack them if they hold clips): {few}")
        if self.closed:
            lines.append(f"warning: no permission to list {format_ids(map(to_text, self.closed))}: not used")
        return lines

    def summarise(self) -> str:
        """A summary of the files, in one line, for the error that nothing was recognised."""
        suffixes = Counter(os.path.splitext(p)[1].lower() for p in self.audio)
        kinds = ", ".join(f"{n} {suffix}" for suffix, n in sorted(suffixes.items()))
        names = ", ".join(self.folders[:8]) + (", ..." if len(self.folders) > 8 else "")
        text = f"{len(self.csvs)} csv files" + (f" ({', '.join(self.csvs[:8])})" if self.csvs else "")
        text += f", {len(self.audio)} audio files" + (f" ({kinds})" if kinds else "")
        text += f", {len(self.folders)} subfolders" + (f" ({names})" if names else "")
        text += f", {len(self.others)} other files ({format_ids(self.others)})" if self.others else ""
        text += f", archives to unpack: {format_ids(self.packed, 4)}" if self.packed else ""
        if self.zips:
            text += f", zip files to unpack or to pass themselves: {', '.join(self.zips[:4])}"
        return text

    def describe_audio_folders(self) -> str:
        """The folders that hold audio, with their counts, in one line."""
        counts = Counter(p.rpartition("/")[0] or "." for p in self.audio)
        listed = [f"{folder} ({n} files)" for folder, n in sorted(counts.items())]
        if not listed:
            return "none" + (f", only {format_ids(self.others)}" if self.others else "")
        return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")


def _select_side(paths: Sequence[str], own: str) -> list[str]:
    """The files of a side, else those of no side."""
    sides = [(path, find_side(path.rpartition("/")[0])) for path in paths]
    of_own = [path for path, side in sides if side == own]
    return of_own or [path for path, side in sides if side is None]
