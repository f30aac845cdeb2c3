"""Where a fold's training stands, the lines that say so, and what the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from earshot.core.deadline import LONG, format_clock
from earshot.core.disk_space import format_bytes

if TYPE_CHECKING:
    from earshot.core.config import TrainingFlags
    from earshot.core.deadline import Deadline
    from earshot.core.worker_pool import WorkerInbox
    from earshot.training.run import ModelSlot

MEASURED = 2.0  # seconds of training before an estimate is worth something


@dataclass
class Fold:
    """A fold to train: its number, its place among all of them, and (clips,) booleans of who learns and who
    is asked.

    `part` says what of the run it is, where the run has more than its folds; with nobody to ask, the final
    epoch is kept.
    """

    number: int
    place: int
    count: int
    train: np.ndarray
    valid: np.ndarray
    part: ModelSlot | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.part.name if self.part else f"fold {self.number}"

    @property
    def title(self) -> str:
        """What the lines of the log begin with."""
        if self.part is not None and self.part.fold is None:
            return self.part.name
        seed = "" if self.part is None or self.part.first else f" seed {self.part.seed}"
        return f"fold {self.place}/{self.count}{seed}"


@dataclass
class Progress:
    """What is known after an epoch or in its middle; all of it is saved, so that resuming repeats nothing."""

    epoch: int = 0
    best: list[float] | None = None  # the metric and, where epochs tie, minus the validation loss
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    step: int = 0  # steps done of the epoch under way,
    total: float = 0.0  # the sum of their losses, times rows,
    lr: float = 0.0  # the learning rate at its start,
    seconds: float = 0.0  # and what it took so far


def format_ids(ids: np.ndarray) -> str:
    """A few clips by name, and how many more."""
    names = [str(id) for id in dict.fromkeys(ids)]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def format_epoch(fold: Fold, epoch: int, settings: TrainingFlags) -> str:
    """The beginning of every line of training."""
    return f"{fold.title}  epoch {epoch:>{len(str(settings.epochs))}}/{settings.epochs}"


def get_score(row: dict[str, float], metric: str) -> float:
    """A score out of a row of metrics.csv, which calls the log loss valid_loss."""
    return row["valid_loss" if metric == "log_loss" else metric]


def format_epoch_line(
    row: dict[str, float], fold: Fold, settings: TrainingFlags, better: bool, left: float
) -> str:
    """The one line per evaluation."""
    text = (
        f"{format_epoch(fold, row['epoch'], settings)}  lr {row['lr']:.1e}  train {row['train_loss']:.3f}  "
    )
    if "valid_loss" in row:
        name, score = settings.metric.replace("f1_macro", "f1"), get_score(row, settings.metric)
        text += f"valid {row['valid_loss']:.3f}  {name} {score:.4f} {'*' if better else ' '} "
    return f"{text}{row['seconds']:5.1f} s  eta {format_clock(left)}"


class TrainingEta:
    """A deadline that watches a fold's first steps go by and then says once what the rest will take."""

    def __init__(
        self, deadline: Deadline | WorkerInbox, fitter: Any, folds_left: int, log: Callable[[str], None]
    ):
        self.deadline, self.fitter, self.folds_left, self.log = deadline, fitter, folds_left, log
        self.began: tuple[float, int] | None = None  # when the first step was done, and how many were
        self.estimated = False

    def is_over(self) -> bool:
        """Is the time used up? Asked after every step."""
        if not self.estimated:
            now, progress = time.perf_counter(), self.fitter.progress
            done = progress.epoch * self.fitter.steps + progress.step
            self.began = self.began or (now, done)  # the first step warms up
            seconds, steps = now - self.began[0], done - self.began[1]
            if seconds >= MEASURED and steps:
                self.estimated = True
                self._log_estimate(seconds / steps, done)
        return self.deadline.is_over()

    def _log_estimate(self, step_seconds: float, done: int) -> None:
        fitter, epochs = self.fitter, self.fitter.settings.epochs
        left = ((1 + self.folds_left) * epochs * fitter.steps - done) * step_seconds
        if left < LONG:
            return
        weight_bytes = 4 * sum(p.numel() for p in fitter.head.parameters())
        more = f" and {self.folds_left} more folds" if self.folds_left else ""
        self.log(
            f"{fitter.fold.title}  estimate, from the first steps: about {format_clock(left)} for it{more} "
            f"({epochs} epochs of {fitter.steps} steps, {1000 * step_seconds:.0f} ms each); a fold leaves "
            f"{format_bytes(2 * weight_bytes)} on the disk"
        )
