"""Precision, recall, F1 and support of each class, and the calibration of the probabilities."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

import numpy as np

from earshot.report import style
from earshot.report.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 10  # of the reliability diagram and of the ECE
PER_COLUMN = 50  # classes


def build_table(results: Results) -> list[dict[str, float | str]]:
    """A row per class, in the order of the classes: class, precision, recall, f1, support, predicted; 0 where
    undefined."""
    right, true, predicted = results.count_labels()
    return [
        {
            "class": name,
            "precision": r / p if p else 0.0,
            "recall": r / t if t else 0.0,
            "f1": 2 * r / (t + p) if t + p else 0.0,
            "support": t,
            "predicted": p,
        }
        for name, r, t, p in zip(
            results.classes, right.tolist(), true.tolist(), predicted.tolist(), strict=True
        )
    ]


def to_csv(results: Results) -> str:
    """per_class.csv."""
    text, rows = io.StringIO(), build_table(results)
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return text.getvalue()


def draw(results: Results) -> dict[str, Figure]:
    """The scores per class, the weakest class first, and the reliability diagram."""
    return {"per_class": _draw_classes(results), "calibration": _draw_calibration(results)}


def _draw_classes(results: Results) -> Figure:
    from matplotlib.figure import Figure

    rows = sorted(build_table(results), key=lambda row: (row["f1"], row["class"]))
    shown = dict(zip(results.classes, style.shorten_names(results.classes), strict=True))
    columns = -(-len(rows) // PER_COLUMN)
    deep = -(-len(rows) // columns)
    figure = Figure((1.0 + (3.9 if columns == 1 else 3.8 * columns), 1.2 + 0.2 * max(deep, 5)))
    parts = figure.subplots(1, columns, squeeze=False)[0]
    low = min(0.9, *(float(row[key]) for row in rows for key in ("precision", "recall")))
    low = max(0.0, np.floor((low - 0.02) * 10) / 10)
    for index, at in enumerate(parts):
        mine = rows[index * deep : (index + 1) * deep]
        y = np.arange(len(mine))
        f1, precision, recall = ([row[key] for row in mine] for key in ("f1", "precision", "recall"))
        at.hlines(y, precision, recall, color=style.GRID, linewidth=2)
        at.plot(precision, y, "<", color=style.ORANGE, markersize=6, label="precision", clip_on=False)
        at.plot(recall, y, ">", color=style.GREEN, markersize=6, label="recall", clip_on=False)
        at.plot(f1, y, "o", color=style.BLUE, markersize=5, label="F1", clip_on=False)
        at.set_yticks(y, [f"{shown[str(row['class'])]}  {row['support']}" for row in mine], fontsize=8)
        at.set(ylim=(deep - 0.4, -0.6), xlim=(low, 1))
        at.tick_params(axis="y", length=0)
        at.grid(axis="x")
        at.xaxis.set_tick_params(labelsize=8)
        at.xaxis.get_major_locator().set_params(nbins=6)
    figure.suptitle(
        f"{style.shorten(results.name, 40)}: weakest F1 first, with clips per class",
        fontsize=9,
        x=0.01,
        ha="left",
    )
    figure.legend(*parts[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def compute_reliability(results: Results) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """How often predictions of a given probability are right.

    Single-label: the predicted class of each clip. Multi-label: every class of every clip.

    Returns:
        (bins,) predictions, mean probability and share that is right (NaN where there are none) in equal bins
        of the probability; the expected calibration error: the mean distance of the two, weighted by the
        number of predictions.
    """
    if results.multilabel:
        confidence, right = results.probabilities.ravel(), results.labels.ravel() == 1
    else:
        confidence, right = results.probabilities.max(1), results.predicted == results.labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean, share = (
            np.bincount(bins, weights=values, minlength=BINS) / counts for values in (confidence, right)
        )
    error = float(np.nansum(counts * np.abs(mean - share)) / counts.sum())
    return counts, mean, share, error


def compute_wilson(share: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95 % interval of shares of `counts` trials: (low, high), always within 0 and 1."""
    z = 1.959964
    middle = (share + z * z / (2 * counts)) / (1 + z * z / counts)
    half = z / (1 + z * z / counts) * np.sqrt(share * (1 - share) / counts + z * z / (4 * counts**2))
    return middle - half, middle + half


def _draw_calibration(results: Results) -> Figure:
    from matplotlib.figure import Figure

    counts, mean, share, error = compute_reliability(results)
    figure = Figure((4.6, 4.8))
    at, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    here = counts > 0
    at.plot([0, 1], [0, 1], color=style.GREY, linewidth=1, linestyle="--", label="perfect")
    low, high = compute_wilson(share[here], counts[here])
    at.vlines(mean[here], low, high, color=style.BLUE, linewidth=1.2, label="95 % interval")
    dots = {"color": style.BLUE, "markersize": 6, "clip_on": False, "zorder": 3}
    at.plot(mean[here], share[here], "o", label="observed", **dots)
    at.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is right")
    at.set_title(f"{style.shorten(results.name, 30)}: calibration, ECE {error:.3f} ({BINS} bins)", fontsize=9)
    at.grid()
    figure.legend(*at.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    below.bar((np.arange(BINS) + 0.5) / BINS, counts, 0.92 / BINS, color=style.BLUE)
    below.set(
        xlabel="probability of a label" if results.multilabel else "probability of the predicted class",
        ylabel="labels" if results.multilabel else "clips",
    )
    if counts.max() > 100 * max(1, counts[here].min()):
        below.set_yscale("log")
        below.set_ylim(bottom=0.5)
        below.yaxis.set_major_formatter("{x:g}")
        below.yaxis.set_minor_formatter("")
        below.set_ylabel(below.get_ylabel() + " (log)")
    return figure
