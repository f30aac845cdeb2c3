"""What a run or a blend got wrong out of fold, with the audio where it still lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from earshot.core.errors import UserError
from earshot.features import clip_files
from earshot.prediction.members import Member

MOST = 500


@dataclass(frozen=True)
class Mistake:
    """A clip, its fold, its labels, what was said with which probability, the probabilities (classes,)."""

    id: str
    fold: int
    truth: str
    said: str
    sure: float
    probabilities: np.ndarray

    def __str__(self) -> str:
        return f"{self.id}: {self.said} {self.sure:.2f}, is {self.truth}"


def find_mistakes(whole: Member) -> tuple[list[Mistake], str]:
    """The honest out-of-fold mistakes, the surest first (of several labels: the clips with the furthest-off
    label), and a line.

    Returns:
        none, and why, where the run cannot tell.
    """
    try:
        oof = whole.read_oof()
    except UserError as error:
        return [], str(error)
    classes, p = whole.classes, oof.probabilities
    if whole.multilabel:
        off = np.abs(p - oof.labels)
        worst, sure = off.argmax(1), off.max(1)
        wrong = sure > 0.5
    else:
        worst = p.argmax(1)
        sure, wrong = p[np.arange(len(p)), worst], worst != oof.labels
    found = []
    for i in np.argsort(-np.where(wrong, sure, -1), kind="stable")[: min(MOST, int(wrong.sum()))]:
        if whole.multilabel:
            truth = ", ".join(classes[c] for c in np.flatnonzero(oof.labels[i])) or "none"
        else:
            truth = classes[oof.labels[i]]
        found.append(
            Mistake(str(oof.ids[i]), int(oof.folds[i]), truth, classes[worst[i]], float(p[i, worst[i]]), p[i])
        )
    kept = f", the {MOST} surest of them here" if int(wrong.sum()) > MOST else ""
    return (
        found,
        f"{int(wrong.sum())} of {len(p)} clips are wrong out of fold{kept}: each judged by models that have "
        "not seen it.",
    )


def find_files(whole: Member, mistakes: list[Mistake]) -> dict[str, Path]:
    """The audio of mistakes by the clips' ids, as far as the competition's files are where get_features.py
    found them."""
    for run in whole.list_runs():
        folder = run.config.get("features_folder")
        if folder and Path(folder).is_dir():
            return clip_files.find_audio(Path(folder), [one.id for one in mistakes])
    return {}
