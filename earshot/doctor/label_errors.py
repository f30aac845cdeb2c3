"""Labels that may be wrong: what a run says of the clip when it was not trained on it, and what its
neighbours are called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from earshot.core.errors import UserError
from earshot.core.spelling import keys
from earshot.doctor.embeddings import Clips
from earshot.doctor.findings import Finding, ok, warning, write_csv
from earshot.doctor.similarity import centred, nearest
from earshot.training.oof import Oof

NEIGHBOURS = 10


def out_of_fold(
    runs: tuple[str, ...], folder: str, cache_ids: np.ndarray, classes: list[str]
) -> tuple[np.ndarray, dict[str, int]]:
    """The mean of the runs' out-of-fold probabilities, (training clips, classes), NaN for clips that one
    lacks; the first's folds.

    Of the final epoch (oof_last.csv), which saw nothing of the clip; a blend has one file, oof.csv.

    Raises:
        UserError: no such run, one without predictions, or one of other clips or labels.
    """
    total, folds = np.zeros((len(cache_ids), len(classes))), None
    for name in runs:
        path = next(
            (
                found
                for base in (Path(name), Path(folder) / name)
                for found in (base / "oof_last.csv", base / "oof.csv")
                if found.is_file()
            ),
            None,
        )
        if path is None:
            raise UserError(
                f"--runs {name}: neither {name} nor {Path(folder) / name} has an oof_last.csv: name a run "
                "that train.py has finished a fold of"
            )
        oof = Oof.read(path)
        if keys(oof.classes) != keys(classes):
            raise UserError(
                f"{path} has other labels than the cache ({len(oof.classes)} there, {len(classes)} "
                "here): name a run of this competition"
            )
        rows = pd.Index(oof.ids).get_indexer(cache_ids.astype(object))
        if (rows < 0).all():
            raise UserError(f"{path} has none of the cache's clips: name a run of this competition")
        total += np.where((rows < 0)[:, None], np.nan, oof.probabilities[rows])
        folds = folds or dict(zip(oof.ids, oof.folds.tolist(), strict=True))
    return total / max(len(runs), 1), folds or {}


def neighbours(clips: Clips, k: int = NEIGHBOURS) -> np.ndarray:
    """What share of its k nearest neighbours of other groups has each label, weighted by cosine: (training
    clips, classes)."""
    count = len(clips.labels)
    targets = clips.labels if clips.labels.ndim == 2 else np.eye(len(clips.cache.classes))[clips.labels]
    heard = np.flatnonzero(clips.heard[:count])
    shares = np.full((count, targets.shape[1]), np.nan)
    cosines, indices = nearest(centred(clips.embeddings[heard]), clips.parts()[heard], k)
    weights = np.where(np.isfinite(cosines), np.maximum(cosines, 1e-3), 0).astype(np.float64)
    with np.errstate(invalid="ignore"):
        shares[heard] = (weights[:, :, None] * targets[heard[indices]]).sum(1) / weights.sum(1, keepdims=True)
    return shares


def doubts(found: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where probabilities contradict a label, by each class's own standard (confident learning, Northcutt,
    Jiang & Chuang 2021).

    A class's standard is the mean probability that its clips get for it: hard classes are not all suspected.

    Args:
        found: (clips, classes) probabilities or shares, NaN rows unknown.
        truth: (clips,) class indices, or (clips, classes) of 0 and 1.
    Returns:
        doubted (clips, classes) bool: single label: the likeliest other class that reaches its standard,
        where the clip's own is less likely; multi-label: the label (given or missing) whose opposite reaches
        the standard. margin (clips, classes): by how much the contrary is likelier, -1 to 1.
    """
    known = np.isfinite(found).all(1)
    p = np.where(known[:, None], found, 0)
    if truth.ndim == 2:
        yes = (truth == 1) & known[:, None]
        no = (truth == 0) & known[:, None]
        high = (p * yes).sum(0) / np.maximum(yes.sum(0), 1)
        low = ((1 - p) * no).sum(0) / np.maximum(no.sum(0), 1)
        margin = np.where(truth == 1, 1 - 2 * p, 2 * p - 1)
        doubted = (
            np.where(truth == 1, 1 - p >= low, p >= high)
            & (margin > 0)
            & known[:, None]
            & (yes.any(0) & no.any(0))
        )
        return doubted, np.where(known[:, None], margin, np.nan)
    own, rows = p[np.arange(len(p)), truth], np.arange(len(p))
    standard = np.array(
        [
            p[known & (truth == c), c].mean() if (known & (truth == c)).any() else np.inf
            for c in range(p.shape[1])
        ]
    )
    rival = np.where(p >= standard, p, -1)
    rival[rows, truth] = -1
    best = rival.argmax(1)
    doubted = np.zeros(p.shape, dtype=bool)
    doubted[rows, best] = known & (rival[rows, best] > own)
    return doubted, np.where(known[:, None], p - own[:, None], np.nan)


