"""Builds a submission in the shape of the sample file, validates it, and only then writes it."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from earshot.competition import labels, long_format, sample_shape
from earshot.core import csv_table, spelling
from earshot.core.csv_text import to_csv
from earshot.core.errors import UserError
from earshot.core.files import hash_file, write_bytes
from earshot.training.metrics import THRESHOLD

if TYPE_CHECKING:
    from earshot.features.cache import Cache


def find_sample(cache: Cache) -> Path | None:
    """The sample submission beside a cache; None where its competition has none.

    Raises:
        UserError: it is missing, or differs from the one that the cache was made with.
    """
    path = cache.folder / "sample_submission.csv"
    if "sample_submission" not in cache.record:
        return path if path.exists() else None
    found, wanted = hash_file(path)[:12] if path.is_file() else None, cache.record["sample_submission"]
    if found != wanted:
        raise UserError(
            f"{path} has changed since the extraction (hash {found or 'none'} now, "
            f"{wanted or 'none'} then): restore the competition's file, or run get_features.py again with "
            "--fresh"
        )
    return path if wanted else None


def warn_same_answer(table: pd.DataFrame, id_column: str) -> str | None:
    """A warning where all rows of a submission are the same; None where rows differ, or there is only one."""
    value_columns = table.drop(columns=id_column, errors="ignore")
    if len(table) < 2 or len(value_columns.drop_duplicates()) > 1:
        return None
    cells = ", ".join(map(str, value_columns.iloc[0][:3]))
    return (
        f"warning: all {len(table)} rows of the submission have the same values ({cells}): did the head "
        "learn anything?"
    )


def find_id_column(sample: pd.DataFrame, named: str) -> str:
    """The sample file's id column: the one named in the competition's files, else its first."""
    return named if named in sample else str(sample.columns[0])


def build_table(
    ids: np.ndarray,
    probabilities: np.ndarray,
    classes: list[str],
    columns: tuple[str, str],
    sample: pd.DataFrame | None,
    multilabel: bool = False,
    separator: str | None = None,
) -> pd.DataFrame:
    """The submission's table, in the shape and order of the sample file.

    Args:
        ids: (clips,) as in the sample file.
        probabilities: (clips, classes).
        classes: in the order of the columns, as the sample file spells them.
        columns: headers of id and label, where there is no sample file.
        sample: the sample submission; its header, ids and cells decide the values. A label column gets the
            likeliest class, or the k likeliest where its cells have k labels; the k-th of several label
            columns gets the k-th likeliest. A score gets the probability of one of two classes, a column per
            class that of each class, and a row per clip and class that of the pair (0 for an unknown class).
            Where its cells are yes and no in words, these are written, yes from the threshold on.
        multilabel: a label column gets every class with a probability of 0.5 or more, and at least the
            likeliest.
        separator: between them, from `labels.find_separator`. None: the training data has 0/1 columns, and so
            has a submission without a sample file.
    Raises:
        UserError: an id of the sample has no prediction, or columns are not classes.
    """
    if sample is None and multilabel and separator is None:
        return pd.DataFrame(
            {columns[0]: ids}
            | dict(zip(_name_headers(columns[0], classes), _round_cells(probabilities).T, strict=True))
        )
    if sample is None:
        return pd.DataFrame(
            {
                columns[0]: ids,
                columns[1]: _join_likely(probabilities, classes, separator)
                if multilabel
                else [classes[i] for i in probabilities.argmax(1)],
            }
        )
    id_column = find_id_column(sample, columns[0])
    at = {str(id): index for index, id in enumerate(ids)}
    value_columns = [column for column in sample.columns if column != id_column]
    table = pd.DataFrame({id_column: sample[id_column]})
    clips, pairs = list(sample[id_column]), None
    missing = [clip for clip in clips if clip not in at]
    if missing and len(value_columns) == 1 and not sample_shape.has_class_columns(value_columns, classes):
        pairs = long_format.detect_long_format(
            clips, classes, lambda some: {clip for clip in some if clip in at}, strict=False
        )
    if pairs:
        clips, missing = pairs.clips, [clip for clip in pairs.clips if clip not in at]
    if missing:
        raise UserError(
            f"{len(missing)} ids of the sample submission have no prediction (first: {missing[0]}): "
            "the features were made from another sample: run get_features.py again"
        )
    rows = [at[clip] for clip in clips]
    if pairs:
        place = {label: index for index, label in enumerate(classes)}
        of = np.array([place.get(label, -1) for label in pairs.classes])
        found = np.where(of < 0, 0, probabilities[rows, of])
        words = sample_shape.find_long_words(value_columns[0], sample[value_columns[0]].unique())
        table[value_columns[0]] = _format_yes_no(found >= THRESHOLD, words) if words else _round_cells(found)
        return table[list(sample.columns)]
    ordered = probabilities[rows]
    shape = sample_shape.detect_shape(sample, id_column, classes, multilabel)
    if shape.kind == "labels" and len(value_columns) > 1:
        order = np.argsort(-ordered, 1, kind="stable")
        for rank, column in enumerate(value_columns):
            table[column] = [classes[i] for i in order[:, rank]]
        return table[list(sample.columns)]
    if shape.kind == "labels":
        table[value_columns[0]] = (
            _join_likely(ordered, classes, separator or ",")
            if multilabel
            else _join_likeliest(ordered, classes, shape)
        )
        return table[list(sample.columns)]
    # a clip of a single-label task has exactly one class, the likeliest
    yes = ordered >= THRESHOLD if multilabel else np.eye(len(classes), dtype=bool)[ordered.argmax(1)]
    for column in value_columns:
        index = classes.index(column if shape.of is None else shape.of)
        table[column] = (
            _format_yes_no(yes[:, index], shape.words) if shape.words else _round_cells(ordered[:, index])
        )
    return table[list(sample.columns)]


def _round_cells(probabilities: np.ndarray) -> np.ndarray:
    return probabilities.astype(np.float64).round(8)


def _name_headers(id_column: str, classes: list[str]) -> list[str]:
    return [f"class {label}" if label == id_column else label for label in classes]


def _join_likely(probabilities: np.ndarray, classes: list[str], separator: str) -> list[str]:
    likely = probabilities >= np.minimum(THRESHOLD, probabilities.max(1, keepdims=True))
    return [labels.join_labels([classes[i] for i in np.flatnonzero(row)], separator) for row in likely]


def _find_separator(
    sample: pd.DataFrame, named: str, classes: list[str], separator: str | None
) -> str | None:
    """The separator between the labels in the sample file's cells, if they show it; else the training
    data's."""
    value_columns = [column for column in sample.columns if column != find_id_column(sample, named)]
    cells = (
        [cell for cell in sample[value_columns[0]].str.strip().unique() if cell]
        if len(value_columns) == 1
        else []
    )
    shown = labels.find_separator(cells, classes)
    return shown if shown == labels.LIST or labels.is_fully_separable(cells, shown, classes) else separator


