"""Which classes are confused: the confusion matrix of the out-of-fold predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from earshot.report import style
from earshot.report.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERED = 20  # classes up to which a cell has room for its count


def count_confusions(results: Results) -> np.ndarray:
    """(classes, classes) clips: rows are the true classes, columns the predicted ones; single-label only."""
    count = len(results.classes)
    return np.bincount(results.labels * count + results.predicted, minlength=count * count).reshape(
        count, count
    )


def list_mistakes(results: Results, most: int = 15) -> list[tuple[str, str, int, float]]:
    """The most frequent mistakes first: (true class, predicted class, clips, share of the true class)."""
    found = count_confusions(results)
    totals = found.sum(1)
    np.fill_diagonal(found, 0)
    order = np.argsort(-found, axis=None, kind="stable")[:most]
    return [
        (
            results.classes[row],
            results.classes[column],
            int(found[row, column]),
            found[row, column] / totals[row],
        )
        for row, column in zip(*np.unravel_index(order, found.shape), strict=True)
        if found[row, column]
    ]


def draw(results: Results) -> dict[str, Figure]:
    """The confusion matrix; for multi-label, true positives, missed labels and false positives per class."""
    return {"confusion": _draw_labels(results) if results.multilabel else _draw_matrix(results)}


def _draw_matrix(results: Results) -> Figure:
    from matplotlib.colors import PowerNorm
    from sklearn.metrics import ConfusionMatrixDisplay

    counts = count_confusions(results)
    count = len(counts)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cell = 0.33 if count <= NUMBERED else 0.17 if count <= 60 else 0.105
    side = max(2.6, cell * count)
    size = 9 if count <= NUMBERED else 7.5 if count <= 60 else 5.5
    names = style.shorten_names(results.classes)
    name = max(map(len, names)) * size * 0.0085
    figure, at = style.make_axes(side + name + 0.9, side + name + 0.8)
    figure.set_layout_engine("compressed")  # the matrix is square, and the rest lies close to it
    # The square root makes a confusion of one clip in fifty visible beside a diagonal near 1.
    display = ConfusionMatrixDisplay(shares, display_labels=names).plot(
        ax=at,
        include_values=count <= NUMBERED,
        cmap=style.MAP,
        colorbar=False,
        im_kw={"norm": PowerNorm(0.5, 0, 1)},
        text_kw={"fontsize": size},
    )
    display.im_.set_data(np.ma.masked_equal(shares, 0))  # empty cells have the page's colour
    for (row, column), text in np.ndenumerate(display.text_ if display.text_ is not None else np.empty(0)):
        text.set(text=counts[row, column] or "", color="white" if shares[row, column] > 0.3 else "black")
    at.set_title(
        f"{style.shorten(results.name, 40)}: {results.about}\nclips; colour: share of the true class",
        fontsize=9,
    )
    at.set(xlabel="predicted class", ylabel="true class")
    # turned text that hangs from its end stays at the axis in any font
    at.set_xticks(
        range(count), names, rotation=90, fontsize=size, ha="right", va="center", rotation_mode="anchor"
    )
    at.set_yticks(range(count), names, fontsize=size)
    at.tick_params(length=0 if count <= 60 else 1, pad=3)
    at.spines[:].set_color(style.GRID)
    step = 1 if count <= NUMBERED else 5  # the eye follows a line from a cell to its name
    at.set_xticks(np.arange(step - 0.5, count - 1, step), minor=True)
    at.set_yticks(np.arange(step - 0.5, count - 1, step), minor=True)
    at.grid(which="minor", linewidth=0.5)
    at.tick_params(which="minor", length=0)
    shown = [0.02, 0.1, 0.25, 0.5, 0.75, 1]
    bar = figure.colorbar(display.im_, ax=at, fraction=0.03, pad=0.015, ticks=shown)
    bar.ax.set_yticklabels([f"{share:.0%}" for share in shown], fontsize=8)
    bar.outline.set_visible(False)
    return figure


def _draw_labels(results: Results) -> Figure:
    right, true, predicted = results.count_labels()
    order, names = np.arange(len(true)), style.shorten_names(results.classes)
    columns = -(-len(true) // 50)
    rows = -(-len(true) // columns)
    from matplotlib.figure import Figure

    figure = Figure((1.4 + 3.4 * columns, 1.1 + 0.19 * rows))
    parts = figure.subplots(1, columns, squeeze=False)[0]
    most = float(max((true + predicted - right).max(), 1))
    for index, at in enumerate(parts):
        mine = order[index * rows : (index + 1) * rows]
        y = np.arange(len(mine))
        start = np.zeros(len(mine))
        for values, colour, label in (
            (right, style.BLUE, "true positives"),
            (true - right, style.ORANGE, "missed"),
            (predicted - right, style.VERMILION, "false positives"),
        ):
            at.barh(y, values[mine], 0.75, left=start, color=colour, label=label)
            start += values[mine]
        at.set(ylim=(rows - 0.4, -0.6), xlim=(0, most), xlabel="clips")
        at.set_yticks(y, [names[c] for c in mine], fontsize=8)
        at.tick_params(axis="y", length=0)
        at.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(
        f"{style.shorten(results.name, 40)}: labels per class, {results.about}",
        fontsize=9,
        x=0.01,
        ha="left",
    )
    figure.legend(*parts[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
