"""Rows as the text of a csv file."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from types import SimpleNamespace


def to_csv(rows: Iterable[Iterable[object]]) -> str:
    """The rows as lines that end in a line feed, with fields quoted as needed.

    `csv.writer` with that line end doesn't quote carriage returns, which readers take for the end of a row.
    """
    lines: list[str] = []
    sink = SimpleNamespace(write=lambda line: lines.append(line.removesuffix("\r\n") + "\n"))
    csv.writer(sink).writerows(rows)
    return "".join(lines)
