"""Out-of-fold predictions of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from earshot.core.errors import UserError
from earshot.training.run import Run, list_fold_slots


@dataclass(frozen=True)
class Oof:
    """Out-of-fold predictions.

    Args:
        ids, folds: (clips,). labels: (clips,) class indices, or (clips, classes) of 0 and 1.
        probabilities: (clips, classes).
    """

    ids: np.ndarray
    folds: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray

    def rows(self, which: np.ndarray) -> Oof:
        """Some of the clips, in the order given."""
        return Oof(self.ids[which], self.folds[which], self.labels[which], self.probabilities[which])


def read_oof(folder: Path, name: str, classes: list[str], multilabel: bool) -> Oof:
    """What `Run.write_oof` wrote; UserError where it is something else."""
    from earshot.core import csv_table

    path = folder / f"{name}.csv"
    frame = csv_table.read(path)
    wrong = UserError(f"{path} is not the out-of-fold predictions of {folder}: run again what made it")
    number = {label: index for index, label in enumerate(classes)}
    if len(frame.columns) != 3 + len(classes) or not frame["id"].is_unique:
        raise wrong
    several = (
        [cell.split("|") if cell else [] for cell in frame["label"]]
        if multilabel
        else [[cell] for cell in frame["label"]]
    )
    try:
        found = [[number[label] for label in one] for one in several]
        folds = frame["fold"].to_numpy().astype(np.int64)
        probabilities = frame.iloc[:, 3:].to_numpy().astype(np.float64)
    except (KeyError, ValueError):
        raise wrong from None
    labels = np.zeros((len(frame), len(classes)), dtype=np.int8)
    for row, one in enumerate(found):
        labels[row, one] = 1
    return Oof(frame["id"].to_numpy(), folds, labels if multilabel else labels.argmax(1), probabilities)


def of_run(run: Run) -> Oof:
    """A run's out-of-fold predictions of the final epoch, the mean over its seeds, compared with those that
    its folds vouch for.

    Raises:
        UserError: a fold that is not finished, or files that do not belong together.
    """
    again = "run its train.py again, it finishes what is missing"
    finished = run.finished_folds()
    begun = [int(path.name[5:]) for path in run.folder.glob("fold_*") if path.name[5:].isdigit()]
    left = sorted(set(begun) - set(finished))
    if left or not finished or not (run.folder / "oof_last.csv").is_file():
        which = (
            f"fold {', '.join(map(str, left))} is not finished"
            if left
            else "no finished fold"
            if not finished
            else "no oof_last.csv"
        )
        raise UserError(f"{run.folder} cannot be blended by its out-of-fold predictions ({which}): {again}")
    found = read_oof(run.folder, "oof_last", run.classes, run.multilabel)
    for number in finished:
        each = [
            run.part(part).predictions("last")
            for part in list_fold_slots(run.config["record"]["training"], number)
        ]
        whole = all(one is not None and one.shape == each[0].shape for one in each)
        exact, rows = np.mean(each, 0) if whole else None, found.folds == number
        if (
            exact is None
            or exact.shape != found.probabilities[rows].shape
            or not np.allclose(exact, found.probabilities[rows], atol=1e-6, equal_nan=True)
        ):
            raise UserError(f"{run.folder}/oof_last.csv is not what fold {number} predicted: {again}")
        found.probabilities[rows] = exact
    return found
