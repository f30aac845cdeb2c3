"""runs/leaderboard.csv and the same on the terminal: a row per run of a bake-off, the blend's too, the best first."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from earshot.cli import clock
from earshot.files import write_text

NAME = "leaderboard.csv"
COLUMNS = ("run", "recipe", "features", "view", "folds", "oof_f1_macro", "log_loss", "accuracy", "fold_std", "seconds", "status")


def ordered(rows: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Whole runs before those of fewer folds, by the metric, then by log loss; what has no score last."""
    def place(row: dict[str, Any]) -> tuple:
        if row.get("log_loss") is None:
            return (1, 0, 0.0, 0.0)
        return (0, -len(str(row["folds"]).split()), -row.get(metric, row["oof_f1_macro"]), row["log_loss"])
    return sorted(rows, key=place)


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write the csv into the runs' folder."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        found = [row.get(name) for name in COLUMNS]
        writer.writerow(["" if v is None else f"{v:.6f}" if isinstance(v, float) and name != "seconds" else f"{v:.1f}"
                         if isinstance(v, float) else v for name, v in zip(COLUMNS, found)])
    write_text(folder / NAME, text.getvalue())


def read(folder: Path) -> list[dict[str, Any]]:
    """What `write` wrote."""
    with open(folder / NAME, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = ("oof_f1_macro", "log_loss", "accuracy", "fold_std", "seconds")
    return [{**row, **{name: float(row[name]) if row[name] else None for name in numbers}} for row in rows]


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as aligned lines."""
    width = max(len("run"), *(len(Path(row["run"]).name) for row in rows))
    lines = [f"{'run':{width}}  folds  f1_macro  ± folds  log loss  accuracy     time  status"]
    for row in rows:
        scored = row.get("log_loss") is not None
        numbers = (f"{row['oof_f1_macro']:>8.4f}  {row['fold_std']:>7.4f}  {row['log_loss']:>8.4f}  {row['accuracy']:>8.4f}" if scored
                   else f"{'-':>8}  {'-':>7}  {'-':>8}  {'-':>8}")
        folds = len(str(row["folds"]).split())
        lines.append(f"{Path(row['run']).name:{width}}  {folds:>5}  {numbers}  {clock(row['seconds']):>7}  {row['status']}")
    return lines
