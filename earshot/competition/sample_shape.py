"""The shape of a sample submission: what its columns and cells hold, compared with the training classes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import pandas as pd

from earshot.competition import labels, long_format
from earshot.competition.label_suggestions import (
    format_label_map,
    match_affixes,
    suggest_label,
    suggest_label_map,
)
from earshot.core import spelling
from earshot.core.csv_table import format_cell, format_list
from earshot.core.errors import UserError

# How labels that are in no cell are written, in the style of the cells: unchanged, composed,
# decomposed, 1.0 as 1, 1 as 1.0.
STYLES = (
    str,
    partial(unicodedata.normalize, "NFC"),
    partial(unicodedata.normalize, "NFD"),
    lambda text: re.sub(r"^(\d+)\.0+$", r"\1", text, flags=re.ASCII),
    lambda text: re.sub(r"^(\d+)$", r"\1.0", text, flags=re.ASCII),
)
# Words in headers of scores, and headers of labels.
SCORES = frozenset(
    "probability probabilities prob probs proba score scores confidence conf likelihood likelihoods p".split()
)
LABELS = frozenset(labels.LABEL_NAMES) - {"target", "y"}
# Cells for yes, and their opposites.
YES_NO = {"true": "false", "yes": "no", "t": "f", "y": "n", "present": "absent", "positive": "negative"}
NO = frozenset("0 none nothing background noise silence silent normal neg".split()) | {*YES_NO.values()}


class SampleShape(NamedTuple):
    """The content of a sample submission's cells: "labels", or a "score" (a number, or yes and no) of a
    class.

    of: the class of a single column of scores; None where columns or rows name the class. words: how yes and
    no are written; None for numbers. several: the number of labels in a cell, the likeliest first; 0 where it
    depends on the clip. separator: between them.
    """

    kind: str
    of: str | None = None
    words: tuple[str, str] | None = None
    several: int = 1
    separator: str = " "


def detect_shape(
    sample: pd.DataFrame, id_column: str, classes: Sequence[str], multilabel: bool
) -> SampleShape:
    """The content of the cells of a sample submission with a row per clip, by its header and values.

    Args:
        classes: in order, in any spelling. multilabel: may a clip have several labels?
    Raises:
        UserError: it has a column per class, and one is not a class.
    """
    columns = [column for column in sample.columns if column != id_column]
    if has_ranked_columns(sample, columns, classes):
        return SampleShape("labels", several=min(len(columns), len(classes)))
    if not columns or has_class_columns(columns, classes):
        cells_of_all = (cell for column in columns for cell in sample[column].unique())
        return SampleShape("score", words=find_yes_no(cells_of_all))
    if multilabel:
        return SampleShape("labels", several=0)
    cells = _list_cells(sample[columns[0]])
    if len(classes) == 2:
        known, cell_keys = set(spelling.to_keys(classes)), set(spelling.to_keys(cells))
        none_known = known.isdisjoint(cell_keys)
        words = find_yes_no(cells) if none_known else None
        numbers = all(map(_is_probability, cells))
        fractions = numbers and any(map(is_fraction, cells)) and not cell_keys <= known
        named_score = is_score(columns[0]) and (numbers or none_known)
        if words or fractions or named_score:
            return SampleShape("score", find_positive_class(columns[0], classes), words)
    count, separator = _count_labels(cells, classes)
    return SampleShape("labels", several=count, separator=separator)


def has_ranked_columns(sample: pd.DataFrame, columns: Sequence[str], classes: Sequence[str]) -> bool:
    """Does a sample submission have several columns of labels, the likeliest first (label1, label2, ...)?"""
    known = set(spelling.to_keys(classes))
    if not 1 < len(columns) <= len(classes) or not known.isdisjoint(spelling.to_keys(columns)):
        return False
    cells = {spelling.to_key(cell) for column in columns for cell in sample[column].unique()}
    # numbers in several columns are scores of a class each
    return bool(cells) and cells <= known and not all(map(_is_float, cells))


def find_long_words(column: str, cells: Iterable[str]) -> tuple[str, str] | None:
    """The words for yes and no of a sample with a row per clip and class; None where it has numbers."""
    words = {cell.strip() for cell in cells} - {""}
    if words == {"0", "1"} and not is_score(column):
        return "1", "0"
    return find_yes_no(words)


def find_yes_no(cells: Iterable[str]) -> tuple[str, str] | None:
    """The words for yes and no, where all cells are one of them; else None."""
    words = {cell.strip().lower(): cell.strip() for cell in cells if cell.strip()}
    for yes, no in YES_NO.items():
        if words and words.keys() <= {yes, no}:
            example = next(iter(words.values()))
            in_case = str.capitalize if example[0].isupper() else str
            if example.isupper():
                in_case = str.upper
            return words.get(yes, in_case(yes)), words.get(no, in_case(no))
    return None


def is_score(header: str) -> bool:
    """Does a header mean a number, not a label?"""
    return not SCORES.isdisjoint(_split_words(header))


def find_positive_class(header: str, classes: Sequence[str]) -> str:
    """The class of a score, of two: the one in the header, the larger number, the one that means yes or whose
    opposite means no; else the second."""
    header_words = set(_split_words(header))
    named = [name for name in classes if header_words.issuperset(_split_words(name))]
    if len(named) == 1:
        return named[0]
    if all(map(_is_float, classes)):
        return max(classes, key=float)
    positive, negative = [], []
    for index in (0, 1):
        words = _split_words(spelling.to_loose_key(classes[index]))  # true is 1 there, false 0
        first = words[0] if words else ""
        if len(words) == 1 and (first in YES_NO or first == "1"):
            positive.append(index)
        # "normal" alone means no, but not before another word: normal_heart
        if first in ("not", "non") or first in NO and len(words) == 1 or first == "no":
            negative.append(index)
    if len(positive) == 1:
        return classes[positive[0]]
    return classes[1 - negative[0] if len(negative) == 1 else 1]


def _split_words(text: str) -> list[str]:
    """The words of a header, split also in predProba."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    return re.findall(r"[^\W_]+", apart.casefold())


