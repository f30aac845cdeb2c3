"""runs/leaderboard.csv, and its table on the terminal: a row per run of a bake-off and one for the blend,
best first."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from earshot.core.deadline import format_clock
from earshot.core.files import write_text
from earshot.training import metrics

NAME = "leaderboard.csv"
BEFORE, AFTER = ("run", "recipe", "features", "view", "folds"), ("seconds", "status")
SCORES = ("oof_f1_macro", "log_loss", "accuracy", "fold_std")


def get_score_column(metric: str) -> str:
    """The column of a metric."""
    return metric if metric in SCORES else f"oof_{metric}"


def select_scores(all_scores: dict[str, Any], metric: str) -> dict[str, float]:
    """The leaderboard's columns among all scores; an unusual metric comes first."""
    return {
        name: all_scores[name.removeprefix("oof_")]
        for name in dict.fromkeys((get_score_column(metric), *SCORES[:3]))
    }


def sort_rows(rows: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Sort by number of folds, then by the metric, then by log loss; runs without a score come last."""

    def place(row: dict[str, Any]) -> tuple:
        if row.get("log_loss") is None:
            return (1, 0, 0.0, 0.0)
        return (
            0,
            -len(str(row["folds"]).split()),
            -metrics.to_gain(metric, row[get_score_column(metric)]),
            row["log_loss"],
        )

    return sorted(rows, key=place)


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write the csv into the runs' folder."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = (*BEFORE, *_list_score_columns(rows), *AFTER)
    writer.writerow(columns)
    for row in rows:
        values = [row.get(name) for name in columns]
        writer.writerow(
            [
                ""
                if v is None
                else f"{v:.6f}"
                if isinstance(v, float) and name != "seconds"
                else f"{v:.1f}"
                if isinstance(v, float)
                else v
                for name, v in zip(columns, values, strict=True)
            ]
        )
    write_text(folder / NAME, text.getvalue())


def read(folder: Path) -> list[dict[str, Any]]:
    """The rows that `write` wrote."""
    with open(folder / NAME, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = (*_list_score_columns(rows), "seconds")
    return [{**row, **{name: float(row[name]) if row[name] else None for name in numbers}} for row in rows]


def _list_score_columns(rows: list[dict[str, Any]]) -> list[str]:
    """The columns of scores: the usual ones, after that of the metric if it is another."""
    return [
        *dict.fromkeys(
            name for row in rows for name in row if name.startswith("oof_") and name not in SCORES
        ),
        *SCORES,
    ]


def format_table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as aligned lines."""
    columns = {name: name.removeprefix("oof_") for name in _list_score_columns(rows)} | {
        "log_loss": "log loss",
        "fold_std": "± folds",
    }
    wide = {name: max(8, len(title)) for name, title in columns.items()}
    width = max(len("run"), *(len(Path(row["run"]).name) for row in rows))
    lines = [
        f"{'run':{width}}  folds  {'  '.join(f'{title:>{wide[name]}}' for name, title in columns.items())}   "
        "  time  status"
    ]
    for row in rows:
        numbers = "  ".join(
            f"{'-':>{wide[name]}}" if row.get(name) is None else f"{row[name]:>{wide[name]}.4f}"
            for name in columns
        )
        folds = len(str(row["folds"]).split())
        lines.append(
            f"{Path(row['run']).name:{width}}  {folds:>5}  {numbers}  {format_clock(row['seconds']):>7}  "
            f"{row['status']}"
        )
    return lines
