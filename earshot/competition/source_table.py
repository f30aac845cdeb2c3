"""Tables with a row per source of clips, such as patients: its label applies to all its clips."""

from __future__ import annotations

import re

import pandas as pd

from earshot.competition.file_index import Files
from earshot.competition.labels import can_be_label
from earshot.competition.names import find_side, strip_suffix

MOST = 0.9  # share of the audio files outside test folders with a source in the table
FILE = "file"


def expand_sources(frame: pd.DataFrame, files: Files) -> tuple[pd.DataFrame, str] | None:
    """The table with a row per audio file (column `file`, the source as `group`), and the column of sources.

    A source is named by a folder of its clips, or by a part of their file names.

    Args:
        frame: (sources,) as text; its index is each row's line.
    Returns:
        None unless a column clearly names the sources of nearly all clips, and another one may be a label.
    """
    if {FILE, "group"} & set(frame.columns) or len(frame) < 2:
        return None
    paths = [path for path in files.audio if find_side(path.rpartition("/")[0]) != "subm"]
    parts = {path: _list_name_parts(path) for path in paths}
    possible = {column for column in frame.columns if can_be_label(frame[column])}
    for column in frame.columns:
        sources = frame[column].str.strip()
        if sources.duplicated().any() or not possible - {column}:
            continue
        line_of = dict(zip(sources, frame.index, strict=True))
        line_of.pop("", None)
        source_of: dict[str, str] = {}
        for path, words in parts.items():
            named = words & line_of.keys()
            if len(named) == 1:  # else the name has no source, or several
                source_of[path] = named.pop()
        # sources have two clips or more, else it is a table of clips
        if len(source_of) >= MOST * len(parts) and len(source_of) >= 2 * len(set(source_of.values())) > 2:
            expanded = frame.loc[[line_of[source] for source in source_of.values()]].copy()
            expanded[FILE], expanded["group"] = list(source_of), list(source_of.values())
            expanded.attrs = frame.attrs
            return expanded, str(column)
    return None


def _list_name_parts(path: str) -> set[str]:
    *folders, name = path.split("/")
    return {*folders, *re.split(r"[_\-. ]+", strip_suffix(name))}
