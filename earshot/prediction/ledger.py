"""The ledger: a row per submission with its runs, its out-of-fold score and its leaderboard scores.
`earshot.report.ledger` shows it and takes scores."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from earshot.core.errors import UserError
from earshot.core.files import hash_file, read_json, replace_file
from earshot.core.shell import quote

if TYPE_CHECKING:
    from earshot.training.run import Run

NAME = "ledger.csv"
PLACE = f"submissions/{NAME}"  # beside the submissions
COLUMNS = (
    "time",
    "competition",
    "file",
    "rows",
    "sha256",
    "runs",
    "blend",
    "metric",
    "oof",
    "public",
    "private",
    "message",
)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows, oldest first; none where there is no ledger.

    Raises:
        UserError: the file is not a ledger.
    """
    if not path.exists():
        return []
    from earshot.core import csv_table

    table = csv_table.read(path)
    if not {"sha256", "file"} <= set(table.columns):
        raise UserError(
            f"{path} is not a ledger (it has no column sha256): move it away, the next submission starts a "
            "new one"
        )
    return [{**dict.fromkeys(COLUMNS, ""), **row} for row in table.to_dict("records")]


def edit_rows(path: Path, by: Callable[[list[dict[str, str]]], None]) -> None:
    """Read the ledger, let `by` change its rows, write it; processes wait for each other."""
    import pandas as pd

    # holds the lock of the file beside it from before the reading to after the rename
    with replace_file(path) as file:
        rows = read_rows(path)
        by(rows)
        # the user may have added columns
        columns = dict.fromkeys((*COLUMNS, *(key for row in rows for key in row)))
        table = pd.DataFrame(rows, columns=list(columns)).fillna("")
        file.write(table.to_csv(index=False, lineterminator="\n").encode("utf-8"))


def get_oof_score(runs: Sequence[Run]) -> tuple[str, float] | None:
    """Metric and out-of-fold score of a single run at its last epoch (unbiased); None where it is unknown, or
    there are several runs."""
    if len(runs) != 1 or not (runs[0].folder / "scores.json").is_file():
        return None
    metric = runs[0].config["record"]["training"].get("metric")
    found = read_json(runs[0].folder / "scores.json")
    value = found.get("last", {}).get(metric) if isinstance(found, dict) else None
    return (metric, float(value)) if isinstance(value, (int, float)) else None


def add_submission(
    out: Path,
    competition: str,
    rows: int,
    runs: Sequence[Run] = (),
    blend: str = "",
    oof: tuple[str, float] | None = None,
    message: str = "",
) -> str:
    """Enter a submission that was just written into the ledger beside it; the line to print. An error becomes
    a line, too, because the submission itself is complete.

    Args:
        out: the submission's file.
        rows: number of its rows.
        runs: the runs that predicted it.
        blend: how several runs were blended.
        oof: metric and unbiased out-of-fold score; None: the single run's own, where it is known.
        message: the user's note.
    """
    path = out.parent / NAME
    try:
        content = hash_file(out)
        oof = oof or get_oof_score(runs)
        row = {
            "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "competition": competition,
            "file": out.name,
            "rows": str(rows),
            "sha256": content[:16],
            "runs": " ".join(run.folder.name for run in runs),
            "blend": blend,
            "metric": oof[0] if oof else "",
            "oof": f"{oof[1]:.6f}" if oof else "",
            "public": "",
            "private": "",
            "message": message,
        }
        if has_content(path, out):
            return f"ledger: {path} has this submission already ({content[:12]})"

        def add(rows: list[dict[str, str]]) -> None:
            if not any(content.startswith(old["sha256"]) for old in rows if old["sha256"]):
                rows.append(row)

        edit_rows(path, add)
    except (UserError, OSError) as error:
        return f"warning: the submission is not entered in {path}: {' '.join(str(error).split())}"
    where = "" if path == Path(PLACE) else f" --ledger {quote(path)}"
    return (
        f"ledger: {path}, {content[:12]}; to add its score: python -m earshot.report.ledger --score "
        f"{content[:8]} SCORE{where}"
    )


def has_content(path: Path, file: Path) -> bool:
    """Is the content of a file that of a submission in the ledger at `path`?"""
    content = hash_file(file)
    return any(row["sha256"] and content.startswith(row["sha256"]) for row in read_rows(path))


def find_row(rows: list[dict[str, str]], what: str, path: Path) -> int:
    """The index of a submission's row, by its file or the first digits of its hash.

    Raises:
        UserError: no row has it, or several have.
    """
    wanted = hash_file(what) if Path(what).is_file() else what.lower()
    if not re.fullmatch("[0-9a-f]{4,64}", wanted):
        raise UserError(f"--score {what}: give a submission's file, or at least 4 hex digits of its hash")
    known = [row["sha256"] for row in rows]
    found = [i for i, has in enumerate(known) if has and (has.startswith(wanted) or wanted.startswith(has))]
    if len(found) != 1:
        raise UserError(
            f"--score {what}: {len(found) or 'no'} rows of {path} match: `python -m earshot.report.ledger` "
            "lists them"
        )
    return found[0]
