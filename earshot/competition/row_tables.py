"""Tables with the file and seconds of each row of a submission, such as a test.csv beside a sample
submission."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from earshot.competition import segments
from earshot.competition.file_index import Files
from earshot.competition.id_columns import ID_NAMES
from earshot.competition.names import strip_suffix
from earshot.competition.segments import Segments
from earshot.core import spelling
from earshot.core.csv_table import format_cell
from earshot.core.errors import UserError

Tables = Sequence[tuple[Path, pd.DataFrame]]

FILES = (*ID_NAMES, "file_id", "soundscape_id", "recording", "audio", "soundscape", "wav")
# Headers of columns of seconds, letters only.
ENDS = {"end", "ends", "endtime", "endsec", "endsecond", "endseconds", "stop", "tmax", "seconds", "second"}
STARTS = {"start", "starts", "starttime", "startsec", "startsecond", "startseconds", "begin", "begintime"}
STARTS |= {"tmin", "onset", "offset"}
EMPTY = ("", "nan", "na", "none", "null")
LONGEST = 1e6  # seconds; longer than any recording
MOST_IDS = 0.5  # share of the sample's ids, in a column of that name: the table may lack some
ALL_IDS = 0.999  # share in a column of another name, where a few may occur by chance
CLOCK = re.compile(r"(?:(\d{1,3}):)?(\d{1,2}):(\d{1,2}(?:\.\d*)?)", re.ASCII)


def find_row_table(
    files: Files, tables: Tables, id_column: str, ids: Sequence[str], classes: set[str]
) -> tuple[Path, Segments] | None:
    """The file and the seconds of each id, from the first table that has most of the ids; None without one.

    A table with several rows for one part of a file, or with class names, lists more than clips: it does not
    count. An id that is not in the table, or whose file is missing, gets the path "".

    Raises:
        UserError: invalid seconds in a table: not numbers, negative, or an end before its start.
    """
    wanted = {id.strip() for id in ids}
    if not wanted:
        return None
    for csv, frame in tables:
        for column in sorted(frame.columns, key=lambda name: name != id_column):
            share = len(wanted & set(frame[column].str.strip())) / len(wanted)
            if share > (MOST_IDS if column == id_column else ALL_IDS):
                found_rows = read_rows(files, csv, frame, column, classes)
                if found_rows:
                    return csv, _select_ids(found_rows, ids)
    return None


def _select_ids(segments: Segments, ids: Sequence[str]) -> Segments:
    """The rows of the ids, in the table's order; those that it lacks last."""
    row_of = {id.strip(): row for row, id in enumerate(segments.ids)}
    ordered = sorted(ids, key=lambda id: row_of.get(id.strip(), len(row_of)))
    rows = [row_of.get(id.strip()) for id in ordered]
    return Segments(
        ordered,
        ["" if row is None else segments.paths[row] for row in rows],
        [math.nan if row is None else segments.starts[row] for row in rows],
        [math.nan if row is None else segments.ends[row] for row in rows],
        segments.seconds,
        [id if row is None else segments.names[row] for id, row in zip(ordered, rows, strict=True)],
    )


def find_longer_table(
    files: Files, tables: Tables, id_column: str, ids: Sequence[str], classes: set[str]
) -> tuple[Path, Segments] | None:
    """The rows of the first table with a longer id column of that name, none of them the sample's, and
    existing files: the sample is a placeholder for them."""
    for csv, frame in tables:
        if id_column not in frame or len(frame) <= len(ids):
            continue
        if {id.strip() for id in ids} & set(frame[id_column].str.strip()):
            continue
        found_rows = read_rows(files, csv, frame, id_column, classes)
        if found_rows and any(found_rows.paths):
            return csv, found_rows
    return None


def read_row_ids(files: Files, csv: Path, frame: pd.DataFrame, id_column: str) -> tuple[str, Segments] | None:
    """The rows of a table whose id column repeats because it names recordings: the column that is unique, and
    the part of each row; None without seconds or such a column."""
    timed = [column for column in frame.columns if _classify_time_column(frame, column)]
    if not timed:
        return None
    others = [column for column in frame.columns if column not in (id_column, *timed)]
    unique = [column for column in others if frame[column].str.strip().is_unique]
    for column in sorted(unique, key=lambda name: name.lower() not in ("row_id", "id")):
        found_rows = read_rows(files, csv, frame, column, set())
        if found_rows:
            return column, found_rows
    return None


def read_rows(
    files: Files, csv: Path, frame: pd.DataFrame, id_column: str, classes: set[str]
) -> Segments | None:
    """The part of a recording that each row of a table is, by recording; None if it is not such a table."""
    ids = frame[id_column].str.strip()
    if frame.empty or ids.duplicated().any() or (ids == "").any():
        return None
    seconds = _find_time_columns(frame)
    others = [column for column in frame.columns if column != id_column and column not in seconds.values()]
    class_keys = set(spelling.to_keys(classes))
    for column in others if class_keys else ():
        if class_keys.issuperset(spelling.to_keys(frame[column].str.strip().unique())):
            return None
    path_of, names = _find_files(files, frame, others, ids, bool(seconds))
    if names is None:
        return None
    start, end, length = _read_times(csv, frame, seconds, names)
    if len(set(zip(names, start, end, strict=True))) < len(ids):
        return None  # several rows are the same part of a file
    first_row: dict[str, int] = {}
    for row, name in enumerate(names):
        first_row.setdefault(name, row)
    # by recording; whole files first
    sort_keys = [(first_row[name], -1 if math.isnan(at) else at) for name, at in zip(names, end, strict=True)]
    order = sorted(range(len(ids)), key=sort_keys.__getitem__)
    return Segments(
        [frame[id_column].iloc[row] for row in order],
        [path_of[names[row]] for row in order],
        [start[row] for row in order],
        [end[row] for row in order],
        length,
        [names[row] for row in order],
    )


