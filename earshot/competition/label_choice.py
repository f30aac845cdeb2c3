"""The label column of a table without a telling column name."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from earshot.competition import (
    folder_levels,
    groups,
    labels,
    name_parts,
)
from earshot.competition.file_index import Files
from earshot.competition.reading import Reading
from earshot.competition.table_parts import SPLIT_COLUMNS
from earshot.core.csv_table import format_list
from earshot.core.shell import quote


def suggest_label_pattern(files: Files) -> str:
    """The end of an error: the flags that read labels from the file names; "" where they hold none."""
    ways = [*folder_levels.suggest_flags(files.audio)[:1], *name_parts.suggest_flags(files.audio)]
    return f"; if the labels are in the names, {ways[0]}" if files.audio and ways else ""


def number_columns(frame: pd.DataFrame, id_column: str) -> pd.DataFrame:
    """A table without a header: columns of 0 and 1 are named by their number, 1 for the first after the
    ids."""
    rest = [c for c in frame.columns if c != id_column]
    if len(rest) > 1 and all(labels.is_binary_column(frame[c]) for c in rest):
        numbered = frame.rename(columns={c: str(number) for number, c in enumerate(rest, 1)})
        numbered.attrs = {"stray": {}, "joined": []}
        return numbered
    return frame


def choose_label_column(files: Files, frame: pd.DataFrame, id_column: str) -> str | None:
    """The possible label column of a table without a header: one that repeats the folders of the paths, else
    the one with the fewest values."""
    rest = [c for c in frame.columns if c != id_column]
    if all(labels.is_binary_column(frame[c]) for c in rest):
        return None
    can = [c for c in rest if labels.can_be_label(frame[c]) and frame[c].nunique() > 1]
    rows = frame.iloc[:: max(1, len(frame) // 2000)]
    paths = [
        paths_of_id[0].split("/")[:-1] for id in rows[id_column] if (paths_of_id := files.find_candidates(id))
    ]
    if len(paths) == len(rows):
        for column in can:
            if all(cell.strip() in path for cell, path in zip(rows[column], paths, strict=True)):
                return column
    filled = [c for c in can if all(groups.clean_sources(list(frame[c])))]  # none that has "-" in it
    return min(filled or can, key=lambda c: frame[c].nunique(), default=rest[0] if len(rest) == 1 else None)


def find_folder_column(files: Files, frame: pd.DataFrame, id_column: str) -> str | None:
    """The column whose values are the names of the audio's folders, at least two; not a source (a site) or a
    split, where another column may be the label."""
    rows = frame.iloc[:: max(1, len(frame) // 2000)]
    folders = [
        paths_of_id[0].split("/")[-2]
        if (paths_of_id := files.find_candidates(id)) and "/" in paths_of_id[0]
        else None
        for id in rows[id_column]
    ]
    if len(set(folders) - {None}) < 2:
        return None
    left = [c for c in frame.columns if c not in (id_column, "fold", "group")]
    left = [c for c in left if c.lower() not in SPLIT_COLUMNS]
    if labels.find_label_column(frame, id_column) or sum(labels.is_binary_column(frame[c]) for c in left) > 1:
        left = [c for c in left if groups.rank_header(str(c)) is None]
    for column in left:
        cells = rows[column].str.strip()
        same = [cell == folder for cell, folder in zip(cells, folders, strict=True) if folder is not None]
        if cells.nunique() > 1 and sum(same) >= 0.95 * len(same):
            return str(column)
    return None


def explain_unclear_label(
    csv: Path, frame: pd.DataFrame, id_column: str, reading: Reading, source: str | None
) -> str:
    """The error that the label column is not clear, with the possible ones."""
    can = [
        c
        for c in frame.columns
        if c not in (id_column, "group", source)
        and groups.rank_header(str(c)) is None
        and labels.can_be_label(frame[c])
        and 1 < frame[c].nunique() <= len(frame) // 2
    ]
    flags = [f"--label-column {quote(column)}" for column in can[:6]]
    hint = f": {' or '.join([reading.format_command(flags[0]), *flags[1:]])}" if can else ""
    return (
        f"can't tell which column of {csv} is the label: it has {format_list(frame.columns)}; "
        f"pass --label-column, or --task multilabel for columns of 0 and 1{hint}"
    )
