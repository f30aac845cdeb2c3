"""How far the training of a fold is, its lines in the log, and estimates of the time left."""

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
# Seconds. An epoch quicker than QUICK is logged only if it is the fold's last, or after HEARTBEAT without a
# line. From then on an epoch has to be slower than SLOW for every epoch to be logged again: epochs of about
# a second would otherwise switch back and forth.
QUICK, SLOW, HEARTBEAT = 1.0, 2.0, 20.0
LONG_EPOCH = 60.0  # seconds without a line after which one is logged in the middle of an epoch
# A mean training loss that no healthy run has: guessing costs the logarithm of the number of classes.
DIVERGED = 100.0


@dataclass
class Fold:
    """A fold to train.

    Args:
        number: the fold's own, as --fold and the files have it.
        count: how many folds there are.
        train, valid: (clips,) booleans. Without validation clips the last epoch is kept.
        part: which of the run's models this is, where it has more than one a fold.
    """

    number: int
    count: int
    train: np.ndarray
    valid: np.ndarray
    part: ModelSlot | None = None

    @property
    def name(self) -> str:
        """Its name in messages."""
        return self.part.name if self.part else f"fold {self.number}"

    @property
    def title(self) -> str:
        """The beginning of its lines in the log."""
        if self.part is not None and self.part.fold is None:
            return self.part.name
        seed = "" if self.part is None or self.part.first else f" seed {self.part.seed}"
        return f"fold {self.number}/{self.count}{seed}"


@dataclass
class Progress:
    """The state of training after an epoch or in its middle; all of it is saved for resuming."""

    epoch: int = 0
    best: list[float] | None = None  # the metric and, where epochs tie, minus the validation loss
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    step: int = 0  # steps done in the current epoch
    total: float = 0.0  # the sum of their losses, each times its rows
    lr: float = 0.0  # the learning rate at the start of the epoch
    seconds: float = 0.0  # the time that the epoch has taken so far


def format_ids(ids: np.ndarray) -> str:
    """The first five ids, and the number of the others."""
    names = [str(id) for id in dict.fromkeys(ids)]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def format_epoch(fold: Fold, epoch: int, settings: TrainingFlags) -> str:
    """The beginning of every line of training."""
    return f"{fold.title}  epoch {epoch:>{len(str(settings.epochs))}}/{settings.epochs}"


def get_score(row: dict[str, float], metric: str) -> float:
    """A score from a row of metrics.csv, where the log loss is called valid_loss."""
    return row["valid_loss" if metric == "log_loss" else metric]


def format_epoch_line(
    row: dict[str, float], fold: Fold, settings: TrainingFlags, better: bool, left: float
) -> str:
    """The line of an epoch; without a learning rate where the row has none."""
    loss = row["train_loss"]
    text = (
        format_epoch(fold, int(row["epoch"]), settings)
        + (f"  lr {row['lr']:.1e}" if "lr" in row else "")
        + (f"  train {loss:.1e}  " if is_diverged(row) else f"  train {loss:.3f}  ")
    )
    if "valid_loss" in row:
        name, score = settings.metric.replace("f1_macro", "f1"), get_score(row, settings.metric)
        text += f"valid {row['valid_loss']:.3f}  {name} {score:.4f} {'*' if better else ' '} "
    return f"{text}{row['seconds']:5.1f} s  eta {format_clock(left)}"


def is_diverged(row: dict[str, float]) -> bool:
    """Has training left all sensible losses in this epoch?"""
    return row["train_loss"] > DIVERGED


def suggest_fix(lr: float, clip_grad: float | None) -> str:
    """What to do about a diverged run, from two of its settings."""
    return f"lower --lr (it was {lr:g})" + ("" if clip_grad else " or set --clip-grad 1")


class EpochLog:
    """The lines of a fold's epochs: all of them, or where epochs are quick the last one only."""

    def __init__(self, log: Callable[[str], None], fold: Fold, settings: TrainingFlags):
        self.log, self.fold, self.settings = log, fold, settings
        self.waiting, self.quiet = "", False
        self.logged_at = time.perf_counter()

    def add_epoch(self, history: list[dict[str, float]], better: bool, left: float, last: bool) -> None:
        """Take the newest epoch of a history; log it unless it was quick and others follow.

        Args:
            better: is it the best so far? left: seconds to the end of training.
        """
        row = history[-1]
        if is_diverged(row) and not any(map(is_diverged, history[:-1])):
            self._write(
                f"warning: {self.fold.name}, epoch {row['epoch']}: training diverged, its loss is "
                f"{row['train_loss']:.1e}: {suggest_fix(self.settings.lr, self.settings.clip_grad)}"
            )
        self.quiet = row["seconds"] < (SLOW if self.quiet else QUICK)
        self.waiting = format_epoch_line(row, self.fold, self.settings, better, left)
        if last or not self.quiet or time.perf_counter() - self.logged_at >= HEARTBEAT:
            self.flush()

    def add_step(self, epoch: int, step: str, loss: float, left: float) -> None:
        """Log where a long epoch is."""
        start = format_epoch(self.fold, epoch, self.settings)
        self._write(f"{start}  step {step}  train {loss:.3f}  eta {format_clock(left)}")

    def flush(self) -> None:
        """Log the last epoch's line if it is not logged yet."""
        if self.waiting:
            self._write(self.waiting)
        self.waiting = ""

    def _write(self, line: str) -> None:
        self.log(line)
        self.logged_at = time.perf_counter()


class TrainingEta:
    """A deadline that also times a fold's first steps and logs once how long the rest will take."""

    def __init__(
        self, deadline: Deadline | WorkerInbox, fitter: Any, folds_left: int, log: Callable[[str], None]
    ):
        self.deadline, self.fitter, self.folds_left, self.log = deadline, fitter, folds_left, log
        self.began: tuple[float, int] | None = None  # when timing began, and the steps done by then
        self.estimated = False

    def is_over(self) -> bool:
        """Is the time used up? Called after every step."""
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
        more = f" and {self.folds_left} more fold{'s' * (self.folds_left > 1)}" if self.folds_left else ""
        self.log(
            f"{fitter.fold.title}  estimate from the first steps: about {format_clock(left)} for this "
            f"fold{more} ({epochs} epochs of {fitter.steps} steps, {1000 * step_seconds:.0f} ms each); each "
            f"fold takes {format_bytes(2 * weight_bytes)} of disk"
        )
