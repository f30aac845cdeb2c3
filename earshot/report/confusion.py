"""Who is taken for whom: the confusion matrix of the out-of-fold predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from earshot.report import style
from earshot.report.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERED = 20  # classes up to which a cell has room for its number


def count_confusions(results: Results) -> np.ndarray:
    """(classes, classes) counts: rows are the truth, columns what was said; of clips with one label each."""
    count = len(results.classes)
    return np.bincount(results.labels * count + results.predicted, minlength=count * count).reshape(
        count, count
    )


def list_mistakes(results: Results, most: int = 15) -> list[tuple[str, str, int, float]]:
    """The commonest mistakes: (truth, said, clips, share of the truth's clips), the most frequent first."""
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
    """confusion.png: shares of each true class; for several labels a clip, right, overlooked and wrongly
    given labels per class."""
    return {"confusion.png": _draw_labels(results) if results.multilabel else _draw_matrix(results)}


def _draw_matrix(results: Results) -> Figure:
    from matplotlib.colors import PowerNorm

    counts = count_confusions(results)
    count = len(counts)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cell = 0.5 if count <= 12 else 0.36 if count <= NUMBERED else 0.17 if count <= 60 else 0.105
    side = max(3.2, cell * count)
    size = 9 if count <= NUMBERED else 7.5 if count <= 60 else 5.5
    names = style.shorten_names(results.classes)
    name = max(map(len, names)) * size * 0.0085
    figure, at = style.make_axes(side + name + 1.6, side + name + 1.0, xlabel="predicted", ylabel="truth")
    figure.set_layout_engine("compressed")  # the matrix is square, and the rest lies close to it
    at.set_title(
        f"{style.shorten(results.name, 60)}: share of each true class ({results.about})", fontsize=10
    )
    # The square root lets a confusion of one clip in fifty be seen beside a diagonal near 1.
    image = at.imshow(shares, cmap=style.MAP, norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    at.set_xticks(range(count), names, rotation=90, fontsize=size)
    at.set_yticks(range(count), names, fontsize=size)
    at.tick_params(length=0 if count <= 60 else 1, pad=2)
    at.spines[:].set_visible(False)
    if count > NUMBERED:  # the eye follows a line from a cell to its name
        at.set_xticks(np.arange(4.5, count - 1, 5), minor=True)
        at.set_yticks(np.arange(4.5, count - 1, 5), minor=True)
        at.grid(which="minor", color="white", alpha=0.35, linewidth=0.4)
        at.tick_params(which="minor", length=0)
    else:
        for row, column in zip(*np.nonzero(counts), strict=True):
            share = shares[row, column]
            text = f"{share:.2f}".removeprefix("0") if share < 1 else "1"
            at.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize=size - 0.5,
                color="black" if share > 0.45 else "white",
            )
    bar = figure.colorbar(image, ax=at, fraction=0.03, pad=0.015, ticks=[0, 0.02, 0.1, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels(["0", "2 %", "10 %", "25 %", "50 %", "75 %", "100 %"], fontsize=8)
    bar.outline.set_visible(False)
    return figure


def _draw_labels(results: Results) -> Figure:
    right, true, said = results.count_labels()
    order, names = np.arange(len(true)), style.shorten_names(results.classes)
    columns = -(-len(true) // 50)
    rows = -(-len(true) // columns)
    from matplotlib.figure import Figure

    figure = Figure((2.2 + 4.2 * columns, 1.1 + 0.19 * rows))
    parts = figure.subplots(1, columns, squeeze=False)[0]
    most = float(max((true + said - right).max(), 1))
    for index, at in enumerate(parts):
        mine = order[index * rows : (index + 1) * rows]
        y = np.arange(len(mine))
        start = np.zeros(len(mine))
        for values, colour, label in (
            (right, style.BLUE, "right"),
            (true - right, style.SKY, "overlooked"),
            (said - right, style.VERMILION, "wrongly given"),
        ):
            at.barh(y, values[mine], 0.75, left=start, color=colour, label=label)
            start += values[mine]
        at.set(ylim=(rows - 0.4, -0.6), xlim=(0, most), xlabel="clips")
        at.set_yticks(y, [names[c] for c in mine], fontsize=8)
        at.tick_params(axis="y", length=0)
        at.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(
        f"{style.shorten(results.name, 60)}: labels given and missed ({results.about})",
        fontsize=10,
        x=0.01,
        ha="left",
    )
    figure.legend(*parts[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
