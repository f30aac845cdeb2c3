"""The result of a check: one line, with what to do about it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from earshot.core.files import write_text


@dataclass(frozen=True)
class Finding:
    """One line: "ok", "warning" (a score or a session suffers) or "stop" (the next stage would fail)."""

    level: str
    text: str

    def __str__(self) -> str:
        return f"{self.level}: {self.text}"


def report_ok(text: str) -> Finding:
    """Nothing to do."""
    return Finding("ok", text)


def warn(text: str) -> Finding:
    """Something to look at; the text says how to fix it."""
    return Finding("warning", text)


def stop(text: str) -> Finding:
    """Something that the next stage refuses; the text says how to fix it."""
    return Finding("stop", text)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write a csv atomically, floats with 4 digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{cell:.4f}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    write_text(path, text.getvalue())
