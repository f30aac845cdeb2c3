"""A run's pictures, tables and report.html, into its own folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from earshot.core import fonts
from earshot.core.errors import UserError
from earshot.core.files import write_bytes, write_text
from earshot.report import confusion, curves, hardest_clips, html, per_class, results, style
from earshot.report.results import Results
from earshot.training import metrics, text_report
from earshot.training.tracking import try_or_log

HTML = "report.html"


def write_report(folder: Path, again: bool = True, say: Callable[[str], None] = print) -> Path | None:
    """Draw and write everything; the page's path.

    Args:
        again: also where the page is of these very results; else None is returned for it.
        say: gets the line about class names that no installed font can draw.
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
            drawn = {name: style.render_png(figure) for name, figure in figures.items()}
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
        found, drawn, hard, {id: spectrogram.encode_png(image) for id, image in clips.items()}
    )
    # last: it says that all is there
    write_text(folder / HTML, html.build_page(f"{found.name}: report", digest, parts))
    if unnamed:
        say(unnamed)
    return folder / HTML


def is_report_of(path: Path, digest: str) -> bool:
    """Is a page of the results with this digest?"""
    if not path.is_file():
        return False
    with open(path, encoding="utf-8", errors="replace") as file:
        return f'content="{digest}"' in file.read(400)


def _build_parts(
    found: Results, drawn: dict[str, bytes], hard: list[hardest_clips.HardClip], clips: dict[str, bytes]
) -> list[str]:
    several = found.multilabel
    folds = sorted({int(n) for n in found.folds})
    parts = [
        html.format_heading(found.name, 1),
        html.format_paragraph(
            f"{len(found.ids)} clips, {len(found.classes)} "
            f"classes{', any number of them a clip' if several else ''}, {len(folds)} folds. All below is "
            f"{found.about}: {_explain_scores(found)}"
        ),
        html.format_tiles(_list_tiles(found)),
    ]
    parts += _build_score_table(found)
    parts += html.format_legend("class", fonts.build_legend(found.classes))
    titles = {"loss_curves.png": "Loss", "accuracy_curves.png": "Accuracy", "f1_curves.png": "F1"}
    if any(name in drawn for name in titles):
        parts += [
            html.format_heading("Training"),
            html.format_grid(
                html.embed_image(drawn[name], f"{title} by epoch") for name, title in titles.items()
            ),
        ]
    parts.append(html.format_heading("Labels given and missed" if several else "Confusion"))
    parts.append(
        html.embed_image(
            drawn["confusion.png"],
            "labels per class" if several else "confusion matrix",
            wide=len(found.classes) > 25,
        )
    )
    if not several:
        mistakes = confusion.list_mistakes(found)
        if mistakes:
            parts.append(
                html.format_table(
                    ["truth", "predicted", "clips", "of the truth's"],
                    [
                        (style.shorten(t, 40), style.shorten(s, 40), n, f"{100 * share:.0f} %")
                        for t, s, n, share in mistakes
                    ],
                )
            )
    parts += [
        html.format_heading("Classes"),
        html.embed_image(
            drawn["per_class.png"], "precision, recall and F1 per class", wide=len(found.classes) > 50
        ),
        html.format_heading("Calibration"),
        html.embed_image(drawn["calibration.png"], "reliability diagram"),
        html.format_paragraph(
            "On the dashed line, of the answers with a probability of 0.8 eight in ten are right. "
            "ECE is the mean distance from it."
        ),
    ]
    if hard:
        parts.append(html.format_heading("Hardest clips"))
        parts.append(
            html.format_paragraph(
                "The mistakes with the largest loss, each class with the probability that it got."
            )
        )
        numbers = {id: f"{number}: " for number, id in fonts.build_legend([c.id for c in hard])}
        lines = [
            f"{numbers.get(c.id, '')}{c.id} (fold {c.fold}): is {c.truth}; predicted {c.said}" for c in hard
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


def _explain_scores(found: Results) -> str:
    if found.config:
        return "no clip was trained on by the model that answers it, and no epoch was chosen."
    if found.extra.get("method") == "mean":
        return "the plain mean of models that have not seen the clip; nothing was fitted."
    return (
        "its weights, and factors or thresholds if it has any, were fitted to other folds than those that "
        "they are scored on."
    )


def _list_tiles(found: Results) -> list[tuple[str, str]]:
    shown = [(found.metric, curves.NAMES.get(found.metric, found.metric))]
    shown += [
        (name, label)
        for name, label in (("f1_macro", "macro-F1"), ("accuracy", "accuracy"), ("log_loss", "log loss"))
        if name != found.metric
    ]
    return [(f"{found.scores[name]:.4f}", label) for name, label in shown if name in found.scores]


def _build_score_table(found: Results) -> list[str]:
    """The final epoch beside the chosen one and the hold-out, and each fold."""
    names = [name for name in found.scores if name != "log_loss"] + ["log_loss"]
    rows: list[tuple[str, dict[str, Any]]] = [
        (f"{found.about} (honest)" if found.config else found.about, found.scores)
    ]
    best, test = found.extra.get("scores", {}).get("best"), found.extra.get("test")
    rows += [("best epoch of each fold (flatters)", best)] if isinstance(best, dict) else []
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


def report_on(folder: Path, say: Callable[[str], None]) -> None:
    """Draw the pictures and report.html of a run or a kept blend, unless they are there."""

    def draw() -> None:
        write_report(folder, again=False, say=say)
        say(f"report: {folder / HTML}")

    try_or_log("the report", say, draw)
