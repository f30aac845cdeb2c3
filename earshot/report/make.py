"""A run's pictures, tables and report.html, written into its folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from earshot.core import fonts
from earshot.core.errors import UserError
from earshot.core.files import write_bytes, write_text
from earshot.report import confusion, curves, hardest_clips, html, per_class, results, style
from earshot.report.results import Results
from earshot.training import metrics, text_report
from earshot.training.tracking import try_or_log

HTML = "report.html"


def write_report(folder: Path, again: bool = True, log: Callable[[str], None] = print) -> Path | None:
    """Draw and write everything; returns the page's path.

    Args:
        again: also if the page shows these results already; else None is returned then.
        log: prints the warning about class names that no installed font can draw.
    Raises:
        UserError: no run there, a damaged one, or matplotlib is missing.
    """
    found = results.load_results(folder)
    digest = found.compute_digest()
    if not again and is_report_of(folder / HTML, digest):
        return None
    try:
        with style.apply_style():
            figures = {**curves.draw(found), **confusion.draw(found), **per_class.draw(found)}
            drawn = {f"{name}.png": style.render_png(figure) for name, figure in figures.items()}
            shown = {name: style.render_svg(figure, name) for name, figure in figures.items()}
        unnamed = fonts.format_warning(found.classes, f"{folder / HTML} has the names")
    except ImportError as error:
        raise UserError(f"pictures need matplotlib ({error}): pip install matplotlib") from None
    from earshot.audio import spectrogram

    hard = hardest_clips.find_hardest(found)
    clips = hardest_clips.draw_clips(found, hard)
    sheet = hardest_clips.paste_sheet([clips[clip.id] for clip in hard if clip.id in clips])
    if sheet is not None:
        drawn["hardest.png"] = spectrogram.encode_png(sheet)
    for name, data in drawn.items():
        write_bytes(folder / name, data)
    write_text(folder / "per_class.csv", per_class.to_csv(found))
    parts = _build_parts(
        found, shown, hard, {id: spectrogram.encode_png(image) for id, image in clips.items()}
    )
    # last: where it is, everything is
    write_text(folder / HTML, html.build_page(f"{found.name}: report", digest, parts))
    if unnamed:
        log(unnamed)
    return folder / HTML


def is_report_of(path: Path, digest: str) -> bool:
    """Is there a page of the results with this digest?"""
    if not path.is_file():
        return False
    with open(path, encoding="utf-8", errors="replace") as file:
        return f'content="{digest}"' in file.read(400)


def _build_parts(
    found: Results, shown: dict[str, str], hard: list[hardest_clips.HardClip], clips: dict[str, bytes]
) -> list[str]:
    several = found.multilabel
    folds = sorted({int(n) for n in found.folds})
    facts, command = found.list_facts()
    parts = [
        html.format_heading(found.name, 1),
        *([html.format_facts(facts, command)] if facts else []),
        html.format_paragraph(
            f"{len(found.ids)} clips, {len(found.classes)} classes{', multi-label' if several else ''}, "
            f"{len(folds)} folds. {_explain_scores(found)}"
        ),
        html.format_tiles(_list_tiles(found)),
    ]
    parts += _build_score_table(found)
    parts += html.format_legend("class", fonts.build_legend(found.classes))
    titles = {"loss_curves": "loss", "accuracy_curves": "accuracy", "f1_curves": "F1"}
    if any(name in shown for name in titles):
        parts += [
            html.format_heading("Training"),
            html.format_grid(
                html.embed_svg(shown[name], f"{title} by epoch") for name, title in titles.items()
            ),
        ]
    parts.append(html.format_columns(_build_blocks(found, shown)))
    if hard:
        parts.append(html.format_heading("Hardest clips"))
        parts.append(
            html.format_paragraph(
                "The mistakes with the largest loss; the numbers are predicted probabilities."
            )
        )
        numbers = {id: f"{number}: " for number, id in fonts.build_legend([c.id for c in hard])}
        lines = [
            f"{numbers.get(c.id, '')}{c.id} (fold {c.fold}): {c.truth}; predicted {c.predicted}" for c in hard
        ]
        parts.append(
            html.format_grid(
                html.embed_image(clips[c.id], f"mel spectrogram of {c.id}", line)
                if c.id in clips
                else html.format_paragraph(line)
                for c, line in zip(hard, lines, strict=True)
            )
        )
    parts += [
        html.format_heading("In full"),
        html.format_details("Classification report", _read_text_report(found)),
    ]
    if found.config:
        import yaml

        parts.append(
            html.format_details(
                "Settings",
                yaml.safe_dump(
                    {k: v for k, v in found.config.items() if k not in ("prior", "fingerprint")},
                    sort_keys=False,
                    allow_unicode=True,
                ),
            )
        )
    elif found.extra.get("members"):
        parts.append(
            html.format_table(
                ["member", "weight"],
                [(m, float(w)) for m, w in zip(found.extra["members"], found.extra["weights"], strict=True)],
            )
        )
    return parts


def _build_blocks(found: Results, shown: dict[str, str]) -> list[tuple[list[str], bool]]:
    """Confusion, mistakes, classes and calibration, each with whether it needs the page's full width."""
    several, count = found.multilabel, len(found.classes)
    matrix = [
        html.format_heading("True positives, missed, false positives" if several else "Confusion"),
        html.embed_svg(shown["confusion"], "labels per class" if several else "confusion matrix"),
    ]
    rows = [
        (style.shorten(truth, 40), style.shorten(predicted, 40), clips, f"{share:.1%}")
        for truth, predicted, clips, share in ([] if several else confusion.list_mistakes(found))
    ]
    table = html.format_table(["true class", "predicted", "clips", "share"], rows)
    classes = [
        html.format_heading("Classes"),
        html.embed_svg(shown["per_class"], "precision, recall and F1 per class"),
    ]
    calibration = [
        html.format_heading("Calibration"),
        html.embed_svg(shown["calibration"], "reliability diagram"),
        html.format_paragraph(
            "On the dashed line, predictions made with 80 % confidence are right 80 % of the time. "
            "ECE is the mean distance from it."
        ),
    ]
    return [
        (matrix, count > (per_class.PER_COLUMN if several else confusion.NUMBERED)),
        *([([html.format_heading("Most frequent mistakes"), table], False)] if rows else []),
        (classes, count > per_class.PER_COLUMN),
        (calibration, False),
    ]


