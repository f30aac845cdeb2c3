"""Tables with a row per source of clips, such as patients: their labels are those of all its clips."""

from __future__ import annotations

import re

import pandas as pd

from earshot.competition.file_index import Files
from earshot.competition.labels import can_be_label
from earshot.competition.names import find_side, strip_suffix

MOST = 0.9  # of the audio files outside test folders are of a source that the table has
FILE = "file"


def expand_sources(frame: pd.DataFrame, files: Files) -> tuple[pd.DataFrame, str] | None:
    """The table with a row per audio file (column `file`, the source as `group`), and the column of sources.

    A source is named by a folder of its clips, or by a part of their file names between marks.

    Args:
        frame: (sources,) as text; its index is each row's line.
    Returns:
        None unless a column plainly names the sources of nearly all clips, and another one may be a label.
    """
    if {FILE, "group"} & set(frame.columns) or len(frame) < 2:
        return None
    parts = {
        path: _list_name_parts(path) for path in files.audio if find_side(path.rpartition("/")[0]) != "subm"
    }
    for column in frame.columns:
        sources = frame[column].str.strip()
        if sources.duplicated().any() or not any(
            can_be_label(frame[c]) for c in frame.columns if c != column
        ):
            continue
        line = dict(zip(sources, frame.index, strict=True))
        line.pop("", None)
        own = {path: {pair for pair in clips_of if pair in line} for path, clips_of in parts.items()}
        clips = [(path, clips_of.pop()) for path, clips_of in own.items() if len(clips_of) == 1]
        used = {source for _, source in clips}
        if len(clips) >= MOST * len(parts) and len(clips) >= 2 * len(used) > 2:
            expanded = frame.loc[[line[source] for _, source in clips]].copy()
            expanded[FILE], expanded["group"] = [p for p, _ in clips], [s for _, s in clips]
            expanded.attrs = frame.attrs
            return expanded, str(column)
    return None


def _list_name_parts(path: str) -> set[str]:
    *folders, name = path.split("/")
    return {*folders, *re.split(r"[_\-. ]+", strip_suffix(name))}
