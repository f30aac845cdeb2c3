"""Checksums of finished files, remembered, so that a rerun need not read gigabytes to see that they are as
they were."""

from __future__ import annotations

import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from earshot.core import checksums
from earshot.core.errors import unless_temporary
from earshot.core.files import digest

INDEX = ".verified.json"  # beside the folder, whose own files hold no times
SETTLED = 2.0  # seconds: a file that was changed within the clock's step could be changed again unnoticed


def digests(folder: Path, names: list[str]) -> dict[str, str | None]:
    """Name -> SHA-256 of each named file of a folder, None for one that is not there.

    A file is read only if its size, its inode or one of its times (of content, of status) is not what it was
    when it was read last. So every write is noticed; what is not is a bit that turns over on the disk by
    itself, after the file was read once.
    """
    index = folder.absolute().parent / INDEX
    known = _read(index)
    found: dict[str, str | None] = {}
    fresh: dict[str, Any] = {}

    def look(name: str) -> None:
        path, key = folder / name, f"{folder.name}/{name}"
        before = _state(path)
        entry = known.get(key)
        if before is None:
            found[name] = None
        elif (
            isinstance(entry, dict) and entry.get("state") == before and isinstance(entry.get("sha256"), str)
        ):
            found[name] = entry["sha256"]
        else:
            found[name] = digest(path)
            if _state(path) == before and settled(before, time.time_ns()):
                fresh[key] = {"state": before, "sha256": found[name]}

    with ThreadPoolExecutor() as pool:
        list(pool.map(look, names))
    if fresh:
        try:
            checksums.write(index, {"files": {**_read(index), **fresh}})
        except OSError:
            pass  # a cache that lies where nothing can be written is read each time
    return found


def state(path: Path | str) -> list[int] | None:
    """What changes with a file: size, inode, times of content and of status in nanoseconds; None of what is
    no regular file.

    A program may set the time of content, and copies keep it. It cannot set the time of status.

    Raises:
        OSError: it cannot be looked at.
    """
    about = os.stat(path)
    return (
        [about.st_size, about.st_ino, about.st_mtime_ns, about.st_ctime_ns]
        if stat.S_ISREG(about.st_mode)
        else None
    )


def settled(found: list[int], now: int) -> bool:
    """Was the last change long enough before `now` (nanoseconds) that a later one must change the state?"""
    return now - max(found[2:]) > SETTLED * 1e9


def _state(path: Path) -> list[int] | None:
    try:
        return state(path)
    except OSError as error:
        unless_temporary(path, error)
        return None


def _read(index: Path) -> dict[str, Any]:
    try:
        known = checksums.read(index).get("files")
    except checksums.Damaged:
        # only a shortcut: a damaged one is made anew; one flipped digit would condemn a sound cache
        known = None
    return known if isinstance(known, dict) else {}
