"""How a competition lays out its files: recognises a Kaggle csv, ESC, or a folder per class, without being
told."""

import re
from pathlib import Path

import pandas as pd

from earshot.competition import labels, placeholder
from earshot.competition.asked import asked_rows, unlabelled_rows
from earshot.competition.class_folders import folder_per_class
from earshot.competition.csv_checks import need_header, need_rows, stray_quotes
from earshot.competition.file_index import Files, words
from earshot.competition.id_columns import find_id_column, need_column
from earshot.competition.labelled import labelled_rows, together
from earshot.competition.layout import Layout, table
from earshot.core import csv_table, spelling
from earshot.core.csv_table import some
from earshot.core.errors import UserError
from earshot.core.file_names import first_few

ESC_COLUMNS = {"filename", "fold", "target", "category"}
NOT_TRAIN_CSVS = ("solution.csv", "bad_audio.csv")


def recognise(root: Path, train_csv=None, id_column=None, label_column=None, task="auto") -> Layout:
    """The layout of the folder; `task` says whether clips have several labels ("single", "multilabel") or the
    data does ("auto").

    Raises:
        UserError: nothing known, something ambiguous, or an option that names what is not there.
    """
    files = Files(root)
    sample = pick(
        files,
        [c for c in files.csvs if re.search("sample.*sub", Path(c).name.lower())],
        ("sample_submission.csv", "samplesubmission.csv"),
        "sample submission",
        "keep one of them",
    )
    rest = [
        c
        for c in files.csvs
        if c != sample
        and Path(c).name.lower() not in NOT_TRAIN_CSVS
        and not re.search("sample.*sub", Path(c).name.lower())
    ]
    rest = [c for c in rest if c.lower().endswith(".csv")] or rest  # a .tsv beside them is a side matter
    named = [c for c in rest if "train" in Path(c).name.lower()]
    tests = [c for c in rest if c not in named and any(w.startswith("test") for w in words(Path(c).name))]
    others = [c for c in rest if c not in tests and c not in named]
    if train_csv is not None:
        alike = [c for c in files.csvs if spelling.key(c) == spelling.key(str(train_csv))]
        choices = [
            p for p in (Path(train_csv), *(files.root / c for c in (train_csv, *alike))) if p.is_file()
        ]
        if not choices:
            raise UserError(
                f"no train csv {train_csv}, neither here nor in {root}; csv files there: "
                f"{', '.join(files.csvs) or 'none'}"
            )
        tests = [t for t in tests if not (files.root / t).samefile(choices[0])]
        return from_csv(files, choices[0], sample, tests, id_column, label_column, task)
    if named:
        chosen = pick(files, named, ("train.csv", "train.tsv"), "train csv", "name one with --train-csv")
        return from_csv(files, files.root / chosen, sample, tests, id_column, label_column, task)

    frames, broken = {}, None
    for c in others:
        try:
            frames[c] = csv_table.read(files.root / c)
        except UserError as error:  # of a csv that may have nothing to do with the clips
            broken = broken or error
    others = list(frames)
    esc = [c for c in others if ESC_COLUMNS <= set(frames[c].columns)]
    by_folder = folder_per_class(files)
    if len(esc) == 1:
        others = esc
    if len(others) == 1:
        found = find_id_column(frames[others[0]], files, numbers=False)  # beside folders: its own row numbers
        clear = label_column or (found and labels.find_label_column(frames[others[0]], found))
        # A lone csv may be a side matter (features, licences); one named train never is.
        if by_folder is None and files.audio or found and clear:
            return from_csv(files, files.root / others[0], sample, tests, id_column, label_column, task)
    if by_folder is not None:
        if task == "multilabel":
            raise UserError(
                f"--task multilabel: in {root} the folders are the labels, so that a clip has one: "
                "give a csv of labels"
            )
        return by_folder
    if len(others) > 1 and files.audio:
        raise UserError(
            f"several csv files in {root} and none is called train: {', '.join(others)}; "
            "name one with --train-csv"
        )
    if broken:
        raise broken
    raise UserError(
        f"nothing that Earshot knows in {root}: looked for a train csv beside audio files, ESC's "
        f"meta/*.csv beside audio/, two or more class folders of audio; found {files.summary()}"
    )


def pick(files: Files, paths: list[str], names: tuple[str, ...], what: str, mend: str) -> str | None:
    """The path with a preferred file name, the least deep one; else the only path; None without any."""
    chosen = [p for p in paths if Path(p).name.lower() in names] or paths
    chosen = [p for p in chosen if p.count("/") == chosen[0].count("/")]
    if len(chosen) > 1:
        raise UserError(f"several files in {files.root} may be the {what}: {', '.join(chosen)}; {mend}")
    return chosen[0] if chosen else None


