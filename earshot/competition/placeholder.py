"""Clips to submit that no csv names: in a code competition the sample submission may be a placeholder of a
few rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from earshot.competition import segments
from earshot.competition.audio_header import read_seconds_and_rate
from earshot.competition.file_index import Files
from earshot.competition.names import find_side, normalise_name, strip_suffix
from earshot.competition.segments import NAMED, Segments
from earshot.core.csv_text import to_csv
from earshot.core.file_names import format_ids, is_audio
from earshot.core.files import write_text

if TYPE_CHECKING:
    import pandas as pd

STEP = 5  # seconds of a stretch where the sample submission has no row, as in BirdCLEF


def find_unlisted_audio(files: Files, used: set[str]) -> list[str]:
    """The audio files of a test folder that are not training clips, relative to the root."""
    return [
        path
        for path in files.audio
        if find_side(path.rpartition("/")[0]) == "subm" and files.to_absolute(path) not in used
    ]


def make_ids_like(examples: list[str], paths: list[str]) -> list[str]:
    """Ids for files that no csv names, in the examples' style: with or without suffix, with or without
    folder."""
    with_folder = any("/" in example for example in examples)
    ids = paths if with_folder else [path.rpartition("/")[2] for path in paths]
    if not any(map(is_audio, examples)):
        ids = [strip_suffix(id) for id in ids]
    return ids if len(set(ids)) == len(ids) else paths


def find_placeholder_rows(
    files: Files, sample_ids: Sequence[str], sample_paths: Sequence[str], train: pd.DataFrame
) -> tuple[list[str], list[str]] | None:
    """The ids and files of the full sample submission for which this one is a placeholder; None where it is
    not one.

    A placeholder has fewer rows than the test folder has files, and none of its ids is a file.

    Args:
        sample_ids: its ids. sample_paths: the file of each, "" without one.
        train: the training clips, whose files are left out, and whose ids show the style where it has no row.
    """
    if any(sample_paths):
        return None
    unlisted = find_unlisted_audio(files, set(train["path"]))
    if len(sample_ids) >= len(unlisted):
        return None
    shapes = {_strip_numbers(strip_suffix(path.rpartition("/")[2])) for path in unlisted}
    ids = [id.strip() for id in sample_ids]
    like_files = all(_strip_numbers(strip_suffix(id)) in shapes for id in ids)
    if not like_files and all(map(NAMED.fullmatch, ids)):
        return None  # these name parts of recordings
    new_ids = make_ids_like(list(sample_ids) or list(train["id"]), unlisted)
    return new_ids, [files.to_absolute(path) for path in unlisted]


def find_placeholder_segments(
    files: Files, ids: Sequence[str], id_column: str, train: pd.DataFrame, classes: set[str]
) -> tuple[Segments | None, list[str]]:
    """The rows <recording>_<second> of the full sample submission for which this one is a placeholder, None
    where it is not one; lines about them.

    Its recordings do not exist, and are no more than the test folder holds. Each file there gets a row for
    every step up to its end. The rest after the last step is a row if it is half a step or more; a shorter
    recording gets one row. Without a row in the sample, a column `row_id` means steps of 5 seconds.

    Args:
        ids: the sample's, none of them found. train: the training clips, whose files are not meant.
        classes: where ids name them, rows are more than stretches.
    """
    named = [match for id in ids if (match := NAMED.fullmatch(id.strip()))]
    if len(named) < len(ids) or not ids and id_column.lower() != "row_id":
        return None, []
    stems = list(dict.fromkeys(match[1] for match in named))
    parts = {normalise_name(part) for stem in stems for part in stem.split("_")}
    # folders of examples lie beside Cornell Birdcall's test folder
    unlisted = [
        path
        for path in find_unlisted_audio(files, set(train["path"]))
        if not re.match("example|sample", path.rpartition("/")[0].lower())
    ]
    unlisted.sort(key=lambda path: (path.rpartition("/")[2], path))
    if not unlisted or len(stems) > len(unlisted):
        return None, []
    if parts & {normalise_name(label) for label in classes if not label.isdecimal()}:
        return None, []
    step = _find_step(named)
    if not _looks_like_segments(named, step, id_column, unlisted):
        return None, []
    counts, lines = _count_steps(files, unlisted, step)
    if not any(counts):  # clips, not recordings
        return None, lines
    if not ids:
        lines.append(
            f"warning: the sample submission has no row: {id_column} is read as the ends of stretches of "
            f"{STEP} s"
        )
    digits = {len(match[2]) for match in named}
    width = max(digits) if len(digits) == 1 and any(match[2].startswith("0") for match in named) else 0
    rows = [
        (f"{name}_{end:0{width}}", files.to_absolute(path), float(end - step), float(end), name)
        for path, name, count in zip(unlisted, make_ids_like(stems, unlisted), counts, strict=True)
        for end in range(step, step * max(1, count) + 1, step)
    ]
    columns, paths, starts, ends, names = map(list, zip(*rows, strict=True))
    return Segments(columns, paths, starts, ends, step, names), lines


def find_stretch(clips: pd.DataFrame, id_column: str) -> float | None:
    """Seconds of most rows to submit, where they are stretches of recordings; None where they are files.

    Where no recording is here, as in a code competition before its rerun, the ids of the sample submission
    decide, or without a row the name of their column.

    Args:
        clips: of all splits. id_column: of the sample submission.
    """
    rows = clips[clips.split == "subm"]
    lengths = (rows.end - rows.start).dropna()
    if len(lengths):
        return float(lengths.median())
    named = [match for id in rows.id if (match := NAMED.fullmatch(str(id).strip()))]
    if len(named) < len(rows) or any(rows.path) or not named and id_column.lower() != "row_id":
        return None
    step = _find_step(named)
    return float(step) if _looks_like_segments(named, step, id_column, []) else None


def _find_step(named: Sequence[re.Match[str]]) -> int:
    """The step between the ends in the ids: the commonest distance, else the earliest end."""
    ends: dict[str, set[int]] = {}
    for match in named:
        ends.setdefault(match[1], set()).add(int(match[2]))
    return int(segments.find_step(sorted(of_one) for of_one in ends.values())) if ends else STEP


def _looks_like_segments(named: Sequence[re.Match[str]], step: int, id_column: str, paths: list[str]) -> bool:
    """Do ids name stretches of recordings, rather than numbered clips such as clip_1?

    They do where the file names are ids without the second. Else the ids must be whole steps apart, of more
    than a second unless their column is `row_id`.
    """
    ends = [int(match[2]) for match in named]
    if 0 in ends:
        return False
    names = {normalise_name(strip_suffix(path.rpartition("/")[2])) for path in paths}
    for match in named:
        if not names.isdisjoint(_list_tails(normalise_name(match[1]))):  # site_1_<recording>_5
            return False
    shapes = {_strip_numbers(name) for name in names}
    as_files = any(_strip_numbers(match[0]) in shapes for match in named)
    as_recordings = all(_strip_numbers(strip_suffix(match[1])) in shapes for match in named)
    if named and as_files != as_recordings:
        return as_recordings
    return all(end % step == 0 for end in ends) and (step > 1 or id_column.lower() == "row_id")


def _strip_numbers(text: str) -> str:
    """A name without its numbers."""
    return re.sub(r"\d+", "#", normalise_name(text))


def _list_tails(text: str) -> list[str]:
    parts = text.split("_")
    return ["_".join(parts[first:]) for first in range(len(parts))]


def _count_steps(files: Files, paths: Sequence[str], step: int) -> tuple[list[int], list[str]]:
    """The number of steps of each recording, by its header; the commonest number, with a warning, where that
    can't be read."""
    headers = [read_seconds_and_rate(files.to_absolute(path)) for path in paths]
    counts = [None if header is None else int(header[0] / step + 0.5) for header in headers]
    known = [count for count in counts if count is not None]
    lost = [path for path, count in zip(paths, counts, strict=True) if count is None]
    if not lost:
        return known, []
    usual = Counter(known).most_common(1)[0][0] if known else 0
    instead = "rows as most have" if usual else "no rows"
    return [usual if count is None else count for count in counts], [
        f"warning: the length of {len(lost)} recordings can't be read ({format_ids(lost)}): they get "
        f"{instead}"
    ]


def write_sample(
    path: Path, columns: Sequence[str], id_column: str, ids: Sequence[str], example: Sequence[str]
) -> Path:
    """Write a sample submission with a row for each id, with the values of the placeholder's first row;
    returns its path."""
    values = dict(zip(columns, example, strict=False))
    rows = [[id if column == id_column else values.get(column, "") for column in columns] for id in ids]
    write_text(path, to_csv([columns, *rows]))
    return path
