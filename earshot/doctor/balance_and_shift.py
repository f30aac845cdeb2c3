"""The data's shape: classes, lengths, bad audio, and whether the clips to submit are like those to learn
from."""

from __future__ import annotations

import csv
import math
from collections import Counter
from pathlib import Path

import numpy as np

from earshot.doctor.embeddings import Clips, constant
from earshot.doctor.findings import Finding, ok, stop, warning, write_csv
from earshot.doctor.similarity import centred

UNEVEN = 10  # times as many clips in the commonest class as in the rarest
COMPONENTS = 50  # of the PCA before the logistic regression
ALIKE, APART = 0.6, 0.75  # adversarial AUC


def counts(clips: Clips) -> np.ndarray:
    """(folds + 1, classes) clips per class: in all, then per fold in order."""
    targets = (
        clips.labels
        if clips.labels.ndim == 2
        else np.eye(len(clips.cache.classes), dtype=np.int64)[clips.labels]
    )
    numbers = clips.folds
    return np.array(
        [targets.sum(0), *(targets[numbers == n].sum(0) for n in np.unique(numbers[numbers >= 0]))]
    )


def balance(clips: Clips, out: Path) -> list[Finding]:
    """class_balance.csv: clips per class and fold; what is uneven or missing."""
    classes, table = clips.cache.classes, counts(clips)
    numbers = [int(n) for n in np.unique(clips.folds) if n >= 0]
    write_csv(
        out / "class_balance.csv",
        ("label", "clips", *(f"fold_{n}" for n in numbers)),
        ([name, *column] for name, column in zip(classes, table.T.tolist(), strict=True)),
    )
    if len(classes) < 2:
        return [
            stop(
                f"one class only ({classes[0] if classes else 'none'}): nothing can be told apart; check "
                "--label-column"
            )
        ]
    lines = []
    if clips.foldless:
        lines.append(stop(f"folds: {clips.foldless}"))
    total, least, most = table[0], int(table[0].argmin()), int(table[0].argmax())
    about = (
        f"{len(classes)} classes, {total[least]} ({classes[least]}) to {total[most]} ({classes[most]}) "
        "clips each"
    )
    if total[most] >= UNEVEN * max(total[least], 1):
        lines.append(warning(f"uneven classes: {about}: judge by f1_macro, try --class-weights balanced"))
    else:
        lines.append(ok(f"{about}; {clips.whose}"))
    rare = [classes[c] for c in np.flatnonzero(total < len(numbers))]
    if rare:
        lines.append(
            warning(
                f"{len(rare)} classes have fewer clips than folds ({', '.join(rare[:5])}): they are missing "
                "from some: give a lower --folds, or judge them by hand"
            )
        )
    lacking = [
        (n, classes[c])
        for n, row in zip(numbers, table[1:], strict=True)
        for c in np.flatnonzero(row == 0)
        if classes[c] not in rare
    ]
    if lacking:
        lines.append(
            warning(
                f"{len(lacking)} times a fold has no clip of a class (first: fold {lacking[0][0]}, "
                f"{lacking[0][1]}): folds' scores differ by that; pooled out-of-fold scores do not suffer, "
                "else give --folds K"
            )
        )
    sizes = [int((clips.folds == n).sum()) for n in numbers]
    if sizes and max(sizes) > 2 * min(sizes):
        lines.append(
            warning(
                f"folds of {min(sizes)} to {max(sizes)} clips: trust the pooled score, not the folds' mean; "
                "or --folds K"
            )
        )
    return lines


def durations(clips: Clips) -> list[Finding]:
    """Minimum, median and maximum; how many clips are padded, how many are cut."""
    span = clips.cache.manifest["span"]
    known = clips.seconds[np.isfinite(clips.seconds)]
    covered = clips.covered[np.isfinite(clips.covered)]
    padded = float((covered < span - 1e-3).mean()) if len(covered) else 0.0
    if not len(known):
        return [ok(f"durations: at least the window's {span:g} s, all of them; their files are not at hand")]
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
        return [
            warning(
                f"{text}, {lost:.0%} of the audio is not heard: give get_features.py --hop {span / 2:g}, or "
                "a longer --seconds"
            )
        ]
    if padded > 0.5 and np.median(known) < span / 2:
        return [
            warning(f"{text}: most of a window is padding; a shorter --seconds is faster and often better")
        ]
    return [ok(text)]


