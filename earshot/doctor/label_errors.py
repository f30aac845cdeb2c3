"""Labels that may be wrong: those that contradict out-of-fold predictions, or the labels of neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from earshot.core.errors import UserError
from earshot.core.spelling import to_keys
from earshot.doctor.embeddings import Clips
from earshot.doctor.findings import Finding, report_ok, warn, write_csv
from earshot.doctor.similarity import centre, find_nearest
from earshot.training.oof import Oof

NEIGHBOURS = 10
OOF_FILES = ("oof_last.csv", "oof.csv")  # of a run, of a blend


def read_out_of_fold(
    runs: tuple[str, ...], folder: str, cache_ids: np.ndarray, classes: list[str]
) -> tuple[np.ndarray, dict[str, int]]:
    """The mean of the runs' out-of-fold probabilities, and the folds of the first run.

    Of the last epoch (oof_last.csv), which is unbiased; a blend has one file, oof.csv.

    Returns:
        (training clips, classes) probabilities, NaN for clips that a run lacks; id -> fold.
    Raises:
        UserError: no such run, one without predictions, or one of other clips or labels.
    """
    total, folds = np.zeros((len(cache_ids), len(classes))), None
    for name in runs:
        places = [base / file for base in (Path(name), Path(folder) / name) for file in OOF_FILES]
        path = next(filter(Path.is_file, places), None)
        if path is None:
            raise UserError(
                f"--runs {name}: no oof_last.csv in {name} or {Path(folder) / name}: give a run with at "
                "least one finished fold"
            )
        oof = Oof.read(path)
        if to_keys(oof.classes) != to_keys(classes):
            raise UserError(
                f"{path} has other labels than the cache (run {len(oof.classes)}, cache {len(classes)}): "
                "give a run of this competition"
            )
        rows = pd.Index(oof.ids).get_indexer(cache_ids.astype(object))
        if (rows < 0).all():
            raise UserError(f"{path} has none of the cache's clips: give a run of this competition")
        total += np.where((rows < 0)[:, None], np.nan, oof.probabilities[rows])
        folds = folds or dict(zip(oof.ids, oof.folds.tolist(), strict=True))
    return total / max(len(runs), 1), folds or {}


def count_neighbours(clips: Clips, k: int = NEIGHBOURS) -> np.ndarray:
    """(training clips, classes) share of each label among the k nearest neighbours of other groups, weighted
    by cosine."""
    count = len(clips.labels)
    targets = clips.targets
    embedded = np.flatnonzero(clips.embedded[:count])
    shares = np.full((count, targets.shape[1]), np.nan)
    cosines, indices = find_nearest(centre(clips.embeddings[embedded]), clips.number_parts()[embedded], k)
    weights = np.where(np.isfinite(cosines), np.maximum(cosines, 1e-3), 0).astype(np.float64)
    with np.errstate(invalid="ignore"):
        total = (weights[:, :, None] * targets[embedded[indices]]).sum(1)
        shares[embedded] = total / weights.sum(1, keepdims=True)
    return shares


def find_doubts(probabilities: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where probabilities contradict a label, by a threshold per class (confident learning, Northcutt, Jiang
    & Chuang 2021).

    A class's threshold is the mean probability of the class over its own clips, so that not every clip of a
    hard class is suspicious.

    Args:
        probabilities: (clips, classes) probabilities or shares, NaN rows unknown.
        truth: (clips,) class indices, or (clips, classes) of 0 and 1.
    Returns:
        doubted (clips, classes) bool: single-label: the likeliest other class that reaches its threshold, if
        it is likelier than the clip's label; multi-label: the label (present or absent) whose opposite
        reaches the threshold. margin (clips, classes): how much likelier the opposite is, -1 to 1.
    """
    known = np.isfinite(probabilities).all(1)
    p = np.where(known[:, None], probabilities, 0)
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
    threshold = np.full(p.shape[1], np.inf)
    for c in np.unique(truth[known]):
        threshold[c] = p[known & (truth == c), c].mean()
    rival = np.where(p >= threshold, p, -1)
    rival[rows, truth] = -1
    best = rival.argmax(1)
    doubted = np.zeros(p.shape, dtype=bool)
    doubted[rows, best] = known & (rival[rows, best] > own)
    return doubted, np.where(known[:, None], p - own[:, None], np.nan)


def write_suspicious(clips: Clips, oof: np.ndarray | None, out: Path) -> Iterator[Finding]:
    """Write suspicious_labels.csv, the likeliest errors first: by the number of reasons, then by the mean
    margin."""
    sources = {} if oof is None else {"oof": oof}
    if clips.embeddings is not None:
        sources["neighbours"] = count_neighbours(clips)
    if not sources:
        yield warn("labels: not checked, no run (--runs A) and no view to compare clips by")
        return
    judged = {name: find_doubts(p, clips.labels) for name, p in sources.items()}
    margins = np.array([margin for _, margin in judged.values()])
    votes, suspicion = (
        sum(doubted.astype(int) for doubted, _ in judged.values()),
        np.nan_to_num(margins).mean(0),
    )
    # both sources have to find the clip's label the less likely one
    votes = np.where(((margins > 0) | np.isnan(margins)).all(0), votes, 0)
    classes, multilabel = clips.cache.classes, clips.labels.ndim == 2
    pairs = _rank_pairs(votes, suspicion, multilabel)
    names, rows = [], []
    for rank, (i, k) in enumerate(pairs, 1):
        sign = ("-" if clips.labels[i, k] else "+") if multilabel else ""
        names.append(sign + classes[k])
        own_class = k if multilabel else clips.labels[i]
        numbers = [float(p[i, c]) for p in sources.values() for c in (own_class, k)]
        reasons = "+".join(source for source, (doubted, _) in judged.items() if doubted[i, k])
        clip = (clips.ids[i], clips.place[i], clips.names[i])
        rows.append((rank, *clip, names[-1], float(suspicion[i, k]), *numbers, reasons))
    columns = [f"{name}_{which}" for name in sources for which in ("given", "suggested")]
    header = ("rank", "id", "fold", "label", "suggested", "suspicion", *columns, "reasons")
    write_csv(out / "suspicious_labels.csv", header, rows)
    alone = "the run" if oof is not None else "the nearest neighbours (--runs A uses a run, too)"
    by = "the run and the nearest neighbours" if len(sources) == 2 else alone
    if not pairs:
        yield report_ok(f"labels: no likely errors, checked against {by}")
        return
    both = f", {sum(votes[pair] == 2 for pair in pairs)} by both" if len(sources) == 2 else ""
    first = pairs[0][0]
    yield warn(
        f"possibly mislabelled: {len(pairs)} labels ({len(pairs) / len(clips.labels):.1%} of the clips) by "
        f"{by}{both} (first: {clips.ids[first]}, {clips.names[first] or 'no label'}, maybe {names[0]}): "
        f"listen from the top of {out / 'suspicious_labels.csv'}, fix the wrong ones, keep the hard ones"
    )


def _rank_pairs(votes: np.ndarray, suspicion: np.ndarray, multilabel: bool) -> list[tuple[int, int]]:
    """(clip, class) of the suspicious labels, ranked; for single-label only the best suggestion per clip."""
    pairs = map(tuple, np.argwhere(votes > 0).tolist())
    ranked = sorted(pairs, key=lambda pair: (-votes[pair], -suspicion[pair], pair))
    if multilabel:
        return ranked
    likeliest: dict[int, tuple[int, int]] = {}
    for pair in ranked:
        likeliest.setdefault(pair[0], pair)
    return list(likeliest.values())
