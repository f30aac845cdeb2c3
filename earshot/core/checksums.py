"""JSON that notices a flipped bit: a checksum over its own content, and over the files that it speaks for."""

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
    """A file that is not what was written: cut off, altered, missing, or of a version that wrote no
    checksums."""


def write(path: Path | str, value: dict[str, Any], *files: str) -> None:
    """Write a JSON object with the SHA-256 of its content, and of the named files beside it."""
    path = Path(path)
    if files:
        value = {**value, "sha256": {name: hash_file(path.parent / name) for name in files}}
    value = json.loads(json.dumps(value))  # the checksum is of what a reader will see: lists for tuples
    write_json(path, {**value, "checksum": hash_value(value)})


def read(path: Path | str, *files: str) -> dict[str, Any]:
    """The JSON object, once its checksum and those of the named files beside it hold.

    Args:
        files: names that the object must vouch for; they are read and compared.
    Raises:
        Damaged: one line that names the file and what is wrong with it, without a way out.
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
    """What `write_array` wrote; None where there is nothing, or nothing that its checksum vouches for."""
    import numpy as np

    try:
        read(path.with_suffix(".json"), path.name)
    except CorruptFile:
        return None
    return np.load(path, allow_pickle=False)


def find_digests(folder: Path, names: list[str]) -> dict[str, str | None]:
    """Name -> SHA-256 of each named file of a folder, None for one that is not there.

    A file is read only if its state is not what it was when it was read last. So every write is noticed; what
    is not is a bit that turns over on the disk by itself, after the file was read once.
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
            pass  # a cache that lies where nothing can be written is read each time
    return digests


def read_index(index: Path) -> dict[str, Any]:
    """What an index remembers of files. It is only a shortcut: a damaged one is made anew, as one flipped
    digit would condemn a sound file."""
    try:
        known = read(index).get("files")
    except CorruptFile:
        return {}
    return known if isinstance(known, dict) else {}


def find_state(path: Path | str) -> list[int] | None:
    """What changes with a file: size, inode, times of content and of status in nanoseconds; None of what is
    no regular file.

    A program may set the time of content, and copies keep it. It cannot set the time of status.

    Raises:
        OSError: it cannot be looked at.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        return None
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def is_stable(state: list[int], now: int) -> bool:
    """Was the last change long enough before `now` (nanoseconds) that a later one must change the state?"""
    return now - max(state[2:]) > SETTLED * 1e9
