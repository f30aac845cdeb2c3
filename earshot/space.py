"""What a stage will leave on the disk, and whether that fits, before it begins."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from earshot import attached
from earshot.errors import UserError

if TYPE_CHECKING:
    from earshot.config import TrainingFlags
    from earshot.plan import Plan

SLACK = 4 << 20  # bytes for what is small: labels, logs, predictions


def of_cache(plan: Plan, shapes: dict[str, tuple[int, ...]], clips: int, missing: int) -> tuple[int, int]:
    """Bytes that a cache will take, and those that making the missing part of it still needs.

    The shards stay until they are joined, so at the end there are twice the features; shards that are there
    are there.

    Args:
        shapes: (D, F, T) of each view.
        clips: all clips and copies. missing: those whose shard is still to be made.
    """
    row = sum(int(np.prod(shape)) * 2 for shape in shapes.values())  # float16 or int16
    whole = row * plan.windows * clips
    return int(whole) + SLACK, int(whole + whole * missing / max(clips, 1)) + SLACK


def of_run(parameters: int, folds: int, missing: int, settings: TrainingFlags) -> tuple[int, int]:
    """Bytes that a run will take, and those that training the missing folds still needs.

    A fold keeps the weights of its best and its last epoch. While it trains there are an optimiser's two
    tensors for each, the raw weights under a moving average, and a second set of all of it while a checkpoint
    is replaced.
    """
    weights = 4 * parameters
    working = weights * (1 + 2 + bool(settings.ema or settings.snapshots))
    return 2 * weights * folds + SLACK, 2 * weights * missing + (
        2 * working + weights if missing else 0
    ) + SLACK


def check(folder: Path, total: int, needed: int) -> str:
    """The line that says what a folder will take.

    Raises:
        UserError: less than what is still needed is free.
    """
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free, kept = shutil.disk_usage(there).free, attached.left(folder)
    if kept is not None and needed > kept:
        raise UserError(
            f"{folder} needs about {human(needed)} more and {human(kept)} is left of the "
            f"{human(attached.KEPT)} that Kaggle keeps of {attached.working()}: remove what you do not need "
            "there, or choose a place below /tmp"
        )
    if needed > free:
        raise UserError(
            f"{folder} needs about {human(needed)} more on the disk and {human(free)} is free: make space, "
            "or choose another place; what is there is kept, and the same command continues"
        )
    return (
        f"disk: about {human(total)} for {folder}, {human(needed)} while it is made; "
        f"{human(free if kept is None else min(free, kept))} free"
    )


def human(size: float) -> str:
    """Bytes as 3.2 GB or 45 MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 0.1):.0f} MB"
