"""Where a fold's training stands, and the lines that say so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from earshot.core.deadline import clock

if TYPE_CHECKING:
    from earshot.core.config import TrainingFlags
    from earshot.training.run import ModelSlot


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
        if self.part is None or self.part.first and self.part.fold is not None:
            return f"fold {self.place}/{self.count}"
        return (
            self.part.name
            if self.part.fold is None
            else f"fold {self.place}/{self.count} seed {self.part.seed}"
        )


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


def some(ids: np.ndarray) -> str:
    """A few clips by name, and how many more."""
    names = [str(id) for id in dict.fromkeys(ids)]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def place(fold: Fold, epoch: int, settings: TrainingFlags) -> str:
    """The beginning of every line of training."""
    return f"{fold.title}  epoch {epoch:>{len(str(settings.epochs))}}/{settings.epochs}"


def value_of(row: dict[str, float], metric: str) -> float:
    """A score out of a row of metrics.csv, which calls the log loss valid_loss."""
    return row["valid_loss" if metric == "log_loss" else metric]


def line(row: dict[str, float], fold: Fold, settings: TrainingFlags, better: bool, left: float) -> str:
    """The one line per evaluation."""
    name, asked = settings.metric.replace("f1_macro", "f1"), ""
    if "valid_loss" in row:
        asked = (
            f"valid {row['valid_loss']:.3f}  {name} {value_of(row, settings.metric):.4f} "
            f"{'*' if better else ' '} "
        )
    return (
        f"{place(fold, row['epoch'], settings)}  lr {row['lr']:.1e}  "
        f"train {row['train_loss']:.3f}  {asked}{row['seconds']:5.1f} s  eta {clock(left)}"
    )
