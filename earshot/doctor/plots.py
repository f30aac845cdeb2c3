"""The doctor's pictures: classes, durations, nearest neighbours, and a map of the clips."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earshot.core.files import write_bytes
from earshot.doctor.balance_and_shift import compute_components, count_clips
from earshot.doctor.duplicates import Duplicates
from earshot.doctor.embeddings import Clips
from earshot.doctor.similarity import centre
from earshot.report import style
from earshot.report.style import BLUE, GREEN, INK, ORANGE, VERMILION, make_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "os^DvP*X<>"
SIDES = (("train", "training", BLUE), ("test", "hold-out", GREEN), ("subm", "to submit", ORANGE))
NAMED = 20  # classes that the legend names; more are numbered in the map


def draw_pictures(clips: Clips, pairs: Duplicates | None, out: Path) -> dict[str, str]:
    """Write the pictures that the data allows as PNG; returns them as SVG, by file name.

    Raises:
        ImportError: matplotlib is missing.
    """
    with style.apply_style():
        figures = {"class_balance": _draw_balance(clips), "durations": _draw_durations(clips)}
        if pairs is not None:
            figures |= {"neighbours": _draw_neighbours(pairs), "map": _draw_map(clips)}
        drawn = {name: figure for name, figure in figures.items() if figure is not None}
        for name, figure in drawn.items():
            write_bytes(out / f"{name}.png", style.render_png(figure))
        return {f"{name}.png": style.render_svg(figure, name) for name, figure in drawn.items()}


def _draw_balance(clips: Clips) -> Figure:
    total = count_clips(clips)[0]
    order, names = np.argsort(total, kind="stable"), style.shorten_names(clips.cache.classes)
    figure, at = make_axes(
        4.9, max(2.0, 0.8 + 0.19 * len(order)), xlabel="training clips", title="Clips per class"
    )
    at.barh(np.arange(len(order)), total[order], color=BLUE, height=0.75)
    at.set_yticks(np.arange(len(order)), [names[c] for c in order], fontsize=8)
    at.set_ylim(-0.6, len(order) - 0.4)
    for row, value in enumerate(total[order].tolist()):
        at.annotate(str(value), (value, row), (3, 0), textcoords="offset points", va="center", fontsize=7)
    return figure


def _draw_durations(clips: Clips) -> Figure | None:
    known = np.isfinite(clips.seconds)
    if not known.any():
        return None
    figure, at = make_axes(4.9, 3.2, xlabel="seconds", ylabel="clips", title="Durations")
    low, high = float(clips.seconds[known].min()), float(clips.seconds[known].max())
    wide, narrow = high > 20 * max(low, 0.01), high - low <= 0.1 * high
    if wide:
        edges = np.geomspace(max(low, 0.01), high, 41)
    else:
        edges = np.linspace(low - 0.5 if narrow else 0, high + 0.5 if narrow else high, 41)
    for split, name, colour in SIDES:
        seconds = clips.seconds[known & (clips.splits == split)]
        if (clips.splits == split).any():
            look = {"color": colour, "edgecolor": colour, "histtype": "stepfilled", "alpha": 0.55}
            at.hist(seconds, edges, label=name, **look)
    span = clips.cache.manifest["span"]
    at.axvline(span, color=INK, linewidth=1, linestyle="--", label=f"window, {span:g} s")
    if wide:
        at.set_xscale("log")
        at.xaxis.set_major_formatter("{x:g}")
        at.xaxis.set_minor_formatter("")
    at.legend(fontsize=8)
    return figure


def _draw_neighbours(pairs: Duplicates) -> Figure | None:
    if not len(pairs.closest):
        return None
    figure, at = make_axes(
        4.9,
        3.2,
        xlabel="whitened cosine to the nearest clip\nof another fold or split",
        ylabel="clips (log)",
        title="Similarity of the nearest clips",
    )
    low = min(float(pairs.closest.min()), pairs.threshold) - 0.02
    at.hist(pairs.closest, np.linspace(low, max(1.0, pairs.threshold), 61), color=BLUE)
    at.set_yscale("log")
    at.yaxis.set_major_formatter("{x:g}")
    at.yaxis.set_minor_formatter("")
    at.axvline(pairs.threshold, color=VERMILION, linewidth=1.5)
    at.annotate(
        f"near-duplicates\nfrom {pairs.threshold:.3f}",
        (pairs.threshold, 0.97),
        (4, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        va="top",
        fontsize=8,
        color=VERMILION,
    )
    return figure


def _draw_map(clips: Clips) -> Figure:
    embedded = np.flatnonzero(clips.embedded)
    x = compute_components(centre(clips.embeddings[embedded]), 2)
    x = np.column_stack([x, np.zeros(len(x))])[:, :2]
    train, subm = clips.train[embedded], clips.splits[embedded] == "subm"
    labels = np.full(len(embedded), -1)  # the first where there are several
    targets = clips.targets[embedded[train]]
    labels[train] = np.where(targets.any(1), targets.argmax(1), -1)
    classes = style.shorten_names(clips.cache.classes)
    named = len(classes) <= NAMED
    rows = -(-len(classes) // 3) + bool(subm.any()) if named else 0
    figure, at = make_axes(
        4.9 if named else 9, 4.4 + 0.19 * rows, title="Map of the clips (PCA of embeddings)"
    )
    at.set(xticks=[], yticks=[], xlabel="first component", ylabel="second component")
    size = float(np.clip(12000 / max(len(x), 1), 3, 22))
    if subm.any():
        at.scatter(
            *x[subm].T, s=size * 1.4, marker="x", linewidths=0.7, color=INK, alpha=0.6, label="to submit"
        )
    for c, (name, colour) in enumerate(zip(classes, style.choose_colours(len(classes)), strict=True)):
        look: dict[str, Any] = {"color": colour, "alpha": 0.8, "marker": MARKERS[c % len(MARKERS)]}
        if named:
            # matplotlib leaves out labels that begin with an underscore
            look["label"] = name if name[:1] != "_" else f" {name}"
        if (labels == c).any():
            at.scatter(*x[labels == c].T, s=size, linewidths=0, **look)
    if named:
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.06), "ncols": 3}
        at.legend(fontsize=8, markerscale=1.6 if size < 12 else 1.2, **below)
        return figure
    _draw_numbers(at, x, labels, len(classes))
    lines = [f"{c + 1:>3} {style.shorten(name, 18)}" for c, name in enumerate(classes)]
    for column in range(0, min(len(lines), 68), 34):  # beyond 68 classes the csv has the names
        at.annotate(
            "\n".join(lines[column : column + 34]),
            (1, 1),
            (8 + 3.6 * column, 0),
            xycoords="axes fraction",
            va="top",
            textcoords="offset points",
            fontsize=6.5,
            family="monospace",
        )
    if subm.any():
        at.legend(fontsize=8, loc="lower left")
    return figure


def _draw_numbers(at: Any, x: np.ndarray, labels: np.ndarray, count: int) -> None:
    """Write each class's number at the median of its clips; move apart numbers that would overlap."""
    scale = np.ptp(x, axis=0) + 1e-12
    spots, here = np.full((count, 2), np.nan), np.unique(labels[labels >= 0])
    for c in here:
        spots[c] = np.median(x[labels == c], 0) / scale
    least = np.array([0.04, 0.042])
    for _ in range(300):
        gap = (spots[here, None] - spots[None, here]) / least
        near = np.linalg.norm(gap, axis=2) + 9 * np.eye(len(here))
        if near.min() >= 1:
            break
        tie = 1e-3 * np.sign(np.subtract.outer(here, here))[:, :, None]
        apart = gap / np.maximum(near, 1e-6)[:, :, None] + tie
        push = np.where((near < 1)[:, :, None], apart, 0)
        spots[here] += 0.2 * least * push.sum(1)
    for c in here:
        look = {"fontsize": 8, "fontweight": "bold", "color": INK}
        at.annotate(str(c + 1), spots[c] * scale, ha="center", va="center", **look)
