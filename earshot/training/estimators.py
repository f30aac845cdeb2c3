"""A fold of a head that is fitted at once instead of by epochs: the same files as any other fold's."""

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
    """Does this make heads that are fitted at once? Asked without giving one memory."""
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
    """Fit a head to the training rows of a fold (no augmented copies: their labels may be shares) and save it
    as finished. A head that is `weighted` gets the clips' weights; the scores count all clips alike."""
    began = time.perf_counter()
    head = build()
    learn, ask = rows.find_rows(fold.train), rows.find_rows(fold.valid)
    whose = rows.clip[learn]
    weights = {} if rows.weights is None or not head.weighted else {"weights": rows.weights[whose]}
    names = np.array([group or f"\0{index}" for index, group in enumerate(rows.groups)])
    # What is learnt from is moved to the CPU batch by batch: that is where scikit-learn computes.
    head.solve(
        rows.iterate_batches(learn, BATCH),
        rows.targets[whose],
        np.unique(names, return_inverse=True)[1][whose],
        rows.multilabel,
        **weights,
    )
    head = head.to(device.name)
    seen, answered = (
        predict(head, rows, part, BATCH, get_autocast(device), pool=settings.pool) for part in (learn, ask)
    )
    known = np.isin(np.arange(len(rows.ids)), whose)
    row = {
        "fold": fold.number,
        "epoch": 1,
        "lr": 0.0,
        "train_loss": metrics.compute_scores(seen[known], rows.truth[known])["log_loss"],
    }
    asked = bool(fold.valid.any())  # a model on all clips has nobody to ask
    if asked:
        heard = np.isin(np.arange(len(rows.ids)), rows.clip[ask])
        if not np.isfinite(answered[heard]).all():
            odd = rows.ids[heard][~np.isfinite(answered[heard]).all(1)]
            raise UserError(
                f"{fold.name}: the prediction is not a number for {format_ids(odd)}: extract the features "
                "anew "
                "(get_features.py --fresh)"
            )
        found = metrics.compute_scores(answered[heard], rows.truth[heard], settings.metric)
        row |= {"valid_loss": found.pop("log_loss"), **found}
    row["seconds"] = time.perf_counter() - began
    metric = settings.metric
    best = [metrics.to_gain(metric, get_score(row, metric)), -row["valid_loss"]] if asked else []
    progress = Progress(epoch=1, best=best, best_epoch=1, history=[row])
    scored = {metric: get_score(row, metric), "chosen": "there is one epoch only"} if asked else {}
    folder.save_best(head.state_dict(), {"head": head.config, "epoch": 1, **scored})
    folder.save_last(head.state_dict(), None, {"progress": vars(progress), "finished": True})
    shown = {key: value for key, value in row.items() if key != "lr"}
    log(format_epoch_line(shown, fold, replace(settings, epochs=1), True, 0.0))
