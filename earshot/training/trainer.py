"""One fold's training: a loop that fits a page, exact on resuming.

Nothing random depends on history: every generator is seeded by (seed, fold, epoch, step), so an epoch gives
the same weights whether the process lived through the earlier ones or read them from disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from earshot.core.deadline import clock
from earshot.core.device import Device, autocast, laid_out, one_thread, out_of_memory
from earshot.core.errors import UserError
from earshot.core.seeding import reseed, seed_of
from earshot.training import augment, crops, metrics, optim, precision, window_pooling
from earshot.training.dataset import Rows
from earshot.training.loss import Criterion, accumulate
from earshot.training.pending_losses import LOOK, WAY_OUT, PendingLosses
from earshot.training.predict import predict
from earshot.training.progress import Fold, Progress, line, place, some, value_of

if TYPE_CHECKING:
    from earshot.core.config import TrainingFlags
    from earshot.core.deadline import Deadline
    from earshot.training.checkpoint import FoldFolder
    from models import Head

# beside the optimiser's tensors: the weights that are trained, where it is their average that predicts
RAW = "raw."
SAVE_SHARE = 20  # a checkpoint that took a second to write is written at most every 20 seconds,
SAVE_SECONDS = 2.0  # and none more often than this: what a kill may cost
SAY_SECONDS = 60.0  # a long epoch says where it is
WHOLE = 1 << 24  # bytes of a batch in which a tiny head evaluates


class Fitter:
    """Trains one head on one fold and keeps its folder up to date."""

    def __init__(
        self,
        build: Callable[[], Head],
        rows: Rows,
        fold: Fold,
        settings: TrainingFlags,
        classes: int,
        folder: FoldFolder,
        device: Device,
    ):
        self.rows, self.fold, self.settings, self.folder, self.device = rows, fold, settings, folder, device
        self.train_rows, self.valid_rows = rows.of_clips(fold.train), rows.of_clips(fold.valid)
        self.asked = bool(fold.valid.any())  # a model on all clips has nobody to ask
        self.heard = np.zeros(len(rows.ids), dtype=bool)
        self.heard[rows.clip[self.valid_rows]] = True
        torch.manual_seed(seed_of(settings.seed, fold.number))
        self.head = laid_out(build(), device)
        work = precision.operations(
            self.head, rows, self.valid_rows if len(self.valid_rows) else self.train_rows
        )
        self.tiny = work * settings.batch_size * precision.BACKWARD < precision.TINY
        self.average = optim.average(self.head, settings)
        drawn = self._drawn(self.train_rows, 1)  # in every epoch as many
        self.taken = len(drawn) + len(self._taught(1))
        self.steps = max(1, -(-self.taken // settings.batch_size))
        self.optimizer = optim.optimizer(self.head, settings)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.schedule = optim.schedule(self.optimizer, settings, self.steps)
        self.scaler = torch.amp.GradScaler(device.name.split(":")[0], enabled=device.precision == "fp16")
        self.autocast, self.augmented = autocast(device), augment.asked(settings)
        self.micro = settings.batch_size  # rows per forward pass; smaller once memory ran out
        self.criterion = Criterion.of(rows, drawn, settings)
        self.progress = Progress()
        self.unsaved_best: dict[str, Tensor] | None = None
        self._memory: dict[str, Tensor] | None = None
        self.seeds: tuple[int, np.ndarray] = (0, np.zeros(0, np.uint64))  # of an epoch's steps
        self.unseen = PendingLosses(rows, fold)
        if not self._resume():
            self._begin()

    def _begin(self) -> None:
        """What a fresh fold's head gets before its first step: pretrained weights, the training set's
        statistics."""
        self.head.load_pretrained()
        self.head.adapt(self.rows.batches(self.rows.with_copies(self.train_rows), 256))
        if self.average:
            self.average.head.load_state_dict(self.head.state_dict())
        if self.settings.crop < 1:
            crops.check(self.head, *self.rows.batch(self.train_rows[:1]), self.settings.crop, self.autocast)

    def _drawn(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        seed = seed_of(self.settings.seed, self.fold.number, epoch, 2)
        return window_pooling.drawn(rows, self.rows.whose, self.settings.windows, seed)

    def _taught(self, epoch: int) -> np.ndarray:
        return self.rows.drawn(seed_of(self.settings.seed, self.fold.number, epoch, 3), self.settings.windows)

    @property
    def predictor(self) -> nn.Module:
        """The head that predicts: the average of the weights where there is one."""
        return self.average.head if self.average else self.head

    def _resume(self) -> bool:
        saved = self.folder.load_last(self.device.name)
        if saved is None:
            return False
        weights, optimizer, state = saved
        self.predictor.load_state_dict(weights)
        if optimizer is not None:
            if self.average:
                raw = {
                    name.removeprefix(RAW): optimizer.pop(name)
                    for name in list(optimizer)
                    if name.startswith(RAW)
                }
                self.head.load_state_dict(raw)
            optim.unpack(self.optimizer, optimizer, state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        return True

    def _seed(self, epoch: int, number: int) -> int:
        if self.seeds[0] != epoch:
            drawn = np.random.SeedSequence(seed_of(self.settings.seed, self.fold.number, epoch, 1))
            self.seeds = epoch, drawn.generate_state(self.steps, np.uint64) >> np.uint64(1)
        return int(self.seeds[1][number])

    def step(self, epoch: int, number: int, rows: np.ndarray) -> Tensor:
        """One optimiser step on the given rows; its loss, which nobody has waited for yet."""
        settings, seed = self.settings, self._seed(epoch, number)
        x, mask = self.rows.batch(rows)
        targets, weights = self.rows.targets_of(rows), self.rows.weights_of(rows)
        batch = {}
        if self.head.has_own_loss():  # for the others the clips as they were would only fill memory
            batch = {
                "plain": x,
                "plain_mask": mask,
                "plain_targets": self.criterion.smooth(targets),
                "plain_weights": weights,
                **self.rows.extras(rows),
            }
        if self.augmented:
            random = np.random.default_rng(seed)
            x, mask, targets, weights = augment.apply(x, mask, targets, settings, random, weights)
        batch |= {"x": x, "mask": mask, "weights": weights}
        targets = self.criterion.smooth(targets)
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

    def _gradients(self, batch: dict[str, Any], targets: Tensor, seed: int) -> Tensor:
        """Gradients of a batch in place of the old ones, in as many passes as memory asks for; the loss."""
        size = len(targets)
        while True:
            reseed(seed, self.device)  # dropout; again after a failed attempt
            for parameter in self.parameters:
                parameter.grad = None
            try:
                return accumulate(
                    self.head, self.criterion, batch, targets, self.micro, self.autocast, self.scaler
                )
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise UserError(
                    f"a batch of {size} rows, {min(self.micro, size)} a pass, leaves a single row, which "
                    "this head cannot normalise: raise --batch-size, or choose another head"
                ) from None
            except RuntimeError as error:
                if not out_of_memory(error) or self.micro <= 1:
                    raise
                self.micro = -(-min(self.micro, size) // 2)
                print(
                    f"out of memory: {self.micro} rows a pass from here on, the effective batch stays {size}",
                    flush=True,
                )

    def epoch(
        self, epoch: int, pause: Callable[[int, int], bool] = lambda step, steps: False
    ) -> dict[str, float] | None:
        """Train what is left of an epoch and evaluate; the row for metrics.csv, None if it was paused.

        Args:
            pause: asked after every step, with the steps done and those of the epoch: stop here?
        """
        from tqdm import tqdm

        progress, before = self.progress, time.perf_counter() - self.progress.seconds
        if not progress.step:
            progress.lr = self.optimizer.param_groups[0]["lr"]
        order = np.random.default_rng(seed_of(self.settings.seed, self.fold.number, epoch)).permutation(
            np.concatenate(
                [self._drawn(self.rows.of_epoch(self.train_rows, epoch), epoch), self._taught(epoch)]
            )
        )
        self.head.train()
        # Nearly equal batches: a last batch of one row would break batch normalisation. None is
        # empty: a copy that was played faster may have fewer windows than its clip.
        batches = np.array_split(order, min(self.steps, len(order)))
        coming = self.rows.ahead(batches[progress.step :])
        bar = tqdm(
            coming,
            desc=f"{self.fold.name} epoch {epoch}",
            leave=False,
            unit="step",
            initial=progress.step,
            total=len(batches),
            disable=None,
            dynamic_ncols=True,
        )
        for rows in bar:
            loss = self.step(epoch, progress.step, rows)
            self.unseen.append((epoch, progress.step, len(batches), rows, loss))
            progress.step += 1
            if len(self.unseen) >= LOOK:
                progress.total = self.unseen.add_to(progress.total)
            progress.seconds = time.perf_counter() - before
            if pause(progress.step, len(batches)):
                bar.close()
                coming.close()
                return None
        progress.total = self.unseen.add_to(progress.total)
        if self.average:
            self.average.end(self.head, epoch)
        row = {
            "fold": self.fold.number,
            "epoch": epoch,
            "lr": progress.lr,
            "train_loss": progress.total / len(order),
            **(self._scores(epoch) if self.asked else {}),
            "seconds": time.perf_counter() - before,
        }
        progress.step, progress.total, progress.seconds = 0, 0.0, 0.0
        return row

    def _scores(self, epoch: int) -> dict[str, float]:
        """The scores on the fold's own clips, all of which count alike whatever their weights."""
        asked = self.valid()[self.heard]
        if not np.isfinite(asked).all():
            ids = self.rows.ids[self.heard][~np.isfinite(asked).all(1)]
            raise UserError(
                f"{self.fold.name}, epoch {epoch}: the prediction is not a number for {some(ids)}: {WAY_OUT}"
            )
        found = metrics.scores(asked, self.rows.truth[self.heard], self.settings.metric)
        return {"valid_loss": found.pop("log_loss"), **found}

    def valid(self) -> np.ndarray:
        """(clips, classes) probabilities, NaN for clips outside the validation fold; without --tta, which
        would cost every epoch."""
        size = (
            max(self.micro * 2, WHOLE // (4 * int(np.prod(self.rows.shape)))) if self.tiny else self.micro * 2
        )
        return predict(
            self.predictor, self.rows, self.valid_rows, size, self.autocast, pool=self.settings.pool
        )

    def fit(
        self,
        log: Callable[[str], None],
        deadline: Deadline,
        folds_left: int,
        saved: Callable[[], None] = lambda: None,
        save_every: float = 10.0,
    ) -> bool:
        """Train to the end; False if the time ran out, or a signal came, at a safe point before it.

        Args:
            log: takes one line per evaluation, and one a minute in between.
            deadline: asked after every step and epoch.
            folds_left: how many folds follow, for the ETA.
            saved: called after every checkpoint.
            save_every: minutes between checkpoints inside an epoch; 0: after every step.
        """
        settings, progress = self.settings, self.progress
        durations: list[float] = []
        written = said = time.perf_counter()
        cost = 0.0

        def save(finished: bool = False) -> None:
            nonlocal written, cost
            began = time.perf_counter()
            self._save(finished)
            saved()
            written = time.perf_counter()
            cost = written - began

        def pause(step: int, steps: int) -> bool:
            nonlocal said
            now, stop = time.perf_counter(), deadline.passed()
            if stop or now - written >= 60 * save_every:
                save()
            if now - said >= SAY_SECONDS:
                said = now
                progress.total = self.unseen.add_to(progress.total)
                left = remaining(progress.seconds * steps / step, step / steps)
                loss = progress.total * steps / (step * self.taken)
                log(
                    f"{place(self.fold, progress.epoch + 1, settings)}  step {step}/{steps}  train "
                    f"{loss:.3f}  eta {clock(left)}"
                )
            return stop

        def remaining(one: float, done: float) -> float:
            return (settings.epochs * (1 + folds_left) - progress.epoch - done) * (
                float(np.mean(durations)) if durations else one
            )

        while progress.epoch < settings.epochs:
            with one_thread(self.tiny and self.device.name == "cpu"):
                row = self.epoch(progress.epoch + 1, pause)
            if row is None:
                return False
            value, better = [], progress.epoch + 1 == settings.epochs
            if self.asked:
                value = [metrics.gain(settings.metric, value_of(row, settings.metric)), -row["valid_loss"]]
                better = progress.best is None or value > progress.best
            progress.epoch += 1
            progress.history.append(row)
            if better:
                progress.best, progress.best_epoch = value, progress.epoch
                self._remember()
            durations.append(row["seconds"])
            log(line(row, self.fold, settings, better, remaining(row["seconds"], 0)))
            said = time.perf_counter()
            last, stop = progress.epoch == settings.epochs, deadline.passed()
            if last or stop or said - written > max(SAVE_SECONDS, SAVE_SHARE * cost):
                save(finished=last)
            if stop and not last:
                return False
        return True

    def _remember(self) -> None:
        """Keep the best weights until they are saved, in the same memory every time: new pages take longer
        than the copy."""
        weights = self.predictor.state_dict()
        self._memory = self._memory or {
            name: torch.empty_like(tensor, device="cpu") for name, tensor in weights.items()
        }
        self.unsaved_best = {name: self._memory[name].copy_(tensor) for name, tensor in weights.items()}

    def _save(self, finished: bool) -> None:
        progress, metric = self.progress, self.settings.metric
        progress.total = self.unseen.add_to(progress.total)
        if not all(
            bool(tensor.isfinite().all())
            for tensor in self.head.state_dict().values()
            if tensor.is_floating_point()
        ):
            raise UserError(
                f"{self.fold.name}, epoch {progress.epoch + bool(progress.step)}: the weights are not "
                f"numbers any more: {WAY_OUT}"
            )
        if self.unsaved_best is not None:
            # Before `last/`, which says which epochs are done: a kill between the two repeats
            # epochs, and loses none.
            chosen = (
                {metric: metrics.gain(metric, progress.best[0]), "chosen": "on this fold's own clips"}
                if self.asked
                else {}
            )
            self.folder.save_best(
                self.unsaved_best, {"head": self.head.config, "epoch": progress.best_epoch, **chosen}
            )
            self.unsaved_best = None
        tensors, rest = optim.pack(self.optimizer)
        state = {"progress": vars(progress), "finished": finished}
        if not finished:  # a finished fold is never resumed: its optimiser's state would only fill the disk
            state |= {
                "optimizer": rest,
                "schedule": self.schedule.state_dict(),
                "scaler": self.scaler.state_dict(),
            }
            if self.average:
                tensors |= {RAW + name: value for name, value in self.head.state_dict().items()}
        self.folder.save_last(self.predictor.state_dict(), None if finished else tensors, state)
