"""Checks of class balance, durations and bad audio, and of the shift between training and submission."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from earshot.doctor.embeddings import Clips, find_constant
from earshot.doctor.findings import Finding, report_ok, stop, warn, write_csv
from earshot.doctor.similarity import centre, compute_principal

UNEVEN = 10  # times as many clips in the largest class as in the smallest
COMPONENTS = 50  # of the PCA before the logistic regression
NO_SHIFT, STRONG_SHIFT = 0.6, 0.75  # adversarial AUC


def count_clips(clips: Clips) -> np.ndarray:
    """(folds + 1, classes) clips per class: in total, then per fold."""
    targets, numbers = clips.targets, clips.folds
    folds = np.unique(numbers[numbers >= 0])
    return np.array([targets.sum(0), *(targets[numbers == fold].sum(0) for fold in folds)])


def check_balance(clips: Clips, out: Path) -> Iterator[Finding]:
    """Write class_balance.csv, clips per class and fold; find what is uneven or missing."""
    classes, table = clips.cache.classes, count_clips(clips)
    numbers = [int(n) for n in np.unique(clips.folds) if n >= 0]
    rows = ([name, *column] for name, column in zip(classes, table.T.tolist(), strict=True))
    write_csv(out / "class_balance.csv", ("label", "clips", *(f"fold_{n}" for n in numbers)), rows)
    if len(classes) < 2:
        only = classes[0] if classes else "none"
        yield stop(f"only one class ({only}): nothing to classify; check --label-column")
        return
    if clips.fold_error:
        yield stop(f"folds: {clips.fold_error}")
    total, least, most = table[0], int(table[0].argmin()), int(table[0].argmax())
    span = f"{total[least]} ({classes[least]}) to {total[most]} ({classes[most]})"
    text = f"{len(classes)} classes, {total[most] if total[least] == total[most] else span} clips each"
    if total[most] >= UNEVEN * max(total[least], 1):
        yield warn(f"imbalanced classes: {text}: judge by f1_macro, try --class-weights balanced")
    else:
        yield report_ok(f"{text}; {clips.fold_note}")
    rare = total < len(numbers)
    if rare.any():
        names = [classes[c] for c in np.flatnonzero(rare)]
        yield warn(
            f"{len(names)} classes have fewer clips than there are folds ({', '.join(names[:5])}): some "
            "folds lack them: use fewer --folds, or judge these classes by hand"
        )
    lacking = np.argwhere((table[1:] == 0) & ~rare)
    if len(lacking):
        fold, label = lacking[0]
        yield warn(
            f"{len(lacking)} times a fold has no clip of a class (first: fold {numbers[fold]}, "
            f"{classes[label]}): scores by fold are not comparable, the pooled out-of-fold score is; --folds "
            "K makes new folds"
        )
    sizes = [int((clips.folds == n).sum()) for n in numbers]
    if sizes and max(sizes) > 2 * min(sizes):
        yield warn(
            f"folds of {min(sizes)} to {max(sizes)} clips: trust the pooled score, not the mean over folds; "
            "--folds K makes even ones"
        )


def check_durations(clips: Clips) -> Iterator[Finding]:
    """Minimum, median and maximum; the share of clips that are padded, and that are cut."""
    span = clips.cache.manifest["span"]
    known = clips.seconds[np.isfinite(clips.seconds)]
    covered = clips.covered[np.isfinite(clips.covered)]
    padded = float((covered < span - 1e-3).mean()) if len(covered) else 0.0
    if not len(known):
        yield report_ok(
            f"durations: all clips fill the window of {span:g} s; their files are not here to measure"
        )
        return
    both = np.isfinite(clips.seconds) & np.isfinite(clips.covered)
    cut = both & (clips.seconds > clips.covered + 0.05)
    text = (
        f"durations: {known.min():.2f} to {known.max():.2f} s, median {np.median(known):.2f} s; windows of "
        f"{span:g} s: {padded:.0%} of the clips are padded, {cut.mean():.0%} cut"
    )
    if len(known) < len(clips.ids):
        text += f" ({len(clips.ids) - len(known)} of unknown length)"
    if cut.mean() > 0.05:
        lost = float((clips.seconds[cut] - clips.covered[cut]).sum() / clips.seconds[both].sum())
        yield warn(
            f"{text}, {lost:.0%} of the audio is not used: run get_features.py with --hop {span / 2:g}, or "
            "with longer --seconds"
        )
    elif padded > 0.5 and np.median(known) < span / 2:
        yield warn(f"{text}: most of a window is padding: shorter --seconds are faster and often better")
    else:
        yield report_ok(text)


def check_audio(clips: Clips) -> Iterator[Finding]:
    """The clips in the cache's bad_audio.csv, and those with a constant embedding."""
    path, bad = clips.cache.folder / "bad_audio.csv", clips.cache.manifest["bad"]
    bad = bad if path.is_file() else 0
    if bad:
        with open(path, newline="", encoding="utf-8") as file:
            reasons = Counter((row.get("reason") or "").split(":")[0][:60] for row in csv.DictReader(file))
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(4))
        yield warn(f"{bad} clips of bad audio ({listed}): {path} lists them; download them again")
    flat = find_constant(clips) if clips.embeddings is not None else []
    if len(flat):
        yield warn(
            f"{len(flat)} clips have a constant embedding (first: {clips.ids[flat[0]]}): silence or a "
            "damaged file: listen to them"
        )
    if not bad and not len(flat):
        yield report_ok("no bad audio: every clip was decoded, none is silent")