def write(clips: Clips, oof: np.ndarray | None, out: Path) -> list[Finding]:
    """suspicious_labels.csv, the likeliest errors first: those that both reasons name, then by the mean
    margin."""
    sources = {} if oof is None else {"oof": oof}
    if clips.embeddings is not None:
        sources["neighbours"] = neighbours(clips)
    if not sources:
        return [warning("labels not judged: no run (--runs A) and no view to compare clips by")]
    found = {name: doubts(p, clips.labels) for name, p in sources.items()}
    margins = np.array([np.nan_to_num(margin, nan=0.0) for _, margin in found.values()])
    votes, suspicion = sum(doubted.astype(int) for doubted, _ in found.values()), margins.mean(0)
    # Where one side finds the given label the likelier, the other's doubt is not enough.
    unknown = np.array([np.isnan(margin) for _, margin in found.values()])
    votes = np.where(((margins > 0) | unknown).all(0), votes, 0)
    rows = _ranked(votes, suspicion, clips.labels.ndim == 2)
    classes, several = clips.cache.classes, clips.labels.ndim == 2

    def numbers(i: int, k: int) -> list:
        given = [p[i] for p in (sources.get("oof"), sources.get("neighbours")) if p is not None]
        shown = [(row[k], row[k]) if several else (row[clips.labels[i]], row[k]) for row in given]
        return [float(value) for pair in shown for value in pair]

    header = (
        "rank",
        "id",
        "fold",
        "label",
        "suggested",
        "suspicion",
        *(f"{name}_{what}" for name in sources for what in ("given", "suggested")),
        "reasons",
    )
    names = [("-" if clips.labels[i, k] else "+") + classes[k] if several else classes[k] for i, k in rows]
    write_csv(
        out / "suspicious_labels.csv",
        header,
        (
            (
                rank,
                clips.ids[i],
                clips.place[i],
                clips.names[i],
                name,
                float(suspicion[i, k]),
                *numbers(i, k),
                "+".join(source for source, (doubted, _) in found.items() if doubted[i, k]),
            )
            for rank, ((i, k), name) in enumerate(zip(rows, names, strict=True), 1)
        ),
    )
    alone = "the run" if oof is not None else "the neighbours (--runs A asks a run, too)"
    by = "the run and the neighbours" if len(sources) == 2 else alone
    if not rows:
        return [ok(f"no label is doubted by {by}")]
    both = f", {sum(votes[i, k] == 2 for i, k in rows)} by both" if len(sources) == 2 else ""
    i, k = rows[0]
    return [
        warning(
            f"{len(rows)} labels ({len(rows) / len(clips.labels):.1%} of the clips) are doubted by "
            f"{by}{both} (first: {clips.ids[i]}, {clips.names[i] or 'no label'}, {names[0]} instead?): hear "
            f"them from the top of {out / 'suspicious_labels.csv'}, mend what is wrong, leave the merely hard"
        )
    ]


def _ranked(votes: np.ndarray, suspicion: np.ndarray, several: bool) -> list[tuple[int, int]]:
    """(clip, class) of what is doubted; where a clip has one label, only its likeliest other class."""
    rows = sorted(
        map(tuple, np.argwhere(votes > 0).tolist()), key=lambda at: (-votes[at], -suspicion[at], at)
    )
    if several:
        return rows
    first: dict[int, tuple[int, int]] = {}
    for row in rows:
        first.setdefault(row[0], row)
    return list(first.values())
