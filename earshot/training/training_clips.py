"""What a run was trained on, kept in the run: each clip's id, its fold, the SHA-256 of its file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from earshot.core.csv_text import to_csv
from earshot.core.errors import UserError
from earshot.core.files import write_text
from earshot.features.cache import Cache

NAME = "training_clips.csv"
COLUMNS = ["id", "fold", "sha256"]


class TrainingClip(NamedTuple):
    """A clip; its fold is the one that it was validated in, -1 or -2 for none; `sha256` as 64 hex digits."""

    id: str
    fold: int
    sha256: str


def write_clips(folder: Path, cache: Cache, folds: np.ndarray) -> None:
    """Write the run's training_clips.csv, unless it exists or the cache has no digests, as in version 0.1.

    Args:
        folds: (clips,) the run's fold of each training clip.
    """
    digests = None if (folder / NAME).exists() else cache.digests()
    if digests is None:
        return
    rows = [
        [id, fold, digest.tobytes().hex()]
        for id, fold, digest in zip(
            cache.split("train")["ids"].tolist(), folds.tolist(), digests, strict=True
        )
        if digest.any()
    ]
    write_text(folder / NAME, to_csv([COLUMNS, *rows]))


def read_clips(folder: Path) -> list[TrainingClip] | None:
    """What `write_clips` wrote; None where there is nothing, as in runs of version 0.1.

    Raises:
        UserError: the file is damaged, or was written by another program.
    """
    from earshot.core import csv_table

    path = folder / NAME
    if not path.exists():
        return None
    frame = csv_table.read(path)
    if list(frame.columns) != COLUMNS or not all(
        re.fullmatch("-?[0-9]{1,9}", fold) and re.fullmatch("[0-9a-f]{64}", digest)
        for fold, digest in zip(frame.get("fold", []), frame.get("sha256", []), strict=True)
    ):
        raise UserError(
            f"{path} is damaged: delete it and repeat the run's train.py command, which writes it again"
        )
    return [TrainingClip(id, int(fold), digest) for id, fold, digest in frame.itertuples(index=False)]
