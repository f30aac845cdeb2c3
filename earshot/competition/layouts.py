"""Recognises the layout of a competition's files: tables beside audio, a folder per class, or labels in the
file names."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from earshot.competition import (
    copies,
    file_lists,
    folder_levels,
    groups,
    known_layouts,
    labels,
    name_parts,
    noise_clips,
)
from earshot.competition.class_folders import recognise_class_folders
from earshot.competition.file_index import Files
from earshot.competition.from_names import read_from_names
from earshot.competition.from_tables import ESC_COLUMNS, read_from_tables
from earshot.competition.id_columns import find_id_column
from earshot.competition.layout import Layout
from earshot.competition.names import strip_suffix
from earshot.competition.reading import Reading, find_train_file
from earshot.competition.table_parts import SPLIT_COLUMNS
from earshot.competition.tables import Table, Tables, get_role
from earshot.core.errors import UserError
from earshot.core.file_names import format_ids
from earshot.core.shell import quote

NOT_TRAIN_CSVS = ("solution.csv", "bad_audio.csv")
UNREAD = re.compile(r"\.(xlsx|json|jsonl)$")
AGREE = 0.95  # share of a csv's labels that equal the folders, which then are the labels


def recognise_layout(root: Path, reading: Reading) -> Layout:
    """The layout of the folder.

    Args:
        reading: the user's settings.
    Raises:
        UserError: no known layout, something ambiguous, or a flag that names what does not exist.
    """
    files = Files(root)
    notes = copies.choose_folder(files, reading.audio_folder)
    tables = Tables(files)
    sample = tables.find_sample()
    known = known_layouts.match_layout(
        [*files.audio, *files.csvs, *files.texts, *files.documents, *files.others],
        lambda name: _read_headers(tables, sample, name),
    )
    if known.layout:
        notes.append(f"known layout: {known.layout}{f' ({known.note})' if known.note else ''}")
    reading = reading.merge_layout(known)
    layout = _choose_layout(files, tables, sample, reading)
    layout.notes[:0] = notes
    layout.metric = reading.metric
    if reading.noise_class and layout.written is not None:  # class folders have theirs already
        train = layout.clips["split"] == "train"
        noise = [path for path in files.audio if noise_clips.is_noise(path)]
        cut = noise_clips.cut_noise_clips(files, noise, layout.clips[train], reading.noise_class, layout)
        if layout.written.multilabel:
            cut["label"] = [(label,) for label in cut["label"]]
        layout.clips = pd.concat([layout.clips[train], cut, layout.clips[~train]], ignore_index=True)
    return layout


def _read_headers(tables: Tables, sample: str | None, name: str) -> list[list[str]]:
    """The headers of the files of this name ("sample": of the sample submission)."""
    paths = [sample] if name == "sample" else [p for p in tables.paths if p.rpartition("/")[2] == name]
    headers = []
    for path in filter(None, paths):
        try:
            headers.append(list(tables.read_table(path).frame.columns))
        except UserError:  # reported where the table is needed
            continue
    return headers


def _choose_layout(files: Files, tables: Tables, sample: str | None, reading: Reading) -> Layout:
    if reading.train_csv:
        named = [
            _open_outside(tables, find_train_file(files.root, name, tables.paths))
            for name in reading.train_csv
        ]
        return _read_tables_layout(tables, [(table, 1.0) for table in named], sample, reading)
    if reading.label_pattern:
        return read_from_names(files, tables, sample, reading)
    rest = [p for p in tables.paths if p != sample and Path(p).name.lower() not in NOT_TRAIN_CSVS]
    rest = [p for p in rest if not is_sample_name(p)]
    trains = _find_training_tables(files, tables, rest, sample, reading)
    if trains:
        return _read_tables_layout(tables, [(table, 1.0) for table in trains], sample, reading)
    by_folder = recognise_class_folders(files, tables, sample, reading)
    if by_folder is not None:
        if reading.task == "multilabel":
            raise UserError(
                f"--task multilabel: in {files.root} the folders are the labels, so each clip has one: "
                "give a csv of labels"
            )
        by_folder.notes += [
            f"warning: the folders are the labels; {path} names the clips and is not used: if it holds the "
            f"labels, {what}"
            for path, what in list_unread_tables(files, tables)
            if path != sample
        ][:1]
        by_folder.notes += [
            f"warning: the folders are the labels{line}" for line in [describe_side_files(files)] if line
        ]
        by_folder.notes += _warn_people_tables(tables, rest, set(by_folder.clips["label"].dropna()))
        if rest and all(label.isdecimal() for label in by_folder.clips["label"].dropna().unique()):
            by_folder.notes.append(
                f"warning: the class folders are only numbers, and {rest[0]} is not used: if it holds the "
                "labels, give it a column with the names of the audio files"
            )
        return by_folder
    raise UserError(_explain_no_layout(files, tables, reading))


def is_sample_name(path: str) -> bool:
    """Is a file named like a sample submission?"""
    name = Path(path).name.lower()
    return "sample" in name and "sub" in name


def _read_tables_layout(
    tables: Tables, trains: list[tuple[Table, float]], sample: str | None, reading: Reading
) -> Layout:
    for name, weight in reading.extras:
        trains.append((_open_outside(tables, find_train_file(tables.files.root, name, tables.paths)), weight))
    used = {table.path for table, _ in trains} | {sample}
    others = [p for p in tables.paths if p not in used and not is_sample_name(p)]
    csvs = [p for p in others if Path(p).name.lower() not in NOT_TRAIN_CSVS]
    csvs = [p for p in csvs if not p.lower().endswith(".txt") or _has_same_columns(tables, p, trains[0][0])]
    tests = [p for p in csvs if get_role(p) == "test"]
    valid = [
        p for p in csvs if get_role(p) == "valid" or get_role(p) == "train" and "dev" in Path(p).stem.lower()
    ]
    layout = read_from_tables(tables, trains, sample, tests, valid, others, reading)
    unused = [p for p in csvs if p not in (*tests, *valid) and get_role(p) == "train"]
    unused = [p for p in unused if not p.lower().endswith(".txt")]
    unused = [p for p in unused if Path(p).name not in (reading.note or "")]
    if unused:
        layout.notes.append(
            f"not used: {format_ids(unused, 8)} (--train-csv or --extra-csv {unused[0]}:0.3 takes it in)"
        )
    return layout


def _has_same_columns(tables: Tables, path: str, train: Table) -> bool:
    """Is a text file a table of the same columns as the training table, which is a text file?"""
    if not train.path.lower().endswith(".txt") or file_lists.FOLD.fullmatch(Path(path).stem):
        return False
    try:
        return list(tables.read_table(path).frame.columns) == list(train.frame.columns)
    except UserError:
        return False


def _open_outside(tables: Tables, path: Path) -> Table:
    """A table that a flag names, anywhere on the disk."""
    inside = next((p for p in tables.paths if (tables.files.root / p).samefile(path)), None)
    return tables.read_table(inside if inside is not None else str(path.absolute()))


def _find_training_tables(
    files: Files, tables: Tables, rest: list[str], sample: str | None, reading: Reading
) -> list[Table]:
    """The tables of training clips; none where folders are the labels, or nothing is.

    Raises:
        UserError: several may be it, and they differ.
    """
    csvs = [path for path in rest if path.lower().endswith(".csv")]
    if not csvs:  # a .tsv beside a csv counts less
        csvs = [path for path in rest if path.lower().endswith(".tsv")]
    if not csvs:
        csvs = [path for path in rest if file_lists.FOLD.fullmatch(Path(path).stem) is None]
    roles = {path: get_role(path) for path in csvs}
    named = [p for p in csvs if "train" in Path(p).name.lower() and roles[p] in ("train", "valid")]
    if not named:
        named = [path for path in csvs if roles[path] == "train"]
    named = [path for path in named if not _is_bare_list(tables, path)]
    if named:
        return _choose_named_tables(files, tables, named, reading)
    broken: UserError | None = None
    readable = []
    for path in csvs:
        if roles[path] in ("test", "valid"):
            continue
        try:
            tables.read_table(path)
            readable.append(path)
        except UserError as error:  # the csv may have nothing to do with the clips
            broken = broken or error
    esc = [path for path in readable if set(tables.read_table(path).frame.columns) >= ESC_COLUMNS]
    if len(esc) == 1:
        return [tables.read_table(esc[0])]

    def has_class_folders() -> bool:
        return recognise_class_folders(files, tables, sample, reading) is not None

    clear = [path for path in readable if _is_clear_table(tables, path, reading)]
    if _only_repeats_folders(files, tables, clear) and has_class_folders():
        return []
    candidates = [tables.read_table(path) for path in clear]
    if len(clear) == 1 or len(clear) > 1 and _belong_together(files, tables, candidates):
        return candidates
    if clear:
        raise UserError(_explain_several_tables(files, clear, "train csv", reading))
    # a single table may have labels in another way; a broken one may be the right one
    if len(readable) == 1 and files.audio and not has_class_folders():
        return [tables.read_table(readable[0])]
    if broken and not has_class_folders():
        raise broken
    return []


def _choose_named_tables(files: Files, tables: Tables, named: list[str], reading: Reading) -> list[Table]:
    """The training table among those named so, or several that are its parts.

    Raises:
        UserError: several may be it, and they differ.
    """
    chosen = [path for path in named if Path(path).name.lower() in ("train.csv", "train.tsv")]
    if not chosen:
        chosen = named
    chosen = [path for path in chosen if path.count("/") == chosen[0].count("/")]
    if len(chosen) == 1:
        return [tables.read_table(chosen[0])]
    clear = [path for path in chosen if _is_clear_table(tables, path, reading)]
    candidates = [tables.read_table(path) for path in clear]
    if len(clear) == 1:
        return candidates
    same_name = len({Path(path).name for path in clear}) == 1  # training-a/REFERENCE.csv, training-b/...
    if same_name and len(clear) == len(chosen) and _belong_together(files, tables, candidates):
        return candidates
    raise UserError(_explain_several_tables(files, chosen, "train csv", reading))


def _is_bare_list(tables: Tables, path: str) -> bool:
    """Is a table just a list of clips, without a header?"""
    try:
        table = tables.read_table(path)
    except UserError:
        return False
    return not table.headed and len(table.frame.columns) == 1


def _is_clear_table(tables: Tables, path: str, reading: Reading) -> bool:
    """Does a table name audio files, and have a possible label column?"""
    try:
        table = tables.read_table(path)
    except UserError:
        return False
    frame = table.frame
    id_column = tables.find_id_column(path)
    if id_column is None:
        return False
    if reading.label_column:
        return reading.label_column in frame.columns
    column = labels.find_label_column(frame, id_column)
    if column is not None:
        return column.lower() in labels.LABEL_NAMES or bool(frame[column].str.strip().duplicated().any())
    left = [frame[name] for name in frame.columns if name not in (id_column, "fold", "group")]
    if len(left) > 1 and 2 * sum(map(labels.is_binary_column, left)) > len(left):
        return True
    return not table.headed and any(map(labels.can_be_label, left))


def _only_repeats_folders(files: Files, tables: Tables, clear: list[str]) -> bool:
    """Do all tables that name clips and labels only repeat the names of the clips' folders?"""
    agreed = []
    for path in clear:
        frame = tables.read_table(path).frame
        column = tables.find_id_column(path)
        label = labels.find_label_column(frame, column) if column else None
        if column is None or label is None:
            return False
        known = same = 0
        for id, cell in zip(frame[column], frame[label], strict=True):
            paths = files.find_candidates(id)
            if paths:
                known += 1
                same += paths[0].split("/")[-2:-1] == [cell.strip()]
        agreed.append(same >= AGREE * known)
    return bool(agreed) and all(agreed)