def check_shift(clips: Clips, out: Path) -> Iterator[Finding]:
    """Adversarial validation: how well a logistic regression separates training clips from those to submit.

    On at most 50 standardised principal components, 5 stratified folds, training groups kept together.
    Writes submission_like.csv.
    """
    both = np.flatnonzero(clips.embedded & (clips.splits != "test"))
    target = (clips.splits[both] == "subm").astype(int)
    few = int(np.bincount(target, minlength=2).min())
    if "subm" not in clips.splits:
        yield report_ok("shift: not measured, no clips to submit")
        return
    if few < 10:
        yield report_ok(f"shift between training and submission: not measured, only {few} clips on one side")
        return
    import warnings

    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = compute_components(centre(clips.embeddings[both]), COMPONENTS)
    # clips to submit have no groups: each is its own
    groups = np.where(target == 1, len(clips.ids) + np.arange(len(both)), clips.number_parts()[both])
    split = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500, class_weight="balanced"))
    probability = np.full(len(clips.ids), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        guess = cross_val_predict(model, x, target, groups=groups, cv=split, method="predict_proba")
    probability[both] = guess[:, 1]
    auc, ones = float(roc_auc_score(target, guess[:, 1])), int(target.sum())
    # the standard error of the AUC without any shift (Mann-Whitney)
    error = math.sqrt((len(target) + 1) / (12 * ones * (len(target) - ones)))
    rows = np.flatnonzero(clips.train & np.isfinite(probability))
    rows = rows[np.argsort(-probability[rows], kind="stable")].tolist()
    write_csv(
        out / "submission_like.csv",
        ("id", "label", "fold", "probability_of_submission"),
        ((clips.ids[i], clips.names[i], clips.place[i], float(probability[i])) for i in rows),
    )
    text = (
        f"adversarial AUC {auc:.3f} ± {error:.3f} (0.5: training and submission look the same, 1: fully "
        "separable)"
    )
    if auc < max(NO_SHIFT, 0.5 + 3 * error):
        yield report_ok(f"{text}: the out-of-fold score should hold on the leaderboard")
        return
    how = "a strong shift" if auc >= STRONG_SHIFT else "a small shift"
    yield warn(
        f"{text}: {how}: expect a lower leaderboard score, validate on the top of "
        f"{out / 'submission_like.csv'}, try augmentation (--augment, --gain, --frequency-mask)"
    )


def compute_components(x: np.ndarray, count: int) -> np.ndarray:
    """(clips, at most count) principal components; their signs are fixed, so that pictures are
    reproducible."""
    x, values, vectors = compute_principal(x)
    real = int((values > 1e-10 * max(values[-1], 1e-30)).sum()) or 1
    vectors = vectors[:, ::-1][:, : min(count, real)]
    return x @ (vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])]))