def _list_cells(column: pd.Series) -> list[str]:

    return [cell for cell in column.str.strip().unique() if cell]


def _is_float(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.ASCII | re.IGNORECASE) is not None


def _is_probability(text: str) -> bool:
    """Is a cell a number from 0 to 1?"""
    number = text.replace(",", ".")
    return _is_float(number) and 0 <= float(number) <= 1


def _count_labels(cells: list[str], classes: Sequence[str]) -> tuple[int, str]:
    """The number of labels in a cell, for clips with one label: several where all cells have as many words,
    mostly classes in any case; and the separator."""
    known = {*spelling.to_keys(classes), *map(spelling.to_loose_key, classes)}

    def is_class(text: str) -> bool:
        return spelling.to_key(text) in known or spelling.to_loose_key(text) in known

    if not cells or any(map(is_class, cells)):
        return 1, " "
    separator = labels.find_separator(cells, list(classes))
    parts = [labels.split_cell(cell, separator) for cell in cells]
    words = {word for part in parts for word in part}
    count = len(parts[0])
    if any(len(part) != count for part in parts) or 2 * sum(map(is_class, words)) <= len(words):
        return 1, " "
    return min(count, len(classes)), separator


def has_class_columns(columns: Sequence[str], classes: Sequence[str]) -> bool:
    """Does a sample submission have a column per class (True), or a column of labels (False)?

    Args:
        columns: its columns but the ids.
    Raises:
        UserError: a column is not a class, or is a duplicate.
    """
    known = set(spelling.to_keys(classes))
    unknown = [column for column in columns if spelling.to_key(column) not in known]
    if len(columns) == 1 and unknown:
        return False
    if unknown and match_affixes(columns, classes):
        return True
    if unknown:
        hint = suggest_label(unknown[0], classes)
        if not hint:
            hint = ": spell the classes alike in both files, or remove the column"
        hint += suggest_label_map(columns, classes)
        raise UserError(
            f"the sample submission's column {format_cell(unknown[0])} is not a class of the training data "
            f"({', '.join(classes[:5])}{' ...' if len(classes) > 5 else ''}){hint}"
        )
    for twins in spelling.group_alike(columns, spelling.to_key):
        raise UserError(
            "the sample submission has several columns for one class: "
            f"{', '.join(spelling.quote_apart(*twins))}"
        )
    return True