def _belong_together(files: Files, tables: Tables, candidates: list[Table]) -> bool:
    """Do tables have the same columns, and different files?"""
    if len({tuple(table.frame.columns) for table in candidates}) != 1:
        return False
    seen: set[str] = set()
    for table in candidates:
        column = tables.find_id_column(table.path)
        own_files = {path for id in table.frame[column] for path in files.find_candidates(id)[:1]}
        if seen & own_files:
            return False
        seen |= own_files
    return True


def _explain_several_tables(files: Files, paths: list[str], what: str, reading: Reading) -> str:
    few = " ".join(f"--train-csv {quote(path)}" for path in paths[:2])
    return (
        f"several files in {files.root} may be the {what}: {', '.join(paths[:8])}; name one or several: "
        f"{reading.format_command(few)}; a noisier one as --extra-csv {quote(paths[-1])}:0.3"
    )


def _warn_people_tables(tables: Tables, paths: list[str], classes: set[str]) -> list[str]:
    """A warning where a table has a row per class folder, in a column such as patient or speaker."""
    for path in paths:
        try:
            expanded = tables.expand_by_source(path)
        except UserError:
            continue
        if expanded is not None and groups.rank_header(expanded[1]) is not None:
            frame, column = expanded[0].frame, expanded[1]
            if classes <= set(frame["group"]):
                can = [c for c in frame.columns[:-2] if c != column and labels.can_be_label(frame[c])]
                return [
                    f"warning: the class folders are the {column} of {path}: if the label is in that table, "
                    f"give --train-csv {quote(path)} --label-column {quote(can[0])}"
                ]
    return []


