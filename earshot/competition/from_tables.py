"""Tables of training clips beside audio, with or without a sample submission, a hold-out or a test table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from earshot.competition import (
    codes,
    file_lists,
    label_choice,
    labels,
    placeholder,
    source_table,
    sources,
    table_parts,
)
from earshot.competition.csv_checks import check_has_rows, check_header, check_stray_quotes
from earshot.competition.id_columns import find_id_column, get_column
from earshot.competition.label_renames import build_renamer
from earshot.competition.labelled import build_labelled_rows, group_shared_files, has_several_rows
from earshot.competition.layout import TRAIN_ONLY, Layout, build_table
from earshot.competition.reading import Reading
from earshot.competition.submission_rows import build_unlabelled_rows
from earshot.competition.tables import Table, Tables, get_role, join_through
from earshot.competition.with_sample import build_requested_rows, read_sample
from earshot.core import spelling
from earshot.core.csv_table import format_list
from earshot.core.errors import UserError
from earshot.core.file_names import format_ids

ESC_COLUMNS = {"filename", "fold", "target", "category"}


def read_from_tables(
    tables: Tables,
    trains: Sequence[tuple[Table, float]],
    sample: str | None,
    tests: list[str],
    valid: list[str],
    others: list[str],
    reading: Reading,
) -> Layout:
    """Read the layout by its tables.

    Args:
        trains: the tables of training clips, each with the weight of its clips.
        sample: the sample submission. tests, valid: the tables that are called so. others: all tables left.
    Raises:
        UserError: no column of files or labels, or no clip that has both.
    """
    reader = _TableReader(tables, trains, sample, others, reading)
    reader.read_training_rows()
    reader.apply_listed_folds()
    for path in valid:
        reader.read_validation_rows(path)
    reader.parts += reader.held_out
    reader.read_rows_to_predict(tests)
    return reader.finish()


class _TableReader:
    """Reads a folder's tables; `found` is the layout as far as it is known.

    `parts` are the clips read so far, training clips first; `held_out` are the labelled rows that a split
    column or a test folder keeps out of training; `open_rows` are the rows without labels, each with its csv.
    """

    def __init__(
        self,
        tables: Tables,
        trains: Sequence[tuple[Table, float]],
        sample: str | None,
        others: list[str],
        reading: Reading,
    ) -> None:
        self.tables, self.files, self.reading = tables, tables.files, reading
        self.first = trains[0][0]
        self.source_column = self._expand_sources(others)
        self.trains = [(self.first, trains[0][1]), *trains[1:]]
        self.csv = self.files.root / self.first.path
        self.frame = check_has_rows(self.first.frame, self.csv)
        self.sample = read_sample(tables, sample, reading.id_column) if sample else None
        self.sample_columns = self.sample.columns if self.sample else []
        self.value_columns = [c for c in self.sample_columns if self.sample and c != self.sample.id_column]

        self.id_column = self._find_id_column(others)
        sample_columns = spelling.spell_like(self.sample_columns, self.frame.columns)
        value_columns = spelling.spell_like(self.value_columns, self.frame.columns)
        if self.first.headed:
            check_header(self.files, self.csv, self.id_column, self.frame)
        else:
            self.frame = label_choice.number_columns(self.frame, self.id_column)
        self.labels, notes = self._find_labels(sample_columns, value_columns)
        self.found = self._start_layout(notes)
        self.parts: list[pd.DataFrame] = []
        self.held_out: list[pd.DataFrame] = []
        self.open_rows: list[tuple[pd.DataFrame, Path]] = []

    def _expand_sources(self, others: list[str]) -> str | None:
        """Where the first table has a row per source of clips, make it a row per clip. Returns the column of
        sources."""
        if self.reading.id_column or self.tables.find_id_column(self.first.path):
            return None
        if join_through(self.tables, self.first, others):
            return None
        expanded = self.tables.expand_by_source(self.first.path)
        if expanded is None:
            return None
        self.first, column = expanded
        return column

    def _find_id_column(self, others: list[str]) -> str:
        if self.source_column is not None:
            return source_table.FILE
        prefer = self.sample_columns[0] if self.sample else None
        return _find_id_column(self.tables, self.first, others, self.reading, prefer)

    def _find_labels(
        self, sample_columns: list[str], value_columns: list[str]
    ) -> tuple[labels.Labels, list[str]]:
        """The label columns of the first table, and lines about them; value_columns: the sample's columns as
        the table spells them."""
        label_column = self._choose_label_column(sample_columns)
        how, notes = labels.detect_format(
            self.frame,
            self.csv,
            self.id_column,
            sample_columns,
            value_columns,
            self.reading.task,
            label_column,
        )
        if how is None:
            raise UserError(
                label_choice.explain_unclear_label(
                    self.csv, self.frame, self.id_column, self.reading, self.source_column
                )
            )
        if self._has_events(how):
            marks = (m for m in labels.MARKS if not self.frame[how.name].str.contains(m, regex=False).any())
            mark = next(marks, None)
            if mark and self.reading.task == "auto":
                how = labels.Labels(how.columns, True, mark)
                events = f"rows of {self.csv.name} are events with times"
                notes = [f"{events}: a clip has the labels of all its rows"]
        notes += labels.warn_fractional_labels(self.frame, self.csv, how)
        return replace(how, empty_is_none=self.reading.empty == "none"), notes

    def _choose_label_column(self, sample_columns: list[str]) -> str | None:
        """The label column where a flag names it, or where the column names leave it open."""
        frame, files = self.frame, self.files
        if self.reading.label_column:
            return get_column(frame, self.csv, self.reading.label_column, "--label-column")
        if self.source_column is not None:
            if len(frame.columns) != 4:
                return None
            no_labels = (self.id_column, "group", self.source_column)
            return next(c for c in frame.columns if c not in no_labels)
        if set(sample_columns) - {self.id_column} & set(frame.columns):
            return None
        column = label_choice.find_folder_column(files, frame, self.id_column)
        if column is None and not self.first.headed:
            column = label_choice.choose_label_column(files, frame, self.id_column)
        return column

    def _has_events(self, how: labels.Labels) -> bool:
        one_label = not how.multilabel and not how.classes
        return one_label and has_several_rows(self.frame, self.id_column, how.name)

    def _start_layout(self, notes: list[str]) -> Layout:
        how, csv = self.labels, self.csv
        self.esc = set(self.frame.columns) >= ESC_COLUMNS and self.sample is None
        layout = Layout(
            "ESC" if self.esc else "Kaggle csv",
            build_table([], [], "train"),
            self.id_column,
            how.name,
            self.sample.path if self.sample else None,
            how,
            renamed=build_renamer(self.reading, self.frame, how, self.value_columns),
        )
        layout.notes += [*self.first.notes, f"{csv.name}: id column {self.id_column}, {how.about}", *notes]
        if self.source_column is not None and how.name == self.source_column:
            self.frame = self.frame.drop(columns="group")
        elif self.source_column is not None:
            layout.notes.append(
                f"{csv.name} has a row per source of clips (column {self.source_column}): its label applies "
                "to all its clips, which folds keep together"
            )
        values = () if self.reading.label_map or how.classes or how.multilabel else self.frame[how.name]
        if coded := codes.find_label_codes(self.tables, self.sample, values, how.name):
            layout.renamed, line = coded
            layout.notes.append(line)
        if "secondary_labels" in self.frame.columns and how.name != "secondary_labels":
            layout.notes.append("column secondary_labels is not used: a clip gets its primary label alone")
        return layout

    def read_training_rows(self) -> None:
        """Read the training tables; of a clip in several of them the first table's label counts."""
        frames = [self.frame]
        frames += [check_has_rows(t.frame, self.files.root / t.path) for t, _ in self.trains[1:]]
        group_column = self._find_group_column(frames)
        first_extra = len(self.trains) - len(self.reading.extras)
        for number, ((table, weight), frame) in enumerate(zip(self.trains, frames, strict=True)):
            csv = self.files.root / table.path
            self._check_columns(frame, csv)
            self.found.notes += [
                self.files.tail_notes[p] for p in (table.path,) if p in self.files.tail_notes
            ]
            if self.reading.group_column and table is not self.first:  # spelled as in this table
                group_column = sources.find_group_column(
                    frame,
                    self.found,
                    self.labels.read_column(frame, csv),
                    self.id_column,
                    self.reading,
                    csv,
                    self.esc,
                )
            clips = self._split_table(table, frame, csv, group_column)
            if number >= first_extra:
                clips = clips.assign(weight=weight, fold=TRAIN_ONLY)
                self.found.notes.append(
                    f"{csv.name}: {len(clips)} more training clips, each with weight {weight:g}"
                )
            self.parts.append(clips)
        self.parts = [pd.concat(self.parts, ignore_index=True)]
        if self.parts[0].empty:
            raise UserError(
                f"no row of {self.csv} has both a label and an audio file: column {self.id_column} begins "
                "with "
                f"{format_list(self.frame[self.id_column][:3])}; audio folders found: "
                f"{self.files.describe_audio_folders()}"
            )

    def _find_group_column(self, frames: Sequence[pd.DataFrame]) -> str | None:
        """The column of sources, by the rows of all tables with the first one's header."""
        header = list(frames[0].columns)
        alike = [
            (frame, self.files.root / table.path)
            for (table, _), frame in zip(self.trains, frames, strict=True)
            if list(frame.columns) == header
        ]
        values = pd.concat([self.labels.read_column(frame, csv) for frame, csv in alike])
        rows = pd.concat([frame for frame, _ in alike])
        return sources.find_group_column(
            rows, self.found, values, self.id_column, self.reading, alike[0][1], self.esc
        )

    def _check_columns(self, frame: pd.DataFrame, csv: Path) -> None:
        needed = (self.id_column, *self.labels.columns)
        lacking = [column for column in needed if column not in frame.columns]
        if lacking:
            raise UserError(
                f"{csv} has no column {lacking[0]}, which {self.csv} has: it has "
                f"{format_list(frame.columns)}; name "
                "its "
                "columns alike"
            )
        check_stray_quotes(frame, csv, needed, self.found)

    def _split_table(
        self, table: Table, frame: pd.DataFrame, csv: Path, group_column: str | None
    ) -> pd.DataFrame:
        """The training clips of a table; rows that it holds out go to `held_out` or `open_rows`."""
        frame, held = table_parts.split_by_column(frame, self.id_column, self.labels, self.found, csv)
        how_held = "of its split column are"
        if held is None and self.sample is None and get_role(table.path) is None:
            frame, held = table_parts.split_by_test_folders(self.files, frame, self.id_column)
            how_held = "whose clips lie in a test folder are"

        clips = build_labelled_rows(self.files, frame, csv, "train", self.id_column, group_column, self.found)
        if held is not None and table_parts.has_no_labels(held, self.labels):
            self.open_rows.append((held, csv))
        elif held is not None:
            self.found.notes.append(
                f"{csv.name}: {len(held)} rows {how_held} the hold-out; validation counts as train"
            )
            self.held_out.append(
                build_labelled_rows(self.files, held, csv, "test", self.id_column, group_column, self.found)
            )
        known = {path for part in self.parts for path in part["path"]}
        return clips[~clips["path"].isin(known)]

    def apply_listed_folds(self) -> None:
        """Take the folds from the official lists beside the audio, where no table has folds."""
        folds = file_lists.read_folds(self.files)
        clips = self.parts[0]
        if folds and not (clips["fold"] >= 0).any():
            clips["fold"] = [folds.get(self.files.to_relative(path), -1) for path in clips["path"]]
            self.found.notes.append(f"folds by the lists beside the audio: {len(set(folds.values()))} folds")

    def read_validation_rows(self, path: str) -> None:
        """Add the clips of a validation table as training clips; none where it has other columns."""
        table, notes = self.tables.read_table(path), self.found.notes
        if self.id_column not in table.frame.columns or not self._has_labels(table.frame):
            if find_id_column(table.frame, self.files):
                lacking = f"{self.id_column} or the labels in {self.labels.name}"
                notes.append(f"not used: {path}: it lacks {lacking}")
            return
        csv = self.files.root / path
        check_stray_quotes(table.frame, csv, (self.id_column, *self.labels.columns), self.found)
        clips = build_labelled_rows(
            self.files, table.frame, csv, "train", self.id_column, self.found.group_column, self.found
        )
        training = self.parts[0]
        clips = clips[~clips["path"].isin(set(training["path"]))]
        if clips.empty:
            return
        taken = set(training["id"])  # val/0.wav beside train/0.wav
        rows = zip(clips["id"], clips["path"], strict=True)
        clips = clips.assign(id=[self.files.to_relative(path) if id in taken else id for id, path in rows])
        notes.append(f"{csv.name}: {len(clips)} clips of the validation table count as train")
        self.parts.append(clips)

    def _has_labels(self, frame: pd.DataFrame) -> bool:
        return self.labels.is_known_in(frame) and not frame.empty

    def read_rows_to_predict(self, tests: list[str]) -> None:
        """Add the clips to predict: those of the sample submission, else of a test table, else all files of a
        test folder. A labelled test table is a hold-out."""
        tests = [t for t in tests if Path(t).name.lower() in ("test.csv", "test.tsv")][:1] or tests
        if not self.sample and not self.held_out:
            tests = self._hold_out_test_list(tests)
        if self.sample:
            test_tables = [self.tables.read_table(t) for t in tests]
            self.parts += build_requested_rows(
                self.files, self.sample, self.parts[0], self.found, test_tables
            )
        elif len(tests) > 1:
            self.found.notes.append(f"not used: {', '.join(tests)}: any of them may be the test csv")
        elif tests:
            self.parts += table_parts.read_test_rows(
                self.tables, tests[0], self.id_column, self.frame, self.found
            )
        elif self.open_rows:
            for rows, csv in self.open_rows:
                self.parts.append(build_unlabelled_rows(self.files, rows, csv, self.found))
        elif not self.held_out:
            unlisted = placeholder.find_unlisted_audio(self.files, set(self.parts[0]["path"]))
            ids = placeholder.make_ids_like(list(self.parts[0]["id"]), unlisted)
            self.parts.append(build_table(ids, [self.files.to_absolute(p) for p in unlisted], "subm"))

    def _hold_out_test_list(self, tests: list[str]) -> list[str]:
        """Hold out the training clips that test tables without labels name; the test tables that are left."""
        lists = [t for t in tests if not self.labels.is_known_in(self.tables.read_table(t).frame)]
        listed = table_parts.find_listed_clips(self.tables, lists, self.parts[0])
        if listed.any() and not listed.all():
            names = ", ".join(Path(t).name for t in lists)
            self.found.notes.append(
                f"{names}: its {listed.sum()} clips are the hold-out, labelled by {self.csv.name}"
            )
            self.held_out = [self.parts[0][listed].assign(split="test")]
            self.parts = [self.parts[0][~listed], *self.parts[1:], *self.held_out]
            return []
        labelled = [t for t in tests if t not in lists]
        return labelled or tests  # of fold1_evaluate and fold1_test the labelled one

    def finish(self) -> Layout:
        """The layout with its groups, and lines about files that no table names."""
        self.found.notes += self.files.describe_number_matches()
        clips = sources.group_all_clips(self.files, self.parts, self.found, self.reading)
        self.found.clips = group_shared_files(self.files, clips, self.found)
        named = {self.files.to_relative(path) for path in self.found.clips["path"] if path}
        unnamed = set(self.files.audio) - named
        if unnamed:
            self.found.notes.append(
                f"{len(unnamed)} audio files are in no csv and left out: {format_ids(unnamed)}"
            )
        self.found.notes += self.files.describe_unused_files()
        return self.found


def _find_id_column(
    tables: Tables, first: Table, others: list[str], reading: Reading, prefer: str | None
) -> str:
    """The id column of the first table: the one that a flag names, else one whose values match files:
    directly, through another table, or by the ends of the file names."""
    files, frame, csv = tables.files, first.frame, tables.files.root / first.path
    known: str | None = None
    if reading.id_column is not None:
        known = get_column(frame, csv, reading.id_column, "--id-column")
        if any(files.find_candidates(id) or files.find_by_number(id) for id in frame[known][:1000]):
            return known
    column = find_id_column(frame, files, prefer=prefer) if known is None else None
    if column is None:
        column = join_through(tables, first, others) or tables.find_id_column(first.path)
    if column is None and known is None:
        raise UserError(
            f"no column of {csv} names audio files: its columns are {format_list(frame.columns)}; "
            f"audio folders found in {files.root}: {files.describe_audio_folders()}; "
            f"pass --id-column, or put the audio there{label_choice.suggest_label_pattern(files)}"
        )
    return known or column or ""
