"""Clips to submit that no csv names: those of a code competition, whose sample submission may be a
placeholder of a few rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from earshot.competition.file_index import Files, side, strip_suffix
from earshot.core.csv_text import as_text
from earshot.core.file_names import is_audio
from earshot.core.files import write_text

if TYPE_CHECKING:
    import pandas as pd

STRETCH = re.compile(r".+_\d{1,6}", re.ASCII)


def loose(files: Files, used: set[str]) -> list[str]:
    """The audio files of a test folder that are no training clips, relative to the root."""
    return [
        path
        for path in files.audio
        if side(path.rpartition("/")[0]) == "subm" and files.absolute(path) not in used
    ]


def ids_like(examples: list[str], paths: list[str]) -> list[str]:
    """Ids for files that no csv names, in the examples' style: with or without suffix, with or without
    folder."""
    names = [p.rpartition("/")[2] for p in paths]
    ids = paths if any("/" in i for i in examples) else names
    if not any(is_audio(i) for i in examples):
        ids = [strip_suffix(i) for i in ids]
    return ids if len(set(ids)) == len(ids) else paths


def stand_ins(
    files: Files, asked: Sequence[str], found: Sequence[str], train: pd.DataFrame
) -> tuple[list[str], list[str]] | None:
    """The ids and files that a sample submission would have listed, were it no placeholder; None where it is
    none.

    A placeholder has fewer rows than there are files in the test folder, and none of its ids is a file's.

    Args:
        asked: its ids. found: the file of each, "" without one.
        train: the training clips, whose files are not meant, and whose ids are written as its own are where
            it has no row.
    """
    if any(found):
        return None
    there = loose(files, set(train["path"]))
    # these name parts of recordings
    if len(asked) >= len(there) or asked and all(STRETCH.fullmatch(id.strip()) for id in asked):
        return None
    return ids_like(list(asked) or list(train["id"]), there), [files.absolute(path) for path in there]


def write(
    path: Path, columns: Sequence[str], id_column: str, ids: Sequence[str], example: Sequence[str]
) -> Path:
    """A sample submission with a row for each id, the answers as in the placeholder's first row; returns its
    path."""
    answers = dict(zip(columns, example, strict=False))
    rows = [[id if column == id_column else answers.get(column, "") for column in columns] for id in ids]
    write_text(path, as_text([columns, *rows]))
    return path
