"""An index of source files' contents, so that a rerun does not read gigabytes to see that nothing changed."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from earshot.core import checksums
from earshot.core.errors import OF_THE_FILE, TemporaryError, UserError, to_temporary
from earshot.core.file_names import is_audio, to_text
from earshot.core.files import hash_file

INDEX = ".index.json"  # beside the caches of a competition
IN_A_ROW = 20  # so many files in a row that cannot be opened mean that a folder or drive is gone


class Sources:
    """An index file: path -> state (size, inode, times of content and status), SHA-256, seconds, rate.

    The state stays in this file and enters no fingerprint: a remounted copy is read again and found equal.

    Raises:
        TemporaryError: of every method: the disk or the network failed, or a file is gone that was just
            listed.
    """

    def __init__(self, index: Path | str):
        self.index = Path(index)
        remembered = checksums.read_index(self.index)
        self.known: dict[str, dict] = {
            path: entry for path, entry in remembered.items() if _is_valid_entry(entry)
        }
        self.changed = False

    def _find_entry(self, path: str) -> dict:
        try:
            state = checksums.find_state(path)
        except OSError as error:
            is_missing = bool(path) and error.errno in (errno.ENOENT, errno.ENOTDIR)
            # A link may lead nowhere, and the folder's list has it all the same.
            leads_nowhere = os.path.islink(path) and "sha256" not in self.known.get(path, {})
            if error.errno not in OF_THE_FILE or is_missing and not leads_nowhere:
                raise to_temporary(path, error) from None
            return {}
        if state is None:  # reading a pipe would never end
            return {}
        known, text = self.known.get(path), " ".join(map(str, state))
        if not isinstance(known, dict) or known.get("state") != text:
            known = {"size": state[0], "state": text}
            self.known[path] = known
            self.changed = True
        return known

    def compute_digests(self, paths: Iterable[Path | str], workers: int = 4) -> list[str]:
        """SHA-256 per file, "" for one that cannot be read."""

        def fill(path: str, entry: dict) -> None:
            if not entry or "sha256" in entry:
                return
            self.changed = True
            try:
                entry["sha256"] = hash_file(path)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM):
                    raise to_temporary(path, error) from None

        with self._save_on_failure(), ThreadPoolExecutor(workers) as pool:
            names = [str(path) for path in paths]
            entries = [self._find_entry(name) for name in names]
            list(pool.map(fill, names, entries))
            return [entry.get("sha256", "") for entry in entries]

    def read_headers(self, paths: Iterable[Path | str]) -> list[tuple[float, int] | None]:
        """(seconds, rate) per audio file, None for one whose header cannot be read."""
        with self._save_on_failure():
            return [self._read_header(path) for path in map(str, paths)]

    def _read_header(self, path: str) -> tuple[float, int] | None:
        from earshot.audio.load import BadAudio, read_info

        entry = self._find_entry(path)
        if entry and "seconds" not in entry:
            self.changed = True
            try:
                entry["seconds"], entry["rate"] = read_info(path)
            except BadAudio as error:  # not remembered either
                if str(error) == "no such file":  # it was there a moment ago
                    raise TemporaryError(f"{path}: {error}, and it was there when it was listed") from None
        return (entry["seconds"], entry["rate"]) if entry.get("seconds") else None

    @contextlib.contextmanager
    def _save_on_failure(self) -> Iterator[None]:
        """Save the index when the disk or the network fails, so that nothing is read twice."""
        try:
            yield
        except TemporaryError:
            self.save()
            raise

    def save(self) -> None:
        """Write the index if anything is new. Files that changed a moment ago are read again next time."""
        if self.changed:
            now, files = time.time_ns(), {}
            for path, entry in self.known.items():
                files[path] = dict(entry)
                state = [int(part) for part in entry.get("state", "").split()]
                if state and not checksums.is_stable(state, now):
                    del files[path]["state"]
            checksums.write(self.index, {"files": files})
            self.changed = False


def find_unreadable(contents: dict[str, str]) -> frozenset[str]:
    """The files that cannot be read.

    Args:
        contents: path -> SHA-256 in the order of the clips, "" for a file that cannot be read.
    Raises:
        TemporaryError: there are many in a row.
    """
    in_a_row = 0
    for path, content in contents.items():
        in_a_row = 0 if content else in_a_row + 1
        if in_a_row == IN_A_ROW:
            raise TemporaryError(
                f"{path}: cannot be opened, nor can the {IN_A_ROW - 1} files before it: check the drive or "
                "network, the links and the permissions"
            )
    return frozenset(path for path, content in contents.items() if not content)


def find_missing_files(folder: Path | str, root: Path | str) -> list[str]:
    """Audio files below a competition's root that an earlier run has read and whose folders have no audio
    now: a sign of a missing drive, not of a removed clip.

    Args:
        folder: the competition's, with the index.
    """
    inside = f"{os.path.abspath(root)}{os.sep}"
    folders: dict[str, list[str]] = {}
    for path in Sources(Path(folder) / INDEX).known:
        if path.startswith(inside) and is_audio(path):
            folders.setdefault(os.path.dirname(path), []).append(path)
    return sorted(path for paths in folders.values() if not any(map(os.path.exists, paths)) for path in paths)


def check_files_exist(folder: Path | str, root: Path | str, error: UserError) -> None:
    """Raise TemporaryError with an error's text where a folder of audio is gone that an earlier run has read:
    the error may come from that."""
    paths = find_missing_files(folder, root)
    if paths:
        raise TemporaryError(
            f"{error}; but {len(paths)} audio files that were read before are gone with their folders "
            f"(first: {to_text(paths[0])}): bring the drive or folder back, or start over with --fresh if "
            "that was meant"
        )


def forget(folder: Path | str, clip_files: Iterable[str]) -> None:
    """Remove files from the index that are gone, after a cache was finished without them.

    Args:
        folder: the competition's. clip_files: its clips' files, which are not looked at.
    """
    sources = Sources(Path(folder) / INDEX)
    vanished = [path for path in sources.known.keys() - set(clip_files) if not os.path.lexists(path)]
    for path in vanished:
        del sources.known[path]
    sources.changed |= bool(vanished)
    sources.save()


def _is_valid_entry(entry: Any) -> bool:
    """Is this what `Sources` writes of a file?"""
    if not isinstance(entry, dict) or not isinstance(entry.get("sha256", ""), str):
        return False
    state = entry.get("state", "0 0 0 0")  # without: of an earlier version, its file is read again
    if not isinstance(state, str) or not re.fullmatch(r"\d+ \d+ -?\d+ -?\d+", state):
        return False
    if "seconds" not in entry:
        return True
    seconds, rate = entry["seconds"], entry.get("rate")
    return (
        type(seconds) in (int, float)
        and math.isfinite(seconds)
        and seconds >= 0
        and type(rate) is int
        and rate > 0
    )