def _join_likeliest(
    probabilities: np.ndarray, classes: list[str], shape: sample_shape.SampleShape
) -> list[str]:
    if shape.several == 1:
        return [classes[i] for i in probabilities.argmax(1)]
    order = np.argsort(-probabilities, 1, kind="stable")[:, : shape.several]
    return [labels.join_labels([classes[i] for i in row], shape.separator) for row in order]


def _format_yes_no(yes: np.ndarray, words: tuple[str, str]) -> list[str]:
    return np.where(yes, *words).tolist()


def check_table(
    table: pd.DataFrame,
    id_column: str,
    ids: list[str],
    columns: list[str],
    classes: list[str],
    separator: str = " ",
    words: tuple[str, ...] = (),
) -> None:
    """Validate a submission: raise UserError unless the leaderboard will accept the table.

    Args:
        table: text, read back from the bytes to be written.
        id_column: its id column.
        ids: the expected ids, in order.
        columns: the expected columns, in order.
        classes: all classes.
        separator: between several labels of a cell.
        words: spellings of yes and no in cells.
    """
    if list(table.columns) != columns:
        raise UserError(f"submission refused: its columns are {list(table.columns)}, expected {columns}")
    found = table[id_column].tolist()
    if not table[id_column].is_unique:
        raise UserError(
            f"submission refused: id {table[id_column][table[id_column].duplicated()].iloc[0]} occurs twice"
        )
    if set(found) != set(ids):
        odd = sorted(set(found) ^ set(ids))[0]
        raise UserError(
            f"submission refused: {len(found)} ids, expected {len(ids)}; the first that differs: {odd}"
        )
    if found != ids:
        raise UserError("submission refused: the ids are not in the expected order")
    for column in (c for c in columns if c != id_column):
        cells = table[column]
        empty = (cells.str.strip() == "") | cells.str.lower().isin(("nan", "inf", "-inf")) & ~cells.isin(
            classes
        )
        if empty.any():
            raise UserError(
                f"submission refused: column {column} is empty or NaN at id {table[id_column][empty].iloc[0]}"
            )
        if words and cells.isin(words).all():
            continue
        if cells.isin(classes).all() or _are_labels(cells.unique(), classes, separator):
            continue
        numbers = pd.to_numeric(cells, errors="coerce")
        if numbers.isna().all() or not numbers.notna().all() and cells.isin(classes).any():
            raise UserError(
                f"submission refused: {cells[~cells.isin(classes)].iloc[0]} in column {column} is not a class"
            )
        wrong = ~numbers.between(0, 1)
        if wrong.any():
            raise UserError(
                f"submission refused: {cells[wrong].iloc[0]} in column {column} is not a probability"
            )


