"""From saved runs to probabilities: folds into a run, runs into a blend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from earshot.core import device as device_module
from earshot.core.device import Device
from earshot.core.errors import UserError
from earshot.training import window_pooling
from earshot.training.dataset import Rows, pieces
from earshot.training.parts import Part, listed, of_fold, refits
from earshot.training.progress import some
from earshot.training.run import Run


def predict_run(
    run: Run,
    rows: Rows,
    rebuild: Callable[[dict], Any],
    device: Device,
    batch_size: int | None = None,
    kind: str = "best",
) -> np.ndarray:
    """The mean of a run's folds and seeds, each by its best checkpoint, or its last; of its models on all
    clips where it has some.

    Args:
        rows: of the view that the run was trained on.
        rebuild: makes a head out of its description (`models.rebuild`).
        kind: "best", or "last" for the final epoch's.
    Returns:
        (clips, classes) probabilities, NaN for clips without rows.
    Raises:
        UserError: no fold of the run is finished.
    """
    return mean(
        run,
        rows,
        [predict_part(run, part, kind, rows, rebuild, device, batch_size) for part in predictors(run)],
    )


def mean(run: Run, rows: Rows, found: list[np.ndarray]) -> np.ndarray:
    """The mean of what a run's models predict, each (clips, classes); UserError where a clip that has rows
    gets no number."""
    if not len(rows):
        return np.full((len(rows.ids), len(run.classes)), np.nan, dtype=np.float32)
    blended = np.mean(found, 0)
    heard = np.bincount(rows.clip, minlength=len(rows.ids)) > 0
    lost = rows.ids[heard & ~np.isfinite(blended).all(1)]
    if len(lost):  # or they would be answered like clips that cannot be heard
        raise UserError(
            f"{run.folder}: the prediction is not a number for {some(lost)}: their features are damaged, or "
            "a fold's weights; extract anew (get_features.py --fresh), else train anew (train.py --fresh)"
        )
    return blended


def predict_part(
    run: Run,
    part: Part,
    kind: str,
    rows: Rows,
    rebuild: Callable[[dict], Any],
    device: Device,
    batch_size: int | None = None,
) -> np.ndarray:
    """One model's (clips, classes) probabilities, by its "best" or "last" checkpoint; the rest as in
    `predict_run`."""
    head = load_part(run, part, kind, rebuild, device)
    return predict(
        head,
        rows,
        np.arange(len(rows)),
        batch_size or run.at_once,
        device_module.autocast(device),
        run.shifts,
        run.pool,
    )


def load_part(run: Run, part: Part, kind: str, rebuild: Callable[[dict], Any], device: Device) -> Any:
    """One model's head on the device, as `predict_part` takes it."""
    head = device_module.laid_out(run.part(part).load_head(kind, rebuild, device.name), device)
    check_head(run, part, head)
    return head


def check_head(run: Run, part: Part, head: Any) -> None:
    """UserError where a fold's head answers another number of labels than its run has."""
    answers = head.config["num_classes"] if hasattr(head, "config") else len(run.classes)
    if answers != len(run.classes):
        raise UserError(
            f"{run.part(part).folder} holds a head of {answers} labels, and {run.folder} has "
            f"{len(run.classes)}: it belongs to another run; delete the fold to train it again"
        )


def fill(probabilities: np.ndarray, prior: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clips that cannot be heard answered by the class prior; which ones they were, as (clips,) booleans."""
    unheard = np.isnan(probabilities).any(1)
    return np.where(unheard[:, None], prior, probabilities), unheard


@torch.inference_mode()
def predict(
    head: torch.nn.Module,
    rows: Rows,
    which: np.ndarray,
    batch_size: int,
    autocast: Any,
    shifts: int = 1,
    pool: str = "mean",
) -> np.ndarray:
    """Probabilities of all clips of a split; NaN rows for clips of which no row is among `which`.

    Args:
        shifts: mean of the logits over so many circular shifts in time, evenly spaced; 1 = as it is.
        pool: how a clip's windows are pooled, see `window_pooling.pool`.
    Returns:
        (clips, classes) float32: softmax, or a sigmoid of each class where clips have several labels.
    """
    from earshot.core.device import out_of_memory

    head.eval()
    found, at = [], 0
    frames = rows.shape[2]
    shifts = min(shifts, frames)
    offsets = [round(number * frames / shifts) for number in range(shifts)]
    with autocast:
        while at < len(which):
            try:
                for part in rows.ahead(pieces(which[at:], batch_size)):
                    x, mask = rows.batch(part)
                    logits = sum(
                        head(x.roll(by, 3) if by else x, mask if mask is None else mask.roll(by, 1)).float()
                        for by in offsets
                    ) / len(offsets)
                    found.append(logits)
                    at += len(part)
            except RuntimeError as error:
                if not out_of_memory(error) or batch_size == 1:
                    raise
                batch_size //= 2  # the answers stay the same: no row knows its batch mates
    clips = len(rows.ids)
    if not found:
        return np.full((clips, 0), np.nan, dtype=np.float32)
    return window_pooling.pool(
        torch.cat(found).cpu(), torch.from_numpy(rows.clip[which]).long(), clips, pool, rows.multilabel
    ).numpy()


def predictors(run: Run) -> list[Part]:
    """The parts whose mean answers new clips: the models on all clips where the run has them, else all
    finished folds.

    Raises:
        UserError: they are not trained yet.
    """
    training = run.config["record"]["training"]
    found = refits(training) or [
        part for number in run.finished_folds() for part in of_fold(training, number)
    ]
    if not found:
        raise UserError(f"no fold of {run.folder} is finished: run train.py on")
    missing = run.missing(found)
    if missing:
        raise UserError(f"{run.folder} is not finished ({listed(missing)}): run train.py on")
    return found


def predicting(run: Run) -> str:
    """What `predictors` are, in words."""
    found, seeds = predictors(run), run.config["record"]["training"].get("seeds", 1)
    more = f" x {seeds} seeds" if seeds > 1 else ""
    return f"all labelled clips{more}" if found[0].fold is None else f"{len(found) // seeds} folds{more}"
