"""Which level of nested folders may be the label."""

from __future__ import annotations

import re
from collections.abc import Sequence

from earshot.competition.name_parts import DATED, PERSON, SHORT
from earshot.competition.names import find_side, list_words
from earshot.competition.split_words import FILLER_WORDS, SPLIT_WORDS
from earshot.competition.suspicious import PIECES
from earshot.core import shell
from earshot.core.csv_table import format_cell

MOST = 50  # labels
NO_LABELS = (DATED, PERSON, SHORT, re.compile(r"[\W\d_]+"))


def suggest_flags(names: Sequence[str]) -> list[str]:
    """Flags for the folders that may be labels, with the labels they give: first those that recur below
    others, such as normal/ below id_00/ and id_02/.

    Args:
        names: relative paths with `/`.
    """
    paths = [name.split("/")[:-1] for name in names if find_side(name.rpartition("/")[0]) != "subm"]
    suggestions = []
    for from_end in (False, True):
        for level in range(min(map(len, paths), default=0)):
            at = -1 - level if from_end else level
            if from_end and len({len(path) for path in paths}) == 1:
                break  # the same levels as from the start
            values = {path[at] for path in paths}
            pattern = f"([^/]+)/{'[^/]+/' * level}[^/]+$" if from_end else f"^{'[^/]+/' * level}([^/]+)/"
            if not 1 < len(values) <= MOST or not _can_be_labels(values):
                continue
            above = {tuple(path[:at]) for path in paths}
            places = len({(*path[:at], path[at]) for path in paths})
            again = places > len(values) and 2 * places > len(values) * len(above)
            listed = ", ".join(map(format_cell, sorted(values)[:4])) + ", ..." * (len(values) > 4)
            flag = f"--label-pattern {shell.quote(pattern)} ({len(values)} labels, the folders {listed})"
            suggestions.append(
                (
                    len({re.sub(r"[\d_]+", "", suggestion) for suggestion in values}) == 1,
                    not again,
                    level,
                    flag,
                )
            )
    sure = [suggestion for suggestion in suggestions if not suggestion[0]]  # id_00, id_02, ... only count
    return [flag for *_, flag in sorted(sure or suggestions)]


def _can_be_labels(values: set[str]) -> bool:
    """Are these neither parts of the data set, nor people, days or numbers?"""
    parts = sum(
        bool(set(list_words(value)) & set(SPLIT_WORDS)) or find_side(value) is not None for value in values
    )
    common = set.intersection(*(set(list_words(value)) for value in values))
    numbered = bool(common & PIECES) and all(
        set(list_words(value)) <= common | FILLER_WORDS for value in values
    )
    return (
        2 * parts < len(values)
        and not numbered
        and not any(all(pattern.fullmatch(value) for value in values) for pattern in NO_LABELS)
    )
