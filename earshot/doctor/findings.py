"""What a check says: a line each, with what to do about it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from earshot.core.files import write_text


@dataclass(frozen=True)
class Finding:
    """One line: "ok", "warning" (a score or a session suffers) or "stop" (what follows would fail)."""

    level: str
    text: str

    def __str__(self) -> str:
        return f"{self.level}: {self.text}"


def report_ok(text: str) -> Finding:
    """Nothing to do."""
    return Finding("ok", text)


def warn(text: str) -> Finding:
    """Something to look at; the text says how to mend it."""
    return Finding("warning", text)


def stop(text: str) -> Finding:
    """Something that the next stage refuses; the text says how to mend it."""
    return Finding("stop", text)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """A csv of the rows, floats to 4 digits, atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{cell:.4f}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    write_text(path, text.getvalue())
