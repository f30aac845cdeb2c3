"""Is the data fit to learn from, and will its score hold? Every check over one cache, as lines, csv files and
pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from earshot.competition import suspicious
from earshot.core import fonts
from earshot.core.errors import UserError
from earshot.core.files import check_output, locked, write_text
from earshot.doctor import balance_and_shift, duplicates, label_errors, plots
from earshot.doctor import embeddings as clips_of
from earshot.doctor.embeddings import LEVELS, VIEWS, Clips
from earshot.doctor.findings import Finding, ok, warning
from earshot.doctor.flags import DataFlags
from earshot.features import cache as caches
from earshot.features.cache import Cache

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


def pick(folder: Path) -> Path:
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
    order = {view: index for index, view in enumerate(VIEWS)}

    def rank(path: Path) -> int:
        shapes = caches.peek(path / caches.MANIFEST).get("shapes")
        return min(
            (order.get(view, len(VIEWS)) for view in (shapes if isinstance(shapes, dict) else ())),
            default=len(VIEWS),
        )

    return min(below, key=rank)


def comparable(clips: Clips) -> Path | None:
    """Another cache of the same clips with a log-mel view, by which copies are found more surely; None where
    there is none."""
    if clips.view in LEVELS:
        return None
    for path in sorted(clips.cache.folder.parent.glob(f"*/{caches.MANIFEST}")):
        try:
            other = Cache(path.parent)
        except UserError:
            continue  # half-made, or of another version
        view = next((v for v in VIEWS if v in other.shapes), None)
        if view in LEVELS and other.record["clips"] == clips.cache.record["clips"]:
            return path.parent
    return None


def look(flags: DataFlags, say: Callable[[str], None]) -> list[Finding]:
    """Run every check, write the report, say each line; the findings.

    Raises:
        UserError: no cache, no run, a place that cannot be written.
    """
    folder = pick(Path(flags.data))
    cache = Cache(folder)
    out = Path(flags.out or Path("reports") / f"{folder.resolve().parent.name}-{folder.resolve().name}")
    if out.is_file():
        raise UserError(f"--out {out} is a file: name a folder")
    check_output(out / "data_report.md")
    oof, folds = None, None
    if flags.runs:
        oof, folds = label_errors.out_of_fold(
            flags.runs, flags.runs_folder, cache.split("train")["ids"], cache.classes
        )
    clips = clips_of.load(folder, folds)
    with locked(out, "the report"):
        for name in FILES:  # of an earlier look: what is not found again must not be read again
            (out / name).unlink(missing_ok=True)
        findings = []

        def tell(found: list[Finding]) -> None:
            findings.extend(found)
            for finding in found:
                say(str(finding))

        about = (
            f"data: {folder}, {len(clips.ids)} clips, {clips.whose}, compared by {clips.view or 'nothing'}"
        )
        say(about)
        tell(_classes(cache))
        tell(balance_and_shift.balance(clips, out))
        tell(balance_and_shift.durations(clips))
        tell(balance_and_shift.audio(clips))
        near = None
        if clips.view is None:
            tell(
                [
                    warning(
                        "no view to compare clips by (waveforms and codes say nothing of likeness): no "
                        "duplicates, neighbours or shift; get_features.py --extractor logmel makes one in "
                        "minutes"
                    )
                ]
            )
        else:
            near = _duplicates(clips, flags.threshold, folds, out, tell)
        tell(label_errors.write(clips, oof, out))
        if clips.view is not None:
            tell(balance_and_shift.shift(clips, out))
        tell(_pictures(clips, near, out))
        _report(about, findings, out, clips.cache.classes)
        say(f"report: {out / 'data_report.md'}")
    return findings


def _classes(cache: Cache) -> list[Finding]:
    """Warnings on classes that may be none, by their names and the clips' ids."""
    if cache.multilabel:
        return []
    parts = {name: cache.split(name) for name in ("train", "test") if cache.has(name)}
    labels = {name: content["labels"].tolist() for name, content in parts.items()}
    lines = suspicious.warn_class_folders(parts["train"]["ids"].tolist(), labels["train"], "classes")
    lines += suspicious.warn_unknown_test_classes(set(labels["train"]), set(labels.get("test", ())))
    return [warning(line.removeprefix("warning: ")) for line in lines]


def _duplicates(
    clips: Clips, threshold: float | None, folds: dict | None, out: Path, tell: Callable
) -> duplicates.Duplicates | None:
    other = comparable(clips)
    by = clips_of.load(other, folds) if other else clips
    if by.heard.sum() < 3:
        tell([ok("fewer than 3 clips can be heard: no duplicates to look for")])
        return None
    found = duplicates.find(by, threshold)
    tell(duplicates.write(by, found, out))
    if other:
        tell([ok(f"copies looked for in the log-mel of {other}, {found.least}")])
    elif by.view in LEVELS:
        tell([ok(f"copies looked for by {by.view}, {found.least}")])
    else:
        tell(
            [
                ok(
                    f"copies looked for by {by.view}, {found.least}; cropped ones "
                    "are found more surely once get_features.py --extractor logmel has been run for this "
                    "competition"
                )
            ]
        )
    return found


def _pictures(clips: Clips, near: duplicates.Duplicates | None, out: Path) -> list[Finding]:
    try:
        drawn = ok(f"pictures: {', '.join(plots.draw(clips, near, out))} in {out}")
    except ImportError:
        return [warning("no pictures: pip install matplotlib")]
    unnamed = fonts.warning(clips.cache.classes, "data_report.md has the names")
    return [drawn, *([warning(unnamed.removeprefix("warning: "))] if unnamed else [])]


def _report(about: str, findings: list[Finding], out: Path, classes: list[str]) -> None:
    lines = ["# Data report", "", about, ""]
    for level in ("stop", "warning", "ok"):
        lines += [f"- **{level}** {finding.text}" for finding in findings if finding.level == level]
    made = [name for name in FILES[:-1] if (out / name).exists()]
    tables, shown = ([name for name in made if name.endswith(end)] for end in (".csv", ".png"))
    lines += [
        "",
        f"Tables: {', '.join(f'[{name}]({name})' for name in tables)}",
        "",
        *(f"![{name}]({name})\n" for name in shown),
        *(f"- {number} in the pictures: {name}" for number, name in (fonts.legend(classes) if shown else [])),
    ]
    write_text(out / "data_report.md", "\n".join(lines).rstrip("\n") + "\n")
