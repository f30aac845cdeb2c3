"""The clips that are to be submitted: those that a sample submission or a csv without labels asks for."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from earshot.competition import placeholder, segments
from earshot.competition.file_index import Files
from earshot.competition.layout import Layout, table
from earshot.core.csv_table import shown
from earshot.core.errors import UserError


def unlabelled_rows(files: Files, frame: pd.DataFrame, csv: Path, found: Layout) -> pd.DataFrame:
    """The clips to be submitted: every row of the csv, path "" (and an entry in `found.missing`) without a
    file."""
    ids = frame[found.id_column]
    empty = ids.index[ids.str.strip() == ""]
    if len(empty):
        raise UserError(
            f"{csv}, line {empty[0]}: no id in column {found.id_column}: give one, or take the line out"
        )
    if ids.duplicated().any():
        again = ids[ids.duplicated()]
        raise UserError(
            f"{csv} has the id {shown(again.iloc[0])} twice (again in line {again.index[0]}): keep one row "
            "per clip"
        )
    paths = files.resolve(list(ids), "subm")
    parts = None if any(paths) else segments.find(list(ids), files)
    if parts:
        ids, paths = parts.ids, parts.paths
        found.notes.append(
            f"{csv.name}: the ids name stretches of {parts.seconds} s, of {len(set(filter(None, paths)))} "
            "recordings"
        )
    found.missing += [
        ("subm", id, files.absence(segments.NAMED.sub(r"\1", id.strip()) if parts else id))
        for id, path in zip(ids, paths, strict=True)
        if not path
    ]
    return table(ids, paths, "subm", starts=parts and parts.starts, ends=parts and parts.ends)


def asked_rows(
    files: Files, frame: pd.DataFrame, csv: Path, train: pd.DataFrame, found: Layout, tables=()
) -> pd.DataFrame:
    """The clips that a sample submission asks for; where it is a placeholder, those of the test folder."""
    known = list(found.missing)
    rows = unlabelled_rows(files, frame, csv, found)
    instead = placeholder.stand_ins(files, list(rows["id"]), list(rows["path"]), train)
    if instead is None:
        return rows
    found.missing, found.example = known, [str(cell) for cell in frame.iloc[0]] if len(frame) else []
    found.notes.append(
        f"{csv.name} is a placeholder of {len(frame)} rows: its place takes a row for each of the "
        f"{len(instead[0])} files of the test folder"
    )
    return table(*instead, "subm")