def _are_labels(cells: np.ndarray, classes: list[str], separator: str) -> bool:
    known = set(classes)
    if all(known.issuperset(labels.split_cell(cell, separator)) for cell in cells):
        return True
    if not any(len(labels.split_cell(label, separator)) > 1 for label in classes):
        return False
    # "light rain wind": two labels between blanks, of which one holds a blank
    one = "|".join(map(re.escape, sorted(classes, key=len, reverse=True)))
    several = re.compile(f"(?:{one})(?:{re.escape(separator)}(?:{one}))*")
    return all(map(several.fullmatch, cells))


def render(
    ids: np.ndarray,
    probabilities: np.ndarray,
    classes: list[str],
    columns: tuple[str, str],
    sample_path: Path | None,
    multilabel: bool = False,
    separator: str | None = None,
) -> tuple[bytes, pd.DataFrame]:
    """Build and validate the submission: the file's bytes, and its table as text.

    Raises:
        UserError: `build_table` or `check_table` refuse it.
    """
    if not np.isfinite(probabilities).all():
        raise UserError(
            f"submission refused: the prediction for {ids[~np.isfinite(probabilities).all(1)][0]} is not a "
            "number"
        )
    sample = csv_table.read(sample_path) if sample_path else None
    if sample is not None:
        classes = sample_shape.adopt_spelling(classes, sample, find_id_column(sample, columns[0]), multilabel)
    if multilabel and sample is not None:
        separator = _find_separator(sample, columns[0], classes, separator)
    made = build_table(ids, probabilities, classes, columns, sample, multilabel, separator)
    data = to_csv([made.columns, *made.itertuples(index=False, name=None)]).encode("utf-8")
    # The bytes are read back before they are written, so that what the leaderboard reads is validated.
    table = pd.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False)
    id_column = columns[0] if sample is None else find_id_column(sample, columns[0])
    wanted = ids if sample is None else sample[id_column]
    shape, words = sample_shape.SampleShape("labels"), None
    if sample is not None:
        shape = sample_shape.detect_shape(sample, id_column, classes, multilabel)
        words = sample_shape.find_yes_no(
            cell for column in sample.columns.drop(id_column) for cell in sample[column].unique()
        )
    own = (
        [columns[0], *_name_headers(columns[0], classes)]
        if multilabel and separator is None
        else list(columns)
    )
    check_table(
        table,
        id_column,
        [str(id) for id in wanted],
        own if sample is None else list(sample.columns),
        classes,
        (separator or ",") if multilabel else shape.separator,
        words or (),
    )
    return data, table


def write(
    path: Path,
    ids: np.ndarray,
    probabilities: np.ndarray,
    classes: list[str],
    columns: tuple[str, str],
    sample_path: Path | None,
    multilabel: bool = False,
    separator: str | None = None,
) -> pd.DataFrame:
    """Build, validate and write the submission; nothing is written if it is refused."""
    data, table = render(ids, probabilities, classes, columns, sample_path, multilabel, separator)
    write_bytes(path, data)
    return table


def score(table: pd.DataFrame, solution_path: Path) -> dict[str, float]:
    """Macro-F1 and accuracy of a submission against a solution csv of the same columns."""
    from sklearn import metrics

    solution = csv_table.read(solution_path)
    id_column, label_column = solution.columns[:2]
    truth = solution.set_index(id_column)[label_column].map(spelling.to_key)
    found = table.set_index(id_column)[label_column].map(spelling.to_key).reindex(truth.index)
    return {
        "f1_macro": float(metrics.f1_score(truth, found, average="macro", zero_division=0)),
        "accuracy": float((truth == found).mean()),
    }
