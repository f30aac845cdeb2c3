"""The training of one fold, which gives the same weights when it is interrupted and resumed.

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
from tqdm import tqdm

from earshot import extractors
from earshot.core.device import Device, get_autocast, is_out_of_memory, to_device, use_one_thread
from earshot.core.errors import UserError
from earshot.core.seeding import derive_seed, reseed
from earshot.training import augment, metrics, optim, precision, window_pooling
from earshot.training.dataset import Batch, WindowDataset
from earshot.training.loss import Criterion, accumulate_gradients, start_at_prior
from earshot.training.pending_losses import LOOK, WAY_OUT, PendingLosses
from earshot.training.predict import predict
from earshot.training.progress import LONG_EPOCH, EpochLog, Fold, Progress, format_ids, get_score

if TYPE_CHECKING:
    from earshot.core.config import TrainingFlags
    from earshot.core.deadline import Deadline
    from earshot.training.checkpoint import FoldFolder
    from models import Head

# beside the optimiser's tensors: the weights that are trained, where it is their average that predicts
RAW = "raw."
# Checkpoints are at least so many times as far apart as one takes to write, and at least SAVE_SECONDS.
SAVE_SHARE, SAVE_SECONDS = 20, 2.0
TINY_BATCH = 1 << 24  # bytes of a batch in which a tiny head evaluates


class Trainer:
    """Trains one head on one fold and keeps its folder up to date."""

    def __init__(
        self,
        build: Callable[[], Head],
        rows: WindowDataset,
        fold: Fold,
        settings: TrainingFlags,
        classes: int,
        folder: FoldFolder,
        device: Device,
    ):
        self.rows, self.fold, self.settings, self.folder, self.device = rows, fold, settings, folder, device
        self.train_rows, self.valid_rows = rows.find_rows(fold.train), rows.find_rows(fold.valid)
        self.has_validation = bool(fold.valid.any())  # a model on all clips has none
        self.has_audio = np.zeros(len(rows.ids), dtype=bool)  # clips of the fold that have windows to score
        self.has_audio[rows.clip[self.valid_rows]] = True
        torch.manual_seed(derive_seed(settings.seed, fold.number))
        self.head = to_device(build(), device)
        sample = self.valid_rows if len(self.valid_rows) else self.train_rows
        work = precision.count_flops(self.head, rows, sample) * settings.batch_size * precision.BACKWARD
        self.is_tiny = work < precision.TINY
        self.average = optim.AveragedHead(self.head, settings) if settings.ema or settings.snapshots else None
        labelled = self._sample_windows(self.train_rows, 1)
        # Every epoch has as many rows as the first, so the schedule can be laid out beforehand.
        self.rows_per_epoch = len(labelled) + len(self._sample_unlabelled(1))
        self.steps = max(1, -(-self.rows_per_epoch // settings.batch_size))
        self._build_optimizer(decay_biases=not rows.multilabel)
        self.scaler = torch.amp.GradScaler(device.name.split(":")[0], enabled=device.precision == "fp16")
        self.autocast, self.augmented = get_autocast(device), augment.is_enabled(settings)
        self.micro = settings.batch_size  # rows per forward pass; smaller once memory ran out
        self.criterion, self.labelled = Criterion.from_rows(rows, labelled, settings), labelled
        self.progress = Progress()
        self.unsaved_best: dict[str, Tensor] | None = None
        self._best_buffer: dict[str, Tensor] | None = None
        self._step_seeds: tuple[int, np.ndarray] = (0, np.zeros(0, np.uint64))  # the epoch, a seed per step
        self.pending_losses = PendingLosses(rows, fold)
        if not self._resume():
            self._begin()

    def _build_optimizer(self, decay_biases: bool) -> None:
        self.optimizer = optim.build_optimizer(self.head, self.settings, decay_biases)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.schedule = optim.build_schedule(self.optimizer, self.settings, self.steps)

    def _begin(self) -> None:
        """Prepare a fresh head: pretrained weights, the training set's statistics and class prior."""
        self.head.load_pretrained(extractors.load_network)
        self.head.adapt(self.rows.iterate_batches(self.rows.add_copies(self.train_rows), 256))
        start_at_prior(self.head, self.criterion, self.rows, self.labelled)
        if self.average:
            self.average.head.load_state_dict(self.head.state_dict())
        if self.settings.crop_share < 1:
            x, mask = self.rows.load_batch(self.train_rows[:1])
            augment.check_crop(self.head, x, mask, self.settings.crop_share, self.autocast)

    def _sample_windows(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        """At most --windows of each clip, others in every epoch."""
        seed = derive_seed(self.settings.seed, self.fold.number, epoch, 2)
        return window_pooling.sample_windows(rows, self.rows.clip_of_row, self.settings.windows, seed)

    def _sample_unlabelled(self, epoch: int) -> np.ndarray:
        """An epoch's rows with pseudo-labels; none without --pseudo."""
        return self.rows.sample_unlabelled(
            derive_seed(self.settings.seed, self.fold.number, epoch, 3), self.settings.windows
        )

    def _shuffle_epoch(self, epoch: int) -> list[np.ndarray]:
        """The row numbers of an epoch's batches; of the epoch alone, so that resuming repeats them."""
        labelled = self._sample_windows(self.rows.pick_epoch_rows(self.train_rows, epoch), epoch)
        rows = np.concatenate([labelled, self._sample_unlabelled(epoch)])
        shuffled = np.random.default_rng(
            derive_seed(self.settings.seed, self.fold.number, epoch)
        ).permutation(rows)
        # Nearly equal batches: a last batch of one row would break batch normalisation. None is
        # empty: a copy that was played faster may have fewer windows than its clip.
        return np.array_split(shuffled, min(self.steps, len(shuffled)))

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
            self.criterion.scale = state.get("loss_scale", 1.0)
            if "loss_scale" not in state:  # begun by an earlier version: it goes on as it began
                self._build_optimizer(decay_biases=True)
            if self.average:
                raw = {
                    name.removeprefix(RAW): optimizer.pop(name)
                    for name in list(optimizer)
                    if name.startswith(RAW)
                }
                self.head.load_state_dict(raw)
            optim.restore_state(self.optimizer, optimizer, state["optimizer"])
            self.schedule.last_epoch = state["schedule"]["last_epoch"]
            self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        return True

    def _get_step_seed(self, epoch: int, number: int) -> int:
        if self._step_seeds[0] != epoch:
            sequence = np.random.SeedSequence(derive_seed(self.settings.seed, self.fold.number, epoch, 1))
            self._step_seeds = epoch, sequence.generate_state(self.steps, np.uint64) >> np.uint64(1)
        return int(self._step_seeds[1][number])

    def step(self, epoch: int, number: int, batch: Batch) -> Tensor:
        """One optimiser step on a batch; its loss as a tensor, which a GPU may still be computing."""
        settings, seed = self.settings, self._get_step_seed(epoch, number)
        x, mask, targets, weights = batch.x, batch.mask, batch.targets, batch.weights
        inputs: dict[str, Any] = {}
        if self.head.has_own_loss():  # for the others the clips as they were would only fill memory
            inputs = {
                "plain": x,
                "plain_mask": mask,
                "plain_targets": self.criterion.smooth_targets(targets),
                "plain_weights": weights,
                **batch.extra_views,
            }
        if self.augmented:
            random = np.random.default_rng(seed)
            x, mask, targets, weights = augment.augment_batch(x, mask, targets, settings, random, weights)
        inputs |= {"x": x, "mask": mask, "weights": weights}
        targets = self.criterion.smooth_targets(targets)
        loss = self._compute_gradients(inputs, targets, seed)
        if settings.optimizer == "sam":
            before = optim.ascend_sam(self.head, settings.rho)
            with optim.freeze_batchnorm(self.head):
                # The same seed, so the same units drop out: the two passes differ in the weights alone.
                self._compute_gradients(inputs, targets, seed)
            optim.restore_sam(before)
        if settings.clip_grad:
            self.scaler.unscale_(self.optimizer)  # the limit is meant for gradients at their true size
            nn.utils.clip_grad_norm_(self.head.parameters(), settings.clip_grad * self.criterion.scale)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        if self.average:
            self.average.add_step(self.head, (epoch - 1) * self.steps + number)
        return loss

    def _compute_gradients(self, inputs: dict[str, Any], targets: Tensor, seed: int) -> Tensor:
        """Compute a batch's gradients in as many passes as the memory needs; the loss."""
        size = len(targets)
        while True:
            reseed(seed, self.device)  # dropout; again after a failed attempt
            for parameter in self.parameters:
                parameter.grad = None
            try:
                return accumulate_gradients(
                    self.head, self.criterion, inputs, targets, self.micro, self.autocast, self.scaler
                )
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise UserError(
                    f"a batch of {size} rows, {min(self.micro, size)} per pass, leaves a single row, which "
                    "this head cannot normalise: raise --batch-size, or choose another head"
                ) from None
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.micro <= 1:
                    raise
                self.micro = -(-min(self.micro, size) // 2)
                print(
                    f"out of memory: now {self.micro} rows per pass, the effective batch size stays {size}",
                    flush=True,
                )

    def _evaluate(self, epoch: int) -> dict[str, float]:
        """The scores on the validation clips, all weighted alike."""
        probabilities = self.predict_validation()[self.has_audio]
        if not np.isfinite(probabilities).all():
            ids = self.rows.ids[self.has_audio][~np.isfinite(probabilities).all(1)]
            raise UserError(
                f"{self.fold.name}, epoch {epoch}: the prediction is not a number for {format_ids(ids)}: "
                f"{WAY_OUT}"
            )
        scores = metrics.compute_scores(probabilities, self.rows.truth[self.has_audio], self.settings.metric)
        return {"valid_loss": scores.pop("log_loss"), **scores}

    def predict_validation(self) -> np.ndarray:
        """(clips, classes) probabilities, NaN for clips outside the validation fold; to save time without
        --tta."""
        size = 2 * self.micro
        if self.is_tiny:
            size = max(size, TINY_BATCH // (4 * int(np.prod(self.rows.shape))))
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
            log: takes the lines of epochs, see `EpochLog`, and one a minute inside an epoch.
            deadline: checked after every step and epoch.
            folds_left: how many folds follow, for the ETA.
            saved: called after every checkpoint.
            save_every: minutes between checkpoints inside an epoch; 0: after every step.
        """
        settings, progress = self.settings, self.progress
        durations: list[float] = []
        saved_at, save_cost = time.perf_counter(), 0.0
        lines = EpochLog(log, self.fold, settings)

        def save(finished: bool = False) -> None:
            nonlocal saved_at, save_cost
            began = time.perf_counter()
            self._save(finished)
            saved()
            saved_at = time.perf_counter()
            save_cost = saved_at - began

        def estimate_left(epoch_seconds: float, done: float) -> float:
            epochs = settings.epochs * (1 + folds_left) - progress.epoch - done
            return epochs * (float(np.mean(durations)) if durations else epoch_seconds)

        while progress.epoch < settings.epochs:
            epoch, batches = progress.epoch + 1, self._shuffle_epoch(progress.epoch + 1)
            began = time.perf_counter() - progress.seconds  # a resumed epoch counts what it took before
            if not progress.step:
                progress.lr = max(group["lr"] for group in self.optimizer.param_groups)
            self.head.train()
            single_thread = self.is_tiny and self.device.name == "cpu"
            with use_one_thread(single_thread), self._open_bar(epoch, batches) as bar:
                for batch in bar:
                    loss = self.step(epoch, progress.step, batch)
                    self.pending_losses.append((epoch, progress.step, len(batches), batch.rows, loss))
                    progress.step += 1
                    if len(self.pending_losses) >= LOOK:
                        progress.total = self.pending_losses.add_to(progress.total)
                    now, stop = time.perf_counter(), deadline.is_over()
                    progress.seconds = now - began
                    if stop or now - saved_at >= 60 * save_every:
                        save()
                    if now - lines.logged_at >= LONG_EPOCH:
                        done = progress.step / len(batches)
                        progress.total = self.pending_losses.add_to(progress.total)
                        mean_loss = progress.total / done / self.rows_per_epoch
                        left = estimate_left(progress.seconds / done, done)
                        lines.add_step(epoch, f"{progress.step}/{len(batches)}", mean_loss, left)
                    if stop:
                        lines.flush()
                        return False
                row = self._end_epoch(epoch, batches, began)
            value, better = [], epoch == settings.epochs
            if self.has_validation:
                # Where epochs tie, the smaller validation loss decides.
                value = [
                    metrics.to_gain(settings.metric, get_score(row, settings.metric)),
                    -row["valid_loss"],
                ]
                better = progress.best is None or value > progress.best
            progress.epoch = epoch
            progress.history.append(row)
            if better:
                progress.best, progress.best_epoch = value, epoch
                self._keep_best()
            durations.append(row["seconds"])
            last, stop = epoch == settings.epochs, deadline.is_over()
            lines.add_epoch(progress.history, better, estimate_left(row["seconds"], 0), last or stop)
            # Rarely enough that saving does not slow training down, often enough that a kill costs little.
            if last or stop or time.perf_counter() - saved_at > max(SAVE_SECONDS, SAVE_SHARE * save_cost):
                save(finished=last)
            if stop and not last:
                return False
        return True

    def _open_bar(self, epoch: int, batches: list[np.ndarray]) -> tqdm:
        """The remaining batches of an epoch with a progress bar."""
        return tqdm(
            self.rows.prefetch(batches[self.progress.step :]),
            desc=f"{self.fold.name} epoch {epoch}",
            leave=False,
            unit="step",
            initial=self.progress.step,
            total=len(batches),
            disable=None,
            dynamic_ncols=True,
        )

    def _end_epoch(self, epoch: int, batches: list[np.ndarray], began: float) -> dict[str, float]:
        """Evaluate and reset the epoch's counters; the row for metrics.csv."""
        progress = self.progress
        progress.total = self.pending_losses.add_to(progress.total)
        if self.average:
            self.average.add_epoch(self.head, epoch)
        row = {
            "fold": self.fold.number,
            "epoch": epoch,
            "lr": progress.lr,
            "train_loss": progress.total / sum(map(len, batches)),
            **(self._evaluate(epoch) if self.has_validation else {}),
            "seconds": time.perf_counter() - began,
        }
        progress.step, progress.total, progress.seconds = 0, 0.0, 0.0
        return row

    def _keep_best(self) -> None:
        """Keep the best weights until they are saved, in the same memory every time: new pages take longer
        than the copy."""
        weights = self.predictor.state_dict()
        self._best_buffer = self._best_buffer or {
            name: torch.empty_like(tensor, device="cpu") for name, tensor in weights.items()
        }
        self.unsaved_best = {name: self._best_buffer[name].copy_(tensor) for name, tensor in weights.items()}

    def _save(self, finished: bool) -> None:
        progress, metric = self.progress, self.settings.metric
        progress.total = self.pending_losses.add_to(progress.total)
        if not all(
            bool(tensor.isfinite().all())
            for tensor in self.head.state_dict().values()
            if tensor.is_floating_point()
        ):
            raise UserError(
                f"{self.fold.name}, epoch {progress.epoch + bool(progress.step)}: weights became NaN or "
                f"infinite: {WAY_OUT}"
            )
        if self.unsaved_best is not None:
            # Before `last/`, which says which epochs are done: a kill between the two repeats
            # epochs, and loses none.
            chosen = (
                {metric: metrics.to_gain(metric, progress.best[0]), "chosen": "on this fold's own clips"}
                if self.has_validation
                else {}
            )
            self.folder.save_best(
                self.unsaved_best, {"head": self.head.config, "epoch": progress.best_epoch, **chosen}
            )
            self.unsaved_best = None
        tensors, rest = optim.pack_state(self.optimizer)
        state = {"progress": vars(progress), "finished": finished}
        if not finished:  # a finished fold is never resumed: its optimiser's state would only fill the disk
            state |= {
                "optimizer": rest,
                "schedule": {"last_epoch": self.schedule.last_epoch},
                "scaler": self.scaler.state_dict(),
                "loss_scale": self.criterion.scale,
            }
            if self.average:
                tensors |= {RAW + name: value for name, value in self.head.state_dict().items()}
        self.folder.save_last(self.predictor.state_dict(), None if finished else tensors, state)
