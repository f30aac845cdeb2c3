"""JSON tables: a row per line (metadata.jsonl), a list of rows, or rows by their ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from earshot.core.errors import UserError, raise_if_temporary

MOST = 10  # .json files; more than that are annotations of single clips
BYTES = 2**29
ID = "id"


def find_tables(root: Path, paths: Sequence[str]) -> list[str]:
    """The files that are tables, by their content."""
    json_paths = [p for p in paths if p.lower().endswith(".jsonl")]
    single = [p for p in paths if p.lower().endswith(".json")]
    if len(single) <= MOST:
        json_paths += [p for p in single if _is_table(root / p)]
    return sorted(json_paths)


def _is_table(path: Path) -> bool:
    try:
        return path.stat().st_size <= BYTES and len(_read_rows(path)) > 1
    except UserError:
        return False
    except OSError as error:
        raise_if_temporary(path, error)
        return False


def read_table(path: Path) -> pd.DataFrame:
    """A JSON table as text; the index counts rows from 1 (of a .jsonl its lines), lists look like ['a', 'b'].

    Raises:
        UserError: it can't be read, or is not a table.
    """
    rows = _read_rows(path)
    columns = list(dict.fromkeys(str(name) for row in rows.values() for name in row))
    cells = [[_format_value(row.get(name)) for name in columns] for row in rows.values()]
    frame = pd.DataFrame(cells, columns=pd.Index(columns, dtype=object), index=list(rows), dtype=object)
    frame.attrs = {"stray": {}, "joined": []}
    return frame


def _read_rows(path: Path) -> dict[int, dict[str, Any]]:
    """The rows by their numbers."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".jsonl":
            lines = {n: line for n, line in enumerate(text.split("\n"), 1) if line.strip()}
            records = {number: json.loads(line) for number, line in lines.items()}
        else:
            whole = json.loads(text)
            if isinstance(whole, dict) and all(isinstance(row, dict) for row in whole.values()):
                whole = [row if ID in row else {ID: key, **row} for key, row in whole.items()]
            records = dict(enumerate(whole if isinstance(whole, list) else [], 1))
    except (ValueError, RecursionError) as error:
        raise UserError(f"can't read {path}: {str(error) or 'it is nested too deep'}") from None
    except OSError as error:
        raise_if_temporary(path, error)
        raise UserError(f"can't read {path}: {error.strerror or error}") from None
    if not records or not all(isinstance(row, dict) for row in records.values()):
        raise UserError(
            f"can't read {path}: not a table: it needs one object per row, all with the same names"
        )
    return records


def _format_value(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return str(value) if value else ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
