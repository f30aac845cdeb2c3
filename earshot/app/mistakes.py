"""The misclassified clips of a run or a blend, out-of-fold, and their audio files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from earshot.core.errors import UserError
from earshot.features import clip_files
from earshot.prediction.members import Member

MOST = 500


@dataclass(frozen=True)
class Mistake:
    """A misclassified clip.

    Args:
        labels: its true ones, of several labels any number.
        predicted: the likeliest class; where clips may have several labels, the class that is furthest off.
        probability: of `predicted`. probabilities: (classes,).
    """

    id: str
    fold: int
    labels: tuple[str, ...]
    predicted: str
    probability: float
    probabilities: np.ndarray

    @property
    def truth(self) -> str:
        """The true labels, joined by commas; "none" where there is none."""
        return ", ".join(self.labels) or "none"

    def __str__(self) -> str:
        return f"{self.id}: {self.predicted} {self.probability:.0%}, true label {self.truth}"

    def concerns(self, name: str) -> bool:
        """Is a class the predicted one, or among the true ones?"""
        return name == self.predicted or name in self.labels


def find_mistakes(whole: Member) -> tuple[list[Mistake], str]:
    """The misclassified clips by out-of-fold predictions at the last epoch, worst first, and a summary line.

    Worst means the highest probability of a wrong class. Where clips may have several labels, it means the
    largest difference between a label and its probability, if that is over 0.5.

    Returns:
        no mistakes and the reason, where the run has no out-of-fold predictions.
    """
    try:
        oof = whole.read_oof()
    except UserError as error:
        return [], str(error)
    classes, p = whole.classes, oof.probabilities
    rows = np.arange(len(p))
    if whole.multilabel:
        difference = np.abs(p - oof.labels)
        worst, size = difference.argmax(1), difference.max(1)
        wrong = size > 0.5
    else:
        worst = p.argmax(1)
        size, wrong = p[rows, worst], worst != oof.labels
    count = int(wrong.sum())
    found = []
    for i in np.argsort(-np.where(wrong, size, -1), kind="stable")[: min(MOST, count)]:
        labels = list_labels(classes, oof.labels[i])
        likely = classes[worst[i]], float(p[i, worst[i]]), p[i]
        found.append(Mistake(str(oof.ids[i]), int(oof.folds[i]), labels, *likely))
    kept = f", the worst {MOST} are listed" if count > MOST else ""
    return (
        found,
        f"{count} of {len(p)} clips misclassified, worst first{kept}. These are out-of-fold predictions: "
        "each clip is scored by a model that never saw it.",
    )


def list_labels(classes: list[str], labels: np.ndarray) -> tuple[str, ...]:
    """A clip's labels: of an index, or of a row with a 1 for each label of several."""
    if np.ndim(labels) == 0:
        return (classes[int(labels)],)
    return tuple(classes[index] for index in np.flatnonzero(labels))


def find_files(whole: Member, ids: Iterable[str]) -> dict[str, Path]:
    """The audio files of clips by id, as far as they still lie where get_features.py found them."""
    for run in whole.list_runs():
        folder = run.config.get("features_folder")
        if folder and Path(folder).is_dir():
            return clip_files.find_audio(Path(folder), ids)
    return {}
