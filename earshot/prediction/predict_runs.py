"""What saved runs and blends answer: a submission for cached clips, or the classes of any audio file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from earshot.core.config import PredictFlags
from earshot.core.device import Device
from earshot.features.reasons import format_warnings
from earshot.prediction import new_audio, submission, submit
from earshot.prediction.members import Member
from earshot.prediction.seen_clips import SeenClips
from earshot.training import dataset, predict, run_cache
from earshot.training.dataset import WindowDataset
from earshot.training.predict import describe_predictors
from earshot.training.run import Run


def predict_cache(
    whole: Member,
    features: str | None,
    out: Path,
    device: Device,
    message: str = "",
    name: str | None = None,
) -> bool:
    """The submission for the clips that the caches hold, `message` for the ledger; False where there is
    nothing to submit. It is kept under the name of the run or blend, `name` where that is new."""
    name = name or (whole.folder.name if whole.folder else "")
    runs = whole.list_runs()
    caches = {run.folder.resolve(): run_cache.open_run_cache(run, features) for run in runs}
    cache = caches[runs[0].folder.resolve()]
    run_cache.check_same_clips(runs, list(caches.values()))
    for each in caches.values():
        if not each.has_split("subm"):
            print(f"nothing to submit: {each.folder} has no clips without labels")
            return False
    ids = cache.split("subm")["ids"]

    def predict_clips(run: Run, kind: str) -> np.ndarray:
        rows = dataset.load_rows(caches[run.folder.resolve()], "subm", run.config["record"]["view"], device)
        probabilities = predict.predict_run(run, rows, device, kind, ids)
        print(f"{run.folder}: {describe_predictors(run)}, {len(ids)} clips")
        return probabilities

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

    def predict_clips(run: Run, kind: str) -> np.ndarray:
        clips = new_audio.extract_features(run, ids, files, weights, device, listed=listed)
        reasons.update(clips.bad)
        for note, noted_ids in clips.noted.items():
            notes[note] = list(dict.fromkeys([*notes.get(note, []), *noted_ids]))
        rows = WindowDataset(
            clips.split, run.config["record"]["view"], whole.classes, clips.span, device.name
        )
        return predict.predict_run(run, rows, device, kind)

    prior = np.array(first.config["prior"])
    probabilities, filled = predict.fill_with_prior(whole.predict(predict_clips), prior)
    for line in format_warnings(notes):
        report(line)
    return AudioPredictions(ids, probabilities, filled, reasons)


def predict_files(
    whole: Member,
    flags: PredictFlags,
    paths: list[str],
    show: bool,
    out: Path,
    device: Device,
) -> None:
    """Predictions for new audio: as a csv, or shown."""
    # shown predictions are a line a file, which scripts read
    stream = sys.stderr if show else sys.stdout
    ids, probabilities, filled, reasons = predict_audio(
        whole, paths, flags.weights, device, lambda line: print(line, file=stream)
    )
    if show:
        for id, row in zip(ids, probabilities, strict=True):
            if id in reasons:
                print(f"{id}: cannot be heard: {reasons[id]}")
                continue
            likeliest = np.argsort(-row)[: flags.top]
            print(f"{id}: " + "  ".join(f"{whole.classes[i]} {row[i]:.3f}" for i in likeliest))
        return
    for id, reason in reasons.items():
        print(f"{id}: {reason}; answered with the class prior")
    first = whole.list_runs()[0]
    columns = tuple(first.config["columns"])
    submission.write(out, np.array(ids), probabilities, whole.classes, columns, None, first.multilabel)
    print(f"predictions: {out}, {len(ids)} rows, {int(filled.sum())} of them by the prior")