def from_csv(
    files: Files, csv: Path, sample: str | None, tests: list[str], id_column, label_column, task
) -> Layout:
    """A train csv beside audio, with or without a sample submission or a test csv."""
    frame = need_rows(csv_table.read(csv), csv)
    frame = frame.drop(columns=csv_table.nameless(frame))
    sample_frame = csv_table.read(files.root / sample) if sample else None
    if sample and csv_table.nameless(sample_frame):
        raise UserError(
            f"{files.root / sample} has a column without a name: if it only counts the rows, take it out"
        )
    sample_columns = list(sample_frame.columns) if sample else []
    if id_column is not None:
        id_column = need_column(frame, csv, id_column, "--id-column")
    train_id = id_column or find_id_column(frame, files, prefer=sample_columns[0] if sample else None)
    if train_id is None:
        raise UserError(
            f"no column of {csv} names audio files: its columns are {some(frame.columns)}; "
            f"audio folders found in {files.root}: {files.audio_folders()}; "
            "pass --id-column, or put the audio there"
        )
    need_header(files, csv, train_id, frame)
    if label_column is not None:
        label_column = need_column(frame, csv, label_column, "--label-column")
    sample_id = (
        None
        if not sample
        else id_column
        if id_column in sample_columns
        else (find_id_column(sample_frame, files) or sample_columns[0])
    )
    if sample:
        need_header(files, files.root / sample, sample_id, sample_frame)
    answers = [c for c in sample_columns if c != sample_id]
    wanted, asked = spelling.like(sample_columns, frame.columns), spelling.like(answers, frame.columns)
    how, said = labels.find(frame, csv, train_id, wanted, asked, task, label_column)
    if how is None:
        raise UserError(
            f"which column of {csv} is the label is not clear: it has {some(frame.columns)}; "
            "pass --label-column, or --task multilabel for columns of 0 and 1"
        )

    esc = ESC_COLUMNS <= set(frame.columns) and not sample
    found = Layout(
        "ESC" if esc else "Kaggle csv",
        table([], [], "train"),
        train_id,
        how.name,
        files.root / sample if sample else None,
        how,
    )
    found.notes += [f"{csv.name}: id column {train_id}, {how.about}", *said]
    stray_quotes(frame, csv, (train_id, *how.columns), found)
    clips = labelled_rows(files, frame, csv, "train", train_id, "src_file" if esc else "group", found)
    if clips.empty:
        raise UserError(
            f"no row of {csv} has both a label and an audio file: column {train_id} begins with "
            f"{some(frame[train_id][:3])}; audio folders found: {files.audio_folders()}"
        )
    parts = [clips]
    tests = [t for t in tests if Path(t).name.lower() in ("test.csv", "test.tsv")][:1] or tests
    if len(tests) > 1 and not sample:
        found.notes.append(f"not used, as several csv files may be the test csv: {', '.join(tests)}")
    if sample:
        found.id_column, found.sample = sample_id, sample_frame
        stray_quotes(sample_frame, files.root / sample, sample_columns, found)
        if len(answers) > 1 and all(
            pd.to_numeric(sample_frame[c], errors="coerce").notna().all() for c in answers
        ):
            found.asked = spelling.like(asked, found.spelled.values())
        found.label_column = answers[0] if len(answers) == 1 else how.name
        parts.append(asked_rows(files, sample_frame, files.root / sample, clips, found))
    elif len(tests) == 1:
        test = tests[0]
        test_frame = need_rows(csv_table.read(files.root / test), files.root / test)
        test_frame = test_frame.drop(columns=csv_table.nameless(test_frame))
        test_id = (
            train_id
            if train_id in test_frame.columns
            else (find_id_column(test_frame, files) or test_frame.columns[0])
        )
        need_header(files, files.root / test, test_id, test_frame)
        stray_quotes(test_frame, files.root / test, (test_id, *how.columns), found)
        there = list(test_frame.columns)
        labels.refuse_twins(there, how.columns, files.root / test)
        spelled = zip(there, spelling.like(there, how.columns), strict=True)
        test_frame = test_frame.rename(columns={c: known for c, known in spelled if known not in there})
        if how.known_in(test_frame):
            parts.append(labelled_rows(files, test_frame, files.root / test, "test", test_id, "group", found))
        else:
            found.notes += labels.unlabelled(how, test_frame, frame.columns, Path(test).name)
            found.id_column = test_id
            parts.append(unlabelled_rows(files, test_frame, files.root / test, found))
    else:
        loose = placeholder.loose(files, set(clips["path"]))
        parts.append(
            table(placeholder.ids_like(list(clips["id"]), loose), [files.absolute(p) for p in loose], "subm")
        )
    found.notes += files.about_numbers()
    found.clips = together(files, pd.concat(parts, ignore_index=True), found)
    unnamed = set(files.audio) - {files.relative(path) for path in found.clips["path"] if path}
    if unnamed:
        found.notes.append(
            f"{len(unnamed)} audio files are named by no csv and left out: {first_few(unnamed)}"
        )
    found.notes += files.unused()
    return found
