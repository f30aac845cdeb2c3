"""Tables of training clips beside audio, with or without a sample submission, a hold-out or a test table."""

from __future__ import annotations

import os
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
from earshot.competition.asked import unlabelled_rows
from earshot.competition.csv_checks import need_header, need_rows, stray_quotes
from earshot.competition.id_columns import find_id_column, need_column
from earshot.competition.labelled import labelled_rows, several_rows, together
from earshot.competition.layout import TRAIN_ONLY, Layout, table
from earshot.competition.reading import Reading, mapper
from earshot.competition.tables import Table, Tables, join, role
from earshot.competition.with_sample import sample_table, with_sample
from earshot.core import spelling
from earshot.core.csv_table import some
from earshot.core.errors import UserError
from earshot.core.file_names import first_few

ESC_COLUMNS = {"filename", "fold", "target", "category"}


def from_tables(
    tables: Tables,
    trains: Sequence[tuple[Table, float]],
    sample: str | None,
    tests: list[str],
    valid: list[str],
    others: list[str],
    reading: Reading,
) -> Layout:
    """The layout by its tables.

    Args:
        trains: the tables of training clips, each with the weight of its clips.
        sample: the sample submission. tests, valid: the tables that are called so. others: all tables left.
    Raises:
        UserError: no column of files or labels, or no clip that has both.
    """
    files = tables.files
    first = trains[0][0]
    by_source = None
    if not (reading.id_column or tables.id_column(first.path) or join(tables, first, others)):
        by_source = tables.by_source(first.path)
    if by_source is not None:
        first = by_source[0]
        trains = [(first, trains[0][1]), *trains[1:]]
    csv, frame = files.root / first.path, need_rows(first.frame, files.root / first.path)
    asked = sample_table(tables, sample, reading.id_column) if sample else None
    id_column = (
        source_table.FILE
        if by_source is not None
        else _id_column(tables, first, others, reading, asked.columns[0] if asked else None)
    )
    if first.headed:
        need_header(files, csv, id_column, frame)
    answers = [c for c in asked.columns if c != asked.id_column] if asked else []
    columns = spelling.like(asked.columns if asked else [], frame.columns)
    wanted = spelling.like(answers, frame.columns)
    if not first.headed:
        frame = label_choice.numbered_columns(frame, id_column)
    named = reading.label_column and need_column(frame, csv, reading.label_column, "--label-column")
    if named is None and by_source is None and not set(columns) - {id_column} & set(frame.columns):
        named = label_choice.folder_column(files, frame, id_column) or (
            None if first.headed else label_choice.first_label(files, frame, id_column)
        )
    if by_source is not None and named is None and len(frame.columns) == 4:
        named = next(c for c in frame.columns if c not in (id_column, "group", by_source[1]))
    how, said = labels.find(frame, csv, id_column, columns, wanted, reading.task, named)
    if how is None:
        raise UserError(label_choice.unclear(csv, frame, id_column, reading, by_source and by_source[1]))
    if not how.multilabel and not how.classes and several_rows(frame, id_column, how.name):
        mark = next((m for m in labels.MARKS if not frame[how.name].str.contains(m, regex=False).any()), None)
        if mark and reading.task == "auto":
            how = labels.Labels(how.columns, True, mark)
            said = [f"rows of {csv.name} are events with times: a clip has the labels of all its rows"]
    said += labels.about_numbers(frame, csv, how)
    how = replace(how, empty_is_none=reading.empty == "none")

    esc = set(frame.columns) >= ESC_COLUMNS and asked is None
    found = Layout(
        "ESC" if esc else "Kaggle csv",
        table([], [], "train"),
        id_column,
        how.name,
        asked.path if asked else None,
        how,
        renamed=_renamed(reading, frame, how, answers),
    )
    found.notes += [*first.notes, f"{csv.name}: id column {id_column}, {how.about}", *said]
    if by_source is not None and how.name == by_source[1]:
        frame = frame.drop(columns="group")
    elif by_source is not None:
        found.notes.append(
            f"{csv.name} has a row per source of clips (column {by_source[1]}): its label is that of all "
            "its clips, which folds keep together"
        )
    names = () if reading.label_map or how.classes or how.multilabel else frame[how.name]
    if coded := codes.renamed(tables, asked, names, how.name):
        found.renamed, line = coded
        found.notes.append(line)
    if "secondary_labels" in frame.columns and how.name != "secondary_labels":
        found.notes.append("column secondary_labels is not used: a clip gets its primary label alone")
    parts: list[pd.DataFrame] = []
    kept_out: list[pd.DataFrame] = []
    open_rows: list[tuple[pd.DataFrame, Path]] = []
    here_of = [
        frame if part is first else need_rows(part.frame, files.root / part.path) for part, _ in trains
    ]
    group = _group_column(
        [part for part, _ in trains], here_of, how, id_column, found, reading, files.root, esc
    )
    for number, ((part, weight), here) in enumerate(zip(trains, here_of, strict=True)):
        more = files.root / part.path
        lacking = [c for c in (id_column, *how.columns) if c not in here.columns]
        if lacking:
            raise UserError(
                f"{more} has no column {lacking[0]}, which {csv} has: it has {some(here.columns)}; name its "
                "columns alike"
            )
        stray_quotes(here, more, (id_column, *how.columns), found)
        found.notes += [files.tail_notes[part.path]] if part.path in files.tail_notes else []
        if reading.group_column and part is not first:  # as this table spells it
            group = sources.column(here, found, how.read(here, more), id_column, reading, more, esc)
        here, held = table_parts.by_split_column(here, id_column, how, found, more)
        by = "of its split column are"
        if held is None and asked is None and role(part.path) is None:
            here, held = table_parts.by_test_folders(files, here, id_column)
            by = "whose clips lie in a test folder are"
        clips = labelled_rows(files, here, more, "train", id_column, group, found)
        if held is not None and table_parts.hidden(held, how):
            open_rows.append((held, more))
        elif held is not None:
            found.notes.append(f"{more.name}: {len(held)} rows {by} the hold-out; validation counts as train")
            kept_out.append(labelled_rows(files, held, more, "test", id_column, group, found))
        known = set().union(*(set(done["path"]) for done in parts)) if parts else set()
        clips = clips[~clips["path"].isin(known)]  # the first table's word counts
        if number >= len(trains) - len(reading.extras):
            clips = clips.assign(weight=weight, fold=TRAIN_ONLY)
            found.notes.append(f"{more.name}: {len(clips)} more training clips, each with weight {weight:g}")
        parts.append(clips)
    clips = pd.concat(parts, ignore_index=True)
    if clips.empty:
        raise UserError(
            f"no row of {csv} has both a label and an audio file: column {id_column} begins with "
            f"{some(frame[id_column][:3])}; audio folders found: {files.audio_folders()}"
        )
    folds = file_lists.folds(files)
    if folds and not (clips["fold"] >= 0).any():
        clips["fold"] = [folds.get(files.relative(path), -1) for path in clips["path"]]
        found.notes.append(f"folds by the lists beside the audio: {len(set(folds.values()))} folds")
    parts = [clips]
    for path in valid:
        parts += _more(tables, path, "train", id_column, found, clips)
    parts += kept_out
    tests = [t for t in tests if Path(t).name.lower() in ("test.csv", "test.tsv")][:1] or tests
    if not asked and not kept_out:
        lists = [t for t in tests if not how.known_in(tables.read(t).frame)]
        listed = table_parts.listed_in(tables, lists, parts[0])
        if listed.any() and not listed.all():
            names = ", ".join(Path(t).name for t in lists)
            found.notes.append(f"{names}: its {listed.sum()} clips are the hold-out, labelled by {csv.name}")
            kept_out = [parts[0][listed].assign(split="test")]
            parts = [parts[0][~listed], *parts[1:], *kept_out]
        known_tests = [t for t in tests if t not in lists]
        tests = [] if kept_out else known_tests or tests  # of fold1_evaluate and fold1_test the labelled one
    if asked:
        parts += with_sample(files, asked, parts[0], found, [tables.read(t) for t in tests])
    elif len(tests) > 1:
        found.notes.append(f"not used, as several csv files may be the test csv: {', '.join(tests)}")
    elif tests:
        parts += _test_rows(tables, tests[0], id_column, frame, found)
    elif open_rows:
        parts += [unlabelled_rows(files, held, more, found) for held, more in open_rows]
    elif not kept_out:
        loose = placeholder.loose(files, set(parts[0]["path"]))
        parts.append(
            table(placeholder.ids_like(list(clips["id"]), loose), [files.absolute(p) for p in loose], "subm")
        )
    found.notes += files.about_numbers()
    found.clips = together(files, sources.of_all(files, parts, found, reading), found)
    unnamed = set(files.audio) - {files.relative(path) for path in found.clips["path"] if path}
    if unnamed:
        found.notes.append(
            f"{len(unnamed)} audio files are named by no csv and left out: {first_few(unnamed)}"
        )
    found.notes += files.unused()
    return found


