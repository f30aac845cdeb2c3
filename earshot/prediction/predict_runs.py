"""What saved runs and blends answer: a submission for cached clips, or the classes of any audio file."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from earshot.core.config import PredictFlags
from earshot.core.device import Device
from earshot.features.reasons import warnings
from earshot.prediction import new_audio, submission, submit
from earshot.prediction.members import Member
from earshot.prediction.seen_clips import SeenClips
from earshot.training import dataset, predict, run_cache
from earshot.training.dataset import Rows
from earshot.training.predict import predicting
from earshot.training.run import Run


def cached(
    whole: Member,
    features: str | None,
    out: Path,
    device: Device,
    message: str = "",
) -> bool:
    """The submission for the clips that the caches hold, `message` for the ledger; False where there is
    nothing to submit."""
    runs = whole.runs()
    caches = {run.folder.resolve(): run_cache.cache_of(run, features) for run in runs}
    cache = caches[runs[0].folder.resolve()]
    run_cache.same_clips(runs, list(caches.values()))
    for each in caches.values():
        if not each.has("subm"):
            print(f"nothing to submit: {each.folder} has no clips without labels")
            return False
    ids = cache.split("subm")["ids"]

    def ask(run: Run, kind: str) -> np.ndarray:
        rows = dataset.rows_of(caches[run.folder.resolve()], "subm", run.config["record"]["view"], device)
        found = predict.predict_run(run, rows, device, kind, ids)
        print(f"{run.folder}: {predicting(run)}, {len(ids)} clips")
        return found

    how = whole.fitted.method if whole.fitted else ""
    oof = None if whole.score is None else (whole.metric, whole.score)
    for line in submit.submit(
        cache,
        ids,
        whole.predict(ask),
        np.array(runs[0].config["prior"]),
        whole.classes,
        out,
        runs=runs,
        how=how,
        oof=oof,
        message=message,
    ):
        print(line)
    return True


def audio(
    whole: Member,
    flags: PredictFlags,
    paths: list[str],
    show: bool,
    out: Path,
    device: Device,
) -> None:
    """Predictions for new audio: as a csv, or shown."""
    classes, first, reasons = whole.classes, whole.runs()[0], {}
    ids, files, notes = new_audio.listed(paths)
    listed = frozenset(path for path in files if path.exists())
    noted: dict[str, list[str]] = {}
    aside = sys.stderr if show else sys.stdout  # shown answers are a line a file, which scripts read
    for line in notes:
        print(line, file=aside)
    seen = SeenClips(whole)

    def ask(run: Run, kind: str) -> np.ndarray:
        clips = new_audio.features(run, ids, files, flags.weights, device, listed=listed)
        reasons.update(clips.bad)
        for note, found in clips.noted.items():
            noted[note] = list(dict.fromkeys([*noted.get(note, []), *found]))
        rows = Rows(clips.split, run.config["record"]["view"], classes, clips.span, device.name)
        return predict.predict_run(run, rows, device, kind)

    for line in seen.lines(dict(zip(ids, files, strict=True))):
        print(line, file=aside)
    probabilities, unheard = predict.fill(whole.predict(ask), np.array(first.config["prior"]))
    for line in warnings(noted):
        print(line, file=aside)
    if show:
        for id, row in zip(ids, probabilities, strict=True):
            best = np.argsort(-row)[: flags.top]
            said = (
                f"cannot be heard: {reasons[id]}"
                if id in reasons
                else "  ".join(f"{classes[i]} {row[i]:.3f}" for i in best)
            )
            print(f"{id}: {said}")
        return
    for id, reason in reasons.items():
        print(f"{id}: {reason}; answered with the class prior")
    submission.write(
        out, np.array(ids), probabilities, classes, tuple(first.config["columns"]), None, first.multilabel
    )
    print(f"predictions: {out}, {len(ids)} rows, {int(unheard.sum())} of them by the prior")
