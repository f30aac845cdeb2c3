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
from earshot.competition.asked import build_unlabelled_rows
from earshot.competition.csv_checks import check_has_rows, check_header, check_stray_quotes
from earshot.competition.id_columns import find_id_column, get_column
from earshot.competition.labelled import build_labelled_rows, group_shared_files, has_several_rows
from earshot.competition.layout import TRAIN_ONLY, Layout, build_table
from earshot.competition.reading import Reading, build_mapper
from earshot.competition.tables import Table, Tables, get_role, join_through
from earshot.competition.with_sample import build_requested_rows, read_sample
from earshot.core import spelling
from earshot.core.csv_table import some
from earshot.core.errors import UserError
from earshot.core.file_names import first_few

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
    if not (reading.id_column or tables.find_id_column(first.path) or join_through(tables, first, others)):
        by_source = tables.expand_by_source(first.path)
    if by_source is not None:
        first = by_source[0]
        trains = [(first, trains[0][1]), *trains[1:]]
    csv, frame = files.root / first.path, check_has_rows(first.frame, files.root / first.path)
    asked = read_sample(tables, sample, reading.id_column) if sample else None
    id_column = (
        source_table.FILE
        if by_source is not None
        else _find_id_column(tables, first, others, reading, asked.columns[0] if asked else None)
    )
    if first.headed:
        check_header(files, csv, id_column, frame)
    answers = [c for c in asked.columns if c != asked.id_column] if asked else []
    columns = spelling.like(asked.columns if asked else [], frame.columns)
    wanted = spelling.like(answers, frame.columns)
    if not first.headed:
        frame = label_choice.number_columns(frame, id_column)
    named = reading.label_column and get_column(frame, csv, reading.label_column, "--label-column")
    if named is None and by_source is None and not set(columns) - {id_column} & set(frame.columns):
        named = label_choice.find_folder_column(files, frame, id_column) or (
            None if first.headed else label_choice.choose_label_column(files, frame, id_column)
        )
    if by_source is not None and named is None and len(frame.columns) == 4:
        named = next(c for c in frame.columns if c not in (id_column, "group", by_source[1]))
    how, said = labels.detect_format(frame, csv, id_column, columns, wanted, reading.task, named)
    if how is None:
        raise UserError(
            label_choice.explain_unclear_label(csv, frame, id_column, reading, by_source and by_source[1])
        )
    if not how.multilabel and not how.classes and has_several_rows(frame, id_column, how.name):
        mark = next((m for m in labels.MARKS if not frame[how.name].str.contains(m, regex=False).any()), None)
        if mark and reading.task == "auto":
            how = labels.Labels(how.columns, True, mark)
            said = [f"rows of {csv.name} are events with times: a clip has the labels of all its rows"]
    said += labels.warn_fractional_labels(frame, csv, how)
    how = replace(how, empty_is_none=reading.empty == "none")

    esc = set(frame.columns) >= ESC_COLUMNS and asked is None
    found = Layout(
        "ESC" if esc else "Kaggle csv",
        build_table([], [], "train"),
        id_column,
        how.name,
        asked.path if asked else None,
        how,
        renamed=_apply_label_map(reading, frame, how, answers),
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
    if coded := codes.find_label_codes(tables, asked, names, how.name):
        found.renamed, line = coded
        found.notes.append(line)
    if "secondary_labels" in frame.columns and how.name != "secondary_labels":
        found.notes.append("column secondary_labels is not used: a clip gets its primary label alone")
    parts: list[pd.DataFrame] = []
    kept_out: list[pd.DataFrame] = []
    open_rows: list[tuple[pd.DataFrame, Path]] = []
    here_of = [
        frame if part is first else check_has_rows(part.frame, files.root / part.path) for part, _ in trains
    ]
    group = _find_group_column(
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
        check_stray_quotes(here, more, (id_column, *how.columns), found)
        found.notes += [files.tail_notes[part.path]] if part.path in files.tail_notes else []
        if reading.group_column and part is not first:  # as this table spells it
            group = sources.find_group_column(
                here, found, how.read_column(here, more), id_column, reading, more, esc
            )
        here, held = table_parts.split_by_column(here, id_column, how, found, more)
        by = "of its split column are"
        if held is None and asked is None and get_role(part.path) is None:
            here, held = table_parts.split_by_test_folders(files, here, id_column)
            by = "whose clips lie in a test folder are"
        clips = build_labelled_rows(files, here, more, "train", id_column, group, found)
        if held is not None and table_parts.has_no_labels(held, how):
            open_rows.append((held, more))
        elif held is not None:
            found.notes.append(f"{more.name}: {len(held)} rows {by} the hold-out; validation counts as train")
            kept_out.append(build_labelled_rows(files, held, more, "test", id_column, group, found))
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
            f"{some(frame[id_column][:3])}; audio folders found: {files.describe_audio_folders()}"
        )
    folds = file_lists.read_folds(files)
    if folds and not (clips["fold"] >= 0).any():
        clips["fold"] = [folds.get(files.to_relative(path), -1) for path in clips["path"]]
        found.notes.append(f"folds by the lists beside the audio: {len(set(folds.values()))} folds")
    parts = [clips]
    for path in valid:
        parts += _read_validation_rows(tables, path, "train", id_column, found, clips)
    parts += kept_out
    tests = [t for t in tests if Path(t).name.lower() in ("test.csv", "test.tsv")][:1] or tests
    if not asked and not kept_out:
        lists = [t for t in tests if not how.is_known_in(tables.read_table(t).frame)]
        listed = table_parts.find_listed(tables, lists, parts[0])
        if listed.any() and not listed.all():
            names = ", ".join(Path(t).name for t in lists)
            found.notes.append(f"{names}: its {listed.sum()} clips are the hold-out, labelled by {csv.name}")
            kept_out = [parts[0][listed].assign(split="test")]
            parts = [parts[0][~listed], *parts[1:], *kept_out]
        known_tests = [t for t in tests if t not in lists]
        tests = [] if kept_out else known_tests or tests  # of fold1_evaluate and fold1_test the labelled one
    if asked:
        parts += build_requested_rows(files, asked, parts[0], found, [tables.read_table(t) for t in tests])
    elif len(tests) > 1:
        found.notes.append(f"not used, as several csv files may be the test csv: {', '.join(tests)}")
    elif tests:
        parts += _read_test_rows(tables, tests[0], id_column, frame, found)
    elif open_rows:
        parts += [build_unlabelled_rows(files, held, more, found) for held, more in open_rows]
    elif not kept_out:
        loose = placeholder.find_unlisted_audio(files, set(parts[0]["path"]))
        parts.append(
            build_table(
                placeholder.make_ids_like(list(clips["id"]), loose),
                [files.to_absolute(p) for p in loose],
                "subm",
            )
        )
    found.notes += files.describe_number_matches()
    found.clips = group_shared_files(files, sources.group_all_clips(files, parts, found, reading), found)
    unnamed = set(files.audio) - {files.to_relative(path) for path in found.clips["path"] if path}
    if unnamed:
        found.notes.append(
            f"{len(unnamed)} audio files are named by no csv and left out: {first_few(unnamed)}"
        )
    found.notes += files.describe_unused()
    return found


def _find_id_column(
    tables: Tables, first: Table, others: list[str], reading: Reading, prefer: str | None
) -> str:
    """The column of ids of the first table: the one that is named, else one whose values are files, directly,
    through another table, or by the ends of the files' names."""
    files, frame, csv = tables.files, first.frame, tables.files.root / first.path
    known: str | None = None
    if reading.id_column is not None:
        known = get_column(frame, csv, reading.id_column, "--id-column")
        if any(files.find_candidates(id) or files.find_by_number(id) for id in frame[known][:1000]):
            return known
    found = find_id_column(frame, files, prefer=prefer) if known is None else None
    if found is None:
        found = join_through(tables, first, others) or tables.find_id_column(first.path)
    if found is None and known is None:
        raise UserError(
            f"no column of {csv} names audio files: its columns are {some(frame.columns)}; "
            f"audio folders found in {files.root}: {files.describe_audio_folders()}; "
            f"pass --id-column, or put the audio there{label_choice.suggest_label_pattern(files)}"
        )
    return known or found or ""


def _find_group_column(
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
    several = pd.concat([how.read_column(frame, csv) for frame, csv in alike])
    every = pd.concat([frame for frame, _ in alike])
    return sources.find_group_column(every, found, several, id_column, reading, alike[0][1], esc)


def _apply_label_map(reading: Reading, frame: pd.DataFrame, how: labels.Labels, answers: list[str]):
    """What labels become: by --label-map, else as the sample's columns have them where those are s0, s1, ...
    for 0, 1, ..."""
    if reading.label_map:
        return build_mapper(reading.label_map, answers if len(answers) > 1 else ())
    if how.classes or len(answers) < 2:
        return None
    cells = {one for cell in frame[how.name] for one in labels.split_cell(cell, how.separator or "\0")}
    head = os.path.commonprefix(answers)
    known = set(spelling.keys(answers))
    if (
        not head
        or cells & known
        or not cells - {"", labels.TO_PREDICT} <= {a.removeprefix(head) for a in answers}
    ):
        return None
    return lambda label: f"{head}{label}" if f"{head}{label}" in answers else label


def _read_validation_rows(
    tables: Tables, path: str, split: str, id_column: str, found: Layout, known: pd.DataFrame
) -> list[pd.DataFrame]:
    """The clips of a validation table, which count as training clips; none where it has other columns."""
    assert found.written is not None
    part = tables.read_table(path)
    if id_column not in part.frame.columns or not found.written.is_known_in(part.frame) or part.frame.empty:
        if find_id_column(part.frame, tables.files):
            found.notes.append(
                f"not used: {path}: it lacks {id_column} or the labels in {found.written.name}"
            )
        return []
    csv = tables.files.root / path
    check_stray_quotes(part.frame, csv, (id_column, *found.written.columns), found)
    clips = build_labelled_rows(tables.files, part.frame, csv, split, id_column, found.group_column, found)
    clips = clips[~clips["path"].isin(set(known["path"]))]
    if clips.empty:
        return []
    taken = set(known["id"])  # val/0.wav beside train/0.wav
    ids = zip(clips["id"], clips["path"], strict=True)
    clips = clips.assign(id=[tables.files.to_relative(path) if id in taken else id for id, path in ids])
    found.notes.append(f"{csv.name}: {len(clips)} clips of the validation table count as train")
    return [clips]


def _read_test_rows(
    tables: Tables, test: str, train_id: str, train: pd.DataFrame, found: Layout
) -> list[pd.DataFrame]:
    """The clips of a test table without a sample submission: a labelled hold-out, or clips to submit."""
    files, csv, how = tables.files, tables.files.root / test, found.written
    assert how is not None
    headed = tables.read_table(test)
    frame = check_has_rows(headed.frame, csv)
    test_id = train_id if train_id in frame.columns else (find_id_column(frame, files) or frame.columns[0])
    if headed.headed:
        check_header(files, csv, test_id, frame)
    check_stray_quotes(frame, csv, (test_id, *how.columns), found)
    there = list(frame.columns)
    labels.check_duplicate_headers(there, how.columns, csv)
    spelled = zip(there, spelling.like(there, how.columns), strict=True)
    frame = frame.rename(columns={c: known for c, known in spelled if known not in there})
    if how.is_known_in(frame):
        return [build_labelled_rows(files, frame, csv, "test", test_id, found.group_column, found)]
    found.notes += labels.warn_missing_labels(how, frame, train.columns, Path(test).name)
    found.id_column = test_id
    return [build_unlabelled_rows(files, frame, csv, found)]