def _id_column(tables: Tables, first: Table, others: list[str], reading: Reading, prefer: str | None) -> str:
    """The column of ids of the first table: the one that is named, else one whose values are files, directly,
    through another table, or by the ends of the files' names."""
    files, frame, csv = tables.files, first.frame, tables.files.root / first.path
    known: str | None = None
    if reading.id_column is not None:
        known = need_column(frame, csv, reading.id_column, "--id-column")
        if any(files.candidates(id) or files.numbered(id) for id in frame[known][:1000]):
            return known
    found = find_id_column(frame, files, prefer=prefer) if known is None else None
    if found is None:
        found = join(tables, first, others) or tables.id_column(first.path)
    if found is None and known is None:
        raise UserError(
            f"no column of {csv} names audio files: its columns are {some(frame.columns)}; "
            f"audio folders found in {files.root}: {files.audio_folders()}; "
            f"pass --id-column, or put the audio there{label_choice.in_names(files)}"
        )
    return known or found or ""


def _group_column(
    trains: Sequence[Table],
    frames: Sequence[pd.DataFrame],
    how: labels.Labels,
    id_column: str,
    found: Layout,
    reading: Reading,
    root: Path,
    esc: bool,
) -> str | None:
    """The column of sources, by the rows of all tables that have the first one's header."""
    alike = [
        (frame, root / part.path)
        for part, frame in zip(trains, frames, strict=True)
        if list(frame.columns) == list(frames[0].columns)
    ]
    several = pd.concat([how.read(frame, csv) for frame, csv in alike])
    every = pd.concat([frame for frame, _ in alike])
    return sources.column(every, found, several, id_column, reading, alike[0][1], esc)


