"""Label codes: which number of a sample submission is which label, by a file that lists them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from earshot.competition.id_columns import find_id_column
from earshot.competition.tables import Tables
from earshot.competition.with_sample import SampleSubmission
from earshot.core import spelling
from earshot.core.errors import UserError, raise_if_temporary

WHOLE = re.compile(r"\d{1,9}", re.ASCII)
LARGEST = 1_000_000  # bytes: a larger file is no list of classes


def find_label_codes(
    tables: Tables, sample: SampleSubmission | None, names: Iterable[str], column: str = ""
) -> tuple[Callable[[str], str] | None, str] | None:
    """The codes of the labels where the sample submission has numbers, and a line about it; None where it has
    labels, or no file lists the codes. A single number may be a placeholder: then only a list of classes
    counts, and a table of clips is just mentioned.

    Args:
        names: the labels of training. column: their column; zeros below its own header are a placeholder.
    """
    value_columns = [c for c in sample.columns if c != sample.id_column] if sample else []
    if sample is None or len(value_columns) != 1:
        return None
    cells = set(spelling.to_keys(sample.frame[value_columns[0]])) - {""}
    known = set(spelling.to_keys(names)) - {""}
    if not cells or not known or not all(map(WHOLE.fullmatch, cells)) or any(map(WHOLE.fullmatch, known)):
        return None
    if len(cells) == 1 and spelling.to_key(value_columns[0]) == spelling.to_key(column):
        return None
    for path, number_of, of_clips in _iterate_code_lists(tables):
        numbers = [number_of[name] for name in known if name in number_of]
        if len(set(numbers)) == len(known) and cells <= set(number_of.values()):
            if len(cells) == 1 and of_clips:
                hint = f"to submit the numbers of {path}, give --label-column {of_clips}"
                return None, f"{sample.path.name} holds only {min(cells)}: {hint}"
            pairs = ", ".join(f"{name} is {number_of[name]}" for name in sorted(known)[:3])
            line = (
                f"{sample.path.name} has numbers for labels: they are written by the codes in {path}, {pairs}"
                f"{' ...' if len(known) > 3 else ''}"
            )
            return partial(_look_up_number, number_of), line
    return None


def _look_up_number(number_of: dict[str, str], label: str) -> str:
    return number_of.get(spelling.to_key(label), label)


def _iterate_code_lists(tables: Tables) -> Iterator[tuple[str, dict[str, str], str]]:
    """Possible codes of the labels, by each pair of columns, json file and list of lines; the column of
    numbers where the table has a row per clip."""
    for path in tables.paths:
        try:
            frame = tables.read_table(path).frame
        except UserError:
            continue
        clips = find_id_column(frame, tables.files, numbers=False)
        counted = [c for c in frame.columns if all(map(WHOLE.fullmatch, set(spelling.to_keys(frame[c]))))]
        for number in counted:
            for name in (c for c in frame.columns if c not in counted):
                pairs = frame[[name, number]].drop_duplicates()
                number_of_name = dict(
                    zip(spelling.to_keys(pairs[name]), spelling.to_keys(pairs[number]), strict=True)
                )
                if len(number_of_name) == len(pairs):
                    yield path, number_of_name, number if clips or len(pairs) < len(frame) else ""
    for path in tables.files.documents:
        full = Path(tables.files.to_absolute(path))
        if not path.lower().endswith((".json", ".txt")) or os.path.getsize(full) > LARGEST:
            continue
        try:
            text = full.read_text(encoding="utf-8")
            content = json.loads(text) if path.lower().endswith(".json") else text.strip().splitlines()
        except ValueError:
            continue
        except OSError as error:
            raise_if_temporary(full, error)
            continue
        if isinstance(content, list):
            content = {str(name): number for number, name in enumerate(content)}
        if isinstance(content, dict):
            number_of_name = {
                spelling.to_key(str(name)): spelling.to_key(str(number)) for name, number in content.items()
            }
            if all(map(WHOLE.fullmatch, number_of_name)):
                number_of_name = {name: number for number, name in number_of_name.items()}
            yield path, number_of_name, ""
