"""One fold's training: a loop that fits a page, exact on resuming.

Nothing random depends on history: every generator is seeded by (seed, fold, epoch, step), so an epoch gives the same
weights whether the process lived through the earlier ones or read them from disk.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable

import numpy as np
import torch
from torch import Tensor, nn

from earshot import augment, optim
from earshot.cli import clock
from earshot.dataset import Rows, predict
from earshot.device import Device, out_of_memory
from earshot.errors import UserError
from earshot.metrics import scores

if TYPE_CHECKING:
    from earshot.cli import Deadline
    from earshot.config import TrainingFlags
    from earshot.run import FoldFolder

SAVE_SHARE = 20  # a checkpoint that took a second to write is written at most every 20 seconds,
SAVE_SECONDS = 2.0  # and none more often than this: what a kill may cost


@dataclass
class Fold:
    """A fold to train: its number, its place among all of them, and (clips,) booleans of who learns and who is asked."""

    number: int
    place: int
    count: int
    train: np.ndarray
    valid: np.ndarray


@dataclass
class Progress:
    """What is known after an epoch; all of it is saved, so that resuming repeats nothing."""

    epoch: int = 0
    best: list[float] | None = None  # the metric and, where epochs tie, minus the validation loss
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def seed_of(*parts: int) -> int:
    """A seed that is a function of its parts, well mixed."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def autocast(device: Device) -> Any:
    """The mixed-precision context of a device; does nothing for fp32."""
    kinds = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    return torch.autocast(device.name.split(":")[0], kinds[device.precision], enabled=device.precision != "fp32")