def _renamed(reading: Reading, frame: pd.DataFrame, how: labels.Labels, answers: list[str]):
    """What labels become: by --label-map, else as the sample's columns have them where those are s0, s1, ...
    for 0, 1, ..."""
    if reading.label_map:
        return mapper(reading.label_map, answers if len(answers) > 1 else ())
    if how.classes or len(answers) < 2:
        return None
    cells = {one for cell in frame[how.name] for one in labels.split(cell, how.separator or "\0")}
    head = os.path.commonprefix(answers)
    known = set(spelling.keys(answers))
    if (
        not head
        or cells & known
        or not cells - {"", labels.TO_PREDICT} <= {a.removeprefix(head) for a in answers}
    ):
        return None
    return lambda label: f"{head}{label}" if f"{head}{label}" in answers else label


def _more(
    tables: Tables, path: str, split: str, id_column: str, found: Layout, known: pd.DataFrame
) -> list[pd.DataFrame]:
    """The clips of a validation table, which count as training clips; none where it has other columns."""
    assert found.written is not None
    part = tables.read(path)
    if id_column not in part.frame.columns or not found.written.known_in(part.frame) or part.frame.empty:
        if find_id_column(part.frame, tables.files):
            found.notes.append(
                f"not used: {path}: it lacks {id_column} or the labels in {found.written.name}"
            )
        return []
    csv = tables.files.root / path
    stray_quotes(part.frame, csv, (id_column, *found.written.columns), found)
    clips = labelled_rows(tables.files, part.frame, csv, split, id_column, found.group_column, found)
    clips = clips[~clips["path"].isin(set(known["path"]))]
    if clips.empty:
        return []
    taken = set(known["id"])  # val/0.wav beside train/0.wav
    ids = zip(clips["id"], clips["path"], strict=True)
    clips = clips.assign(id=[tables.files.relative(path) if id in taken else id for id, path in ids])
    found.notes.append(f"{csv.name}: {len(clips)} clips of the validation table count as train")
    return [clips]


def _test_rows(
    tables: Tables, test: str, train_id: str, train: pd.DataFrame, found: Layout
) -> list[pd.DataFrame]:
    """The clips of a test table without a sample submission: a labelled hold-out, or clips to submit."""
    files, csv, how = tables.files, tables.files.root / test, found.written
    assert how is not None
    headed = tables.read(test)
    frame = need_rows(headed.frame, csv)
    test_id = train_id if train_id in frame.columns else (find_id_column(frame, files) or frame.columns[0])
    if headed.headed:
        need_header(files, csv, test_id, frame)
    stray_quotes(frame, csv, (test_id, *how.columns), found)
    there = list(frame.columns)
    labels.refuse_twins(there, how.columns, csv)
    spelled = zip(there, spelling.like(there, how.columns), strict=True)
    frame = frame.rename(columns={c: known for c, known in spelled if known not in there})
    if how.known_in(frame):
        return [labelled_rows(files, frame, csv, "test", test_id, found.group_column, found)]
    found.notes += labels.unlabelled(how, frame, train.columns, Path(test).name)
    found.id_column = test_id
    return [unlabelled_rows(files, frame, csv, found)]
