"""Predictions of saved runs and blends: a submission for cached clips, or the classes of any audio file."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from earshot.core.config import PredictFlags
from earshot.core.csv_text import to_csv
from earshot.core.device import Device
from earshot.core.errors import UserError
from earshot.core.files import write_text
from earshot.features.reasons import format_warnings
from earshot.prediction import exported, new_audio, rank_blend, stretches, submission, submit
from earshot.prediction.events import Event
from earshot.prediction.hidden_clips import HiddenClips, group_by_features
from earshot.prediction.members import Member
from earshot.prediction.new_audio import ExtractedFiles
from earshot.prediction.seen_clips import SeenClips
from earshot.prediction.streamed_heads import HeadsThread, StreamedHeads
from earshot.prediction.window_predictions import WindowPredictions
from earshot.training import dataset, predict, run_cache
from earshot.training.dataset import WindowDataset
from earshot.training.predict import describe_predictors
from earshot.training.run import Run

if TYPE_CHECKING:
    from earshot.prediction.remote_audio import RemoteWorkers

SHOWN = 10  # events of a recording on the terminal


def predict_cache(
    whole: Member,
    features: str | None,
    out: Path,
    device: Device,
    message: str = "",
    name: str | None = None,
    hidden: HiddenClips | None = None,
    smooth: bool = True,
) -> bool:
    """The submission for the clips that the caches hold; False where there is nothing to submit.

    Args:
        message: for the ledger. name: the submission is kept under it; None: the run's or blend's.
        hidden: the clips of a code competition, and what was predicted while they were extracted.
        smooth: mix stretches with their neighbours where a run has that fitted.
    """
    name = name or (whole.folder.name if whole.folder else "")
    runs = whole.list_runs()
    places = hidden.folders if hidden else {}
    caches = {
        key: run_cache.open_run_cache(run, places.get(key, features))
        for run in runs
        for key in [run.folder.resolve()]
    }
    cache = caches[runs[0].folder.resolve()]
    run_cache.check_same_clips(runs, list(caches.values()))
    for each in caches.values():
        if not each.has_split("subm"):
            print(
                f"nothing to submit: {each.folder} has no clips without labels (for new audio add --audio "
                "FOLDER)"
            )
            return False
    ids, prior = cache.split("subm")["ids"], np.array(runs[0].config["prior"])
    ranked = rank_blend.is_rank(whole.fitted)
    said: set[str] = set()
    if ranked:
        rank_blend.check_submission(cache)
        prior = np.full_like(prior, rank_blend.MIDDLE)

    def predict_clips(run: Run, kind: str) -> np.ndarray:
        own, view = caches[run.folder.resolve()], run.config["record"]["view"]

        def load_rows() -> WindowDataset:
            return dataset.load_rows(own, "subm", view, device)

        split = own.split("subm")
        probabilities = hidden.get_prediction(run, kind, split, load_rows) if hidden else None
        if probabilities is None:
            heads = exported.open_heads(run, kind, device)
            probabilities = predict.predict_run(run, load_rows(), device, kind, exported=heads)
        print(f"{run.folder}: {describe_predictors(run)}, {len(ids)} clips")
        if smooth:
            probabilities, lines = stretches.smooth_run(run, split, probabilities, whole.folder)
            print(*(f"{line}\n" for line in lines if line not in said), sep="", end="")
            said.update(lines)  # a hint is the same for all runs of a blend
        return predict.reorder_clips(probabilities, split["ids"], ids)

    lines = submit.write_submission(
        cache,
        ids,
        whole.predict(predict_clips),
        prior,
        whole.classes,
        out,
        name,
        runs=runs,
        how=whole.fitted.method if whole.fitted else "",
        oof=None if whole.score is None else (whole.metric, whole.score),
        message=message,
    )
    if ranked:
        lines.append("the columns are mean ranks from 0 to 1, not probabilities: for ROC AUC and the like")
    print("\n".join(lines))
    return True


def predict_group(
    asked: list[tuple[Run, str]],
    ids: list[str],
    files: list[Path],
    weights: str | None,
    device: Device,
    listed: frozenset[Path],
    report: Callable[[str], None],
    remote: RemoteWorkers | None = None,
) -> tuple[ExtractedFiles, dict[tuple[Path, str], tuple[np.ndarray, np.ndarray]]]:
    """Decode and extract new files once for runs that share their features, and predict them meanwhile.

    Args:
        report: called with a line where an export of a run computes something.
        remote: the workers that extract; None: this process does.
    Returns:
        the features; by run folder and kind of checkpoint (files, classes), and for each window alone
        (windows, classes).
    """
    views = {run.config["record"]["view"] for run, _ in asked}
    with contextlib.ExitStack() as stack:
        if remote is None:
            extractor, audio = new_audio.build_extractor(asked[0][0], weights, device, report)
        else:
            extractor = stack.enter_context(remote.open(asked[0][0], weights, views, files, listed))
        made = ExtractedFiles(ids, extractor)
        heads = [StreamedHeads(run, kind, extractor.span, device, report) for run, kind in asked]
        add = stack.enter_context(made.collect(HeadsThread(heads, device)))
        if remote is None:
            bites = new_audio.extract_bites(files, extractor, audio, views, new_audio.BATCH, listed)
            for bite in stack.enter_context(contextlib.closing(bites)):
                add(bite)
        else:
            extractor.extract(add)
    found = {}
    for one in heads:
        view, classes = one.run.config["record"]["view"], one.run.classes

        def load_rows(run: Run = one.run, view: str = view, classes: list[str] = classes) -> WindowDataset:
            return WindowDataset(made.build_split(run), view, classes, extractor.span, device.name)

        key = one.run.folder.resolve(), one.kind
        found[key] = one.finish(np.array(ids), made.windows["clip"], load_rows)
    return made, found


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
    whole: Member,
    paths: list[str],
    weights: str | None,
    device: Device,
    report: Callable[[str], None],
    remote: RemoteWorkers | None = None,
) -> AudioPredictions:
    """Predict new audio.

    Args:
        paths: files and folders. weights: the extractor's, where they moved.
        report: called with each warning. remote: the workers that extract; None: this process does.
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
    found: dict[tuple[Path, str], tuple[ExtractedFiles, np.ndarray, np.ndarray]] = {}
    for asked in group_by_features(whole.list_checkpoints()):
        made, predicted = predict_group(asked, ids, files, weights, device, listed, report, remote)
        found |= {key: (made, *both) for key, both in predicted.items()}
        reasons.update(made.bad)
        for note, noted_ids in made.noted.items():
            notes[note] = list(dict.fromkeys([*notes.get(note, []), *noted_ids]))

    def predict_clips(run: Run, kind: str) -> np.ndarray:
        made, pooled, each = found[run.folder.resolve(), kind]
        windows.add(run, kind, made.windows, each)
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

    def report(line: str) -> None:
        print(line, file=stream, flush=True)

    with contextlib.ExitStack() as stack:
        remote = None
        if flags.cluster is not None:
            from earshot.prediction import remote_audio

            remote = stack.enter_context(remote_audio.connect_workers(flags, report))
        found = predict_audio(whole, paths, flags.weights, device, report, remote)
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
