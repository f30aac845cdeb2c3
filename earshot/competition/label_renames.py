"""Renames the labels of a table: by --label-map, or as the sample submission's columns spell them."""

from __future__ import annotations

import os
from collections.abc import Callable

import pandas as pd

from earshot.competition import labels
from earshot.competition.reading import Reading, build_mapper
from earshot.core import spelling


def build_renamer(
    reading: Reading, frame: pd.DataFrame, how: labels.Labels, value_columns: list[str]
) -> Callable[[str], str] | None:
    """The function that renames labels: by --label-map, else to the sample's columns where those are s0, s1,
    ... for 0, 1, ..."""
    if reading.label_map:
        return build_mapper(reading.label_map, value_columns if len(value_columns) > 1 else ())
    if how.classes or len(value_columns) < 2:
        return None
    cells = {label for cell in frame[how.name] for label in labels.split_cell(cell, how.separator or "\0")}
    head = os.path.commonprefix(value_columns)
    known = set(spelling.to_keys(value_columns))
    tails = {column.removeprefix(head) for column in value_columns}
    if not head or cells & known or not cells - {"", labels.TO_PREDICT} <= tails:
        return None
    return lambda label: f"{head}{label}" if f"{head}{label}" in value_columns else label
