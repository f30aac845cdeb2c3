"""Checks of a cache: duplicates, labels, classes, durations and shift, as lines, csv files and a page."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from math import prod
from pathlib import Path

from earshot.competition import suspicious
from earshot.core import fonts, kinds
from earshot.core.errors import UserError
from earshot.core.files import check_output, hash_value, hold_lock, write_text
from earshot.doctor import balance_and_shift, duplicates, label_errors, plots
from earshot.doctor import embeddings as clips_of
from earshot.doctor.embeddings import KINDS, Clips
from earshot.doctor.findings import Finding, report_ok, warn
from earshot.doctor.flags import DataFlags
from earshot.features import cache as caches
from earshot.features.cache import Cache
from earshot.features.schema import validate_manifest
from earshot.report import html

PAGE = "data_report.html"
SHOWN = 20  # rows of a table on the page
TABLES = {
    "duplicates.csv": "Near-duplicates",
    "suspicious_labels.csv": "Possibly mislabelled",
    "submission_like.csv": "Training clips most like the submission",
}
FILES = (
    "duplicates.csv",
    "groups.csv",
    "suspicious_labels.csv",
    "submission_like.csv",
    "class_balance.csv",
    "class_balance.png",
    "durations.png",
    "neighbours.png",
    "map.png",
    PAGE,
    "data_report.md",  # of earlier releases
)


def find_cache(folder: Path) -> Path:
    """The folder itself if it is a cache, else the cache in it whose view compares clips best.

    Raises:
        UserError: no cache there.
    """
    if caches.is_cache(folder):
        return folder
    below = [
        path.parent for path in sorted(folder.glob(f"*/{caches.MANIFEST}")) if caches.is_cache(path.parent)
    ]
    if not below:
        raise UserError(
            f"--data {folder}: no cache there: make one with get_features.py, then give data/<competition>"
        )

    def rank(path: Path) -> tuple[int, int]:
        manifest = caches.read_manifest(path / caches.MANIFEST)
        if not manifest.get("complete") or validate_manifest(manifest):
            return len(KINDS), 0
        by_view = caches.get_kinds(manifest)
        view = kinds.choose(KINDS, by_view)
        # of two caches of a kind the smaller one
        return (
            (len(KINDS), 0) if view is None else (KINDS.index(by_view[view]), prod(manifest["shapes"][view]))
        )

    return min(below, key=rank)


def find_comparable(clips: Clips) -> Path | None:
    """Another cache of the same clips with a log-mel view, which finds copies more reliably; None without
    one."""
    if clips.kind == "spectrogram":
        return None
    for path in sorted(clips.cache.folder.parent.glob(f"*/{caches.MANIFEST}")):
        try:
            other = Cache(path.parent)
        except UserError:
            continue  # unfinished, or of another version
        view = kinds.choose(KINDS, other.kinds)
        if (
            view
            and other.kinds[view] == "spectrogram"
            and other.record["clips"] == clips.cache.record["clips"]
        ):
            return path.parent
    return None


def check_data(flags: DataFlags, log: Callable[[str], None]) -> list[Finding]:
    """Run every check, print each line, write the report; returns the findings.

    Raises:
        UserError: no cache, no such run, or a folder that cannot be written.
    """
    folder = find_cache(Path(flags.data))
    cache = Cache(folder)
    out = Path(flags.out or Path("reports") / f"{folder.resolve().parent.name}-{folder.resolve().name}")
    if out.is_file():
        raise UserError(f"--out {out} is a file: give a folder")
    check_output(out / PAGE)
    oof, folds = None, None
    if flags.runs:
        oof, folds = label_errors.read_out_of_fold(
            flags.runs, flags.runs_folder, cache.split("train")["ids"], cache.classes
        )
    clips = clips_of.load_clips(folder, folds)
    with hold_lock(out, "the report"):
        for name in FILES:  # nothing of an earlier report may stay
            (out / name).unlink(missing_ok=True)
        findings: list[Finding] = []

        def report(lines: Iterable[Finding]) -> None:
            for finding in lines:
                findings.append(finding)
                log(str(finding))

        compared = f"compared by the view {clips.view}" if clips.view else "no view to compare clips by"
        summary = f"data: {folder}, {len(clips.ids)} clips, {clips.fold_note}, {compared}"
        log(summary)
        report(_check_classes(cache))
        report(balance_and_shift.check_balance(clips, out))
        report(balance_and_shift.check_durations(clips))
        report(balance_and_shift.check_audio(clips))
        near = None
        if clips.view is None:
            lacking = "no view to compare clips by (waveforms and codes do not serve)"
            hint = "run get_features.py --extractor logmel first"
            report([warn(f"{lacking}: duplicates, neighbours and shift are not checked: {hint}")])
        else:
            near = _check_duplicates(clips, flags.threshold, folds, out, report)
        report(label_errors.write_suspicious(clips, oof, out))
        if clips.view is not None:
            report(balance_and_shift.check_shift(clips, out))
        pictures, lines = _draw_pictures(clips, near, out)
        report(lines)
        _write_report(summary, findings, out, clips.cache.classes, pictures)
        log(f"report: {out / PAGE}")
    return findings


def _check_classes(cache: Cache) -> Iterator[Finding]:
    """Warnings on classes that are probably not classes, by their names and the clips' ids."""
    if cache.multilabel:
        return
    parts = {name: cache.split(name) for name in ("train", "test") if cache.has_split(name)}
    labels = {name: content["labels"].tolist() for name, content in parts.items()}
    lines = suspicious.warn_class_folders(parts["train"]["ids"].tolist(), labels["train"], "classes")
    lines += suspicious.warn_unknown_test_classes(set(labels["train"]), set(labels.get("test", ())))
    for line in lines:
        yield warn(line.removeprefix("warning: "))


