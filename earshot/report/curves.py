"""Loss, accuracy and F1 by epoch: a faint line per fold, a bold one for their mean, a dot at each fold's best
epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from earshot.report import style
from earshot.report.results import Results
from earshot.training import metrics
from earshot.training.tracking import group_by_part

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {"f1_macro": "macro-F1", "map_macro": "mAP", "log_loss": "log loss"}


def choose_epoch(rows: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """The best epoch, whose weights predict: by the metric, then by the lower loss, then the earlier one."""
    return max(rows, key=lambda row: (row.get(metric, 0.0), -row["valid_loss"], -row["epoch"]))


def draw(results: Results) -> dict[str, Figure]:
    """The figures of loss, accuracy and F1; none for a blend, which has no epochs."""
    parts = {name: rows for name, rows in group_by_part(results.history).items() if "valid_loss" in rows[0]}
    if not parts:
        return {}
    keys = {key for rows in parts.values() for key in rows[0]}
    first = [name for name in (results.headline, results.metric) if name in keys]
    names = dict.fromkeys(
        name for name in (*first, "f1_macro") if name not in ("accuracy", *metrics.MINIMISED)
    )
    return {
        "loss_curves": _draw_curves(
            results,
            parts,
            "Loss",
            [("train_loss", "training", style.ORANGE), ("valid_loss", "validation", style.BLUE)],
        ),
        "accuracy_curves": _draw_curves(
            results, parts, "Accuracy on the validation fold", [("accuracy", "validation", style.BLUE)]
        ),
        "f1_curves": _draw_curves(
            results,
            parts,
            f"{' and '.join(NAMES.get(name, name) for name in names)} on the validation fold",
            [
                (name, NAMES.get(name, name), colour)
                for name, colour in zip(names, (style.BLUE, style.GREEN, style.PINK), strict=False)
            ],
        ),
    }


def _draw_curves(
    results: Results, parts: dict[str, list[dict[str, Any]]], title: str, lines: list[tuple[str, str, str]]
) -> Figure:
    figure, at = style.make_axes(4.3, 3.1, xlabel="epoch", title=title)
    longest = max(len(rows) for rows in parts.values())
    lone = {"marker": "o", "markersize": 4} if longest == 1 else {}
    values: list[float] = []
    for key, label, colour in lines:
        grid = np.full((len(parts), longest), np.nan)
        for index, rows in enumerate(parts.values()):
            grid[index, : len(rows)] = [row.get(key, np.nan) for row in rows]
            at.plot(
                np.arange(1, len(rows) + 1),
                grid[index, : len(rows)],
                color=colour,
                alpha=0.35,
                linewidth=0.9,
                **lone,
            )
        # a mean over fewer folds would jump where a fold ends
        whole = np.isfinite(grid).all(0)
        at.plot(
            np.flatnonzero(whole) + 1,
            grid[:, whole].mean(0),
            color=colour,
            linewidth=2.2,
            label=f"{label}, mean of {len(parts)}",
            **lone,
        )
        values += grid[np.isfinite(grid)].tolist()
    key, _, colour = lines[-1 if "Loss" in title else 0]
    best = [choose_epoch(rows, results.metric) for rows in parts.values()]
    at.plot(
        [row["epoch"] for row in best],
        [row[key] for row in best],
        linestyle="",
        marker="o",
        markersize=6,
        color=style.VERMILION,
        markeredgecolor=style.PAPER,
        markeredgewidth=0.8,
        zorder=3,
        clip_on=False,
        label="best epoch of a fold",
    )
    at.grid(axis="y")
    at.xaxis.get_major_locator().set_params(integer=True)
    if longest == 1:
        at.set(xlim=(0.5, 1.5), xticks=[1])
    if "Loss" in title and min(values) > 0 and max(values) > 30 * min(values):
        at.set_yscale("log")
        at.yaxis.set_major_formatter("{x:g}")
        at.yaxis.set_minor_formatter("")
    elif "Loss" not in title:
        low = min(values)
        at.set_ylim(max(0.0, np.floor((low - 0.02) * 10) / 10), 1.0 if max(values) > 0.9 else None)
    at.legend(loc="best")
    return figure