def _explain_scores(found: Results) -> str:
    if found.config:
        return "Out-of-fold scores at the last epoch: each clip is scored by a model that never saw it."
    if found.extra.get("method") == "mean":
        return (
            "Out-of-fold scores of a blend: the mean of models that never saw the clip; nothing was fitted."
        )
    return (
        "Out-of-fold scores of a blend: each clip is scored by models that never saw it, with weights (and "
        "thresholds, if any) that were fitted on the other folds."
    )


def _list_tiles(found: Results) -> list[tuple[str, str, str]]:
    """The scores to be seen first; the first with its standard deviation over the folds."""
    spread = found.compute_spread(found.headline)
    tiles = []
    for name in dict.fromkeys((found.headline, found.metric, "f1_macro", "accuracy", "log_loss")):
        label = curves.NAMES.get(name, name)
        if found.multilabel and name in (*metrics.OF_SEVERAL, "accuracy"):
            label = f"{'all labels right' if name == 'accuracy' else label} (threshold {metrics.THRESHOLD})"
        if name == found.headline and spread is not None:
            label += f", ± std over {len(np.unique(found.folds))} folds"
        shown = f"± {spread:.4f}" if name == found.headline and spread is not None else ""
        tiles.append((f"{found.scores[name]:.4f}", shown, label))
    return tiles


def _build_score_table(found: Results) -> list[str]:
    """The last epoch, the best one, the hold-out, and each fold by the number that --fold takes."""
    names = [name for name in found.scores if name not in (found.headline, "log_loss")]
    names = [found.headline, *names, *(["log_loss"] if found.headline != "log_loss" else [])]
    rows: list[tuple[str, dict[str, Any]]] = [
        ("last epoch (unbiased)" if found.config else found.about, found.scores)
    ]
    best, test = found.extra.get("scores", {}).get("best"), found.extra.get("test")
    rows += [("best epoch (optimistic)", best)] if isinstance(best, dict) else []
    rows += [("hold-out", test)] if isinstance(test, dict) else []
    rows += [
        (f"fold {n}", metrics.compute_scores(found.probabilities[mine], found.labels[mine], found.metric))
        for n in sorted({int(n) for n in found.folds})
        for mine in [found.folds == n]
    ]
    return [
        html.format_table(
            ["", *names], [(label, *(values.get(name, "") for name in names)) for label, values in rows]
        )
    ]


def _read_text_report(found: Results) -> str:
    path = found.folder / "report_last.txt"
    if found.config and path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    return text_report.format_report(found.probabilities, found.labels, found.classes)


def report_on(folder: Path, log: Callable[[str], None]) -> None:
    """Draw the pictures and report.html of a run or a saved blend, unless they are up to date."""

    def draw() -> None:
        write_report(folder, again=False, log=log)
        log(f"report: {folder / HTML}")

    try_or_log("the report", log, draw)
