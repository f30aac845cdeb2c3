"""Rows as the text of a csv file."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from types import SimpleNamespace


def to_csv(rows: Iterable[Iterable[object]]) -> str:
    """The rows as lines that end in a line feed, each field quoted that needs it.

    `csv.writer` with such an end leaves a carriage return unquoted, at which readers end the row.
    """
    lines: list[str] = []
    sink = SimpleNamespace(write=lambda line: lines.append(line.removesuffix("\r\n") + "\n"))
    csv.writer(sink).writerows(rows)
    return "".join(lines)
