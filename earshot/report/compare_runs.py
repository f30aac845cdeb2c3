"""Several runs side by side: a table, and a picture of their scores overall and by fold."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earshot.core import fonts
from earshot.core.errors import UserError
from earshot.core.files import hash_value, write_bytes, write_text
from earshot.report import html, results, style
from earshot.report.curves import NAMES
from earshot.report.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_comparison(folders: list[Path], out: Path) -> list[str]:
    """Write comparison.csv, comparison.png and comparison.html; returns the lines to print, best run first.

    Raises:
        UserError: none of the runs has finished a fold.
    """
    found, lines = [], []
    for folder in folders:
        try:
            found.append(results.load_results(folder))
        except UserError as error:
            lines.append(f"skipped: {error}")
    if not found:
        raise UserError("; ".join(lines[:2]) or "no run")
    headlines = sorted({one.headline for one in found})
    is_common = len(headlines) == 1 and all(headlines[0] in one.scores for one in found)
    metric = headlines[0] if is_common else "f1_macro"
    worse = metric == "log_loss"
    found.sort(key=lambda one: (one.scores[metric] * (1 if worse else -1), one.name))
    clips = [hash_value([sorted(one.ids.tolist()), one.classes])[:6] for one in found]
    rows = [_build_row(one, metric, same) for one, same in zip(found, clips, strict=True)]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_text(out / "comparison.csv", text.getvalue())
    try:
        with style.apply_style():
            figure = _draw_scores(found, metric)
            drawn, shown = style.render_png(figure), style.render_svg(figure, "scores")
        names = [one.name for one in found]
        unnamed = fonts.format_warning(names, f"{out / 'comparison.html'} has the names")
    except ImportError as error:
        raise UserError(
            f"pictures need matplotlib ({error}): pip install matplotlib; {out}/comparison.csv has the table"
        ) from None
    write_bytes(out / "comparison.png", drawn)
    cautions = (
        []
        if len(set(clips)) == 1
        else ["warning: not all runs have the same clips and classes: compare only rows with equal `clips`"]
    )
    reports = {one.name: one.folder / "report.html" for one in found}
    links = {
        name: html.format_link(name, os.path.relpath(path, out))
        for name, path in reports.items()
        if path.is_file()
    }
    unlinked = [one.name for one in found if one.name not in links]
    hint = f"No report yet: {', '.join(unlinked)}; python -m earshot.report RUN makes it." if unlinked else ""
    parts = [
        html.format_heading("Runs compared", 1),
        html.format_paragraph(
            f"Ordered by {NAMES.get(metric, metric)}, out-of-fold at the last epoch, pooled over the folds. "
            "The best epoch was chosen on the validation fold: its score is optimistic."
        ),
        *map(html.format_paragraph, cautions),
        html.embed_svg(shown, f"{metric} of each run"),
        *html.format_legend("run", fonts.build_legend(names)),
        html.format_table(
            list(rows[0]), [[links.get(row["run"], row["run"]), *list(row.values())[1:]] for row in rows]
        ),
        *([html.format_paragraph(hint)] if hint else []),
    ]
    write_text(out / "comparison.html", html.build_page("Runs compared", hash_value(rows)[:16], parts))
    width = max(len(str(row["run"])) for row in rows)
    lines += [
        f"{row['run']:<{width}}  {metric} {row[metric]:.4f} ± {row['fold std']:.4f} over {row['folds']} "
        f"folds  accuracy {row['accuracy']:.4f}  log_loss {row['log_loss']:.4f}  {row['clips']}"
        for row in rows
    ]
    return [
        *lines,
        *cautions,
        *filter(None, [unnamed]),
        f"comparison: {out / 'comparison.html'}, comparison.png, comparison.csv",
    ]


def _build_row(one: Results, metric: str, digest: str) -> dict[str, Any]:
    record = one.config.get("record", {})
    spread = list(one.score_folds(metric).values())
    best = one.extra.get("scores", {}).get("best")
    test = one.extra.get("test", {})
    names = list(dict.fromkeys([metric, "f1_macro", "accuracy", "log_loss"]))
    return {
        "run": one.name,
        **{name: one.scores[name] for name in names},
        "fold std": float(np.std(spread)),
        "best epoch": best.get(metric, "") if isinstance(best, dict) else "",
        "hold-out": test.get(metric, ""),
        "head": record.get("head", {}).get("name", f"blend of {len(one.extra.get('members', []))}"),
        "view": record.get("view", ""),
        "features": record.get("features", {}).get("extractor", ""),
        "epochs": record.get("training", {}).get("epochs", ""),
        "folds": len(np.unique(one.folds)),
        "clips": f"{len(one.ids)} ({digest})",
    }


def _draw_scores(found: list[Results], metric: str) -> Figure:
    figure, at = style.make_axes(5, 1.3 + 0.3 * max(len(found), 2), xlabel=NAMES.get(metric, metric))
    at.set_title("Out-of-fold scores", fontsize=10)
    best = []
    for y, one in enumerate(found):
        folds = list(one.score_folds(metric).values())
        at.plot(
            folds,
            [y] * len(folds),
            "|",
            color=style.GREY,
            markersize=9,
            markeredgewidth=1.3,
            label="each fold" if not y else None,
        )
        scores = one.extra.get("scores", {}).get("best")
        if isinstance(scores, dict) and isinstance(scores.get(metric), float):
            best.append((scores[metric], y))
    if best:
        at.plot(
            *zip(*best, strict=True),
            "o",
            markerfacecolor=style.PAPER,
            color=style.VERMILION,
            markersize=7,
            label="best epoch (optimistic)",
        )
    at.plot(
        [one.scores[metric] for one in found],
        range(len(found)),
        "o",
        color=style.BLUE,
        markersize=6,
        label="last epoch (unbiased)",
    )
    at.set_yticks(range(len(found)), style.shorten_names([one.name for one in found], 28))
    at.set_ylim(len(found) - 0.4, -0.6)
    at.margins(x=0.03)
    at.tick_params(axis="y", length=0)
    at.grid(axis="x")
    figure.legend(*at.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
