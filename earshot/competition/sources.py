"""Groups of clips from one source: by a column, by the file names, or by the user's flags."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from pathlib import Path

import pandas as pd

from earshot.competition import groups, name_parts
from earshot.competition.file_index import Files
from earshot.competition.id_columns import get_column
from earshot.competition.layout import Layout
from earshot.competition.reading import Reading
from earshot.core.csv_table import format_cell

NONE = "none"


def find_group_column(
    frame: pd.DataFrame,
    layout: Layout,
    labels: pd.Series,
    id_column: str,
    reading: Reading,
    csv: Path,
    esc: bool,
) -> str | None:
    """The column of a table whose values are the clips' sources, also entered in `layout`; None without
    one."""
    layout.group_column = None
    if reading.group_column == NONE or reading.group_pattern:
        return None
    used = [id_column, *(layout.written.columns if layout.written else ())]
    lone = "group" in frame.columns and len(frame) > 1 and frame["group"].str.strip().nunique() == 1
    if reading.group_column and (reading.group_column in frame.columns or not reading.soft_groups):
        layout.group_column = get_column(frame, csv, reading.group_column, "--group-column")
    elif esc:
        layout.group_column = "src_file"
    elif "group" in frame.columns and not lone:
        layout.group_column = "group"
    else:
        if lone:
            layout.notes.append(
                f"column group is not used: all rows have {format_cell(frame['group'].iloc[0])}"
            )
            used.append("group")
        layout.group_column, notes = groups.find_source_column(frame, labels, used)
        layout.guessed_groups = layout.group_column is not None
        layout.notes += [line for line in notes if line not in layout.notes]
    return layout.group_column


def add_name_groups(files: Files, clips: pd.DataFrame, layout: Layout, reading: Reading) -> pd.DataFrame:
    """The clips with groups by their names, by a pattern, or where they have none and the names are clear."""
    names = [files.to_relative(path) for path in clips["path"]]
    if reading.group_pattern:
        name_groups = groups.match_groups(names, reading.group_pattern)
        count = len(set(name_groups) - {""})
        if count < 2 and reading.soft_groups:
            layout.notes.append(f"no groups: the pattern {reading.group_pattern} gives a single group")
            return clips
        clips, layout.guessed_groups = clips.assign(group=name_groups), reading.soft_groups
        layout.notes += (
            [f"groups by the pattern {reading.group_pattern} ({count} groups)"]
            if reading.soft_groups
            else groups.describe_pattern_groups(name_groups)
        )
    elif reading.group_column != NONE and not clips["group"].ne("").any():
        parts = name_parts.find_sources(names, list(clips["label"]))
        train = clips["split"].eq("train").to_numpy()  # which the folds are made of
        if parts is not None and not groups.explain_unfit(
            list(compress(parts[0], train)), list(clips["label"][train]), name_parts.FEWEST
        ):
            clips = clips.assign(group=parts[0])
            layout.notes.append(parts[1])
            layout.guessed_groups = True
    return _drop_straddling_groups(clips, layout) if layout.guessed_groups else clips


def group_all_clips(
    files: Files, parts: Sequence[pd.DataFrame], layout: Layout, reading: Reading
) -> pd.DataFrame:
    """All clips, train before test before subm, with groups by their names (`add_name_groups`): by one part
    of the names for all labelled clips, so that train and hold-out can be compared."""
    clips = pd.concat(parts, ignore_index=True)
    order = clips["split"].map({"train": 0, "test": 1, "subm": 2})
    clips = clips.iloc[order.argsort(kind="stable")].reset_index(drop=True)
    labelled = clips["split"].ne("subm")
    return pd.concat(
        [add_name_groups(files, clips[labelled], layout, reading), clips[~labelled]], ignore_index=True
    )


def _drop_straddling_groups(clips: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """The clips without guessed groups that are in several of the data's own folds, since the folds take
    precedence."""
    own = clips[(clips["fold"] >= 0) & clips["group"].ne("") & clips["split"].eq("train")]
    parted = own.groupby("group")["fold"].nunique()
    if (parted > 1).any():
        layout.notes += groups.warn_straddling_folds(list(own["fold"]), list(own["group"]))
        gone = clips["group"].isin(set(parted.index[parted > 1]))
        clips = clips.assign(group=clips["group"].mask(gone, ""))
    return clips
