"""The clips of a csv with labels."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from earshot.competition import groups, labels
from earshot.competition.file_index import Files
from earshot.competition.layout import TRAIN_ONLY, Layout, build_table
from earshot.core.csv_table import format_cell, format_list
from earshot.core.errors import UserError

TIMES = re.compile(
    r"(t|time|start|end|begin|onset|offset|stop)([ _].*)?|.*[ _](onset|offset|start|end)", re.I
)
SURE = re.compile("relevance|confidence|probability|likelihood|presence|present|score|value", re.I)


def build_labelled_rows(
    files: Files,
    frame: pd.DataFrame,
    csv: Path,
    split: str,
    id_column: str,
    group_column: str | None,
    layout: Layout,
) -> pd.DataFrame:
    """The clips of a labelled csv; rows without a file, an id or a label go to `layout.missing`.

    Where clips may have several labels, the rows of one clip are merged into one with all their labels. Clips
    of the hold-out without a file are kept: they are filled with the class prior, and scored by it.
    """
    assert layout.written is not None
    raw = layout.written.read_column(frame, csv)
    odd = raw[raw.map(lambda v: any(re.search(r"[\x00-\x1f\x7f]", one) for one in labels.as_tuple(v)))]
    if len(odd):
        raise UserError(
            f"{csv}, line {odd.index[0]}: the label {format_cell(labels.as_tuple(odd.iloc[0])[0])} has a "
            "line break or a control character: is a quote missing?"
        )
    values = pd.Series(layout.unify_spellings(list(raw)), index=raw.index, dtype=object)
    clash = values.groupby(frame[id_column]).nunique()
    clash = [i for i in clash.index[clash > 1] if i.strip()]
    rows = frame[id_column].isin(clash)
    single = bool((values[rows].map(lambda value: len(labels.as_tuple(value))) <= 1).all())
    if (
        clash
        and layout.written.multilabel
        and layout.written.separator is not None
        and (single or has_time_columns(frame))
    ):
        layout.notes.append(
            f"{csv.name}: {len(clash)} clips have several rows: each gets the labels of all of them"
        )
        unsure = [c for c in frame.columns if SURE.fullmatch(c) and frame[c].nunique() > 1]
        if unsure:
            layout.notes.append(
                f"warning: column {unsure[0]} is not used: if a low one means that the label is absent, "
                "leave those rows out in a copy of the csv"
            )
        united = {
            id: tuple(sorted({one for value in part for one in labels.as_tuple(value)} - {labels.MISSING}))
            or labels.MISSING
            for id, part in values[rows].groupby(frame[id_column][rows])
        }
        values = pd.Series(
            [united.get(id, value) for id, value in zip(frame[id_column], values, strict=True)],
            index=values.index,
            dtype=object,
        )
    elif clash:
        one = values[frame[id_column] == clash[0]].drop_duplicates()[:2]
        two = [format_list(labels.as_tuple(v)) or "none" for v in one]
        raise UserError(
            f"{csv} gives {format_cell(clash[0])} two labels, {two[0]} and {two[1]} (lines "
            f"{one.index[0]} and {one.index[1]}): "
            + (
                "write a copy with a row per clip, such as the majority of its rows"
                if layout.written.multilabel
                else "keep one, or give --task multilabel if a clip may have both"
            )
        )
    hidden = pd.Series(False, index=frame.index)
    if layout.written.columns[0] in frame:
        hidden = frame[layout.written.columns[0]].str.strip() == labels.TO_PREDICT
    if hidden.any():
        layout.notes.append(f"{csv.name}: {hidden.sum()} rows have the label ?: to be predicted")
        frame, values = frame[~hidden], values[~hidden]
    repeated = frame[id_column].duplicated() & frame[id_column].str.strip().ne("")
    if repeated.any() and clash:
        frame, values = frame[~repeated], values[~repeated]
    elif repeated.any():
        layout.notes.append(
            f"{csv.name}: {repeated.sum()} repeated rows left out (same id, same label), first "
            f"{format_cell(frame[id_column][repeated].iloc[0])} in line {repeated.idxmax()}"
        )
        frame, values = frame[~repeated], values[~repeated]

    paths = files.resolve_ids(list(frame[id_column]), split)
    keep = []
    for row, (clip_id, label, path) in enumerate(zip(frame[id_column], values, paths, strict=True)):
        known = label != labels.MISSING  # a row of zeros is known, too: a clip without any label
        if known and (path or split == "test"):
            keep.append(row)
        if not (known and path):
            layout.missing.append(
                (split, clip_id, files.explain_absence(clip_id) if known else "empty label")
            )
    frame, values = frame.iloc[keep], values.iloc[keep]
    folds = None
    if "fold" in frame:
        text = frame["fold"].str.strip()
        odd = text[~text.str.fullmatch(r"(\d{1,9}|-1)?(\.0*)?", flags=re.ASCII)]
        if odd.empty:
            folds = [int(float(f)) if f else -1 for f in text.str.replace(r"^\.0*$", "", regex=True)]
        else:
            layout.notes.append(
                f"{csv.name}: column fold is not used (not whole numbers: {format_cell(odd.iloc[0])} in line "
                f"{odd.index[0]})"
            )
    sources = None
    if group_column is not None and group_column in frame:
        cells = frame[group_column].str.strip()
        sources = groups.clean_sources(list(cells)) if layout.guessed_groups else list(cells)
    return build_table(frame[id_column], [paths[i] for i in keep], split, values, folds, sources)


def has_time_columns(frame: pd.DataFrame) -> bool:
    """Does a table have columns of times?"""
    return any(TIMES.fullmatch(str(column)) for column in frame.columns)


def has_several_rows(frame: pd.DataFrame, id_column: str, label: str) -> bool:
    """Are the rows events: with times, and several rows of different labels for a clip?"""
    return has_time_columns(frame) and bool((frame.groupby(id_column)[label].nunique() > 1).any())


def group_shared_files(files: Files, clips: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """Give training clips that are one audio file under several ids a common group, so that no fold leaks the
    other's label. Clips of --extra-csv that are in the hold-out are left out."""
    held = set(clips["path"][clips["split"].eq("test")]) - {""}
    both = clips["split"].eq("train") & clips["path"].isin(held)
    only = both & clips["fold"].eq(TRAIN_ONLY)
    if only.any():
        layout.notes.append(f"{only.sum()} clips of --extra-csv are in the hold-out: not trained on")
    if (both & ~only).any():
        layout.notes.append(
            f"warning: {(both & ~only).sum()} audio files are in train and in the hold-out (first: "
            f"{format_cell(clips['id'][both & ~only].iloc[0])}): the test scores are optimistic"
        )
    clips = clips[~only].reset_index(drop=True)
    paths = clips["path"].where(clips["split"].eq("train") & clips["path"].ne(""))
    is_shared = paths.notna() & paths.duplicated(keep=False)
    if is_shared.any():
        ids = clips["id"][paths == paths[is_shared].iloc[0]]
        layout.notes.append(
            f"warning: {paths[is_shared].nunique()} audio files have several training ids (first: "
            f"{format_list(ids, 3)}): all are kept, on one side of a fold"
        )
        alone = is_shared & clips["group"].eq("")
        clips.loc[alone, "group"] = [files.to_relative(path) for path in paths[alone]]
    return clips
