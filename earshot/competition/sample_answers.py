"""What a sample submission asks for: its columns and cells, compared with the classes of training."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import partial

import pandas as pd

from earshot.competition import labels
from earshot.core import spelling
from earshot.core.csv_table import shown, some
from earshot.core.errors import UserError

# How the labels that no cell shows are written, so that all cells are of a kind: as they are, composed,
# decomposed, 1.0 as 1, 1 as 1.0.
STYLES = (
    str,
    partial(unicodedata.normalize, "NFC"),
    partial(unicodedata.normalize, "NFD"),
    lambda text: re.sub(r"^(\d+)\.0+$", r"\1", text, flags=re.ASCII),
    lambda text: re.sub(r"^(\d+)$", r"\1.0", text, flags=re.ASCII),
)


def by_class(columns: Sequence[str], classes: Sequence[str]) -> bool:
    """Does a sample submission have a column per class (True), or one that holds labels (False)?

    Args:
        columns: its columns but the ids.
    Raises:
        UserError: a column is no class, or is the second one of its class.
    """
    known = set(spelling.keys(classes))
    unknown = [column for column in columns if spelling.key(column) not in known]
    if len(columns) == 1 and unknown:
        return False
    if unknown:
        hint = meant(unknown[0], classes) or ": spell the classes alike in both files, or take the column out"
        raise UserError(
            f"the sample submission's column {shown(unknown[0])} is no class of the training data "
            f"({', '.join(classes[:5])}{' ...' if len(classes) > 5 else ''}){hint}"
        )
    for twins in spelling.alike(columns, spelling.key):
        raise UserError(
            f"the sample submission has several columns for one class: {', '.join(spelling.apart(*twins))}"
        )
    return True


def meant(text: str, classes: Sequence[str]) -> str:
    """ ": did you mean ...?" where a label of another spelling comes close, else nothing."""
    found = spelling.near(text, classes)
    return f": did you mean {' for '.join(reversed(spelling.apart(text, found)))}?" if found else ""


def check(
    sample: pd.DataFrame, name: str, id_column: str, classes: Sequence[str], learnt: set[str], several: bool
) -> list[str]:
    """Warnings on a sample submission whose cells name what no training clip has as its label.

    Args:
        name: the file's. classes: all labels. learnt: those of training clips.
        several: may a clip have several?
    Raises:
        UserError: a column per class, and one is no class.
    """
    columns = [column for column in sample.columns if column != id_column]
    if not columns or by_class(columns, classes):
        return []
    named = _named(sample, columns[0], classes, several)
    if not several and len(classes) == 2 and all(map(fraction, named)):  # a probability is asked for
        return []
    known = set(spelling.keys(learnt))
    unknown = [label for label in named if spelling.key(label) not in known]
    unknown = [label for label in unknown if any(map(str.isalnum, label))]  # "?" stands for any label
    if not unknown:
        return []
    words = (word for label in unknown[:20] for word in (label, *labels.words(label)))
    hints = filter(None, (meant(word, sorted(learnt)) for word in words if spelling.key(word) not in known))
    hint = next(hints, ": labels are submitted as the training data spells them")
    return [
        f"warning: column {columns[0]} of {name} holds {some(unknown, 3)}, and no training clip has that "
        f"label ({some(sorted(learnt), 5)}){hint}"
    ]


def spelled(classes: Sequence[str], sample: pd.DataFrame, id_column: str, several: bool) -> list[str]:
    """The classes, each as the sample submission spells it in its header or its cells.

    Raises:
        UserError: a column per class, and one is no class.
    """
    columns = [column for column in sample.columns if column != id_column]
    if not columns or by_class(columns, classes):
        return spelling.like(classes, columns)
    found: dict[str, str] = {}
    spelling.settle(_named(sample, columns[0], classes, several), found)
    shown_there = [(label, found[spelling.key(label)]) for label in classes if spelling.key(label) in found]
    style = next((s for s in STYLES if all(s(label) == text for label, text in shown_there)), str)
    return [found.get(spelling.key(label), style(label)) for label in classes]


def fraction(text: str) -> bool:
    """Is a cell a number between 0 and 1?"""
    try:
        return 0 < float(text.replace(",", ".")) < 1  # Excel in Europe writes 0,5
    except ValueError:
        return False


def _named(sample: pd.DataFrame, column: str, classes: Sequence[str], several: bool) -> list[str]:
    """The distinct labels that a column's cells name: a cell, or its parts where one of them is a label."""
    known = set(spelling.keys(classes))
    cells = [cell for cell in sample[column].str.strip().unique() if cell]
    separator = labels.find_separator(cells, list(classes)) if several else " "
    found: dict[str, None] = {}
    for cell in cells:
        parts = [] if spelling.key(cell) in known else labels.split(cell, separator)
        apart = any(spelling.key(part) in known for part in parts)
        found |= dict.fromkeys(parts if apart else [cell])
    return list(found)
