"""Predictions of saved runs: the mean over their models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn

from earshot.core.device import Device, get_autocast, is_out_of_memory, to_device
from earshot.core.errors import UserError
from earshot.training import window_pooling
from earshot.training.dataset import WindowDataset
from earshot.training.progress import format_ids
from earshot.training.run import ModelSlot, Run, format_slots, list_fold_slots, list_refit_slots

if TYPE_CHECKING:
    from models import Head


class Windows(Protocol):
    """Windows of clips, such as the rows of a `WindowDataset`."""

    @property
    def ids(self) -> np.ndarray:
        """(clips,)"""

    @property
    def clip(self) -> np.ndarray:
        """(windows,) each window's clip."""

    @property
    def multilabel(self) -> bool:
        """May a clip have several labels?"""

    def __len__(self) -> int: ...


class ExportedHeads(Protocol):
    """All models of a run without torch; the class itself is in a package above."""

    def compute_logits(self, rows: WindowDataset, which: np.ndarray) -> torch.Tensor:
        """Logits (rows, models, classes) of the rows `which`, in the order of `list_predictors`."""


def predict_run(
    run: Run,
    rows: WindowDataset,
    device: Device,
    kind: str = "best",
    ids: Sequence[Any] | None = None,
    exported: ExportedHeads | None = None,
) -> np.ndarray:
    """The mean of a run's folds and seeds, or of its models on all clips if it has some.

    Args:
        rows: of the view that the run was trained on.
        device: where, in the precision that the run was trained in.
        kind: the checkpoint to predict with, "best" or "last".
        ids: the clips in the order that is wanted, where it is not that of `rows`.
        exported: the same models, of that kind of checkpoint, in place of torch's.
    Returns:
        (clips, classes) probabilities, NaN for clips without rows.
    Raises:
        UserError: no fold of the run is finished.
    """
    if exported:
        found = predict_with_windows(run, rows, device, kind, exported)[0]
    else:
        found = average_predictions(
            run, rows, [predict_slot(run, slot, kind, rows, device) for slot in list_predictors(run)]
        )
    return found if ids is None else reorder_clips(found, rows.ids, ids)


def reorder_clips(values: np.ndarray, have: Sequence[Any], wanted: Sequence[Any]) -> np.ndarray:
    """Rows of `values`, which belong to the clips `have`, for the wanted clips; NaN where there is none."""
    place = {str(id): index for index, id in enumerate(have)}
    index = np.array([place.get(str(id), -1) for id in wanted], dtype=np.int64)
    found = values[index]
    found[index < 0] = np.nan
    return found


def average_predictions(run: Run, rows: Windows, found: list[np.ndarray]) -> np.ndarray:
    """The mean of what a run's models predict, each (clips, classes); UserError where a clip that has rows
    gets no number."""
    if not len(rows):
        return np.full((len(rows.ids), len(run.classes)), np.nan, dtype=np.float32)
    blended = np.mean(found, 0)
    has_rows = np.bincount(rows.clip, minlength=len(rows.ids)) > 0
    lost = rows.ids[has_rows & ~np.isfinite(blended).all(1)]
    if len(lost):  # they would otherwise be filled with the class priors
        raise UserError(
            f"{run.folder}: the prediction is not a number for {format_ids(lost)}: their features or a "
            "fold's weights are damaged: extract again (get_features.py --fresh), else train again (train.py "
            "--fresh)"
        )
    return blended


def predict_slot(run: Run, slot: ModelSlot, kind: str, rows: WindowDataset, device: Device) -> np.ndarray:
    """One model's (clips, classes) probabilities, by its "best" or "last" checkpoint."""
    head, which = load_slot_head(run, slot, kind, device), np.arange(len(rows))
    return predict_rows(run, head, rows, which, device)


def predict_rows(
    run: Run, head: nn.Module, rows: WindowDataset, which: np.ndarray, device: Device
) -> np.ndarray:
    """`predict` with a run's own precision, batch size, shifts and pooling."""
    precision = get_autocast(run.adapt_device(device))
    return predict(head, rows, which, run.predict_batch_size, precision, run.shifts, run.pool)


def load_slot_head(run: Run, slot: ModelSlot, kind: str, device: Device) -> Head:
    """One model's head on the device, its number of classes checked."""
    head = to_device(run.get_slot_folder(slot).load_head(kind, device.name), run.adapt_device(device))
    check_head(run, slot, head)
    return head


def check_head(run: Run, slot: ModelSlot, head: Head) -> None:
    """UserError where a head has another number of classes than its run."""
    num_classes = head.config["num_classes"]
    if num_classes != len(run.classes):
        raise UserError(
            f"{run.get_slot_folder(slot).folder} holds a head of {num_classes} labels, and {run.folder} has "
            f"{len(run.classes)}: it belongs to another run; delete the fold to train it again"
        )


