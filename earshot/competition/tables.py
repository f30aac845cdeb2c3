"""The tables among a competition's files: how they are read, and the role of each."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from earshot.competition import json_table
from earshot.competition.csv_checks import is_header_data
from earshot.competition.file_index import Files
from earshot.competition.id_columns import find_id_column
from earshot.competition.names import find_side, list_words
from earshot.competition.source_table import expand_sources
from earshot.core import csv_table, spelling
from earshot.core.errors import UserError, raise_if_temporary

SAMPLE = re.compile("sample.*sub")
SUBMISSION = re.compile("subm|predict")
# other names of sample submissions, if they hold no labels
TEMPLATE = re.compile(
    "^subs?([^a-z]|$)|sample|baseline|template|example|upload|answer|dummy|random|format|test.?labels"
)
NEARLY_ALL = 0.9  # share of a table's ids in another table that has their files: a few clips may be missing
TEXT_BYTES = 100_000_000  # a larger .txt is not a table of clips


class Table(NamedTuple):
    """A table of the competition: its path below the root, its rows, and whether it has a header."""

    path: str
    frame: pd.DataFrame
    headed: bool = True

    @property
    def notes(self) -> list[str]:
        """A line where the header is generated."""
        if self.headed:
            return []
        return [
            f"{Path(self.path).name} has no header: its columns are named "
            f"{csv_table.format_list(self.frame.columns, 3)}"
        ]


class Tables:
    """The tables of a folder, each read once and only when needed."""

    def __init__(self, files: Files):
        self.files = files
        texts = [p for p in files.texts if looks_tabular(files.root / p) or has_blank_columns(files, p)]
        self.paths = [*files.csvs, *texts]
        self.paths += json_table.find_tables(files.root, [*files.documents, *files.others])
        self._read: dict[str, Table] = {}

    def read_table(self, path: str) -> Table:
        """A table by its path.

        A first row that names an audio file, or repeats a cell in a matrix, is data, not a header.

        Raises:
            UserError: not readable as a table.
        """
        if path not in self._read:
            self._read[path] = self._read_file(path)
        return self._read[path]

    def _read_file(self, path: str) -> Table:
        full = self.files.root / path
        if full.suffix.lower() in (".json", ".jsonl"):
            return Table(path, json_table.read_table(full))
        try:
            frame = csv_table.read(full)
        except UserError:
            stacked = _read_stacked_header(full)
            if stacked is not None:
                return Table(path, stacked)
            bare = self._read_without_header(full)
            if bare is None:
                raise
            # such as two columns of one name in a matrix of numbers, or beside the name of a clip; else the
            # error is the header's own
            numbers = pd.to_numeric(bare.iloc[0], errors="coerce").notna().all()
            if not numbers and not any(map(self.files.find_candidates, bare.iloc[0])):
                raise
            return Table(path, bare, headed=False)
        frame = frame.drop(columns=csv_table.find_nameless(frame))
        named = find_id_column(frame, self.files)
        if named is not None and is_header_data(self.files, named, frame):
            bare = self._read_without_header(full)
            if bare is not None:
                return Table(path, bare, headed=False)
        return Table(path, frame)

    def expand_by_source(self, path: str) -> tuple[Table, str] | None:
        """A table with a row per source as one with a row per clip, and its column of sources; None for
        another table."""
        table = self.read_table(path)
        headers = [table.frame] if table.headed else []
        if not table.headed or len(table.frame.columns) == 2:  # two columns: the header may be a row
            try:
                headers.append(csv_table.read(self.files.root / path, header_row=False))
            except UserError:
                pass
        best: tuple[Table, str] | None = None
        for frame in headers:
            expanded = expand_sources(frame, self.files)
            # a row that is not a header has clips
            if expanded and (best is None or len(expanded[0]) > len(best[0].frame)):
                rows, column = expanded
                best = Table(path, rows, headed=frame is table.frame and table.headed), column
        return best

    def _read_without_header(self, full: Path) -> pd.DataFrame | None:
        """The table read without a header, where a column of it names audio files."""
        try:
            frame = csv_table.read(full, header_row=False)
        except UserError:
            return None
        if find_id_column(frame, self.files) is not None:
            return frame
        columns = [frame[column] for column in frame.columns]
        found = any(_are_distinct(cells) and self.files.match_tails(cells) for cells in columns)
        return frame if found else None

    def find_sample(self) -> str | None:
        """The sample submission: a csv with that name, or one named like a submission that has clips without
        labels, and in each other column the same value or numbers.

        Raises:
            UserError: several files may be it.
        """
        csvs = [c for c in self.paths if c.lower().endswith((".csv", ".tsv"))]
        called = [c for c in csvs if SAMPLE.search(Path(c).name.lower())]
        path = choose_table(
            self.files,
            called,
            ("sample_submission.csv", "samplesubmission.csv"),
            "sample submission",
            "keep one of them",
        )
        if path or called:
            return path
        alike = [c for c in csvs if SUBMISSION.search(Path(c).stem.lower()) and self._is_sample(c)]
        alike = alike or [
            c for c in csvs if TEMPLATE.search(Path(c).stem.lower()) and self._is_sample(c, sure=True)
        ]
        return choose_table(self.files, alike, (), "sample submission", "keep one of them")

    def _is_sample(self, path: str, sure: bool = False) -> bool:
        """Does a table name clips without labels?

        Args:
            sure: all cells of a column must be the same, and its clips be in a test folder.
        """
        try:
            frame = self.read_table(path).frame
        except UserError:
            return False
        if len(frame.columns) < 2 or frame.empty:
            return False
        column = find_id_column(frame, self.files) or str(frame.columns[0])
        first_paths = [path for id in frame[column] for path in self.files.find_candidates(id)[:1]]
        sides = {find_side(path.rpartition("/")[0]) for path in first_paths}
        rest = [frame[name].str.strip() for name in frame.columns if name != column]
        if sure:
            return sides == {"subm"} and len(frame) > 1 and all(cells.nunique() == 1 for cells in rest)
        varied = [cells for cells in rest if cells.nunique() > 1]
        plain = all(pd.to_numeric(cells, errors="coerce").notna().all() for cells in varied)
        return "train" not in sides and plain

    def find_id_column(self, path: str) -> str | None:
        """The column of a table that names audio files, also by the ends of their names, which `Files.alias`
        then holds; None without one.

        Raises:
            UserError: the table cannot be read.
        """
        frame = self.read_table(path).frame
        id_column = find_id_column(frame, self.files, numbers=False)
        if id_column is None and self.files.audio:
            for column in (c for c in frame.columns if _are_distinct(frame[c])):
                path_of = self.files.match_tails(frame[column])
                if path_of:
                    self.files.alias |= path_of
                    id, file = min(path_of.items())
                    self.files.tail_notes[path] = (
                        f"{Path(path).name}: the ids in column {column} are matched by the ends of the "
                        f"files' names: first {id} is {file}"
                    )
                    return str(column)
        return id_column


def _read_stacked_header(path: Path) -> pd.DataFrame | None:
    """A table with several header rows, as pandas writes them, of which the last names only the index. Its
    columns are named by their lowest header row where that is unique. None for another table."""
    try:
        frame = csv_table.read(path, header_row=False)
    except UserError:
        return None
    top = frame.iloc[:5]
    alone = [n for n, row in enumerate(top.values) if row[0].strip() and not any(map(str.strip, row[1:]))]
    last = alone[0] if alone else 0
    if last < 2 or any(top.iloc[:last, 0].str.strip()):
        return None
    levels = [[cell.strip() for cell in row] for row in top.values[:last]]
    lowest = levels[-1]
    whole = [" ".join(column) for column in zip(*levels, strict=True)]
    names = [low if lowest.count(low) == 1 else full for low, full in zip(lowest, whole, strict=True)]
    names[0] = top.iloc[last, 0].strip()
    if len(set(names)) < len(names) or not all(names):
        return None
    table = frame.iloc[last + 1 :].set_axis(pd.Index(names, dtype=object), axis=1)
    table.attrs = {"stray": {}, "joined": []}
    return table


def _are_distinct(cells: pd.Series) -> bool:
    return 2 * cells.nunique() > len(cells) > 1


def looks_tabular(path: Path) -> bool:
    """Does a text file begin with lines of equally many fields, or with a header that ends in [brackets]?"""
    try:
        if os.path.getsize(path) > TEXT_BYTES:
            return False
        with open(path, encoding="utf-8", errors="strict") as file:
            lines = [line.rstrip("\r\n") for line, _ in zip(file, range(20), strict=False)]
    except UnicodeDecodeError:
        return False
    except OSError as error:
        raise_if_temporary(path, error)  # a table must not be dropped because a drive is away
        return False
    lines = [line for line in lines if line.strip()]
    if len(lines) < 2:
        return False
    if re.search(r"[,;\t]\s*\[[^\]]+\]\s*$", lines[0]):
        return True
    counts = [{line.count(mark) for line in lines} for mark in "\t;,|"]
    return any(len(count) == 1 and count != {0} for count in counts)


def has_blank_columns(files: Files, text: str) -> bool:
    """Does a text file have lines of equally many words, one of them a clip and one a label in letters, for
    many of the clips?"""
    try:
        if os.path.getsize(files.root / text) > TEXT_BYTES:
            return False
        with open(files.root / text, encoding="utf-8") as file:
            rows = [line.split(" ") for line in file.read().splitlines() if line.strip()]
    except UnicodeDecodeError:
        return False
    except OSError as error:
        raise_if_temporary(files.root / text, error)
        return False
    width = len(rows[0]) if rows else 0
    if not 1 < width <= 20 or any(len(row) != width for row in rows) or 10 * len(rows) < len(files.audio):
        return False
    columns = list(zip(*rows, strict=True))
    named = [cells for cells in columns if all(map(files.find_candidates, cells[:20]))]
    rest = [cells for cells in columns if cells not in named and len(set(cells)) <= len(cells) // 2]
    return bool(named) and any(all(cell[:1].isalpha() for cell in cells) for cells in rest)


def get_role(path: str) -> str | None:
    """The role of a table by its name, else by its folders: "train", "test" or "valid"; None for neither."""
    for text in (Path(path).stem, *reversed(Path(path).parts[:-1])):
        roles = set()
        for word in list_words(text):
            if word.startswith("train") or word.endswith("train") or word in ("dev", "development"):
                roles.add("train")
            elif word.startswith("test") or word in ("eval", "evaluation", "holdout"):
                roles.add("test")
            elif word in ("val", "valid", "validation"):
                roles.add("valid")
        if roles:
            return roles.pop() if len(roles) == 1 else None
    return None


def choose_table(files: Files, paths: Sequence[str], names: Sequence[str], what: str, fix: str) -> str | None:
    """The path with a preferred file name, the least nested one; else the only path; None without any."""
    chosen = [p for p in paths if Path(p).name.lower() in names] or list(paths)
    chosen = [p for p in chosen if p.count("/") == chosen[0].count("/")]
    if len(chosen) > 1:
        raise UserError(f"several files in {files.root} may be the {what}: {', '.join(chosen)}; {fix}")
    return chosen[0] if chosen else None


def join_through(tables: Tables, table: Table, others: Sequence[str]) -> str | None:
    """Find the files of a table that names none, through another table with its ids and files; `Files.alias`
    then holds them.

    Returns:
        the table's column of ids, None where no other table fits.
    """
    files = tables.files
    for path in others:
        try:
            other = tables.read_table(path).frame
        except UserError:
            continue
        named = find_id_column(other, files, numbers=False) if path != table.path else None
        if named is None:
            continue
        for key in (c for c in other.columns if c != named):
            ids = other[key].str.strip()
            if ids.duplicated().any():
                continue
            name_of = dict(zip(ids, other[named], strict=True))
            near = [
                column for column in table.frame.columns if spelling.to_key(column) == spelling.to_key(key)
            ]
            for column in near:
                wanted = set(table.frame[column].str.strip())
                shared = wanted & name_of.keys()
                if len(shared) >= NEARLY_ALL * len(wanted):
                    paths_of_id = {id: files.find_candidates(name_of[id]) for id in shared}
                    files.alias |= {id: paths[0] for id, paths in paths_of_id.items() if len(paths) == 1}
                    return column
    return None
