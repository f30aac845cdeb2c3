"""Disk space: what a stage needs, checked before it begins."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from earshot.core import kaggle_paths
from earshot.core.errors import UserError

if TYPE_CHECKING:
    pass

SLACK = 4 << 20  # bytes for small files: labels, logs, predictions


def check_space(folder: Path, total: int, needed: int) -> str:
    """A line with the estimated size of a folder.

    Raises:
        UserError: the disk has less free than is needed.
    """
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free, kept = shutil.disk_usage(existing).free, kaggle_paths.get_quota_left(folder)
    if kept is not None and needed > kept:
        raise UserError(
            f"{folder} needs about {format_bytes(needed)} more and {format_bytes(kept)} is left of the "
            f"{format_bytes(kaggle_paths.KEPT)} that Kaggle keeps of {kaggle_paths.get_working_folder()}: "
            "remove what you do "
            "not need there, or choose a place below /tmp"
        )
    if needed > free:
        raise UserError(
            f"{folder} needs about {format_bytes(needed)} more on the disk and {format_bytes(free)} is free: "
            "make space, "
            "or choose another place; what is there is kept, and the same command continues"
        )
    return (
        f"disk: about {format_bytes(total)} for {folder}, {format_bytes(needed)} while it is made; "
        f"{format_bytes(free if kept is None else min(free, kept))} free"
    )


def format_bytes(size: float) -> str:
    """Bytes as 3.2 GB or 45 MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 0.1):.0f} MB"