def list_unread_tables(files: Files, tables: Tables) -> list[tuple[str, str]]:
    """The tables that name most clips and may have labels, or can't be read, and what to do."""
    unread = []
    for path in tables.paths:
        if is_sample_name(path) or path.lower().endswith(".txt"):
            continue
        try:
            frame = tables.read_table(path).frame
        except UserError as error:
            why = str(error).removeprefix(str(files.root / path)).lstrip(", :")
            unread.append((path, f"it can't be read: {why}"))
            continue
        column = find_id_column(frame, files, numbers=False)
        named: set[str] = set()
        if column:
            named = {path for id in frame[column] for path in files.find_candidates(id)[:1]}
        if 2 * len(named) <= len(files.audio) or _only_repeats_folders(files, tables, [path]):
            continue
        rest = [c for c in frame.columns if c not in (column, "fold", "group")]
        can = [c for c in rest if groups.rank_header(str(c)) is None and c.lower() not in SPLIT_COLUMNS]
        can = [c for c in can if labels.can_be_label(frame[c]) and 1 < frame[c].nunique() <= len(frame) // 2]
        flags = [f"--label-column {quote(c)}" for c in can[:4]]
        flags = ["--task multilabel"] * (sum(labels.is_binary_column(frame[c]) for c in rest) > 1) + flags
        if flags:
            unread.append((path, f"give --train-csv {quote(path)} {' or '.join(flags)}"))
    return unread


def describe_side_files(files: Files) -> str:
    """A line about files named like the clips, such as annotations; "" without any."""
    stems = {strip_suffix(path.rpartition("/")[2]) for path in files.audio}
    alike = [p for p in (*files.documents, *files.others) if p.rpartition("/")[2].rpartition(".")[0] in stems]
    if not alike or 2 * len(alike) < len(files.audio):
        return ""
    return (
        f"; {len(alike)} files are named like the clips ({format_ids(alike)}): if they hold the labels, "
        "write a csv with a row per clip, filename,label, and give it to --train-csv"
    )


def _explain_no_layout(files: Files, tables: Tables, reading: Reading) -> str:
    """The error that nothing was recognised, with the nearest flags."""
    hints = name_parts.suggest_flags(files.audio) if files.audio else []
    hints = [*folder_levels.suggest_flags(files.audio)[:2], *hints]
    ways = ""
    if hints:
        ways = f"; the labels may be in the names: {reading.format_command(hints[0])}"
        ways += "".join(f" or {hint}" for hint in hints[1:2])
    for path, what in list_unread_tables(files, tables)[:1]:
        ways = f"; {path} names the clips: {what}{ways}"
    books = [p for p in files.documents if UNREAD.search(p.lower()) and p.count("/") <= 2]
    for path in books[:1] if files.audio else ():
        format_name = "excel" if path.lower().endswith("x") else "json"
        lines = ", lines=True" if path.lower().endswith("l") else ""
        ways += (
            f'; the labels may be in {path}: save it as train.csv (python -c "import pandas; '
            f"pandas.read_{format_name}('{path}'{lines}).to_csv('train.csv', index=False)\")"
        )
    if not ways:
        ways = describe_side_files(files)
    return (
        f"no known layout in {files.root}: looked for a train csv beside audio files, ESC's "
        f"meta/*.csv beside audio/, two or more class folders of audio; found {files.summarise()}{ways}"
    )
