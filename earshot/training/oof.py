"""Out-of-fold predictions of a run, a blend or a bake-off, and their csv files."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from earshot.core.csv_text import to_csv
from earshot.core.errors import UserError, raise_if_temporary
from earshot.core.files import write_text
from earshot.training import metrics
from earshot.training.run import Run, list_fold_slots

HEADER = ["id", "fold", "label"]


@dataclass(frozen=True)
class Oof:
    """Out-of-fold predictions.

    Args:
        ids, folds: (clips,). labels: (clips,) class indices, or (clips, classes) of 0 and 1.
        probabilities: (clips, classes). classes: the names of its columns.
    """

    ids: np.ndarray
    folds: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    classes: list[str]

    @classmethod
    def read(cls, path: Path, classes: list[str] | None = None, multilabel: bool | None = None) -> Oof:
        """What `write` wrote.

        Args:
            classes, multilabel: None: as the file has them.
        Raises:
            UserError: the file is missing or damaged, or has another number of classes or unknown labels.
        """
        wrong = UserError(
            f"{path} is damaged, or not from train.py or predict.py: run the command that made it again"
        )
        ids, folds, cells, rows = [], [], [], []
        try:
            with open(path, newline="", encoding="utf-8") as file:
                reader = csv.reader(file, strict=True)
                header = next(reader, [])
                for id, fold, cell, *values in reader:
                    ids.append(id)
                    folds.append(int(fold))
                    cells.append(cell)
                    rows.append(np.array(values, dtype=np.float64))
            if classes is None:
                classes = [name.removeprefix("class ") if name[6:] in HEADER else name for name in header[3:]]
            probabilities = np.stack(rows) if rows else np.zeros((0, len(classes)))
        except (OSError, ValueError, csv.Error) as error:
            raise_if_temporary(path, error)
            raise wrong from None
        same_width = len(header) - len(HEADER) == len(classes) == probabilities.shape[1]
        if not same_width or header[:3] != HEADER or len(set(ids)) < len(ids):
            raise wrong
        numbers = {name: number for number, name in enumerate(classes)}
        if multilabel is None:
            multilabel = any(cell not in numbers for cell in cells)
        truth = np.zeros(probabilities.shape, dtype=np.int8)
        for row, cell in zip(truth, cells, strict=True):
            true = split_labels(cell, numbers) if multilabel else [numbers[cell]] if cell in numbers else None
            if true is None:
                raise wrong
            row[true] = 1
        labels = truth if multilabel else truth.argmax(1)
        return cls(
            np.array(ids, dtype=object), np.array(folds, dtype=np.int64), labels, probabilities, classes
        )

    def write(self, path: Path) -> None:
        """A csv: id, fold, label, a probability column per class.

        Several labels of a clip stand as owl|jay in the one column, none at all as nothing.
        """
        # Two columns of one name would be read wrongly, so a class "id" gets the column "class id".
        names = [f"class {name}" if name in HEADER else name for name in self.classes]
        numbers = {name: number for number, name in enumerate(self.classes)}
        rows: list[list[object]] = [[*HEADER, *names]]
        for id, fold, label, values in zip(
            self.ids, self.folds, self.labels, self.probabilities, strict=True
        ):
            if self.multilabel:
                cell = join_labels(np.flatnonzero(label).tolist(), self.classes, numbers)
            else:
                cell = self.classes[label]
            rows.append([id, int(fold), cell, *(f"{value:.8f}" for value in values)])
        write_text(path, to_csv(rows))

    @property
    def multilabel(self) -> bool:
        """May a clip have several labels?"""
        return self.labels.ndim == 2

    def take(self, rows: np.ndarray) -> Oof:
        """Some of the clips, in the order given."""
        return Oof(
            self.ids[rows], self.folds[rows], self.labels[rows], self.probabilities[rows], self.classes
        )

    def score(self, metric: str = "") -> dict[str, float]:
        """Every metric, pooled over the folds."""
        return metrics.compute_scores(self.probabilities, self.labels, metric)

    def score_folds(self, metric: str) -> dict[int, float]:
        """A metric of each fold for which it is defined; of all folds if it is for none."""
        folds = {int(number): self.folds == number for number in np.unique(self.folds)}
        defined = {
            number: rows
            for number, rows in folds.items()
            if metric not in metrics.list_undefined_metrics(self.labels[rows])
        }
        return {
            number: metrics.compute_scores(self.probabilities[rows], self.labels[rows], metric)[metric]
            for number, rows in (defined or folds).items()
        }


def join_labels(labels: list[int], classes: list[str], numbers: dict[str, int]) -> str:
    """The labels of a clip in one cell: owl|jay, or JSON where names that hold a bar would be read
    otherwise."""
    names = [classes[label] for label in labels]
    cell = "|".join(names)
    return cell if split_labels(cell, numbers) == labels else json.dumps(names, ensure_ascii=False)


def split_labels(cell: str, numbers: dict[str, int]) -> list[int] | None:
    """The classes of a cell that `join_labels` wrote; None where one is unknown.

    A name may hold the bar itself, so every way to join neighbouring pieces is tried, the longest names
    first.
    """
    pieces = cell.split("|") if cell else []
    longest = max(name.count("|") for name in numbers) + 1
    if len(pieces) > longest * len(numbers):
        return None
    found: list[list[int] | None] = [[]]  # by how many pieces are read
    for end in range(1, len(pieces) + 1):
        found.append(None)
        for start in range(max(0, end - longest), end):
            name, before = "|".join(pieces[start:end]), found[start]
            if before is not None and name in numbers:
                found[end] = [*before, numbers[name]]
                break
    if found[-1] is None and cell.startswith("["):
        try:
            return [numbers[name] for name in json.loads(cell)]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
    return found[-1]


def load_fold_predictions(run: Run, fold: int, kind: str) -> np.ndarray | None:
    """(clips, classes) mean over the seeds of what a fold's models predict for its clips; None where that is
    not complete.

    Args:
        kind: "best" or "last".
    """
    seeds = list_fold_slots(run.config["record"]["training"], fold)
    predictions = [run.get_slot_folder(part).load_predictions(kind) for part in seeds]
    shapes = {None if one is None else one.shape for one in predictions}
    return np.mean(predictions, 0) if len(shapes) == 1 and None not in shapes else None


def load_oof(run: Run) -> Oof:
    """A run's out-of-fold predictions at the last epoch, the mean over its seeds, verified against its folds'
    files.

    Raises:
        UserError: a fold that is not finished, or files that do not belong together.
    """
    again = "run its train.py command again to complete them"
    path, finished = run.folder / "oof_last.csv", run.list_finished_folds()
    begun = [int(folder.name[5:]) for folder in run.folder.glob("fold_*") if folder.name[5:].isdigit()]
    unfinished = sorted(set(begun) - set(finished))
    missing = ""
    if unfinished:
        missing = f"fold {', '.join(map(str, unfinished))} is not finished"
    elif not finished:
        missing = "no finished fold"
    elif not path.is_file():
        missing = "no oof_last.csv"
    if missing:
        raise UserError(f"{run.folder} has no complete out-of-fold predictions ({missing}): {again}")
    oof = Oof.read(path, run.classes, run.multilabel)
    for fold in finished:
        # The csv has eight digits: a blend is fitted to what the models predicted exactly.
        exact, rows = load_fold_predictions(run, fold, "last"), oof.folds == fold
        shown = oof.probabilities[rows]
        same = exact is not None and exact.shape == shown.shape
        if not same or not np.allclose(exact, shown, atol=1e-6, equal_nan=True):
            raise UserError(f"{path} differs from the predictions of fold {fold}: {again}")
        oof.probabilities[rows] = exact
    return oof
