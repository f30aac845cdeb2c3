"""One fold's training: a loop that fits a page, exact on resuming.

Nothing random depends on history: every generator is seeded by (seed, fold, epoch, step), so an epoch gives the same
weights whether the process lived through the earlier ones or read them from disk.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
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
RAW = "raw."  # beside the optimiser's tensors: the weights that are trained, where it is their average that predicts
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
        self.average = optim.Average(self.head, settings.ema) if settings.ema else None
        self.steps = max(1, -(-len(self.train_rows) // settings.batch_size))
        self.optimizer = optim.optimizer(self.head, settings)
        self.schedule = optim.schedule(self.optimizer, settings, self.steps)
        self.scaler = torch.amp.GradScaler(device.name.split(":")[0], enabled=device.precision == "fp16")
        self.micro = settings.batch_size  # rows per forward pass; smaller once memory ran out
        self.weights = self._class_weights(classes)
        self.progress = Progress()
        self.unsaved_best: dict[str, Tensor] | None = None
        if not self._resume():
            self._begin()

    def _begin(self) -> None:
        """What a fresh fold's head gets before its first step: pretrained weights, the training set's statistics."""
        if hasattr(self.head, "load_pretrained"):
            self.head.load_pretrained()
        if hasattr(self.head, "adapt"):
            self.head.adapt(self.rows.batches(self.rows.with_copies(self.train_rows), 256))
        if self.average:
            self.average.head.load_state_dict(self.head.state_dict())
        if self.settings.crop < 1:
            self._try_crop()

    def _try_crop(self) -> None:
        """Refuse --crop before the first epoch where the head takes whole windows only."""
        x, mask = self.rows.batch(self.train_rows[:1])
        x, mask = augment.warp_time(x, mask, 0.0, self.settings.crop, np.random.default_rng(0))
        try:
            with torch.inference_mode(), autocast(self.device):
                self.head.eval()(x, mask)
        except (RuntimeError, ValueError, AssertionError) as error:  # timm asserts
            if out_of_memory(error):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"--crop {self.settings.crop:g}: this head takes windows of one length only ({reason}): "
                            "leave --crop out, or choose another head") from None

    @property
    def predictor(self) -> nn.Module:
        """The head that predicts: the average of the weights where there is one."""
        return self.average.head if self.average else self.head

    def _class_weights(self, classes: int) -> Tensor | None:
        if self.settings.class_weights == "none":
            return None
        # Rows, not clips: it is rows that the loss adds up.
        counts = self.rows.targets[self.rows.clip[self.train_rows]].sum(0)
        if self.rows.multilabel:  # weight of a yes, so that a class's yeses weigh as much as its noes
            weights = (len(self.train_rows) - counts) / np.maximum(counts, 1)
        else:
            # A class that is not there weighs nothing: by the share that smoothing gives it, it would outweigh all others.
            weights = (counts > 0) * counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
        return torch.tensor(weights, dtype=torch.float32, device=self.device.name)

    def _resume(self) -> bool:
        saved = self.folder.load_last(self.device.name)
        if saved is None:
            return False
        weights, optimizer, state = saved
        self.predictor.load_state_dict(weights)
        if optimizer is not None:
            if self.average:
                raw = {name.removeprefix(RAW): optimizer.pop(name) for name in list(optimizer) if name.startswith(RAW)}
                self.head.load_state_dict(raw)
            optim.unpack(self.optimizer, optimizer, state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        return True

    def loss(self, logits: Tensor, targets: Tensor, total: Tensor | float | None = None) -> Tensor:
        """Mean cross-entropy against (B, classes) shares, rows weighted by their classes' weights.

        Where clips have several labels: binary cross-entropy, the mean over classes, a yes weighted by its class's weight.

        Args:
            total: what the rows' weights sum to; more than they do where these rows are a part of a batch.
        """
        if self.rows.multilabel:
            entropy = partial(nn.functional.binary_cross_entropy_with_logits, logits.float(), reduction="none")
            each = entropy(targets)
            if self.weights is not None:
                # The weight is the yes's own: the share that smoothing gives to a no would else turn rare classes into yeses.
                share = self.settings.label_smoothing
                yes = (targets - share / 2) / max(1 - share, 1e-6)
                each = each + (self.weights - 1) * yes * entropy(torch.full_like(targets, 1 - share / 2))
            each = each.mean(1)
        else:
            each = -(targets * logits.float().log_softmax(1)).sum(1)
        weight = self._row_weights(targets)
        return (each * weight).sum() / (weight.sum() if total is None else total)

    def _row_weights(self, targets: Tensor) -> Tensor:
        plain = self.weights is None or self.rows.multilabel
        return targets.new_ones(len(targets)) if plain else targets @ self.weights

    def _smooth(self, targets: Tensor) -> Tensor:
        share = self.settings.label_smoothing
        return targets * (1 - share) + share / (2 if self.rows.multilabel else targets.shape[1])

    def step(self, epoch: int, number: int, rows: np.ndarray) -> float:
        """One optimiser step on the given rows; its loss."""
        settings = self.settings
        seed = seed_of(settings.seed, self.fold.number, epoch, number)
        x, mask = self.rows.batch(rows)
        targets = self.rows.targets_of(rows)
        batch = {}
        if hasattr(self.head, "loss"):  # for the others the clips as they were would only fill memory
            batch = {"plain": x, "plain_mask": mask, "plain_targets": self._smooth(targets), **self.rows.extras(rows)}
        x, mask, targets = augment.apply(x, mask, targets, settings, np.random.default_rng(seed))
        batch |= {"x": x, "mask": mask}
        targets = self._smooth(targets)
        total = self._gradients(batch, targets, seed)
        if settings.optimizer == "sam":
            before = optim.climb(self.head, settings.rho)
            with optim.still_statistics(self.head):
                # The same seed, so the same units drop out: the two passes differ in the weights alone.
                self._gradients(batch, targets, seed)
            optim.descend(before)
        if settings.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.head.parameters(), settings.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        if self.average:
            self.average.update(self.head, (epoch - 1) * self.steps + number)
        return total

    def _gradients(self, batch: dict[str, Any], targets: Tensor, seed: int) -> float:
        """Gradients of a batch in place of the old ones, in as many passes as memory asks for; the loss."""
        size = len(targets)
        while True:
            torch.manual_seed(seed)  # dropout; again after a failed attempt
            self.optimizer.zero_grad(set_to_none=True)
            try:
                return self._accumulate(batch, targets)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise UserError(f"a batch of {size} rows, {min(self.micro, size)} a pass, leaves a single row, which this head cannot "
                                "normalise: raise --batch-size, or choose another head") from None
            except RuntimeError as error:
                if not out_of_memory(error) or self.micro <= 1:
                    raise
                self.micro = -(-min(self.micro, size) // 2)
                print(f"out of memory: {self.micro} rows a pass from here on, the effective batch stays {size}", flush=True)

    def _accumulate(self, batch: dict[str, Any], targets: Tensor) -> float:
        total, weight = torch.zeros((), device=targets.device), self._row_weights(targets).sum()
        pieces = -(-len(targets) // self.micro)
        for part in torch.tensor_split(torch.arange(len(targets), device=targets.device), pieces):
            some = batch if pieces == 1 else {name: v if v is None else v[part] for name, v in batch.items()}
            wanted = targets if pieces == 1 else targets[part]
            with autocast(self.device):
                if hasattr(self.head, "loss"):
                    share = self._row_weights(wanted).sum() / weight
                    loss = share * self.head.loss(some, lambda logits, plain=False: self.loss(
                        logits, some["plain_targets"] if plain else wanted))
                else:
                    loss = self.loss(self.head(some["x"], some["mask"]), wanted, weight)
            self.scaler.scale(loss).backward()
            total += loss.detach()
        return float(total)

    def epoch(self, epoch: int) -> dict[str, float]:
        """Train one epoch and evaluate; the row for metrics.csv."""
        from tqdm import tqdm

        began = time.perf_counter()
        rate = self.optimizer.param_groups[0]["lr"]
        order = np.random.default_rng(seed_of(self.settings.seed, self.fold.number, epoch)).permutation(
            self.rows.of_epoch(self.train_rows, epoch))
        self.head.train()
        total = 0.0
        # Nearly equal batches: a last batch of one row would break batch normalisation. None is empty: a copy that was played
        # faster may have fewer windows than its clip.
        bar = tqdm(np.array_split(order, min(self.steps, len(order))), desc=f"fold {self.fold.number} epoch {epoch}", leave=False,
                   unit="step", disable=None, dynamic_ncols=True)
        for number, rows in enumerate(bar):
            total += self.step(epoch, number, rows) * len(rows)
        probabilities = self.valid()
        if not np.isfinite(total) or np.isnan(probabilities[self.heard]).any():
            raise UserError(f"fold {self.fold.number}, epoch {epoch}: the loss is not a number: give a lower --lr, or --clip-grad 1; "
                            "the last good checkpoint is kept")
        found = scores(probabilities[self.heard], self.rows.truth[self.heard])
        return {"fold": self.fold.number, "epoch": epoch, "lr": rate, "train_loss": total / len(order),
                "valid_loss": found.pop("log_loss"), **found, "seconds": time.perf_counter() - began}

    def valid(self) -> np.ndarray:
        """(clips, classes) probabilities, NaN for clips outside the validation fold; without --tta, which would cost every epoch."""
        return predict(self.predictor, self.rows, self.valid_rows, self.micro * 2, autocast(self.device))

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
                self.unsaved_best = {name: tensor.detach().cpu().clone() for name, tensor in self.predictor.state_dict().items()}
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
            if self.average:
                tensors |= {RAW + name: value for name, value in self.head.state_dict().items()}
        self.folder.save_last(self.predictor.state_dict(), None if finished else tensors, state)


def line(row: dict[str, float], fold: Fold, settings: TrainingFlags, better: bool, left: float) -> str:
    """The one line per evaluation."""
    width = len(str(settings.epochs))
    name = settings.metric.replace("f1_macro", "f1")
    return (f"fold {fold.place}/{fold.count}  epoch {row['epoch']:>{width}}/{settings.epochs}  lr {row['lr']:.1e}  "
            f"train {row['train_loss']:.3f}  valid {row['valid_loss']:.3f}  {name} {row[settings.metric]:.4f} "
            f"{'*' if better else ' '} {row['seconds']:5.1f} s  eta {clock(left)}")