def fill_with_prior(probabilities: np.ndarray, prior: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fill clips without predictions with the class priors; also (clips,) booleans of these clips."""
    skipped = np.isnan(probabilities).any(1)
    return np.where(skipped[:, None], prior, probabilities), skipped


def predict(
    head: nn.Module,
    rows: WindowDataset,
    which: np.ndarray,
    batch_size: int,
    autocast: Any,
    shifts: int = 1,
    pool: str = "mean",
) -> np.ndarray:
    """Probabilities of all clips of a split; NaN rows for clips of which no row is among `which`.

    Args:
        shifts: see `compute_logits`.
        pool: how a clip's windows are pooled, see `window_pooling.pool_logits`.
    Returns:
        (clips, classes) float32: softmax, or a sigmoid of each class where clips have several labels.
    """
    clips = len(rows.ids)
    if not len(which):
        return np.full((clips, 0), np.nan, dtype=np.float32)
    logits = compute_logits(head, rows, which, batch_size, autocast, shifts)
    clip = torch.from_numpy(rows.clip[which]).long()
    return window_pooling.pool_logits(logits, clip, clips, pool, rows.multilabel).numpy()


def predict_with_windows(
    run: Run, rows: WindowDataset, device: Device, kind: str = "best", exported: ExportedHeads | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """What `predict_run` predicts, (clips, classes), and the same for each window alone, (rows, classes)."""
    if not len(rows):
        return average_predictions(run, rows, []), np.zeros((0, len(run.classes)), np.float32)
    return average_logits(run, rows, _list_logits(run, rows, device, kind, exported))


def compute_slot_logits(
    run: Run, head: nn.Module, rows: WindowDataset, which: np.ndarray, device: Device
) -> torch.Tensor:
    """`compute_logits` with a run's own precision, batch size and shifts."""
    precision = get_autocast(run.adapt_device(device))
    return compute_logits(head, rows, which, run.predict_batch_size, precision, run.shifts)


def average_logits(run: Run, rows: Windows, logits: Iterable[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """What a run predicts, (clips, classes), and the same for each window alone, (windows, classes), from the
    logits (windows, classes) of each of its models."""
    clip, pooled, each = torch.from_numpy(np.array(rows.clip)).long(), [], []
    for one in logits:
        found = window_pooling.pool_logits(one, clip, len(rows.ids), run.pool, rows.multilabel)
        pooled.append(found.numpy())
        each.append(window_pooling.to_probabilities(one, rows.multilabel).numpy())
    return average_predictions(run, rows, pooled), np.mean(each, 0)


def _list_logits(
    run: Run, rows: WindowDataset, device: Device, kind: str, exported: ExportedHeads | None
) -> Iterator[torch.Tensor]:
    """Each model's logits (rows, classes)."""
    which = np.arange(len(rows))
    if exported:
        yield from exported.compute_logits(rows, which).unbind(1)
        return
    for slot in list_predictors(run):
        yield compute_slot_logits(run, load_slot_head(run, slot, kind, device), rows, which, device)


@torch.inference_mode()
def compute_logits(
    head: nn.Module,
    rows: WindowDataset,
    which: np.ndarray,
    batch_size: int,
    autocast: Any,
    shifts: int = 1,
) -> torch.Tensor:
    """A head's logits (rows, classes) of some rows, at least one; float32 on the CPU.

    Args:
        shifts: mean of the logits over so many circular shifts in time, evenly spaced; 1 = as it is.
    """
    head.eval()
    found, at = [], 0
    frames = rows.shape[2]
    shifts = min(shifts, frames)
    offsets = [round(number * frames / shifts) for number in range(shifts)]
    with autocast:
        while at < len(which):
            try:
                for x, mask in rows.iterate_batches(which[at:], batch_size):
                    logits = sum(
                        head(x.roll(by, 3) if by else x, mask if mask is None else mask.roll(by, 1)).float()
                        for by in offsets
                    ) / len(offsets)
                    found.append(logits)
                    at += len(x)
            except RuntimeError as error:
                if not is_out_of_memory(error) or batch_size == 1:
                    raise
                batch_size //= 2  # changes no result: rows do not depend on each other
    return torch.cat(found).cpu()


def list_predictors(run: Run) -> list[ModelSlot]:
    """The models that predict new clips, by their mean: those on all clips if the run has them, else all
    finished folds.

    Raises:
        UserError: they are not trained yet.
    """
    training = run.config["record"]["training"]
    found = list_refit_slots(training) or [
        slot for number in run.list_finished_folds() for slot in list_fold_slots(training, number)
    ]
    if not found:
        raise UserError(f"no fold of {run.folder} is finished: continue with train.py")
    missing = run.list_open_slots(found)
    if missing:
        raise UserError(f"{run.folder} is not finished ({format_slots(missing)}): continue with train.py")
    return found


def describe_predictors(run: Run) -> str:
    """What `list_predictors` are, in words."""
    found, seeds = list_predictors(run), run.config["record"]["training"].get("seeds", 1)
    more = f" x {seeds} seeds" if seeds > 1 else ""
    return f"all labelled clips{more}" if found[0].fold is None else f"{len(found) // seeds} folds{more}"
