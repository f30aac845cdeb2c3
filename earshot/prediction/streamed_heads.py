"""Heads that predict windows in a thread of their own, while the features of the next ones are made.

The batches are those of `predict_run`, so that the predictions are the same, bit for bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch

from earshot.core.device import Device
from earshot.prediction import exported
from earshot.training import predict
from earshot.training.dataset import WindowDataset
from earshot.training.run import Run

AHEAD = 2  # pieces of features that may wait for the heads


class ClipWindows(NamedTuple):
    """The windows of clips, without their features."""

    ids: np.ndarray
    """(clips,)"""
    clip: np.ndarray
    """(windows,) each window's clip."""
    multilabel: bool

    def __len__(self) -> int:
        return len(self.clip)


class StreamedHeads:
    """A run's models, each by its "best" or "last" checkpoint.

    Args:
        span: seconds of the features' time axis.
        report: called with a line where an export of the run predicts.
    """

    def __init__(
        self, run: Run, kind: str, span: float, device: Device, report: Callable[[str], None] = print
    ):
        self.run, self.kind, self._span, self._device = run, kind, span, device
        self.view = run.config["record"]["view"]
        slots = predict.list_predictors(run)
        self._exported = exported.open_heads(run, kind, device, report)
        self._heads = [
            predict.load_slot_head(run, slot, kind, device) for slot in slots if not self._exported
        ]
        self._logits: list[list[torch.Tensor]] = [[] for _ in slots]
        self._views: list[np.ndarray] = []  # of windows that wait for a full batch
        self._lengths: list[np.ndarray] = []
        self._predicted = self._redo = 0
        self._masked = False

    @property
    def windows(self) -> int:
        """How many it was given."""
        return self._predicted + sum(map(len, self._lengths))

    def add(self, view: np.ndarray, length: np.ndarray) -> None:
        """Predict further windows, as soon as a batch of them is full.

        Args:
            view: (windows, D, F, T) of the run's view. length: (windows,) seconds of real audio.
        """
        self._views.append(view)
        self._lengths.append(length)
        waiting = sum(map(len, self._lengths))
        self._predict(waiting - waiting % self.run.predict_batch_size)

    def _predict(self, count: int) -> None:
        if not count:
            return
        view, length = np.concatenate(self._views), np.concatenate(self._lengths)
        self._views, self._lengths = [view[count:]], [length[count:]]
        rows = self.build_rows(view[:count], length[:count])
        if rows.masked and not self._masked:
            # All windows have a mask if any of them is short: those before the first short one were predicted
            # without, which `finish` repeats.
            self._masked, self._redo = True, self._predicted
        for found, logits in zip(self._compute(rows, np.arange(count)), self._logits, strict=True):
            logits.append(found)
        self._predicted += count

    def _compute(self, rows: WindowDataset, which: np.ndarray) -> list[torch.Tensor]:
        """Each model's logits (rows, classes)."""
        if self._exported:
            return list(self._exported.compute_logits(rows, which).unbind(1))
        return [
            predict.compute_slot_logits(self.run, head, rows, which, self._device) for head in self._heads
        ]

    def build_rows(self, view: np.ndarray, length: np.ndarray) -> WindowDataset:
        """Windows as the heads' input; arguments as of `add`."""
        count = len(view)
        classes, several = self.run.classes, self.run.multilabel
        split = {
            "ids": np.arange(count).astype(str),
            "clip": np.arange(count),
            "folds": np.full(count, -1),
            "groups": np.zeros(count, dtype=np.str_),
            "labels": np.zeros((count, len(classes)), np.int8) if several else np.zeros(count, np.str_),
            "length": length,
            self.view: view,
        }
        return WindowDataset(split, self.view, classes, self._span, self._device.name, masked=self._masked)

    def finish(
        self, ids: np.ndarray, clip: np.ndarray, load_rows: Callable[[], WindowDataset]
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the run predicts for all windows: (clips, classes), and for each alone, (windows, classes).

        Args:
            ids: (clips,). clip: (windows,) the clip of each window that was added.
            load_rows: makes the dataset of all windows, for the few that have to be predicted again.
        Raises:
            UserError: a prediction is not a number.
        """
        windows = ClipWindows(ids, clip, self.run.multilabel)
        if not len(windows):
            none = np.zeros((0, len(self.run.classes)), np.float32)
            return predict.average_predictions(self.run, windows, []), none
        self._predict(self.windows - self._predicted)
        whole = [torch.cat(logits) for logits in self._logits]
        if self._redo:
            again = self._compute(load_rows(), np.arange(self._redo))
            for found, better in zip(whole, again, strict=True):
                found[: self._redo] = better
        return predict.average_logits(self.run, windows, whole)


class HeadsThread:
    """Runs heads beside the extractor on a CPU, at most `AHEAD` pieces behind it; on a GPU in turn with it.

    Args:
        heads: of runs that were trained on the same features.
    """

    def __init__(self, heads: Sequence[StreamedHeads], device: Device):
        self.heads = list(heads)
        self._pool = ThreadPoolExecutor(1, "heads") if device.name == "cpu" and heads else None
        self._waiting: deque[Future] = deque()

    def add(self, views: dict[str, np.ndarray], length: np.ndarray) -> None:
        """Predict further windows.

        Args:
            views: by name (windows, D, F, T). length: (windows,) seconds of real audio.
        """
        if self._pool is None:
            self._add(views, length)
            return
        self._waiting.append(self._pool.submit(self._add, views, length))
        self.wait(AHEAD)

    def _add(self, views: dict[str, Any], length: np.ndarray) -> None:
        for one in self.heads:
            one.add(views[one.view], length)

    def wait(self, left: int = 0) -> None:
        """Wait until at most so many pieces are left; an error of the heads is raised here."""
        while len(self._waiting) > left:
            self._waiting.popleft().result()

    def close(self) -> None:
        """Leave the pieces that wait, after an error."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
