"""The clips to submit: those of a sample submission or of a csv without labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from earshot.competition import labels, long_format, placeholder, row_tables, segments
from earshot.competition.file_index import Files
from earshot.competition.layout import Layout, build_table
from earshot.competition.row_tables import Tables
from earshot.competition.segments import Segments
from earshot.core.csv_table import format_cell, format_list
from earshot.core.errors import UserError


def build_unlabelled_rows(files: Files, frame: pd.DataFrame, csv: Path, layout: Layout) -> pd.DataFrame:
    """The clips to submit of a csv without labels: all rows, with the path "" and an entry in
    `layout.missing` where there is no file."""
    _check_ids(frame[layout.id_column], csv, layout.id_column)
    if frame[layout.id_column].duplicated().any() and (
        rows := row_tables.read_row_ids(files, csv, frame, layout.id_column)
    ):
        layout.id_column = rows[0]
        return _build_segment_rows(rows[1], files, csv, csv, layout)
    ids = _read_unique_ids(frame, csv, layout)
    paths = files.resolve_ids(ids, "subm")
    if any(paths):
        return _build_clip_rows(ids, paths, files, layout)
    mapped = row_tables.find_row_table(files, [(csv, frame)], layout.id_column, ids, set())
    if mapped and any(mapped[1].paths):
        return _build_segment_rows(mapped[1], files, csv, csv, layout)
    parts = segments.find_segments(ids, files)
    return (
        _build_segment_rows(parts, files, csv, None, layout)
        if parts
        else _build_clip_rows(ids, paths, files, layout)
    )


def build_submission_rows(
    files: Files, frame: pd.DataFrame, csv: Path, train: pd.DataFrame, layout: Layout, tables: Tables = ()
) -> pd.DataFrame:
    """The clips of a sample submission; where it is a placeholder, those of the test folder.

    Its ids are files; else rows of a table with the part of a file that each is; else names of stretches of
    recordings; else pairs of such a clip and a class, and each clip appears once.

    Args:
        train: the labelled clips, which are not submitted.
        tables: the other csv files of the test side, with their paths.
    """
    ids = _read_unique_ids(frame, csv, layout)
    paths = files.resolve_ids(ids, "subm")
    if not any(paths) and (line := files.match_other_suffix(ids, "subm")):
        layout.notes.append(f"{csv.name}: {line}")
        paths = files.resolve_ids(ids, "subm")
    if any(paths):
        return _build_clip_rows(ids, paths, files, layout)
    classes = {name for label in train["label"].dropna().unique() for name in labels.as_tuple(label)}
    classes |= set(layout.written.classes or ()) if layout.written else set()
    mapped = row_tables.find_row_table(files, tables, layout.id_column, ids, classes)
    if mapped and any(mapped[1].paths):
        return _build_segment_rows(mapped[1], files, csv, mapped[0], layout)
    if parts := segments.find_segments(ids, files):
        return _build_segment_rows(parts, files, csv, None, layout)
    if (pairs := _split_pairs(files, ids, classes, set(train["path"]), csv, layout)) is not None:
        layout.notes.append(f"{csv.name}: {len(ids)} rows, each a class of one of {len(pairs)} clips")
        paths = files.resolve_ids(pairs, "subm")
        parts = None if any(paths) else segments.find_segments(pairs, files)
        return (
            _build_segment_rows(parts, files, csv, None, layout)
            if parts
            else _build_clip_rows(pairs, paths, files, layout)
        )

    example = [str(cell) for cell in frame.iloc[0]] if len(frame) else []
    if listed := row_tables.find_longer_table(files, tables, layout.id_column, ids, classes):
        layout.example = example
        layout.notes.append(
            f"{csv.name} is a placeholder of {len(frame)} rows: using the {len(listed[1].ids)} rows of "
            f"{listed[0].name}"
        )
        return _build_segment_rows(listed[1], files, csv, listed[0], layout)
    # Where a table has the ids, they may be more than file names.
    if mapped is None:
        parts, lines = placeholder.find_placeholder_segments(files, ids, layout.id_column, train, classes)
        layout.notes += lines
    if parts:
        layout.example = example
        layout.notes.append(
            f"{csv.name} is a placeholder of {len(frame)} rows: using {len(parts.ids)} rows, one "
            f"for every {parts.seconds:g} s of the {len(set(parts.paths))} recordings of the test folder"
        )
        return _build_clip_rows(parts.ids, parts.paths, files, layout, parts)
    if instead := placeholder.find_placeholder_rows(files, ids, paths, train):
        layout.example = example
        layout.notes.append(
            f"{csv.name} is a placeholder of {len(frame)} rows: using a row for each of the "
            f"{len(instead[0])} files of the test folder"
        )
        return build_table(*instead, "subm")
    return (
        _build_segment_rows(mapped[1], files, csv, mapped[0], layout)
        if mapped
        else _build_clip_rows(ids, paths, files, layout)
    )


def _check_ids(ids: pd.Series, csv: Path, column: str) -> None:
    empty = ids.index[ids.str.strip() == ""]
    if len(empty):
        raise UserError(f"{csv}, line {empty[0]}: no id in column {column}: add one, or remove the line")


def _read_unique_ids(frame: pd.DataFrame, csv: Path, layout: Layout) -> list[str]:
    """The ids of a csv; UserError where one is empty or repeated."""
    ids = frame[layout.id_column]
    _check_ids(ids, csv, layout.id_column)
    if ids.duplicated().any():
        again = ids[ids.duplicated()]
        rest = [c for c in frame.columns if c != layout.id_column]
        if (
            2 * len(again) >= len(ids)
            and len(rest) > 1
            and not frame[[layout.id_column, *rest[:-1]]].duplicated().any()
        ):
            raise UserError(
                f"{csv} has {len(ids)} rows for {ids.nunique()} ids, distinguished by column {rest[0]}: "
                f"Earshot fills rows by one column of ids; give it a copy with ids such as "
                f"{ids.iloc[0]}_{frame[rest[0]].iloc[0]} and a single column {rest[-1]}"
            )
        raise UserError(
            f"{csv} has the id {format_cell(again.iloc[0])} twice (again in line {again.index[0]}): keep one "
            "row per clip"
        )
    return list(ids)


def _split_pairs(
    files: Files, ids: list[str], classes: set[str], labelled: set[str], csv: Path, layout: Layout
) -> list[str] | None:
    """The clips of ids that name a clip and a class, each once; None for other ids."""
    pairs = long_format.detect_long_format(
        ids, sorted(classes), segments.KnownIds(files, labelled), strict=False
    )
    if pairs is None:
        return None
    unknown = sorted(set(pairs.classes) - classes)
    if unknown:
        layout.notes.append(
            f"warning: {csv.name} has rows for {format_list(unknown, 5)}, and no training clip has that "
            "label: they get 0"
        )
    return list(dict.fromkeys(pairs.clips))


def _build_segment_rows(
    parts: Segments, files: Files, csv: Path, by: Path | None, layout: Layout
) -> pd.DataFrame:
    """Rows that are parts of recordings, by their ids or by a table, with a line about them."""
    how = "the ids name" if by is None else f"the rows of {by.name} are" if by != csv else "the rows are"
    number = len(set(filter(None, parts.paths)))
    if parts.seconds:
        layout.notes.append(f"{csv.name}: {how} stretches of {parts.seconds:g} s, of {number} recordings")
    elif number:
        layout.notes.append(f"{csv.name}: {how} {number} recordings")
    return _build_clip_rows(parts.ids, parts.paths, files, layout, parts)


def _build_clip_rows(
    ids: list[str], paths: list[str], files: Files, layout: Layout, parts: Segments | None = None
) -> pd.DataFrame:
    """The table of the rows; rows without a file are also added to `layout.missing`."""
    names: Sequence[str] = parts.names if parts else ids
    layout.missing += [
        ("subm", id, files.explain_absence(name))
        for id, path, name in zip(ids, paths, names, strict=True)
        if not path
    ]
    return build_table(ids, paths, "subm", starts=parts and parts.starts, ends=parts and parts.ends)
