"""Splits of a table's rows into training, hold-out and submission: by its split column, by folders, by other
tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from earshot.competition import labels
from earshot.competition.csv_checks import check_has_rows, check_header, check_stray_quotes
from earshot.competition.file_index import Files
from earshot.competition.id_columns import find_id_column
from earshot.competition.labelled import build_labelled_rows
from earshot.competition.layout import Layout
from earshot.competition.names import find_side
from earshot.competition.split_words import SPLIT_WORDS
from earshot.competition.submission_rows import build_unlabelled_rows
from earshot.competition.tables import Tables
from earshot.core import spelling
from earshot.core.csv_table import format_cell

SPLIT_COLUMNS = ("split", "subset", "set", "partition", "usage")


def has_no_labels(frame: pd.DataFrame, how: labels.Labels) -> bool:
    """Has no row of a table a label?"""
    if not how.is_known_in(frame):
        return True
    return not how.classes and bool(frame[how.name].str.strip().isin(("", labels.TO_PREDICT)).all())


def split_by_column(
    frame: pd.DataFrame, id_column: str, how: labels.Labels, layout: Layout, csv: Path
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The training rows of a table, and the rows that its split column holds out; None without such a
    column."""
    for column in frame.columns:
        if column in (id_column, *how.columns) or column.lower() not in SPLIT_COLUMNS:
            continue
        splits = frame[column].str.strip().str.lower().map(SPLIT_WORDS)
        if {"train", "test"} <= set(splits):
            if splits.notna().all():
                return frame[splits != "test"], frame[splits == "test"]
            line = splits.isna().idxmax()
            layout.notes.append(
                f"warning: {csv.name}: column {column} is not used, so all rows count as train: "
                f"{format_cell(frame[column][line]) or 'nothing'} in line {line} is none of train, "
                "validation, test"
            )
    return frame, None


def split_by_test_folders(
    files: Files, frame: pd.DataFrame, id_column: str
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The training rows, and the labelled rows whose clips are in a test folder; None without any."""
    candidates = [files.find_candidates(id) for id in frame[id_column]]
    in_test_folder = pd.Series(
        [
            bool(paths) and all(find_side(p.rpartition("/")[0]) == "subm" for p in paths)
            for paths in candidates
        ],
        index=frame.index,
    )
    return (
        (frame[~in_test_folder], frame[in_test_folder])
        if in_test_folder.any() and not in_test_folder.all()
        else (frame, None)
    )


def find_listed_clips(tables: Tables, tests: Sequence[str], clips: pd.DataFrame) -> pd.Series:
    """The training clips in test tables without labels whose clips are all training clips."""
    known, named = set(clips["path"]), set()
    for test in tests:
        frame = tables.read_table(test).frame
        column = find_id_column(frame, tables.files)
        paths = [tables.files.find_candidates(id)[:1] for id in frame[column]] if column else []
        here = {tables.files.to_absolute(p) for path in paths for p in path}
        named |= here if here <= known else set()
    return clips["path"].isin(named)


def read_test_rows(
    tables: Tables, test: str, train_id: str, train: pd.DataFrame, layout: Layout
) -> list[pd.DataFrame]:
    """The clips of a test table without a sample submission: a labelled hold-out, or clips to submit."""
    files, csv, how = tables.files, tables.files.root / test, layout.written
    assert how is not None
    headed = tables.read_table(test)
    frame = check_has_rows(headed.frame, csv)
    test_id = train_id if train_id in frame.columns else (find_id_column(frame, files) or frame.columns[0])
    if headed.headed:
        check_header(files, csv, test_id, frame)
    check_stray_quotes(frame, csv, (test_id, *how.columns), layout)
    columns = list(frame.columns)
    labels.check_duplicate_headers(columns, how.columns, csv)
    spelled = zip(columns, spelling.spell_like(columns, how.columns), strict=True)
    frame = frame.rename(columns={c: known for c, known in spelled if known not in columns})
    if how.is_known_in(frame):
        return [build_labelled_rows(files, frame, csv, "test", test_id, layout.group_column, layout)]
    layout.notes += labels.warn_missing_labels(how, frame, train.columns, Path(test).name)
    layout.id_column = test_id
    return [build_unlabelled_rows(files, frame, csv, layout)]
