"""Predictions of saved runs and blends: a submission for cached clips, or the classes of any audio file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from earshot.core.config import PredictFlags
from earshot.core.csv_text import to_csv
from earshot.core.device import Device
from earshot.core.errors import UserError
from earshot.core.files import write_text
from earshot.features.reasons import format_warnings
from earshot.prediction import new_audio, stretches, submission, submit
from earshot.prediction.events import Event
from earshot.prediction.members import Member
from earshot.prediction.seen_clips import SeenClips
from earshot.prediction.window_predictions import WindowPredictions
from earshot.training import dataset, predict, run_cache
from earshot.training.dataset import WindowDataset
from earshot.training.predict import describe_predictors
from earshot.training.run import Run

SHOWN = 10  # events of a recording on the terminal


def predict_cache(
    whole: Member,
    features: str | None,
    out: Path,
    device: Device,
    message: str = "",
    name: str | None = None,
    smooth: bool = True,
) -> bool:
    """The submission for the clips that the caches hold, `message` for the ledger; False where there is
    nothing to submit. It is kept under the name of the run or blend, `name` where that is new. `smooth`: mix
    stretches with their neighbours where a run has that fitted."""
    name = name or (whole.folder.name if whole.folder else "")
    runs = whole.list_runs()
    caches = {run.folder.resolve(): run_cache.open_run_cache(run, features) for run in runs}
    cache = caches[runs[0].folder.resolve()]
    run_cache.check_same_clips(runs, list(caches.values()))
    for each in caches.values():
        if not each.has_split("subm"):
            print(
                f"nothing to submit: {each.folder} has no clips without labels (for new audio add --audio "
                "FOLDER)"
            )
            return False
    ids = cache.split("subm")["ids"]

    def predict_clips(run: Run, kind: str) -> np.ndarray:
        own = caches[run.folder.resolve()]
        rows = dataset.load_rows(own, "subm", run.config["record"]["view"], device)
        probabilities = predict.predict_run(run, rows, device, kind)
        print(f"{run.folder}: {describe_predictors(run)}, {len(ids)} clips")
        if smooth:
            probabilities, lines = stretches.smooth_run(run, own.split("subm"), probabilities)
            print(*map("{}\n".format, lines), sep="", end="")
        return predict.reorder_clips(probabilities, rows.ids, ids)

    lines = submit.write_submission(
        cache,
        ids,
        whole.predict(predict_clips),
        np.array(runs[0].config["prior"]),
        whole.classes,
        out,
        name,
        runs=runs,
        how=whole.fitted.method if whole.fitted else "",
        oof=None if whole.score is None else (whole.metric, whole.score),
        message=message,
    )
    print("\n".join(lines))
    return True


class AudioPredictions(NamedTuple):
    """Predictions for new audio."""

    ids: list[str]
    """The file names, or the paths below a folder where names repeat."""
    probabilities: np.ndarray
    """(files, classes); the class prior for a file that cannot be read."""
    filled: np.ndarray
    """(files,) booleans: is it the class prior?"""
    reasons: dict[str, str]
    """Id -> why the file cannot be read."""
    events: dict[str, list[Event]]
    """Id -> the events of a recording with several windows."""


def predict_audio(
    whole: Member, paths: list[str], weights: str | None, device: Device, report: Callable[[str], None]
) -> AudioPredictions:
    """Predict new audio.

    Args:
        paths: files and folders. weights: the extractor's, where they moved.
        report: called with each warning.
    Raises:
        UserError: no audio there, or a run that cannot predict.
    """
    first, reasons = whole.list_runs()[0], {}
    ids, files, lines = new_audio.list_files(paths)
    listed = frozenset(path for path in files if path.exists())
    notes: dict[str, list[str]] = {}
    lines += SeenClips(whole).list_warnings(dict(zip(ids, files, strict=True)))
    for line in lines:
        report(line)

    windows = WindowPredictions()

    def predict_clips(run: Run, kind: str) -> np.ndarray:
        clips = new_audio.extract_features(run, ids, files, weights, device, listed=listed)
        reasons.update(clips.bad)
        for note, noted_ids in clips.noted.items():
            notes[note] = list(dict.fromkeys([*notes.get(note, []), *noted_ids]))
        rows = WindowDataset(
            clips.split, run.config["record"]["view"], whole.classes, clips.span, device.name
        )
        pooled, each = predict.predict_with_windows(run, rows, device, kind)
        windows.add(run, kind, clips.split, each)
        return pooled

    prior = np.array(first.config["prior"])
    probabilities, filled = predict.fill_with_prior(whole.predict(predict_clips), prior)
    for line in format_warnings(notes):
        report(line)
    events = {ids[clip]: found for clip, found in windows.list_events(whole).items()}
    return AudioPredictions(ids, probabilities, filled, reasons, events)


def predict_files(
    whole: Member,
    flags: PredictFlags,
    paths: list[str],
    show: bool,
    out: Path,
    device: Device,
) -> None:
    """Predict new audio, and show it or write a csv.

    Raises:
        UserError: none of the files to show can be read.
    """
    # shown predictions are a line a file, which scripts read
    stream = sys.stderr if show else sys.stdout
    found = predict_audio(whole, paths, flags.weights, device, lambda line: print(line, file=stream))
    after = "" if show else "; filled with the class prior"
    failed = [f"can't read this file: {id}: {reason}{after}" for id, reason in found.reasons.items()]
    if show and len(failed) == len(found.ids) == 1:
        raise UserError(failed[0])
    for line in failed:
        print(f"warning: {line}", file=stream)
    if not show:
        _write_csv(whole, found, out)
        return
    if len(failed) == len(found.ids):
        raise UserError(f"none of the {len(found.ids)} files can be read")
    for id, row in zip(found.ids, found.probabilities, strict=True):
        if id not in found.reasons:
            likeliest = np.argsort(-row)[: flags.top]
            print(f"{id}: " + "  ".join(f"{whole.classes[i]} {row[i]:.3f}" for i in likeliest))
            print(*map("  {}\n".format, _format_events(found.events.get(id, []))), sep="", end="")


def _format_events(events: list[Event]) -> list[str]:
    """A line for each of the likeliest events, in the order of time."""
    width = max((len(event.label) for event in events), default=0)
    lines = [
        f"{label:{width}}  {start:7.1f} to {end:.1f} s  {probability:.3f}"
        for label, start, end, probability in sorted(events[:SHOWN], key=lambda event: event.start)
    ]
    return lines + ([f"... {len(events) - SHOWN} more events"] if len(events) > SHOWN else [])


def _write_csv(whole: Member, found: AudioPredictions, out: Path) -> None:
    """The predictions as a csv, and beside it the events, where some recording has several windows."""
    first = whole.list_runs()[0]
    columns = tuple(first.config["columns"])
    submission.write(
        out, np.array(found.ids), found.probabilities, whole.classes, columns, None, first.multilabel
    )
    filled = int(found.filled.sum())
    print(f"predictions: {out}, {len(found.ids)} rows, {filled} filled with the class prior")
    beside = out.with_name(f"{out.stem}_events.csv")
    if not found.events:
        beside.unlink(missing_ok=True)  # those of earlier recordings
        return
    rows = [
        (id, event.label, f"{event.start:.2f}", f"{event.end:.2f}", f"{event.probability:.8f}")
        for id, events in found.events.items()
        for event in sorted(events, key=lambda event: event.start)
    ]
    write_text(beside, to_csv([(columns[0], "class", "start", "end", "probability"), *rows]))
    print(f"events: {beside}, {len(rows)} rows: class, start and end in seconds")
