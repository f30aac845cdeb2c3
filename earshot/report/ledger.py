"""The ledger of submissions on the terminal: a table, and adding leaderboard scores.

python -m earshot.report.ledger                              the table
python -m earshot.report.ledger --score FILE_OR_HASH 0.913   fill in a public score (--private: other)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from earshot.core import cli
from earshot.core.errors import UserError
from earshot.prediction.ledger import COLUMNS, PLACE, edit_rows, find_row, read_rows


@dataclass(frozen=True)
class LedgerFlags:
    """the ledger"""

    score: tuple[str, float] | None = None
    """a submission's file, or the first digits of its sha256, and its leaderboard score"""
    private: bool = False
    """--score is of the private leaderboard"""
    ledger: str = PLACE
    """the ledger's file, beside the submissions"""


def format_rows(rows: list[dict[str, str]]) -> list[str]:
    """The table as aligned lines, without empty columns."""
    columns = [c for c in COLUMNS if any(row[c] for row in rows) or c in ("oof", "public")]
    cells = [columns, *([row[c][:12] if c == "sha256" else row[c] for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def main(argv: list[str]) -> None:
    """Add a score, or print the table."""
    filled, _ = cli.parse({"ledger": LedgerFlags()}, argv, __doc__ or "")
    flags = filled["ledger"]
    path = Path(flags.ledger)
    if flags.score:
        what, score = flags.score
        if not math.isfinite(score):
            raise UserError(f"--score {what} {score}: the score must be a number")
        place, column = find_row(read_rows(path), what, path), "private" if flags.private else "public"

        def fill(rows: list[dict[str, str]]) -> None:
            rows[find_row(rows, what, path)][column] = (
                f"{score:g}" if float(f"{score:g}") == score else repr(score)
            )

        edit_rows(path, fill)
        row = read_rows(path)[place]
        print(
            f"{path}: {row['file']} {row['sha256'][:12]}, out-of-fold {row['oof'] or 'unknown'}, {column} "
            f"{row[column]}"
        )
        return
    rows = read_rows(path)
    if not rows:
        print(f"no submissions in {path} yet: train.py and predict.py add them")
        return
    print("\n".join(format_rows(rows)))


if __name__ == "__main__":
    cli.run(main)
