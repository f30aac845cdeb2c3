"""JSON that notices a flipped bit: a checksum over its own content, and over the files that it speaks for."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earshot.core.errors import UserError, unless_temporary
from earshot.core.files import LARGEST_JSON, digest, digest_of, write_bytes, write_json

if TYPE_CHECKING:
    import numpy as np


class Damaged(UserError):
    """A file that is not what was written: cut off, altered, missing, or of a version that wrote no
    checksums."""


def write(path: Path | str, value: dict[str, Any], *files: str) -> None:
    """Write a JSON object with the SHA-256 of its content, and of the named files beside it."""
    path = Path(path)
    if files:
        value = {**value, "sha256": {name: digest(path.parent / name) for name in files}}
    value = json.loads(json.dumps(value))  # the checksum is of what a reader will see: lists for tuples
    write_json(path, {**value, "checksum": digest_of(value)})


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
            raise Damaged(f"{path} is damaged (larger than {LARGEST_JSON >> 20} MB)")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Damaged(f"{path} is missing") from None
    except (ValueError, RecursionError, OSError) as error:
        unless_temporary(path, error)
        raise Damaged(
            f"{path} is damaged ({' '.join(str(error).split())[:80] or type(error).__name__})"
        ) from None
    if not isinstance(value, dict) or "checksum" not in value:
        raise Damaged(f"{path} has no checksum (made by an older version?)")
    if value.pop("checksum") != digest_of(value):
        raise Damaged(f"{path} is damaged (its checksum differs)")
    sums = value.get("sha256")
    for name in files:
        file = path.parent / name
        if not file.is_file():
            raise Damaged(f"{file} is missing")
        if (sums.get(name) if isinstance(sums, dict) else None) != digest(file):
            raise Damaged(f"{file} is damaged (its checksum differs)")
    return value


def write_array(path: Path, found: np.ndarray) -> None:
    """Write an array as <name>.npy, and its checksum beside it in <name>.json."""
    import numpy as np

    data = io.BytesIO()
    np.save(data, found, allow_pickle=False)
    write_bytes(path, data.getvalue())
    write(path.with_suffix(".json"), {}, path.name)


def read_array(path: Path) -> np.ndarray | None:
    """What `write_array` wrote; None where there is nothing, or nothing that its checksum vouches for."""
    import numpy as np

    try:
        read(path.with_suffix(".json"), path.name)
    except Damaged:
        return None
    return np.load(path, allow_pickle=False)
