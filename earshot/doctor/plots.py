"""The doctor's pictures: what a table does not show at a glance."""

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
from earshot.report.style import BLUE, GREEN, GREY, ORANGE, PINK, VERMILION, make_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PINK)
MARKERS = "os^Dv"
SIDES = (("train", "training", BLUE), ("test", "hold-out", GREEN), ("subm", "to submit", ORANGE))
NAMED = 15  # classes with a marker and colour each; more are numbered where they lie


def draw_pictures(clips: Clips, pairs: Duplicates | None, out: Path) -> list[str]:
    """Write the pictures that the data allows; their names. Raises ImportError without matplotlib."""
    with style.apply_style():
        figures = {"class_balance.png": _draw_balance(clips), "durations.png": _draw_durations(clips)}
        if pairs is not None:
            figures |= {"neighbours.png": _draw_neighbours(pairs), "map.png": _draw_map(clips)}
        drawn = {name: figure for name, figure in figures.items() if figure is not None}
        for name, figure in drawn.items():
            write_bytes(out / name, style.render_png(figure))
    return list(drawn)


def _draw_balance(clips: Clips) -> Figure:
    total = count_clips(clips)[0]
    order, names = np.argsort(total, kind="stable"), style.shorten_names(clips.cache.classes)
    figure, at = make_axes(
        6.5, max(2.0, 0.8 + 0.19 * len(order)), xlabel="training clips", title="Clips per class"
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
    figure, at = make_axes(6.5, 3.6, xlabel="seconds", ylabel="clips", title="Durations")
    low, high = float(clips.seconds[known].min()), float(clips.seconds[known].max())
    wide, alike = high > 20 * max(low, 0.01), high - low <= 0.1 * high
    if wide:
        edges = np.geomspace(max(low, 0.01), high, 41)
    else:
        edges = np.linspace(low - 0.5 if alike else 0, high + 0.5 if alike else high, 41)
    for split, name, colour in SIDES:
        seconds = clips.seconds[known & (clips.splits == split)]
        if (clips.splits == split).any():
            look = {"color": colour, "edgecolor": colour, "histtype": "stepfilled", "alpha": 0.55}
            at.hist(seconds, edges, label=name, **look)
    span = clips.cache.manifest["span"]
    at.axvline(span, color="black", linewidth=1, linestyle="--", label=f"window, {span:g} s")
    if wide:
        at.set_xscale("log")
        at.xaxis.set_major_formatter("{x:g}")
    at.legend(fontsize=8)
    return figure


def _draw_neighbours(pairs: Duplicates) -> Figure | None:
    if not len(pairs.closest):
        return None
    figure, at = make_axes(
        6.5,
        3.6,
        xlabel="cosine of the nearest neighbour in another fold or split (whitened embeddings)",
        ylabel="clips (log)",
        title="How alike are the nearest clips?",
    )
    low = min(float(pairs.closest.min()), pairs.threshold) - 0.02
    at.hist(pairs.closest, np.linspace(low, max(1.0, pairs.threshold), 61), color=BLUE)
    at.set_yscale("log")
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
    embedded = np.flatnonzero(clips.heard)
    x = compute_components(centre(clips.embeddings[embedded]), 2)
    x = np.column_stack([x, np.zeros(len(x))])[:, :2]
    train, subm = clips.train[embedded], clips.splits[embedded] == "subm"
    labels = np.full(len(embedded), -1)  # the first where there are several
    targets = clips.targets[embedded[train]]
    labels[train] = np.where(targets.any(1), targets.argmax(1), -1)
    classes = style.shorten_names(clips.cache.classes)
    named = len(classes) <= NAMED
    figure, at = make_axes(
        8.5 if named else 11, 5.6, title="Clips by the first two principal components of their embeddings"
    )
    at.set(xticks=[], yticks=[], xlabel="first component", ylabel="second component")
    size = float(np.clip(12000 / max(len(x), 1), 3, 22))
    if subm.any():
        at.scatter(
            *x[subm].T, s=size * 1.4, marker="x", linewidths=0.7, color="black", alpha=0.6, label="to submit"
        )
    for c, name in enumerate(classes):
        look: dict[str, Any] = {"color": GREY, "alpha": 0.35}
        if named:
            look = {"color": COLOURS[c % len(COLOURS)], "alpha": 0.75}
            look["marker"] = MARKERS[(c // len(COLOURS) * 2 + c) % len(MARKERS)]
            look["label"] = (
                name if name[:1] != "_" else f" {name}"
            )  # matplotlib leaves out what begins with it
        if (labels == c).any():
            at.scatter(*x[labels == c].T, s=size, linewidths=0, **look)
    if named:
        scale = 1.6 if size < 12 else 1.2
        at.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), markerscale=scale)
        return figure
    _draw_numbers(at, x, labels, len(classes))
    rows = [f"{c + 1:>3} {style.shorten(name, 18)}" for c, name in enumerate(classes)]
    for column in range(0, min(len(rows), 68), 34):  # beyond 68 classes the csv has the names
        at.annotate(
            "\n".join(rows[column : column + 34]),
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
    """Each class's number at the median of its clips, moved apart where two would cover each other."""
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
        aside = 1e-3 * np.sign(np.subtract.outer(here, here))[:, :, None]
        apart = gap / np.maximum(near, 1e-6)[:, :, None] + aside
        push = np.where((near < 1)[:, :, None], apart, 0)
        spots[here] += 0.2 * least * push.sum(1)
    for c in here:
        look = {"fontsize": 7.5, "fontweight": "bold", "color": BLUE}
        at.annotate(str(c + 1), spots[c] * scale, ha="center", va="center", **look)
