"""The id column of a csv: the one whose values are audio files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from earshot.competition.file_index import Files
from earshot.competition.names import parse_number
from earshot.core import spelling
from earshot.core.csv_table import format_list
from earshot.core.errors import UserError
from earshot.core.file_names import is_audio

ID_NAMES = ("id", "fname", "filename", "file_name", "file", "path", "clip_id", "audio_id", "recording_id")


def find_id_column(
    frame: pd.DataFrame, files: Files, prefer: str | None = None, numbers: bool = True
) -> str | None:
    """The column with the most distinct values that are audio files; None without any.

    Where allowed, numbers that are file names count, too, if there are more than half as many as rows. Other
    columns may hold such numbers by chance, so a column of names that are files (with a suffix, letters or
    leading zeros) comes first. A tie goes to `prefer`, then to a column with an id's name, then to the first.
    """
    ranks = {}
    for column in frame.columns:
        values = frame[column].unique()
        exact = [v for v in values if files.find_candidates(v)]
        known = len(exact) + sum(
            numbers and not files.find_candidates(v) and bool(files.find_by_number(v)) for v in values
        )
        names = [
            v for v in exact if parse_number(v) is None or is_audio(v.strip()) or v.strip().startswith("0")
        ]
        suffixed = 2 * sum(is_audio(v.strip()) for v in values) > len(values) and 10 * len(exact) > len(
            values
        )
        if exact or 2 * known > len(frame):
            sure = suffixed or 2 * len(names) > len(frame)
            ranks[column] = sure, known, column == prefer, column.lower() in ID_NAMES
    return max(ranks, key=lambda column: ranks[column], default=None)


def get_column(frame: pd.DataFrame, csv: Path, column: str, flag: str) -> str:
    """The column that a flag names, as the csv spells it; UserError if there is none."""
    spelled = column if column in frame.columns else spelling.spell_like([column], frame.columns)[0]
    if spelled not in frame.columns:
        raise UserError(
            f"{csv} has no column {column}; it has {format_list(frame.columns)}: give one of them to {flag}"
        )
    return spelled
