"""Times and scores of the folds that a bake-off's candidates have trained, read from their runs."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from earshot.features.cache import Cache
from earshot.search.schedule import FoldResult
from earshot.training import metrics
from earshot.training.checkpoint import FoldFolder
from earshot.training.oof import Oof
from earshot.training.run import CONFIG, Run, list_slot_folders
from earshot.training.run_scores import summarise_run

if TYPE_CHECKING:
    from earshot.training.dataset import WindowDataset


def read_fold_results(folder: Path, cache: Cache, wanted: list[int], metric: str) -> dict[int, FoldResult]:
    """Seconds and scores of a run's folds, at the last epoch."""
    if not wanted or not (folder / "oof_last.csv").is_file():
        return {}
    oof, run = (
        Oof.read(folder / "oof_last.csv", cache.classes, cache.multilabel),
        Run(folder),
    )
    found = {}
    for fold in wanted:
        of = oof.take(oof.folds == fold)
        if not len(of.ids):
            continue
        gain = metrics.compute_gain(metric, of.probabilities, of.labels)
        error = -gain if metric in metrics.MINIMISED else 1 - gain
        if not math.isfinite(error):  # a metric without a value on these clips
            error = 1.0
        loss = float(metrics.compute_losses(of.probabilities, of.labels).mean())
        seconds = sum(row["seconds"] for row in run.get_fold_folder(fold).read_history())
        found[fold] = FoldResult(float(seconds), float(error), loss)
    return found


def summarise_finished(run: Run, rows: WindowDataset, numbers: np.ndarray) -> None:
    """Score a run's finished folds, if there are any."""
    finished = map(run.get_fold_folder, run.list_finished_folds())
    if any(folder.load_predictions("last") is not None for folder in finished):
        summarise_run(run, rows, numbers)


def estimate_unfinished(run: Run, epochs: int, wall: float) -> float:
    """Seconds that a fold which was stopped takes in all, by its epochs so far; twice `wall`, what has
    passed, where none is finished."""
    for folder in map(FoldFolder, list_slot_folders(run.folder)):
        history = folder.read_history()
        if history and not folder.is_complete():
            return epochs * fmean(row["seconds"] for row in history)
    return 2 * wall


def read_losses(run: Run) -> tuple[list[float], float]:
    """The validation loss of each epoch and the last training loss, means over the finished folds."""
    folders = [FoldFolder(folder) for folder in list_slot_folders(run.folder)]
    histories = [folder.read_history() for folder in folders if folder.is_complete()]
    epochs = zip(*histories, strict=False)
    losses = [fmean(row.get("valid_loss", 0.0) for row in rows) for rows in epochs]
    return losses, fmean(rows[-1]["train_loss"] for rows in histories) if histories else 0.0


def sum_training_seconds(run: Run) -> float:
    """Seconds that a run's training took so far."""
    return float(
        sum(
            row["seconds"]
            for folder in list_slot_folders(run.folder)
            for row in FoldFolder(folder).read_history()
        )
    )


def run_exists(folder: Path) -> bool:
    """Is there a run?"""
    return (folder / CONFIG).is_file()
