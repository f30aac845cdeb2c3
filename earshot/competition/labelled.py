"""The clips of a csv that has their labels."""

from __future__ import annotations

import re

import pandas as pd

from earshot.competition import labels
from earshot.competition.file_index import Files
from earshot.competition.layout import Layout, table
from earshot.core.csv_table import shown, some
from earshot.core.errors import UserError


def labelled_rows(files, frame, csv, split, id_column, group_column, found: Layout) -> pd.DataFrame:
    """The clips of a labelled csv; rows without a file, an id or a label go to `found.missing`.

    Those of the hold-out without a file stay all the same: they are answered, and so scored, by the class
    prior.
    """
    raw = found.written.read(frame, csv)
    odd = raw[raw.map(lambda v: any(re.search(r"[\x00-\x1f\x7f]", one) for one in labels.each(v)))]
    if len(odd):
        raise UserError(
            f"{csv}, line {odd.index[0]}: the label {shown(labels.each(odd.iloc[0])[0])} holds a line break "
            "or a control character: a quote is missing?"
        )
    values = pd.Series(found.settle(list(raw)), index=raw.index, dtype=object)
    clash = values.groupby(frame[id_column]).nunique()
    clash = [i for i in clash.index[clash > 1] if i.strip()]
    if clash:
        one = values[frame[id_column] == clash[0]].drop_duplicates()[:2]
        two = [some(labels.each(v)) or "none" for v in one]
        raise UserError(
            f"{csv} gives {shown(clash[0])} two labels, {two[0]} and {two[1]} (lines {one.index[0]} and "
            f"{one.index[1]}): keep one"
        )
    repeated = frame[id_column].duplicated() & frame[id_column].str.strip().ne("")
    if repeated.any():
        found.notes.append(
            f"{csv.name}: {repeated.sum()} repeated rows left out (same id, same label), first "
            f"{shown(frame[id_column][repeated].iloc[0])} in line {repeated.idxmax()}"
        )
        frame, values = frame[~repeated], values[~repeated]

    paths = files.resolve(list(frame[id_column]), split)
    keep = []
    for row, (clip_id, label, path) in enumerate(zip(frame[id_column], values, paths, strict=True)):
        known = label != labels.MISSING  # not `if label`: a row of zeros is known to have no label
        if known and (path or split == "test"):
            keep.append(row)
        if not (known and path):
            found.missing.append((split, clip_id, files.absence(clip_id) if known else "empty label"))
    frame, values = frame.iloc[keep], values.iloc[keep]
    folds = None
    if "fold" in frame:
        text = frame["fold"].str.strip()
        odd = text[~text.str.fullmatch(r"(\d{1,9}|-1)?(\.0*)?", flags=re.ASCII)]
        if odd.empty:
            folds = [int(float(f)) if f else -1 for f in text.str.replace(r"^\.0*$", "", regex=True)]
        else:
            found.notes.append(
                f"{csv.name}: column fold is not used (not whole numbers: {shown(odd.iloc[0])} in line "
                f"{odd.index[0]})"
            )
    groups = frame[group_column].str.strip() if group_column in frame else None
    return table(frame[id_column], [paths[i] for i in keep], split, values, folds, groups)


def together(files: Files, clips: pd.DataFrame, found: Layout) -> pd.DataFrame:
    """Training clips that are one audio file under several ids get a group in common: no fold may tell the
    other's answer."""
    paths = clips["path"].where(clips["split"].eq("train") & clips["path"].ne(""))
    several = paths.notna() & paths.duplicated(keep=False)
    if several.any():
        ids = clips["id"][paths == paths[several].iloc[0]]
        found.notes.append(
            f"warning: {paths[several].nunique()} audio files have several training ids (first: "
            f"{some(ids, 3)}): all are kept, on one side of a fold"
        )
        alone = several & clips["group"].eq("")
        clips.loc[alone, "group"] = [files.relative(path) for path in paths[alone]]
    return clips
