"""Suggestions: the label that a text may mean, and the flag that renames labels to a sample's."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import product
from os.path import commonprefix

from earshot.core import spelling

AFFIX = 40  # most characters that all columns may have around the class: each pair of lengths is tried


def suggest_label_map(columns: Sequence[str], classes: Sequence[str]) -> str:
    """The flag that renames the classes to columns that differ in case, blanks and a common prefix or suffix;
    "" where they differ by more."""
    known = {spelling.to_loose_key(name): name for name in classes}
    loose_columns = [spelling.to_loose_key(column) for column in columns]
    matches = match_affixes(loose_columns, list(known), bare=True)
    pairs = {
        known[matches[loose]]: column
        for column, loose in zip(columns, loose_columns, strict=True)
        if loose in matches
    }
    if len(known) < len(classes) or len(pairs) < len(columns):
        return ""
    return f" ({format_label_map(pairs)} renames them)"


def format_label_map(pairs: dict[str, str]) -> str:
    """The flag that renames labels."""
    return f"--label-map {' '.join(shlex.quote(f'{old}={new}') for old, new in pairs.items())}"


def match_affixes(columns: Sequence[str], classes: Sequence[str], bare: bool = False) -> dict[str, str]:
    """The class of each column where all have one prefix or suffix (s0, s1 for 0, 1; `bare`: or none); else
    {}."""
    known = {spelling.to_key(name): name for name in classes}
    before = commonprefix(list(columns))
    behind = commonprefix([column[::-1] for column in columns])[::-1]
    for start, cut in product(range(min(len(before), AFFIX) + 1), range(min(len(behind), AFFIX) + 1)):
        names = [spelling.to_key(column[start : len(column) - cut]) for column in columns]
        if not bare and start == cut == 0 or not known.keys() >= set(names):
            continue
        if len(set(names)) == len(columns):
            return {column: known[name] for column, name in zip(columns, names, strict=True)}
    return {}


def suggest_label(text: str, classes: Sequence[str]) -> str:
    """ ": did you mean ...?" where a label is spelled alike, else nothing."""
    near_label = spelling.find_near(text, classes)
    return (
        f": did you mean {' for '.join(reversed(spelling.quote_apart(text, near_label)))}?"
        if near_label
        else ""
    )
