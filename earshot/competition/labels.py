"""The label format of a csv: one label, several in a cell, or a 0/1 column per class."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from earshot.core import spelling
from earshot.core.errors import UserError

# In order of preference where a csv has several of them.
LABEL_NAMES = (
    "label",
    "category",
    "class",
    "class_name",
    "classname",
    "genre",
    "species",
    "primary_label",
    "emotion",
    "instrument",
    "event",
    "labels",
    "target",
    "tag",
    "tags",
    "class_id",
    "classid",
    "y",
)
LAST_WORD = re.compile(
    r"(?!second|source|sub)[a-z]+[_ ](labels?|class|category|species|genre|emotion|tags)", re.I
)
LIST = "[]"  # cells such as ['owl', 'jay']
MARKS = (";", "|", ",")  # a comma last: labels between semicolons may hold one
ITEM = re.compile(r"'([^']*)'|\"([^\"]*)\"|([^\s,'\"\[\]][^,\[\]]*)")
MISSING = ""
TO_PREDICT = "?"  # the label cell of a clip whose label is hidden
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)
MOST_GRADES = 20  # most distinct numbers with a fraction: more than that are a quantity
PLURAL = ("labels", "tags", "classes", "categories", "genres", "species_ids", "ebird_codes")


@dataclass(frozen=True)
class Labels:
    """The label columns of a csv, and how a cell is read.

    columns: one, or a 0/1 column per class. multilabel: any number of labels a clip, read as a sorted tuple;
    else one, read as text. separator: between the labels of a cell; None for one label or for 0/1 columns.
    empty_is_none: an empty cell means a clip without any of the classes; else a missing label.
    """

    columns: tuple[str, ...]
    multilabel: bool = False
    separator: str | None = None
    empty_is_none: bool = False

    @property
    def name(self) -> str:
        """One name for the column or columns."""
        return self.columns[0] if len(self.columns) == 1 else "label"

    @property
    def classes(self) -> list[str] | None:
        """The classes, where the csv has them in its header."""
        return list(self.columns) if len(self.columns) > 1 else None

    @property
    def about(self) -> str:
        """The columns in words."""
        if self.classes:
            return f"{len(self.columns)} label columns of 0 and 1, {', '.join(self.columns[:3])} ..."
        between = {None: "", " ": " of several labels between blanks", LIST: " of lists of labels"}
        return f"label column {self.name}" + between.get(
            self.separator, f" of several labels between {self.separator}"
        )

    def is_known_in(self, frame: pd.DataFrame) -> bool:
        """Does another csv have these labels, too?"""
        if not set(self.columns) <= set(frame.columns):
            return False
        if not self.classes:
            return bool(frame[self.name].str.strip().any())
        columns = [frame[column] for column in self.columns]
        return all(map(is_binary_column, columns)) and any(cells.map(is_one).any() for cells in columns)

    def read_column(self, frame: pd.DataFrame, csv: Path) -> pd.Series:
        """A label per row: text, or a tuple of several; MISSING where a cell is empty.

        Raises:
            UserError: several labels of a clip where there can be one.
        """
        values: list[str | tuple[str, ...]] = []
        if self.separator is not None:
            empty = () if self.empty_is_none else MISSING
            for cell in frame[self.name]:
                labels = tuple(sorted(set(split_cell(cell, self.separator))))
                values.append(MISSING if cell.strip() == TO_PREDICT else labels or empty)
        elif not self.classes:
            cells = frame[self.name].str.strip()
            return cells.where(cells != TO_PREDICT, MISSING)
        else:
            for line, row in zip(frame.index, frame[list(self.columns)].values, strict=True):
                ones = [column for column, cell in zip(self.columns, row, strict=True) if is_one(cell)]
                if not self.multilabel and len(ones) != 1:
                    raise UserError(
                        f"{csv}, line {line}: {len(ones)} of the label columns are 1: use --task multilabel"
                    )
                values.append(tuple(sorted(ones)) if self.multilabel else ones[0])
        return pd.Series(values, index=frame.index, dtype=object)


def detect_format(
    frame: pd.DataFrame,
    csv: Path,
    id_column: str,
    sample_columns: list[str],
    value_columns: list[str],
    task: str = "auto",
    named: str | None = None,
) -> tuple[Labels | None, list[str]]:
    """The label format of a train csv; None if that is not clear.

    Several labels a clip are recognised by 0/1 columns (those of the sample submission, or most columns where
    none is clearly the label), or by cells whose parts are all columns of the sample submission.

    Args:
        sample_columns: the sample submission's columns; `value_columns`: all but the ids.
        task: "auto", "single" or "multilabel".
        named: the label column that the user names.
    Returns:
        the label format, and lines about it.
    """
    left = [name for name in frame.columns if name not in (id_column, "fold", "group")]
    column = named or find_label_column(frame, id_column, sample_columns)
    binary = [] if named else [name for name in left if is_binary_column(frame[name])]
    values_are_binary = len(value_columns) > 1 and set(value_columns) <= set(binary)
    if not named and not values_are_binary and len(value_columns) > 1 and set(value_columns) <= set(left):
        odd = next(name for name in value_columns if name not in binary)
        cell = next(cell for cell in frame[odd] if not is_binary_column(pd.Series([cell])))
        raise UserError(
            f"{csv}: column {odd}, which the sample submission has too, holds {cell[:60]!r} besides 0 "
            "and 1: correct that, or name the label column with --label-column"
        )
    # Flags such as "verified" are 0 and 1, too: by default they are labels only where few other columns are.
    if column is not None:
        mostly = task == "multilabel" and column in binary
    elif task == "multilabel":
        mostly = True
    else:
        words = any(can_be_label(frame[name]) for name in left if name not in binary)
        mostly = 2 * len(binary) > len(left) and not words
    if values_are_binary or len(binary) > 1 and mostly:
        label_format = Labels(tuple(value_columns if values_are_binary else binary), task != "single")
        check_duplicate_headers(left, label_format.columns, csv)
        if not label_format.multilabel:
            return label_format, []
        if any(len(labels) != 1 for labels in label_format.read_column(frame, csv)):
            return label_format, []
        if task == "auto":  # one label a clip, as columns: the probabilities have to sum to one
            return Labels(label_format.columns, False), [
                "every row has one 1, so one label a clip: --task multilabel if clips may have more"
            ]
        return label_format, ["every row has one 1: --task single trains for one label a clip"]
    if column is None or task == "single":
        return column and Labels((column,)), []
    cells = [cell for cell in frame[column].str.strip().unique() if cell]
    separator = find_separator(cells, value_columns if len(value_columns) > 1 else [])
    if task == "multilabel":
        notes = []
        several = any(len(split_cell(cell, separator)) > 1 for cell in cells)
        if not several and not frame[id_column].duplicated().any():
            notes = [f"--task multilabel, but no row of {csv.name} has several labels"]
        return Labels((column,), True, separator), notes
    # "bass guitar" is one label beside "bass" and "guitar"
    if len(value_columns) > 1 and set(spelling.to_keys(cells)) <= set(spelling.to_keys(value_columns)):
        return Labels((column,)), []
    if len(value_columns) > 1 and is_fully_separable(cells, separator, value_columns):
        return Labels((column,), True, separator), []
    if re.split("[_ ]", column.lower())[-1] in PLURAL and is_separable(cells, separator):
        return Labels((column,), True, separator), [
            f"the column is called {column} and its cells hold several: --task single reads each as one label"
        ]
    return Labels((column,)), suggest_multilabel(cells)


def warn_fractional_labels(frame: pd.DataFrame, csv: Path, label_format: Labels) -> list[str]:
    """A warning where the labels are numbers with a fraction.

    Raises:
        UserError: there are so many of them that they are a quantity, not classes.
    """
    cells = [cell for cell in frame[label_format.columns[0]].str.strip() if cell not in (MISSING, TO_PREDICT)]
    distinct = set(spelling.to_keys(cells))
    if label_format.classes or label_format.multilabel or not all(map(NUMBER.fullmatch, distinct)):
        return []
    fraction = next((cell for cell in cells if not re.fullmatch(r"[-+]?\d+(\.0*)?", cell)), None)
    if fraction is None:
        return []
    what = f"column {label_format.name} of {csv} holds numbers such as {fraction}"
    if len(distinct) > MOST_GRADES or 2 * len(distinct) > len(cells) > 4:
        raise UserError(
            f"{what}: Earshot predicts classes, not quantities; make classes of them, or name "
            "another column with --label-column"
        )
    return [f"warning: {what}: each is a class of its own (Earshot predicts no quantities)"]


def is_separable(cells: list[str], separator: str) -> bool:
    """Do the parts of distinct cells recur, so that there are fewer parts than cells, or most parts occur
    twice?"""
    parts = [set(split_cell(cell, separator)) for cell in cells]
    if all(len(labels) < 2 for labels in parts):
        return False
    counts = Counter(label for labels in parts for label in labels)
    again = sum(number > 1 for number in counts.values())
    return len(counts) <= len(cells) or again > 0 and 2 * again >= len(counts)


def check_duplicate_headers(headers: Iterable[str], columns: Sequence[str], csv: Path) -> None:
    """UserError where two headers of a csv are the same label."""
    known = set(spelling.to_keys(columns))
    own_headers = [header for header in headers if spelling.to_key(header) in known]
    for twins in spelling.group_alike(own_headers, spelling.to_key):
        raise UserError(
            f"{csv} has several columns for one label, {', '.join(spelling.quote_apart(*twins))}: keep one"
        )


def warn_missing_labels(
    label_format: Labels, frame: pd.DataFrame, known: Iterable[str], name: str
) -> list[str]:
    """A warning where a csv without labels has some of the label columns, or similar ones.

    Args:
        known: the train csv's headers. name: of the csv without the labels.
    """
    absent = [column for column in label_format.columns if column not in frame.columns]
    other = [column for column in frame.columns if column not in set(known)]
    pairs = [(column, near) for column in absent if (near := spelling.find_near(column, other))]
    if not pairs and len(absent) in (0, len(label_format.columns)):
        return []
    lacks = spelling.quote_apart(*pairs[0]) if pairs else [repr(absent[0])]
    return [
        f"warning: {name} has no column {', but '.join(lacks)}: its clips count as unlabelled; if they are "
        "labelled, give it the label columns of the train csv"
    ]


def find_label_column(frame: pd.DataFrame, id_column: str, wanted: list[str] = ()) -> str | None:
    """The label column: one that the sample submission has too, else a known name (words before numbers),
    else the only column left; None if that is not clear."""
    left = [column for column in frame.columns if column not in (id_column, "fold", "group")]
    shared = [column for column in wanted if column in left]
    if shared:
        return shared[0]
    known = [column for name in LABEL_NAMES for column in left if column.lower() == name]
    for column in known:
        if not frame[column].str.fullmatch(r"\s*\d*\s*").all():
            return column
    if known:
        return known[0]
    varied = [column for column in left if frame[column].nunique() > 1]
    ended = [column for column in varied if LAST_WORD.fullmatch(column)]  # scene_label, event_labels
    if len(ended) == 1:
        return ended[0]
    if len(varied) == 1 and varied[0].lower().startswith("has") and is_binary_column(frame[varied[0]]):
        return varied[0]
    return left[0] if len(left) == 1 else None


def is_binary_column(cells: pd.Series) -> bool:
    """Does a column hold 0 and 1 alone, also as 0.0 and 1.0, or as False and True?"""
    return bool(cells.str.fullmatch(r"\s*([01](\.0*)?|true|false)\s*", case=False).all())


def is_one(cell: str) -> bool:
    """Is a cell of a column of 0 and 1 a 1?"""
    return cell.strip().lower().startswith(("1", "t"))


def can_be_label(cells: pd.Series) -> bool:
    """Could a column of unknown name be the label? Words that recur could; numbers and names of their own
    could not."""
    filled = cells.str.strip()
    return bool(filled.duplicated().any()) and not filled.str.fullmatch(r"[-+\d.:/\s]*").all()


def find_separator(cells: list[str], classes: list[str]) -> str:
    """The separator between the labels of a column's cells, as written (", " is kept); "," where there is
    none.

    Args:
        cells: distinct, none empty.
        classes: the labels where they are known, to choose by.
    """
    if cells and all(re.fullmatch(r"\[.*\]", cell, re.DOTALL) for cell in cells):
        return LIST
    present = [mark for mark in MARKS if any(mark in cell for cell in cells)]
    if any(len(cell.split()) > 1 for cell in cells):
        present.append(" ")
    separable = [mark for mark in present if is_fully_separable(cells, mark, classes)]
    chosen = (*separable, *present, ",")[0]
    followed = {text[:1] for cell in cells for text in cell.split(chosen)[1:]}
    spaced = chosen != " " and followed == {" "}
    return f"{chosen} " if spaced else chosen


def is_fully_separable(cells: list[str], separator: str, classes: list[str]) -> bool:
    """Does a cell have several labels, and are the labels of all cells among the classes?"""
    parts = [split_cell(cell, separator) for cell in cells]
    keys = {spelling.to_key(label) for labels in parts for label in labels}
    return any(len(labels) > 1 for labels in parts) and keys <= set(spelling.to_keys(classes))


def suggest_multilabel(cells: list[str]) -> list[str]:
    """A warning where single labels look like several in a cell: most parts also occur alone."""
    separator, alone = find_separator(cells, []), set(cells)
    separable = [cell for cell in cells if len(split_cell(cell, separator)) > 1]
    parts = {part for cell in separable for part in split_cell(cell, separator)}
    if not separable or separator != LIST and 2 * len(parts & alone) <= len(parts):
        return []
    number = len(split_cell(separable[0], separator))
    return [f"warning: {separable[0]} is read as one label: if it means {number}, give --task multilabel"]


def split_cell(cell: str, separator: str) -> list[str]:
    """The labels of a cell, unchanged."""
    if separator == LIST:
        return [next(filter(None, match), "").strip() for match in ITEM.findall(cell) if any(match)]
    mark = separator.strip()
    return [part for part in map(str.strip, cell.split(mark) if mark else cell.split()) if part]


def list_words(cell: str) -> list[str]:
    """The words between the punctuation and blanks of a cell, where it has several."""
    words = re.split(r"[\s;|,]+", cell.strip())
    return words if len(words) > 1 else []


def join_labels(labels: list[str], separator: str) -> str:
    """Labels as a cell, which `split_cell` splits."""
    return str(list(labels)) if separator == LIST else separator.join(labels)


def as_tuple(label: str | tuple[str, ...]) -> tuple[str, ...]:
    """The labels of a clip, single-label or multi-label."""
    return label if isinstance(label, tuple) else (label,)