def audio(clips: Clips) -> list[Finding]:
    """What the cache's ledger of bad audio says, and embeddings that are one number."""
    path, lines = clips.cache.folder / "bad_audio.csv", []
    if clips.cache.manifest["bad"] and path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            reasons = Counter((row.get("reason") or "").split(":")[0][:60] for row in csv.DictReader(file))
        said = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(4))
        lines.append(
            warning(
                f"{clips.cache.manifest['bad']} clips of bad audio ({said}): {path} names them; download "
                "them again"
            )
        )
    flat = constant(clips) if clips.embeddings is not None else []
    if len(flat):
        lines.append(
            warning(
                f"{len(flat)} clips have a constant embedding (first: {clips.ids[flat[0]]}): silence, or a "
                "damaged file: hear it"
            )
        )
    return lines or [ok("no bad audio: every clip could be decoded, none is silent")]


def shift(clips: Clips, out: Path) -> list[Finding]:
    """Adversarial validation: can a logistic regression tell training clips from those to submit?
    submission_like.csv.

    On at most 50 standardised principal components, 5 stratified folds, training groups kept whole.
    """
    both = np.flatnonzero(clips.heard & (clips.splits != "test"))
    target = (clips.splits[both] == "subm").astype(int)
    few = int(np.bincount(target, minlength=2).min())
    if "subm" not in clips.splits:
        return [ok("no clips to submit: no shift to measure")]
    if few < 10:
        return [ok(f"{few} clips on one side: too few to measure a shift between training and submission")]
    import warnings

    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = np.full(len(clips.ids), np.nan)
    x = components(centred(clips.embeddings[both]), COMPONENTS)
    # Clips to submit have no groups: each is one of its own.
    groups = np.where(target == 1, len(clips.ids) + np.arange(len(both)), clips.parts()[both])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        split = StratifiedGroupKFold(5, shuffle=True, random_state=0)
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=0.1, max_iter=500, class_weight="balanced")
        )
        found[both] = cross_val_predict(model, x, target, groups=groups, cv=split, method="predict_proba")[
            :, 1
        ]
    auc = float(roc_auc_score(target, found[both]))
    ones = int(target.sum())
    # of the AUC of clips that are alike (Mann-Whitney)
    error = math.sqrt((len(target) + 1) / (12 * ones * (len(target) - ones)))
    rows = sorted(np.flatnonzero(clips.train & np.isfinite(found)).tolist(), key=lambda i: (-found[i], i))
    write_csv(
        out / "submission_like.csv",
        ("id", "label", "fold", "probability_of_submission"),
        ((clips.ids[i], clips.names[i], clips.place[i], float(found[i])) for i in rows),
    )
    text = (
        f"adversarial AUC {auc:.3f} ± {error:.3f} (0.5: training and submission cannot be told apart, 1: "
        "always)"
    )
    if auc < max(ALIKE, 0.5 + 3 * error):
        return [ok(f"{text}: the out-of-fold score should hold on the leaderboard")]
    how = "the submission is recorded otherwise" if auc >= APART else "a shift, though a small one"
    return [
        warning(
            f"{text}: {how}: expect a lower leaderboard score, validate on the top of "
            f"{out / 'submission_like.csv'}, try augmentation (--augment, --gain, --frequency-mask)"
        )
    ]


def components(x: np.ndarray, count: int) -> np.ndarray:
    """(clips, at most count) principal components, of fixed signs, so that a picture is the same every
    time."""
    x = (x - x.mean(0)).astype(np.float64)
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    vectors = vectors[:, ::-1][:, : min(count, int((values > 1e-10 * max(values[-1], 1e-30)).sum()) or 1)]
    return x @ (vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])]))