def _find_time_columns(frame: pd.DataFrame) -> dict[str, str]:
    """The first column of starts and the first column of ends, by "start" and "end"."""
    seconds: dict[str, str] = {}
    for column in frame.columns:
        edge = _classify_time_column(frame, column)
        if edge:
            seconds.setdefault(edge, column)
    if list(seconds) == ["end"]:
        only = seconds["end"]
        # no part has a length of zero
        if only.lower() in ("second", "seconds") and frame[only].map(_parse_seconds).eq(0).any():
            return {"start": only}
    return seconds


def _classify_time_column(frame: pd.DataFrame, column: str) -> str | None:
    """Does a column hold the seconds of starts or ends?"""
    name = re.sub("[^a-z]", "", column.lower())
    all_names = {re.sub("[^a-z]", "", other.lower()) for other in frame.columns}
    if name in ENDS or name == "offset" and "onset" in all_names:
        edge = "end"
    elif name in STARTS:
        edge = "start"
    else:
        return None
    cells = [cell for cell in frame[column].str.strip().str.lower().unique() if cell not in EMPTY]
    # a start alone such as 06:30:00 is the time of day at which the recording starts
    clock = edge == "end" or bool(all_names & ENDS)
    if cells and all(_parse_seconds(cell, clock) is None for cell in cells):
        return None
    return edge


def _parse_seconds(cell: str, clock: bool = True) -> float | None:
    """A cell as seconds, also from 0:05 or 00:00:05; None if it is not a time."""
    match = CLOCK.fullmatch(cell)
    if match and clock:
        return 3600 * int(match[1] or 0) + 60 * int(match[2]) + float(match[3])
    try:
        seconds = float(cell.replace(",", "."))  # Excel in Europe writes 2,5
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) else None


def _read_times(
    csv: Path, frame: pd.DataFrame, columns: dict[str, str], names: list[str]
) -> tuple[list[float], list[float], float]:
    """The start and end of each row in seconds, NaN for whole files; the length of most rows."""

    def read_edge(edge: str) -> list[float]:
        if edge not in columns:
            return [math.nan] * len(frame)
        times = []
        for line, cell in zip(frame.index, frame[columns[edge]].str.strip(), strict=True):
            seconds = math.nan if cell.lower() in EMPTY else _parse_seconds(cell)
            if seconds is None or seconds < 0 or seconds > LONGEST:
                raise UserError(
                    f"{csv}, line {line}: {format_cell(cell)} in column {columns[edge]} is not a time "
                    "in seconds: correct it"
                )
            times.append(seconds)
        return times

    start, end = read_edge("start"), read_edge("end")
    known_times = end if "end" in columns else start
    by_file: dict[str, set[float]] = {}
    for name, at in zip(names, known_times, strict=True):
        if not math.isnan(at):
            by_file.setdefault(name, set()).add(at)
    length = segments.find_step(sorted(of_one) for of_one in by_file.values())
    for row, line in enumerate(frame.index):
        if math.isnan(end[row]) and not math.isnan(start[row]):
            if "end" in columns or not length:
                raise UserError(
                    f"{csv}, line {line}: starts at {start[row]:g} s, but no column has its end: add "
                    "a column with the end in seconds"
                )
            end[row] = start[row] + length
        elif math.isnan(start[row]) and not math.isnan(end[row]):
            start[row] = max(0.0, end[row] - length)
        if end[row] <= start[row]:
            raise UserError(
                f"{csv}, line {line}: ends at {end[row]:g} s, not after its start at {start[row]:g} s: "
                "correct it"
            )
    return start, end, length


def _find_files(
    files: Files, frame: pd.DataFrame, columns: list[str], ids: pd.Series, can_be_prefix: bool
) -> tuple[dict[str, str], list[str] | None]:
    """The file of each recording in the rows, and its name in each row; None for names without such a column.

    Args:
        can_be_prefix: may a name be the beginning of a single file's name?
    """
    starting_with: dict[str, list[str]] = {}
    for path in files.audio if can_be_prefix else ():
        if not segments.is_training_file(path):
            parts = strip_suffix(path.rpartition("/")[2]).split("_")
            for end in range(1, len(parts)):
                starting_with.setdefault("_".join(parts[:end]), []).append(path)

    def is_recording(name: str) -> bool:
        candidates = files.find_candidates(name)
        return not all(map(segments.is_training_file, candidates)) or len(starting_with.get(name, [])) == 1

    counts = {column: sum(map(is_recording, frame[column].str.strip().unique())) for column in columns}
    named = [column for column in columns if counts[column]]
    if not named:
        named = [column for column in columns if column.lower() in FILES]
    if not named:
        return {}, None
    column = max(named, key=lambda name: (counts[name], name.lower() in FILES))
    names = list(frame[column].str.strip())
    path_of = segments.find_recordings(files, names)
    stems = {name: segments.NAMED.sub(r"\1", id) for name, id in zip(names, ids, strict=True)}
    by_id = segments.find_recordings(files, [stems[name] for name, path in path_of.items() if not path])
    for name, path in path_of.items():
        if not path:
            path_of[name] = by_id[stems[name]]
        paths = starting_with.get(name, [])
        if not path_of[name] and len(paths) == 1:
            path_of[name] = files.to_absolute(paths[0])  # 2782_SSW_20170701.ogg is recording 2782
    return path_of, names