def _check_duplicates(
    clips: Clips, threshold: float | None, folds: dict | None, out: Path, report: Callable
) -> duplicates.Duplicates | None:
    other = find_comparable(clips)
    by = clips_of.load_clips(other, folds) if other else clips
    if by.embedded.sum() < 3:
        report([report_ok("duplicates: not checked, fewer than 3 clips have audio")])
        return None
    pairs = duplicates.find_duplicates(by, threshold)
    report(duplicates.write_duplicates(by, pairs, out))
    features = f"the log-mel features of {other}" if other else f"the view {by.view}"
    text = f"near-duplicates are pairs with a {pairs.least} in {features}"
    if not other and by.kind != "spectrogram":
        text += "; get_features.py --extractor logmel makes features that find cropped copies more reliably"
    report([report_ok(text)])
    return pairs


def _draw_pictures(
    clips: Clips, near: duplicates.Duplicates | None, out: Path
) -> tuple[dict[str, str], list[Finding]]:
    try:
        pictures = plots.draw_pictures(clips, near, out)
    except ImportError:
        return {}, [warn("no pictures: pip install matplotlib")]
    lines = [report_ok(f"pictures: {', '.join(pictures)} in {out}")]
    unnamed = fonts.format_warning(clips.cache.classes, f"{PAGE} has the names")
    return pictures, lines + ([warn(unnamed.removeprefix("warning: "))] if unnamed else [])


def _write_report(
    summary: str, findings: list[Finding], out: Path, classes: list[str], pictures: dict[str, str]
) -> None:
    lines = [
        (level, finding.text)
        for level in ("stop", "warning", "ok")
        for finding in findings
        if finding.level == level
    ]
    tables = [name for name in FILES if name.endswith(".csv") and (out / name).exists()]
    links = ", ".join(html.format_link(name, name) for name in tables)
    parts = [
        html.format_heading("Data report", 1),
        html.format_paragraph(summary),
        html.format_lines(lines),
        html.format_paragraph(html.Markup(f"Tables: {links}")),
    ]
    if pictures:
        wide = len(classes) > plots.NAMED
        shown = [([html.embed_svg(svg, name)], wide and name == "map.png") for name, svg in pictures.items()]
        parts += [html.format_heading("Pictures"), html.format_columns(shown)]
        parts += html.format_legend("class", fonts.build_legend(classes))
    for name, title in TABLES.items():
        if name in tables:
            parts += _format_first_rows(out / name, title)
    write_text(out / PAGE, html.build_page("Data report", hash_value(lines)[:16], parts))


def _format_first_rows(path: Path, title: str) -> list[str]:
    with open(path, newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    if not rows:
        return []
    more = len(rows) - SHOWN
    rest = html.Markup(f"{more} more in {html.format_link(path.name, path.name)}")
    return [
        html.format_heading(title),
        html.format_table(head, rows[:SHOWN], words=True),
        *([html.format_paragraph(rest)] if more > 0 else []),
    ]