class Fitter:
    """Trains one head on one fold and keeps its folder up to date."""

    def __init__(self, build: Callable[[], nn.Module], rows: Rows, fold: Fold, settings: TrainingFlags, classes: int,
                 folder: FoldFolder, device: Device):
        self.rows, self.fold, self.settings, self.folder, self.device = rows, fold, settings, folder, device
        self.train_rows, self.valid_rows = rows.of_clips(fold.train), rows.of_clips(fold.valid)
        self.heard = np.zeros(len(rows.ids), dtype=bool)
        self.heard[rows.clip[self.valid_rows]] = True
        torch.manual_seed(seed_of(settings.seed, fold.number))
        self.head = build().to(device.name)
        if device.name.startswith("cuda"):
            self.head = self.head.to(memory_format=torch.channels_last)
        self.steps = max(1, -(-len(self.train_rows) // settings.batch_size))
        self.optimizer = optim.optimizer(self.head, settings)
        self.schedule = optim.schedule(self.optimizer, settings, self.steps)
        self.scaler = torch.amp.GradScaler(device.name.split(":")[0], enabled=device.precision == "fp16")
        self.micro = settings.batch_size  # rows per forward pass; smaller once memory ran out
        one_hot = torch.eye(classes)
        smooth = settings.label_smoothing
        self.targets = (one_hot * (1 - smooth) + smooth / classes).to(device.name)
        self.weights = self._class_weights(classes)
        self.progress = Progress()
        self.unsaved_best: dict[str, Tensor] | None = None
        if not self._resume() and hasattr(self.head, "adapt"):
            self.head.adapt(rows.batches(self.train_rows, 256))

    def _class_weights(self, classes: int) -> Tensor | None:
        if self.settings.class_weights == "none":
            return None
        # Rows, not clips: it is rows that the loss adds up.
        counts = np.bincount(self.rows.labels[self.rows.clip[self.train_rows]], minlength=classes)
        weights = counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
        return torch.tensor(weights, dtype=torch.float32, device=self.device.name)

    def _resume(self) -> bool:
        saved = self.folder.load_last(self.device.name)
        if saved is None:
            return False
        weights, optimizer, state = saved
        self.head.load_state_dict(weights)
        if optimizer is not None:
            optim.unpack(self.optimizer, optimizer, state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        return True

    def loss(self, logits: Tensor, targets: Tensor, total: Tensor | float | None = None) -> Tensor:
        """Mean cross-entropy against (B, classes) shares, rows weighted by their classes' weights.

        Args:
            total: what the rows' weights sum to; more than they do where these rows are a part of a batch.
        """
        each = -(targets * logits.float().log_softmax(1)).sum(1)
        weight = self._row_weights(targets)
        return (each * weight).sum() / (weight.sum() if total is None else total)

    def _row_weights(self, targets: Tensor) -> Tensor:
        return targets.new_ones(len(targets)) if self.weights is None else targets @ self.weights

    def step(self, epoch: int, number: int, rows: np.ndarray) -> float:
        """One optimiser step on the given rows; its loss."""
        settings = self.settings
        seed = seed_of(settings.seed, self.fold.number, epoch, number)
        rng = np.random.default_rng(seed)
        x, mask = self.rows.batch(rows)
        x, mask = augment.apply(x, mask, settings, rng)
        targets = self.targets[torch.from_numpy(self.rows.labels[self.rows.clip[rows]]).to(x.device)]
        if settings.mixup and rng.random() < settings.mixup_probability:
            x, mask, targets = augment.mix(x, mask, targets, settings.mixup, rng)
        while True:
            torch.manual_seed(seed)  # dropout; again after a failed attempt
            self.optimizer.zero_grad(set_to_none=True)
            try:
                total = self._accumulate(x, mask, targets)
                break
            except RuntimeError as error:
                if not out_of_memory(error) or self.micro <= 1:
                    raise
                self.micro = -(-min(self.micro, len(x)) // 2)
                print(f"out of memory: {self.micro} rows a pass from here on, the effective batch stays {len(x)}", flush=True)
        if settings.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.head.parameters(), settings.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return total

    def _accumulate(self, x: Tensor, mask: Tensor | None, targets: Tensor) -> float:
        total, weight = torch.zeros((), device=x.device), self._row_weights(targets).sum()
        pieces = -(-len(x) // self.micro)
        for part in torch.tensor_split(torch.arange(len(x), device=x.device), pieces):
            whole = pieces == 1
            with autocast(self.device):
                logits = self.head(x if whole else x[part], mask if whole or mask is None else mask[part])
                loss = self.loss(logits, targets if whole else targets[part], weight)
            self.scaler.scale(loss).backward()
            total += loss.detach()
        return float(total)

    def epoch(self, epoch: int) -> dict[str, float]:
        """Train one epoch and evaluate; the row for metrics.csv."""
        from tqdm import tqdm

        began = time.perf_counter()
        rate = self.optimizer.param_groups[0]["lr"]
        order = np.random.default_rng(seed_of(self.settings.seed, self.fold.number, epoch)).permutation(self.train_rows)
        self.head.train()
        total = 0.0
        # Nearly equal batches: a last batch of one row would break batch normalisation.
        bar = tqdm(np.array_split(order, self.steps), desc=f"fold {self.fold.number} epoch {epoch}", leave=False,
                   unit="step", disable=None, dynamic_ncols=True)
        for number, rows in enumerate(bar):
            total += self.step(epoch, number, rows) * len(rows)
        probabilities = self.valid()
        if not np.isfinite(total) or np.isnan(probabilities[self.heard]).any():
            raise UserError(f"fold {self.fold.number}, epoch {epoch}: the loss is not a number: give a lower --lr, or --clip-grad 1; "
                            "the last good checkpoint is kept")
        found = scores(probabilities[self.heard], self.rows.labels[self.heard])
        return {"fold": self.fold.number, "epoch": epoch, "lr": rate, "train_loss": total / len(order),
                "valid_loss": found.pop("log_loss"), **found, "seconds": time.perf_counter() - began}

    def valid(self) -> np.ndarray:
        """(clips, classes) probabilities, NaN for clips outside the validation fold."""
        return predict(self.head, self.rows, self.valid_rows, self.micro * 2, autocast(self.device))

    def fit(self, log: Callable[[str], None], deadline: Deadline, folds_left: int,
            saved: Callable[[], None] = lambda: None) -> bool:
        """Train to the end; False if the time ran out at a safe point before it.

        Args:
            log: takes one line per evaluation.
            deadline: asked after every epoch.
            folds_left: how many folds follow, for the ETA.
            saved: called after every checkpoint.
        """
        settings, progress = self.settings, self.progress
        written, cost = time.perf_counter(), 0.0
        durations = []
        for epoch in range(progress.epoch + 1, settings.epochs + 1):
            row = self.epoch(epoch)
            value = [row[settings.metric], -row["valid_loss"]]
            better = progress.best is None or value > progress.best
            progress.epoch = epoch
            progress.history.append(row)
            if better:
                progress.best, progress.best_epoch = value, epoch
                self.unsaved_best = {name: tensor.detach().cpu().clone() for name, tensor in self.head.state_dict().items()}
            durations.append(row["seconds"])
            left = (settings.epochs - epoch + folds_left * settings.epochs) * float(np.mean(durations))
            log(line(row, self.fold, settings, better, left))
            last, stop = epoch == settings.epochs, deadline.passed()
            began = time.perf_counter()
            if last or stop or began - written > max(SAVE_SECONDS, SAVE_SHARE * cost):
                self._save(finished=last)
                saved()
                written = time.perf_counter()
                cost = written - began
            if stop and not last:
                return False
        return True

    def _save(self, finished: bool) -> None:
        progress = self.progress
        if self.unsaved_best is not None:
            # Before `last/`, which says which epochs are done: a kill between the two repeats epochs, and loses none.
            self.folder.save_best(self.unsaved_best, {"head": self.head.config, "epoch": progress.best_epoch,
                                                      self.settings.metric: progress.best[0],
                                                      "chosen": "on this fold's own clips"})
            self.unsaved_best = None
        tensors, rest = optim.pack(self.optimizer)
        state = {"progress": vars(progress), "finished": finished}
        if not finished:  # a finished fold is never resumed: its optimiser's state would only fill the disk
            state |= {"optimizer": rest, "schedule": self.schedule.state_dict(), "scaler": self.scaler.state_dict()}
        self.folder.save_last(self.head.state_dict(), None if finished else tensors, state)


def line(row: dict[str, float], fold: Fold, settings: TrainingFlags, better: bool, left: float) -> str:
    """The one line per evaluation."""
    width = len(str(settings.epochs))
    name = settings.metric.replace("f1_macro", "f1")
    return (f"fold {fold.place}/{fold.count}  epoch {row['epoch']:>{width}}/{settings.epochs}  lr {row['lr']:.1e}  "
            f"train {row['train_loss']:.3f}  valid {row['valid_loss']:.3f}  {name} {row[settings.metric]:.4f} "
            f"{'*' if better else ' '} {row['seconds']:5.1f} s  eta {clock(left)}")
