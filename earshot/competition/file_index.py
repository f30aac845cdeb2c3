"""The files of a competition, and how a csv's names find them."""

from __future__ import annotations

import filecmp
import os
import re
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path

from earshot.core.errors import UserError
from earshot.core.files import is_audio


def strip_suffix(name: str) -> str:
    """The name without its audio suffix: only a known one, as in "blues.00001" the dot belongs to the
    stem."""
    return name[: name.rindex(".")] if is_audio(name) else name


def key(text: str) -> str:
    """A name as it is compared when nothing matches exactly."""
    # macOS writes file names decomposed (NFD), a csv usually holds them composed
    return unicodedata.normalize("NFC", text).casefold()


def number(name: str) -> int | None:
    """The whole number that a name or an id is, with or without its leading zeros, .0 behind it, and an audio
    suffix; None if it is none."""
    found = re.fullmatch(r"(\d{1,30})(\.0+)?", strip_suffix(name.strip()), re.ASCII)
    return int(found[1]) if found else None


def words(name: str) -> list[str]:
    """The runs of letters in a name, lower-case."""
    return re.findall("[a-z]+", name.lower())


def walk(root: Path):
    """Yield (relative folder, file names), sorted, without hidden entries, __MACOSX and this kit's own
    caches."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        relative = Path(os.path.relpath(folder, root)).as_posix()
        names = sorted(n for n in names if not n.startswith("."))
        cache = relative != "." and "manifest.json" in names and not any(map(is_audio, names))
        if real in seen or cache:  # seen: a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")
        yield ("" if relative == "." else relative), names


@cache
def side(folder: str) -> str | None:
    """Which side a folder's path speaks for: "train", "subm" (test, subm, eval), or None if neither or
    both."""
    found = words(folder)
    train = any(w.startswith("train") for w in found)
    subm = any(w.startswith(("test", "subm", "eval")) for w in found)
    return None if train == subm else "train" if train else "subm"


class Files:
    """What lies below a folder, from one walk: `audio`, `csvs` (.tsv too; at most two folders deep), `zips`;
    relative, sorted."""

    def __init__(self, root: Path):
        self.root = Path(root)
        self.audio, self.csvs, self.zips, self.folders = [], [], [], []
        for folder, names in walk(self.root):
            if folder and "/" not in folder:
                self.folders.append(folder)
            for name in names:
                path = f"{folder}/{name}" if folder else name
                if is_audio(name):
                    self.audio.append(path)
                elif name.lower().endswith((".csv", ".tsv")) and path.count("/") <= 2:
                    self.csvs.append(path)
                elif name.lower().endswith(".zip"):
                    self.zips.append(path)
        self.audio.sort()
        self.csvs.sort(key=lambda p: (p.count("/"), p))
        self.paths = set(self.audio)
        self.by_name, self.by_stem = {}, {}
        self.by_number: dict[int | None, list[str]] = {}
        self.claimed: set[str] = set()  # by ids that were resolved
        self.renumbered: dict[str, str] = {}  # ids that are a file's name but for leading zeros, and the file
        for path in self.audio:
            name = path.rpartition("/")[2]
            self.by_name.setdefault(key(name), []).append(path)
            self.by_stem.setdefault(key(strip_suffix(name)), []).append(path)
            self.by_number.setdefault(number(name), []).append(path)
        self.by_number.pop(None, None)

    def candidates(self, clip_id: str) -> list[str]:
        """The audio files that a csv's id may mean: by relative path, file name or stem, in any case."""
        wanted = clip_id.strip().replace("\\", "/").removeprefix("./")
        if wanted in self.paths:
            return [wanted]
        name = wanted.rpartition("/")[2]
        if not name:
            return []
        found = (
            self.by_name.get(key(name))
            or self.by_stem.get(key(name))
            or self.by_stem.get(key(strip_suffix(name)), [])
        )
        # part of a path, or a path on another machine: the folders must agree as far as both go
        if "/" in wanted:
            tail = key("/" + strip_suffix(wanted.lstrip("/")))
            heads = {f: key(f"{self.root.as_posix()}/{strip_suffix(f)}") for f in found}
            found = [
                f
                for f in found
                if heads[f].endswith(tail) or ("/" in f and tail.endswith(key("/" + strip_suffix(f))))
            ]
        exact = [f for f in found if strip_suffix(f.rpartition("/")[2]) == strip_suffix(name)]
        return exact or found

    def resolve(self, ids: list[str], split: str) -> list[str]:
        """The audio file of each id as an absolute path, "" where there is none.

        Where train/ and test/ hold the same file name, an id takes the file of its own side; it never takes
        the other side's, unless no id at all is found otherwise (a csv of another naming). An id without a
        file takes the one whose name is the same number, where no other id means that file.

        Raises:
            UserError: an id that may mean two different files, or two ids that may mean one.
        """
        own = "train" if split == "train" else "subm"
        found = [self.candidates(i) for i in ids]
        strict = []
        for clip_id, paths in zip(ids, found, strict=True):
            sides = {p: side(p.rpartition("/")[0]) for p in paths}
            mine = [p for p in paths if sides[p] == own] or [p for p in paths if sides[p] is None]
            strict.append(paths if paths == [clip_id] else mine)
        self.claimed |= {path for paths in strict for path in paths}
        strict = self.by_numbers(ids, strict, own)
        if any(strict):
            found = strict
        self.claimed |= {path for paths in found for path in paths}
        return [self.only(clip_id, paths) for clip_id, paths in zip(ids, found, strict=True)]

    def numbered(self, clip_id: str) -> list[str]:
        """The audio files that are called by the same number as an id, whatever zeros stand before it."""
        return self.by_number.get(number(clip_id), [])

    def by_numbers(self, ids: list[str], found: list[list[str]], own: str) -> list[list[str]]:
        """The files of each id, where it has none those of its number that no id has claimed."""
        made: list[list[str]] = []
        owner: dict[str, str] = {}
        for clip_id, paths in zip(ids, found, strict=True):
            free = [] if paths else [p for p in self.numbered(clip_id) if p not in self.claimed]
            sides = {p: side(p.rpartition("/")[0]) for p in free}
            paths = paths or [p for p in free if sides[p] == own] or [p for p in free if sides[p] is None]
            for path in paths if free else ():
                other = owner.setdefault(path, clip_id)
                if other != clip_id:
                    raise UserError(
                        f"{other} and {clip_id} may both be {path} in {self.root}: write the ids as the "
                        "files are called"
                    )
                self.renumbered[clip_id] = path
            made.append(paths)
        return made

    def about_numbers(self) -> list[str]:
        """A line on the ids that were matched by their number alone."""
        pairs = list(self.renumbered.items())
        return [
            f"{len(pairs)} ids match their files as numbers, but for leading zeros: first {clip_id} is {path}"
            for clip_id, path in pairs[:1]
        ]

    def only(self, clip_id: str, paths: list[str]) -> str:
        """The one file among the candidates (copies of it count as one), absolute; "" without any."""
        absolute = [str(self.root / p) for p in paths]
        for path, other in zip(paths[1:], absolute[1:], strict=True):
            if not filecmp.cmp(absolute[0], other, shallow=False):
                raise UserError(
                    f"{clip_id} may be {paths[0]} or {path} in {self.root}: "
                    "keep one of them, or give the ids in the csv with their folder"
                )
        return absolute[0] if absolute else ""

    def summary(self) -> str:
        """What is there, in one line, for the error that nothing was recognised."""
        suffixes = Counter(os.path.splitext(p)[1].lower() for p in self.audio)
        kinds = ", ".join(f"{n} {suffix}" for suffix, n in sorted(suffixes.items()))
        names = ", ".join(self.folders[:8]) + (", ..." if len(self.folders) > 8 else "")
        text = f"{len(self.csvs)} csv files" + (f" ({', '.join(self.csvs[:8])})" if self.csvs else "")
        text += f", {len(self.audio)} audio files" + (f" ({kinds})" if kinds else "")
        text += f", {len(self.folders)} subfolders" + (f" ({names})" if names else "")
        return text + (
            f", zip files to unpack or to pass themselves: {', '.join(self.zips[:4])}" if self.zips else ""
        )

    def audio_folders(self) -> str:
        """The folders that hold audio, with their counts, in one line."""
        counts = Counter(p.rpartition("/")[0] or "." for p in self.audio)
        listed = [f"{folder} ({n} files)" for folder, n in sorted(counts.items())]
        return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "") if listed else "none"
