"""The sample submission of a layout: it decides the clips to submit, whatever the layout of the training
clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from earshot.competition import placeholder, segments
from earshot.competition.csv_checks import check_header, check_stray_quotes
from earshot.competition.file_index import Files
from earshot.competition.id_columns import find_id_column
from earshot.competition.layout import Layout
from earshot.competition.names import find_side
from earshot.competition.submission_rows import build_submission_rows
from earshot.competition.tables import Table, Tables
from earshot.core import csv_table, spelling
from earshot.core.csv_table import format_cell
from earshot.core.errors import UserError


@dataclass(frozen=True)
class SampleSubmission:
    """A sample submission: its path, its rows and its column of ids."""

    path: Path
    frame: pd.DataFrame
    id_column: str

    @property
    def columns(self) -> list[str]:
        """Its headers."""
        return list(self.frame.columns)


def read_sample(tables: Tables, path: str, id_column: str | None) -> SampleSubmission:
    """Read the sample submission.

    Raises:
        UserError: it cannot be read, or has a column without a name.
    """
    files = tables.files
    frame = csv_table.read(files.root / path)
    if csv_table.find_nameless(frame):
        raise UserError(
            f"{files.root / path} has a column without a name: if it only numbers the rows, remove it"
        )
    columns = list(frame.columns)
    column = id_column if id_column and id_column in columns else find_id_column(frame, files) or columns[0]
    check_header(files, files.root / path, column, frame)
    return SampleSubmission(files.root / path, frame, column)


def find_requested_files(files: Files, sample: SampleSubmission) -> set[str]:
    """The files of a sample submission's ids, relative to the root. Of several files with one name those of a
    test folder are used; files of a training folder only if the id is their path."""
    requested: set[str] = set()
    for id in sample.frame[sample.id_column]:
        paths = files.find_candidates(id)
        sides = [find_side(path.rpartition("/")[0]) for path in paths]
        own = [path for path, pair in zip(paths, sides, strict=True) if pair == "subm"]
        requested.update(
            own or [path for path, pair in zip(paths, sides, strict=True) if pair is None or path == id][:1]
        )
    return requested


def build_requested_rows(
    files: Files, sample: SampleSubmission, train: pd.DataFrame, layout: Layout, tests: Sequence[Table] = ()
) -> list[pd.DataFrame]:
    """The clips of a sample submission; its headers are entered in `layout`.

    Args:
        train: the training clips. tests: tables that may map the sample's rows to files and seconds.
    """
    layout.id_column, layout.sample, layout.sample_submission = sample.id_column, sample.frame, sample.path
    check_stray_quotes(sample.frame, sample.path, sample.columns, layout)
    value_columns = [c for c in sample.columns if c != sample.id_column]
    if len(value_columns) > 1 and all(
        pd.to_numeric(sample.frame[c], errors="coerce").notna().all() for c in value_columns
    ):
        known = layout.written.columns if layout.written is not None else ()
        layout.submission_classes = spelling.spell_like(
            spelling.spell_like(value_columns, known), layout.spelled.values()
        )
    if len(value_columns) == 1:
        layout.label_column = value_columns[0]
    pairs = [(files.root / test.path, test.frame) for test in tests]
    clips = build_submission_rows(files, sample.frame, sample.path, train, layout, pairs)
    if files.audio and len(clips) and not clips["path"].any():
        _check_files_exist(files, sample, train, layout)
    return [clips]


def _check_files_exist(files: Files, sample: SampleSubmission, train: pd.DataFrame, layout: Layout) -> None:
    """Warn where no row of a sample submission has an audio file; UserError where the test folder holds clips
    of other names."""
    ids = sample.frame[sample.id_column]
    # a folder of examples replaces a test folder that is filled later
    unlisted = [
        p
        for p in placeholder.find_unlisted_audio(files, set(train["path"]))
        if not p.startswith(("example", "sample"))
    ]
    # as many as ids: they must match; else the ids may belong to a folder that is filled later
    as_many = 3 <= len(unlisted) and 0.8 * len(ids) <= len(unlisted) <= 1.25 * len(ids)
    if as_many and not any(segments.NAMED.fullmatch(id.strip()) for id in ids):
        raise UserError(
            f"none of the {len(ids)} ids of {sample.path} is one of the {len(unlisted)} audio files of the "
            f"test folder: the first id is {format_cell(ids.iloc[0])}, the first file {unlisted[0]}; put a "
            f"test.csv beside it, with a column {sample.id_column} of these ids and a column "
            "filename of the files"
        )
    if unlisted or not any(find_side(folder) == "subm" for folder in files.folders):
        hint = (
            "" if unlisted else ": is a folder or archive of test clips still to be downloaded or unpacked?"
        )
        layout.notes.append(
            f"warning: no row of {sample.path.name} has an audio file, so all are filled with the class "
            f"prior{hint}"
        )
