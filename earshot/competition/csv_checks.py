"""Checks of a csv of clips: rows, a header, no stray quotes in ids and labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from earshot.competition.file_index import Files
from earshot.competition.layout import Layout
from earshot.competition.names import parse_number
from earshot.core.csv_table import format_cell, format_list
from earshot.core.errors import UserError
from earshot.core.file_names import is_audio


def check_has_rows(frame: pd.DataFrame, csv: Path) -> pd.DataFrame:
    """Return the frame; UserError where it has only a header."""
    if frame.empty:
        raise UserError(f"{csv} has a header and no row: download it again, or delete it")
    return frame


def check_stray_quotes(frame: pd.DataFrame, csv: Path, needed: Sequence[str], layout: Layout) -> None:
    """Report cells that begin with a stray quote; UserError where one is an id or a label."""
    for column, lines in frame.attrs.get("stray", {}).items():
        if column in needed:
            raise UserError(
                f"{csv}, line {lines[0]}: the quote that begins {format_cell(frame[column][lines[0]])} in "
                "column "
                f"{column} does not end with it: remove it, or quote the whole field and double the quote"
            )
        layout.notes.append(
            f"{csv.name}: {len(lines)} cells of column {column} begin with a stray quote (line "
            f"{format_list(map(str, lines), 5)}): read as text, each line as a row"
        )
    joined = frame.attrs.get("joined", [])
    if joined:
        layout.notes.append(
            f"warning: {csv.name}: {len(joined)} rows take several lines, each of which could be a row (from "
            f"line {format_list(map(str, joined), 5)}): if a quote there is a stray one, remove it"
        )


def is_header_data(files: Files, column: str, frame: pd.DataFrame) -> bool:
    """Is the header of the id column itself a clip's row?"""
    # pandas writes a header of 0, 1, ... too: that is no clip's where another row has the number
    lost = files.find_by_number(column) and parse_number(column) not in set(map(parse_number, frame[column]))
    return bool(is_audio(column) or files.find_candidates(column) or lost)


def check_header(files: Files, csv: Path, id_column: str, frame: pd.DataFrame) -> None:
    """UserError where the first row is a clip, which would be lost as a header."""
    if is_header_data(files, id_column, frame):
        raise UserError(
            f"{csv}, line 1: no header, but a row that names the audio file {format_cell(id_column)}: add "
            "one, "
            "such as id,label (or rename that column)"
        )
