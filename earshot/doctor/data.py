"""Is the data fit to learn from, and will its score hold? Every check over one cache, as lines, csv files and
pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import prod
from pathlib import Path

from earshot.competition import suspicious
from earshot.core import fonts, kinds
from earshot.core.errors import UserError
from earshot.core.files import check_output, hold_lock, write_text
from earshot.doctor import balance_and_shift, duplicates, label_errors, plots
from earshot.doctor import embeddings as clips_of
from earshot.doctor.embeddings import KINDS, Clips
from earshot.doctor.findings import Finding, report_ok, warn
from earshot.doctor.flags import DataFlags
from earshot.features import cache as caches
from earshot.features.cache import Cache
from earshot.features.schema import validate_manifest

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
    "data_report.md",
)


def find_cache(folder: Path) -> Path:
    """The cache itself, else the one below a competition's folder whose clips compare best.

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
            f"--data {folder}: no cache there: make one with get_features.py, then name data/<competition>"
        )

    def rank(path: Path) -> tuple[int, int]:
        manifest = caches.read_manifest(path / caches.MANIFEST)
        if not manifest.get("complete") or validate_manifest(manifest):
            return len(KINDS), 0
        by_view = caches.get_kinds(manifest)
        view = kinds.choose(KINDS, by_view)
        # of two of a kind the smaller one
        return (
            (len(KINDS), 0) if view is None else (KINDS.index(by_view[view]), prod(manifest["shapes"][view]))
        )

    return min(below, key=rank)


def find_comparable(clips: Clips) -> Path | None:
    """Another cache of the same clips with a log-mel view, by which copies are found more surely; None where
    there is none."""
    if clips.kind == "spectrogram":
        return None
    for path in sorted(clips.cache.folder.parent.glob(f"*/{caches.MANIFEST}")):
        try:
            other = Cache(path.parent)
        except UserError:
            continue  # half-made, or of another version
        view = kinds.choose(KINDS, other.kinds)
        if (
            view
            and other.kinds[view] == "spectrogram"
            and other.record["clips"] == clips.cache.record["clips"]
        ):
            return path.parent
    return None


def check_data(flags: DataFlags, say: Callable[[str], None]) -> list[Finding]:
    """Run every check, write the report, say each line; the findings.

    Raises:
        UserError: no cache, no run, a place that cannot be written.
    """
    folder = find_cache(Path(flags.data))
    cache = Cache(folder)
    out = Path(flags.out or Path("reports") / f"{folder.resolve().parent.name}-{folder.resolve().name}")
    if out.is_file():
        raise UserError(f"--out {out} is a file: name a folder")
    check_output(out / "data_report.md")
    oof, folds = None, None
    if flags.runs:
        oof, folds = label_errors.read_out_of_fold(
            flags.runs, flags.runs_folder, cache.split("train")["ids"], cache.classes
        )
    clips = clips_of.load_clips(folder, folds)
    with hold_lock(out, "the report"):
        for name in FILES:  # of an earlier look: what is not found again must not be read again
            (out / name).unlink(missing_ok=True)
        findings: list[Finding] = []

        def tell(lines: Iterable[Finding]) -> None:
            for finding in lines:
                findings.append(finding)
                say(str(finding))

        summary = (
            f"data: {folder}, {len(clips.ids)} clips, {clips.whose}, compared by {clips.view or 'nothing'}"
        )
        say(summary)
        tell(_check_classes(cache))
        tell(balance_and_shift.check_balance(clips, out))
        tell(balance_and_shift.check_durations(clips))
        tell(balance_and_shift.check_audio(clips))
        near = None
        if clips.view is None:
            lacking = "no view to compare clips by (waveforms and codes say nothing of likeness)"
            hint = "get_features.py --extractor logmel makes one in minutes"
            tell([warn(f"{lacking}: no duplicates, neighbours or shift; {hint}")])
        else:
            near = _check_duplicates(clips, flags.threshold, folds, out, tell)
        tell(label_errors.write_suspicious(clips, oof, out))
        if clips.view is not None:
            tell(balance_and_shift.check_shift(clips, out))
        tell(_draw_pictures(clips, near, out))
        _write_report(summary, findings, out, clips.cache.classes)
        say(f"report: {out / 'data_report.md'}")
    return findings


def _check_classes(cache: Cache) -> Iterator[Finding]:
    """Warnings on classes that may be none, by their names and the clips' ids."""
    if cache.multilabel:
        return
    parts = {name: cache.split(name) for name in ("train", "test") if cache.has_split(name)}
    labels = {name: content["labels"].tolist() for name, content in parts.items()}
    lines = suspicious.warn_class_folders(parts["train"]["ids"].tolist(), labels["train"], "classes")
    lines += suspicious.warn_unknown_test_classes(set(labels["train"]), set(labels.get("test", ())))
    for line in lines:
        yield warn(line.removeprefix("warning: "))


def _check_duplicates(
    clips: Clips, threshold: float | None, folds: dict | None, out: Path, tell: Callable
) -> duplicates.Duplicates | None:
    other = find_comparable(clips)
    by = clips_of.load_clips(other, folds) if other else clips
    if by.heard.sum() < 3:
        tell([report_ok("fewer than 3 clips can be heard: no duplicates to look for")])
        return None
    pairs = duplicates.find_duplicates(by, threshold)
    tell(duplicates.write_duplicates(by, pairs, out))
    text = f"copies looked for {f'in the log-mel of {other}' if other else f'by {by.view}'}, {pairs.least}"
    if not other and by.kind != "spectrogram":
        text += (
            "; cropped ones are found more surely once get_features.py --extractor logmel has been run for "
            "this competition"
        )
    tell([report_ok(text)])
    return pairs


def _draw_pictures(clips: Clips, near: duplicates.Duplicates | None, out: Path) -> Iterator[Finding]:
    try:
        yield report_ok(f"pictures: {', '.join(plots.draw_pictures(clips, near, out))} in {out}")
    except ImportError:
        yield warn("no pictures: pip install matplotlib")
        return
    unnamed = fonts.format_warning(clips.cache.classes, "data_report.md has the names")
    if unnamed:
        yield warn(unnamed.removeprefix("warning: "))


def _write_report(summary: str, findings: list[Finding], out: Path, classes: list[str]) -> None:
    lines = ["# Data report", "", summary, ""]
    for level in ("stop", "warning", "ok"):
        lines += [f"- **{level}** {finding.text}" for finding in findings if finding.level == level]
    files = [name for name in FILES[:-1] if (out / name).exists()]
    tables, pictures = ([name for name in files if name.endswith(end)] for end in (".csv", ".png"))
    lines += [
        "",
        f"Tables: {', '.join(f'[{name}]({name})' for name in tables)}",
        "",
        *(f"![{name}]({name})\n" for name in pictures),
    ]
    for number, name in fonts.build_legend(classes) if pictures else []:
        lines.append(f"- {number} in the pictures: {name}")
    write_text(out / "data_report.md", "\n".join(lines).rstrip("\n") + "\n")