def check_sample(
    sample: pd.DataFrame,
    name: str,
    id_column: str,
    classes: Sequence[str],
    learnt: set[str],
    multilabel: bool,
) -> list[str]:
    """Lines about the shape of a sample submission, and warnings where its cells have labels that no training
    clip has.

    Args:
        name: the file's. classes: all classes. learnt: those with training clips.
        multilabel: may a clip have several?
    Raises:
        UserError: it has a column per class, and one is not a class.
    """
    columns = [column for column in sample.columns if column != id_column]
    if not columns:
        return []
    shape, column = detect_shape(sample, id_column, classes, multilabel), columns[0]
    if shape.kind == "score" and shape.of is None:
        return [_describe_threshold(name, "its columns hold", *shape.words)] if shape.words else []
    cells = _list_cells(sample[column])
    words, scores = find_long_words(column, cells), is_score(column)
    numbers = column.lower() not in LABELS and all(map(_is_probability, cells))
    if (words or scores or numbers) and long_format.looks_like_long_format(list(sample[id_column]), classes):
        return [_describe_threshold(name, f"column {column} holds", *words)] if words else []
    if shape.of is not None:
        answer = "its probability is submitted"
        if shape.words:
            answer = f"{shape.words[0]} where it is the likelier"
        return [f"{name}: column {column} is about the class {format_cell(shape.of)}: {answer}"]
    named = _list_labels(sample, column, classes, multilabel)
    notes = []
    torn = [label for label in classes if len(labels.split_cell(label, shape.separator)) > 1]
    if torn and shape.several > 1:
        notes.append(
            f"warning: the cells of {name} have {shape.several} labels each, and the label "
            f"{format_cell(torn[0])} "
            "contains the separator: the leaderboard may read it as several"
        )
    if scores and all(map(_is_probability, named)):
        return [
            f"warning: column {column} of {name} asks for a score, and there are {len(classes)} classes "
            f"({format_list(classes, 5)}): it does not name one, so labels are submitted; if another "
            "column of the train csv is the label, name it with --label-column"
        ]
    known = set(spelling.to_keys(learnt))
    unknown = [label for label in named if spelling.to_key(label) not in known]
    # "?" is a placeholder for any label
    unknown = [label for label in unknown if any(map(str.isalnum, label))]
    if not unknown:
        return notes + _describe_constant(name, column, cells, classes)
    hint = _suggest_near(unknown[:20], sorted(learnt), known)
    if len(classes) > 2 and all(re.fullmatch(r"\d+", cell, re.ASCII) for cell in named):
        counted = format_label_map({name: str(number) for number, name in enumerate(classes)})
        if len(named) > 1 and not any(map(str.isdecimal, classes)):
            raise UserError(
                f"column {column} of {name} holds numbers ({format_list(unknown, 3)}), and the labels are "
                f"words: if they are numbered in order, give {counted}"
            )
        hint += f"; for numbers, give {counted}"
    return [
        *notes,
        f"warning: column {column} of {name} holds {format_list(unknown, 3)}, and no training clip has that "
        f"label ({format_list(sorted(learnt), 5)}){hint}",
    ]


def _suggest_near(unknown: Sequence[str], learnt: Sequence[str], known: set[str]) -> str:
    """A hint which training label an unknown label, or a word of it, may mean."""
    for label in unknown:
        for word in (label, *labels.list_words(label)):
            hint = suggest_label(word, learnt) if spelling.to_key(word) not in known else ""
            if hint:
                return hint
    return ": labels are submitted as the training data spells them"


def _describe_constant(name: str, column: str, cells: list[str], classes: Sequence[str]) -> list[str]:
    """A line where all cells are one number, and the header may mean the label or its probability."""
    if len(classes) != 2 or len(cells) != 1 or not _is_probability(cells[0]) or column.lower() in LABELS:
        return []
    return [
        f"{name}: column {column} holds only {cells[0]}, so labels are submitted: if the competition takes "
        "probabilities, write 0.5 there instead"
    ]


def _describe_threshold(name: str, where: str, yes: str, no: str) -> str:
    return f"{name}: {where} {yes} and {no}: {yes} is submitted from a probability of 0.5 on"


def adopt_spelling(
    classes: Sequence[str], sample: pd.DataFrame, id_column: str, multilabel: bool
) -> list[str]:
    """The classes, spelled as in the sample submission's header or cells.

    Raises:
        UserError: it has a column per class, and one is not a class.
    """
    columns = [column for column in sample.columns if column != id_column]
    ranked = has_ranked_columns(sample, columns, classes)
    if not columns or not ranked and has_class_columns(columns, classes):
        column_of = {label: column for column, label in match_affixes(columns, classes).items()}
        if not column_of:
            return spelling.spell_like(classes, columns)
        return [column_of.get(label, label) for label in classes]
    spelled: dict[str, str] = {}
    spelling.settle(_list_labels(sample, columns[0], classes, multilabel), spelled)
    keys = [spelling.to_key(label) for label in classes]
    pairs = [(label, spelled[key]) for label, key in zip(classes, keys, strict=True) if key in spelled]
    fitting = (style for style in STYLES if all(style(label) == text for label, text in pairs))
    style = next(fitting, str)
    return [spelled.get(key, style(label)) for label, key in zip(classes, keys, strict=True)]


def is_fraction(text: str) -> bool:
    """Is a cell a number between 0 and 1?"""
    try:
        return 0 < float(text.replace(",", ".")) < 1  # Excel in Europe writes 0,5
    except ValueError:
        return False


def _list_labels(sample: pd.DataFrame, column: str, classes: Sequence[str], multilabel: bool) -> list[str]:
    """The distinct labels in a column's cells: the cell, or its parts where one of them is a label."""
    known = set(spelling.to_keys(classes))
    cells = _list_cells(sample[column])
    if multilabel:
        separator = labels.find_separator(cells, list(classes))
    else:
        _, separator = _count_labels(cells, classes)
    distinct: dict[str, None] = {}
    for cell in cells:
        parts = [cell]
        if spelling.to_key(cell) not in known:
            words = labels.split_cell(cell, separator)
            if any(spelling.to_key(word) in known for word in words):
                parts = words
        distinct |= dict.fromkeys(parts)
    return list(distinct)
