"""Training of scikit-learn heads, which have no epochs; the files are the same as those of other heads."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from earshot.core.config import TrainingFlags
from earshot.core.device import Device, get_autocast
from earshot.core.errors import UserError
from earshot.training import metrics
from earshot.training.checkpoint import FoldFolder
from earshot.training.dataset import WindowDataset
from earshot.training.predict import predict
from earshot.training.progress import Fold, Progress, format_epoch_line, format_ids, get_score

if TYPE_CHECKING:
    from models import Head

BATCH = 256


def is_sklearn_head(build: Callable[[], Head]) -> bool:
    """Does this build scikit-learn heads? Found out without giving a head memory."""
    with torch.device("meta"):
        return build().is_sklearn


def fit_head(
    build: Callable[[], Head],
    rows: WindowDataset,
    fold: Fold,
    settings: TrainingFlags,
    folder: FoldFolder,
    device: Device,
    log: Callable[[str], None],
) -> None:
    """Fit a scikit-learn head to the training rows of a fold and save it as finished.

    Augmented copies are left out, because their labels may be shares. A head that is `weighted` gets the
    clips' weights; the scores count all clips alike.
    """
    began = time.perf_counter()
    head = build()
    train_rows, valid_rows = rows.find_rows(fold.train), rows.find_rows(fold.valid)
    clip_of_row = rows.clip[train_rows]
    weights = {} if rows.weights is None or not head.weighted else {"weights": rows.weights[clip_of_row]}
    groups = np.array([group or f"\0{index}" for index, group in enumerate(rows.groups)])
    # scikit-learn computes on the CPU: training rows are moved there batch by batch.
    head.solve(
        rows.iterate_batches(train_rows, BATCH),
        rows.targets[clip_of_row],
        np.unique(groups, return_inverse=True)[1][clip_of_row],
        rows.multilabel,
        **weights,
    )
    head = head.to(device.name)
    of_train, of_valid = (
        predict(head, rows, part, BATCH, get_autocast(device), pool=settings.pool)
        for part in (train_rows, valid_rows)
    )
    trained_on = np.isin(np.arange(len(rows.ids)), clip_of_row)
    row = {
        "fold": fold.number,
        "epoch": 1,
        "lr": 0.0,
        "train_loss": metrics.compute_scores(of_train[trained_on], rows.truth[trained_on])["log_loss"],
    }
    has_validation = bool(fold.valid.any())  # a model on all clips has none
    if has_validation:
        has_audio = np.isin(np.arange(len(rows.ids)), rows.clip[valid_rows])
        predicted = of_valid[has_audio]
        if not np.isfinite(predicted).all():
            ids = rows.ids[has_audio][~np.isfinite(predicted).all(1)]
            raise UserError(
                f"{fold.name}: the prediction is not a number for {format_ids(ids)}: extract the features "
                "again (get_features.py --fresh)"
            )
        scores = metrics.compute_scores(predicted, rows.truth[has_audio], settings.metric)
        row |= {"valid_loss": scores.pop("log_loss"), **scores}
    row["seconds"] = time.perf_counter() - began
    metric = settings.metric
    best = [metrics.to_gain(metric, get_score(row, metric)), -row["valid_loss"]] if has_validation else []
    progress = Progress(epoch=1, best=best, best_epoch=1, history=[row])
    scored = {metric: get_score(row, metric), "chosen": "there is one epoch only"} if has_validation else {}
    folder.save_best(head.state_dict(), {"head": head.config, "epoch": 1, **scored})
    folder.save_last(head.state_dict(), None, {"progress": vars(progress), "finished": True})
    shown = {key: value for key, value in row.items() if key != "lr"}
    log(format_epoch_line(shown, fold, replace(settings, epochs=1), True, 0.0))
