"""Losses of recent steps, read from the GPU only now and then, because each read makes it wait."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from earshot.core.errors import UserError
from earshot.training.dataset import WindowDataset
from earshot.training.progress import Fold, format_ids

LOOK = 64  # steps between two reads of the losses
WAY_OUT = "give a lower --lr, or --clip-grad 1; the last good checkpoint is kept"


class PendingLosses(list[tuple[int, int, int, np.ndarray, Tensor]]):
    """(epoch, step, steps of the epoch, rows, mean loss of the rows) of each step since the last read."""

    def __init__(self, rows: WindowDataset, fold: Fold):
        super().__init__()
        self.rows, self.fold = rows, fold

    def add_to(self, total: float) -> float:
        """Add each step's loss times its rows to the total, step by step: the bits do not depend on when.

        Raises:
            UserError: a loss is not a number; the first such step is named.
        """
        losses = torch.stack([step[-1] for step in self]).tolist() if self else []
        for (epoch, number, steps, rows, _), loss in zip(self, losses, strict=True):
            if not np.isfinite(loss):
                raise UserError(self._explain_nan(epoch, number, steps, rows))
            total += loss * len(rows)
        self.clear()
        return total

    def _explain_nan(self, epoch: int, number: int, steps: int, rows: np.ndarray) -> str:
        """The error when a batch's loss is not a number: the clips whose features are not finite, else all
        clips of the batch."""
        where = f"{self.fold.name}, epoch {epoch}, batch {number + 1} of {steps}: the loss is not a number"
        bad = [row for row in rows if not bool(self.rows.load_batch(np.array([row]))[0].isfinite().all())]
        if bad:
            return (
                f"{where}, because the cached features of "
                f"{format_ids(self.rows.all_ids[self.rows.clip_of_row[bad]])} are not finite: extract them "
                "again "
                "(get_features.py --fresh)"
            )
        return f"{where}; its clips: {format_ids(self.rows.all_ids[self.rows.clip_of_row[rows]])}: {WAY_OUT}"
