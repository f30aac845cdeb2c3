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


def make(folder: Path, again: bool = True, say: Callable[[str], None] = print) -> Path | None:
    """Draw and write everything; the page's path.

    Args:
        again: also where the page is of these very results; else None is returned for it.
        say: gets the line about class names that no installed font can draw.
    Raises:
        UserError: no run there, a damaged one, or matplotlib is missing.
    """
    found = results.load(folder)
    digest = found.digest()
    if not again and is_of(folder / HTML, digest):
        return None
    try:
        with style.style():
            figures = {**curves.draw(found), **confusion.draw(found), **per_class.draw(found)}
            drawn = {name: style.png(figure) for name, figure in figures.items()}
        unnamed = fonts.format_warning(found.classes, f"{folder / HTML} has the names")
    except ImportError as error:
        raise UserError(f"pictures need matplotlib ({error}): pip install matplotlib") from None
    from earshot.audio import spectrogram

    hard = hardest_clips.find(found)
    clips = hardest_clips.pictures(found, hard)
    sheet = hardest_clips.sheet([clips[clip.id] for clip in hard if clip.id in clips])
    if sheet is not None:
        drawn["hardest.png"] = spectrogram.encode_png(sheet)
    for name, data in drawn.items():
        write_bytes(folder / name, data)
    write_text(folder / "per_class.csv", per_class.as_csv(found))
    parts = _parts(found, drawn, hard, {id: spectrogram.encode_png(image) for id, image in clips.items()})
    # last: it says that all is there
    write_text(folder / HTML, html.page(f"{found.name}: report", digest, parts))
    if unnamed:
        say(unnamed)
    return folder / HTML


def is_of(path: Path, digest: str) -> bool:
    """Is a page of the results with this digest?"""
    if not path.is_file():
        return False
    with open(path, encoding="utf-8", errors="replace") as file:
        return f'content="{digest}"' in file.read(400)


def _parts(
    found: Results, drawn: dict[str, bytes], hard: list[hardest_clips.Hard], clips: dict[str, bytes]
) -> list[str]:
    several = found.multilabel
    folds = sorted({int(n) for n in found.folds})
    parts = [
        html.heading(found.name, 1),
        html.paragraph(
            f"{len(found.ids)} clips, {len(found.classes)} "
            f"classes{', any number of them a clip' if several else ''}, {len(folds)} folds. All below is "
            f"{found.about}: {_honest(found)}"
        ),
        html.tiles(_tiles(found)),
    ]
    parts += _scores(found)
    parts += html.numbers("class", fonts.build_legend(found.classes))
    titles = {"loss_curves.png": "Loss", "accuracy_curves.png": "Accuracy", "f1_curves.png": "F1"}
    if any(name in drawn for name in titles):
        parts += [
            html.heading("Training"),
            html.grid(html.image(drawn[name], f"{title} by epoch") for name, title in titles.items()),
        ]
    parts.append(html.heading("Labels given and missed" if several else "Confusion"))
    parts.append(
        html.image(
            drawn["confusion.png"],
            "labels per class" if several else "confusion matrix",
            wide=len(found.classes) > 25,
        )
    )
    if not several:
        mistakes = confusion.pairs(found)
        if mistakes:
            parts.append(
                html.table(
                    ["truth", "predicted", "clips", "of the truth's"],
                    [
                        (style.short(t, 40), style.short(s, 40), n, f"{100 * share:.0f} %")
                        for t, s, n, share in mistakes
                    ],
                )
            )
    parts += [
        html.heading("Classes"),
        html.image(
            drawn["per_class.png"], "precision, recall and F1 per class", wide=len(found.classes) > 50
        ),
        html.heading("Calibration"),
        html.image(drawn["calibration.png"], "reliability diagram"),
        html.paragraph(
            "On the dashed line, of the answers with a probability of 0.8 eight in ten are right. "
            "ECE is the mean distance from it."
        ),
    ]
    if hard:
        parts.append(html.heading("Hardest clips"))
        parts.append(
            html.paragraph("The mistakes with the largest loss, each class with the probability that it got.")
        )
        numbers = {id: f"{number}: " for number, id in fonts.build_legend([c.id for c in hard])}
        lines = [
            f"{numbers.get(c.id, '')}{c.id} (fold {c.fold}): is {c.truth}; predicted {c.said}" for c in hard
        ]
        parts.append(
            html.grid(
                html.image(clips[c.id], f"mel spectrogram of {c.id}", line)
                if c.id in clips
                else html.paragraph(line)
                for c, line in zip(hard, lines, strict=True)
            )
        )
    parts += [html.heading("In full"), html.folded("Classification report", _report(found))]
    if found.config:
        import yaml

        parts.append(
            html.folded(
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
            html.table(
                ["member", "weight"],
                [(m, float(w)) for m, w in zip(found.extra["members"], found.extra["weights"], strict=True)],
            )
        )
    return parts


def _honest(found: Results) -> str:
    if found.config:
        return "no clip was trained on by the model that answers it, and no epoch was chosen."
    if found.extra.get("method") == "mean":
        return "the plain mean of models that have not seen the clip; nothing was fitted."
    return (
        "its weights, and factors or thresholds if it has any, were fitted to other folds than those that "
        "they are scored on."
    )


def _tiles(found: Results) -> list[tuple[str, str]]:
    shown = [(found.metric, curves.NAMES.get(found.metric, found.metric))]
    shown += [
        (name, label)
        for name, label in (("f1_macro", "macro-F1"), ("accuracy", "accuracy"), ("log_loss", "log loss"))
        if name != found.metric
    ]
    return [(f"{found.scores[name]:.4f}", label) for name, label in shown if name in found.scores]


def _scores(found: Results) -> list[str]:
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
        html.table(
            ["", *names], [(label, *(values.get(name, "") for name in names)) for label, values in rows]
        )
    ]


def _report(found: Results) -> str:
    path = found.folder / "report_last.txt"
    if found.config and path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    return text_report.format_report(found.probabilities, found.labels, found.classes)


def report_on(folder: Path, say: Callable[[str], None]) -> None:
    """Draw the pictures and report.html of a run or a kept blend, unless they are there."""

    def draw() -> None:
        make(folder, again=False, say=say)
        say(f"report: {folder / HTML}")

    try_or_log("the report", say, draw)
