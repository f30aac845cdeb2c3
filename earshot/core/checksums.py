"""JSON with a SHA-256 checksum of its own content, and of named files beside it."""

from __future__ import annotations

import io
import json
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earshot.core.errors import UserError, raise_if_temporary
from earshot.core.files import LARGEST_JSON, hash_file, hash_value, write_bytes, write_json

if TYPE_CHECKING:
    import numpy as np

VERIFIED = ".verified.json"  # beside the folder, whose own files hold no times
SETTLED = 2.0  # seconds: a file that was changed within the clock's step could be changed again unnoticed


class CorruptFile(UserError):
    """A file differs from what was written: truncated, altered, missing, or without a checksum."""


def write(path: Path | str, value: dict[str, Any], *files: str) -> None:
    """Write a JSON object with the SHA-256 of its content, and of the named files beside it."""
    path = Path(path)
    if files:
        value = {**value, "sha256": {name: hash_file(path.parent / name) for name in files}}
    value = json.loads(json.dumps(value))  # the checksum covers what a reader will see: lists for tuples
    write_json(path, {**value, "checksum": hash_value(value)})


def read(path: Path | str, *files: str) -> dict[str, Any]:
    """Read a JSON object and check its checksum and those of the named files beside it.

    Args:
        files: names of files whose checksums the object must hold; they are read and compared.
    Raises:
        CorruptFile: one line with the file and what is wrong with it, without a fix.
        TemporaryError: the disk or the network failed.
    """
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise CorruptFile(f"{path} is damaged (larger than {LARGEST_JSON >> 20} MB)")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CorruptFile(f"{path} is missing") from None
    except (ValueError, RecursionError, OSError) as error:
        raise_if_temporary(path, error)
        raise CorruptFile(
            f"{path} is damaged ({' '.join(str(error).split())[:80] or type(error).__name__})"
        ) from None
    if not isinstance(value, dict) or "checksum" not in value:
        raise CorruptFile(f"{path} has no checksum (made by an older version?)")
    if value.pop("checksum") != hash_value(value):
        raise CorruptFile(f"{path} is damaged (its checksum differs)")
    sums = value.get("sha256")
    for name in files:
        file = path.parent / name
        if not file.is_file():
            raise CorruptFile(f"{file} is missing")
        if (sums.get(name) if isinstance(sums, dict) else None) != hash_file(file):
            raise CorruptFile(f"{file} is damaged (its checksum differs)")
    return value


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as <name>.npy, and its checksum beside it in <name>.json."""
    import numpy as np

    data = io.BytesIO()
    np.save(data, array, allow_pickle=False)
    write_bytes(path, data.getvalue())
    write(path.with_suffix(".json"), {}, path.name)


def read_array(path: Path) -> np.ndarray | None:
    """The array that `write_array` wrote; None if it is missing or its checksum differs."""
    import numpy as np

    try:
        read(path.with_suffix(".json"), path.name)
    except CorruptFile:
        return None
    return np.load(path, allow_pickle=False)


def find_digests(folder: Path, names: list[str]) -> dict[str, str | None]:
    """Name -> SHA-256 of each named file of a folder, None for a missing one.

    A file is read again only if its state (size, times, inode) has changed. So every write is noticed, but
    not a bit that flips on the disk after the file was read once.
    """
    index = folder.absolute().parent / VERIFIED
    known, fresh = read_index(index), {}

    def find(name: str) -> str | None:
        path, key = folder / name, f"{folder.name}/{name}"
        try:
            before = find_state(path)
        except OSError as error:
            raise_if_temporary(path, error)
            return None
        if before is None:
            return None
        entry = known.get(key)
        if isinstance(entry, dict) and entry.get("state") == before and isinstance(entry.get("sha256"), str):
            return entry["sha256"]
        content = hash_file(path)
        if is_stable(before, time.time_ns()) and find_state(path) == before:
            fresh[key] = {"state": before, "sha256": content}
        return content

    with ThreadPoolExecutor() as pool:
        digests = dict(zip(names, pool.map(find, names), strict=True))
    if fresh:
        try:
            write(index, {"files": {**read_index(index), **fresh}})
        except OSError:
            pass  # in a read-only folder every file is read each time
    return digests


def read_index(index: Path) -> dict[str, Any]:
    """The remembered states and digests. A damaged index is ignored and written anew: one flipped digit would
    make a good file look damaged."""
    try:
        known = read(index).get("files")
    except CorruptFile:
        return {}
    return known if isinstance(known, dict) else {}


def find_state(path: Path | str) -> list[int] | None:
    """Size, inode, mtime and ctime (nanoseconds) of a file; None if it isn't a regular file.

    Programs can set mtime, and copies keep it; they cannot set ctime.

    Raises:
        OSError: its state cannot be read.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        return None
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def is_stable(state: list[int], now: int) -> bool:
    """Was the last change long enough before `now` (nanoseconds) that a later one must change the state?"""
    return now - max(state[2:]) > SETTLED * 1e9
