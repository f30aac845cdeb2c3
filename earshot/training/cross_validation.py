"""Cross-validation: every fold is trained with every seed and predicts its own clips; then models are trained
on all clips, with --refit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from earshot.core.config import TrainingFlags
from earshot.core.deadline import SIGNALS, Deadline, defer_signals
from earshot.core.device import Device, use_threads
from earshot.core.errors import TemporaryError, UserError
from earshot.core.files import replace_weights_path
from earshot.core.worker_pool import ProcessPool, WorkerInbox, WorkerPool, count_threads
from earshot.training import estimators, pseudo_labels
from earshot.training.dataset import WindowDataset
from earshot.training.folds import list_folds, select_training_clips
from earshot.training.predict import load_slot_head, predict_rows
from earshot.training.progress import TrainingEta
from earshot.training.run import ALL_CLIPS, ModelSlot, Run, format_slots, list_slots
from earshot.training.run_scores import KINDS
from earshot.training.trainer import Fold, Trainer

if TYPE_CHECKING:
    from earshot.training.experiment import Job
    from models import Head

Report = Callable[[str | None], None]  # takes a line for the log, and None after every checkpoint


def train_folds(job: Job, run: Run, wanted: list[int], deadline: Deadline) -> bool:
    """Train the unfinished models of the wanted folds, and those on all clips; False if the time ran out, at
    a safe point.

    With several devices each has its own process, which trains one model after the other; so has each worker
    of a cluster. The results are the same as on one such device with as many threads.
    """
    training = asdict(job.settings)
    slots, all_slots = list_slots(training, wanted), list_slots(training, list_folds(job.numbers))
    tasks = find_open_models(job, run, slots)
    report = partial(record_message, run, all_slots)
    devices = job.devices[: max(1, len(slots))]
    # the same whether all is still to be trained or, after a stop, one model: other threads, other bits
    threads = job.threads or count_threads(len(devices))
    devices = devices[: max(1, len(tasks))]
    # An estimate of the time left counts the models that will follow on the same device.
    queue = [FoldTask(slot, (len(tasks) - index - 1) // len(devices)) for index, slot in enumerate(tasks)]
    alone = len(job.devices) == 1 and job.cluster is None
    rows = job.rows if alone else job.load_for_processes(len(devices))
    arguments = (run, rows, job.numbers, job.settings, job.head_spec.build, job.machine.save_every)
    done = True
    with defer_signals():
        if alone:
            worker = FoldWorker(devices[0], *arguments)
            with use_threads(job.threads):
                for index, task in enumerate(queue):
                    # The first one always starts: with a short --max-hours the run would otherwise never get
                    # on.
                    done = not (index and deadline.is_over()) and worker(task, report, deadline)
                    if not done:
                        break
        elif tasks:
            with open_pool(job, run, devices, arguments, threads) as pool:
                pool.wait_until_ready()
                done = pool.run(queue, report, deadline)
            if job.cluster is not None:
                refresh_folders(run, slots)
                if done and run.list_open_slots(slots):
                    raise TemporaryError(
                        "a checkpoint was damaged and set aside: the same command trains that fold again"
                    )
    run.write_metrics(all_slots)  # again: a kill may have come before the last time
    # A signal may have come while the last fold was predicted.
    return done and SIGNALS.waiting is None


def find_open_models(job: Job, run: Run, slots: list[ModelSlot]) -> list[ModelSlot]:
    """The models that are not trained to their end, then those that are, and have not predicted their clips.

    Raises:
        UserError: the disk is too full for them.
    """
    unfinished = run.list_open_slots(slots)
    run.log(job.check_disk_space(run, len(slots), len(unfinished)))
    if len(unfinished) < len(slots):
        run.log(f"finished already: {format_slots([slot for slot in slots if slot not in unfinished])}")
    # A kill may have come between a fold's last checkpoint and its predictions.
    finished = [slot for slot in slots if slot not in unfinished]
    return [*unfinished, *(slot for slot in finished if list_missing_predictions(run, slot))]


def record_message(run: Run, all_slots: list[ModelSlot], line: str | None) -> None:
    """Log a worker's line; after a checkpoint, None, write metrics.csv."""
    if line is not None:
        run.log(line)
        return
    # Another process may be replacing its checkpoint; a network file system then has a stale file. The
    # metrics are written again later.
    with contextlib.suppress(UserError, TemporaryError):
        run.write_metrics(all_slots)


def refresh_folders(run: Run, slots: list[ModelSlot]) -> None:
    """See what other machines have written; none of them works on the run any more."""
    os.listdir(run.folder)
    for slot in slots:
        if (run.folder / slot.folder).is_dir():
            os.listdir(run.folder / slot.folder)
    run.quarantine_corrupt()


@contextlib.contextmanager
def open_pool(
    job: Job, run: Run, devices: list[Device], arguments: tuple, threads: int
) -> Iterator[WorkerPool]:
    """Workers on this machine's devices, or on the job's cluster."""
    with contextlib.ExitStack() as stack:
        pool: WorkerPool
        if job.cluster is None:
            pool = ProcessPool(devices, FoldWorker, arguments, run.folder, threads)
        else:
            from earshot.cluster.storage import hold_token

            token = stack.enter_context(hold_token(run.folder))
            given = (token, job.head_spec.options, *arguments)
            pool = job.cluster.open_pool(devices, RemoteFoldWorker, given, threads)
        stack.enter_context(contextlib.closing(pool))
        yield pool


class FoldTask(NamedTuple):
    """A model to train, and how many follow on the same device."""

    slot: ModelSlot
    models_left: int

    @property
    def name(self) -> str:
        """The model's, for messages."""
        return self.slot.name


class FoldWorker:
    """Trains models and predicts their folds on one device: in this process, or in one of its own.

    Args:
        rows: the training split, or a function that loads it, called in each process with its device.
        numbers: (clips,) each clip's fold.
        build: returns a head with fresh weights.
        save_every: minutes between checkpoints inside an epoch.
    """

    def __init__(
        self,
        device: Device,
        run: Run,
        rows: WindowDataset | Callable[[Device], WindowDataset],
        numbers: np.ndarray,
        settings: TrainingFlags,
        build: Callable[[], Head],
        save_every: float,
    ):
        self.device, self.run, self.numbers, self.settings = device, run, numbers, settings
        self.build, self.save_every = build, save_every
        self.rows = rows if isinstance(rows, WindowDataset) else rows(device)
        self.fold_numbers = list_folds(numbers)

    def __call__(self, task: FoldTask, report: Report, deadline: Deadline | WorkerInbox) -> bool:
        """Train a model to its end and predict its fold; False if the time ran out, at a safe point."""
        slot, models_left = task
        folder = self.run.get_slot_folder(slot)
        if folder.is_complete():
            self.predict_fold(slot)
            return True
        fold, rows = self.split_clips(slot), self.rows
        absent = np.flatnonzero(rows.targets[fold.valid].any(0) & ~rows.targets[fold.train].any(0))
        if len(absent):
            names = ", ".join(self.run.classes[index] for index in absent)
            report(
                f"warning: {slot.name}: no training clip has the label {names}, which validation clips have"
            )
        if estimators.is_sklearn_head(self.build):
            estimators.fit_head(self.build, rows, fold, self.settings, folder, self.device, report)
            report(None)
        else:
            rows = pseudo_labels.add_pseudo_labels(self.run, rows, self.fold_numbers, slot)
            settings = replace(self.settings, seed=slot.seed)
            fitter = Trainer(self.build, rows, fold, settings, len(self.run.classes), folder, self.device)
            progress = fitter.progress
            if progress.epoch or progress.step:
                step = f", step {progress.step}" if progress.step else ""
                report(f"{fold.title}  continues after epoch {progress.epoch}{step}")
            paced = TrainingEta(deadline, fitter, models_left, report)
            if not fitter.fit(report, paced, models_left, lambda: report(None), self.save_every):
                return False
        self.predict_fold(slot)
        return True

    def split_clips(self, slot: ModelSlot) -> Fold:
        """Which clips a model is trained on, and which validate it: none where it is trained on all."""
        if slot.fold is None:
            everyone = np.ones(len(self.numbers), dtype=bool)
            return Fold(ALL_CLIPS, 1, everyone, ~everyone, slot)
        train = select_training_clips(self.numbers, self.rows.groups, slot.fold)
        return Fold(slot.fold, len(self.fold_numbers), train, self.numbers == slot.fold, slot)

    def predict_fold(self, slot: ModelSlot) -> None:
        """Write valid_best.npy and valid_last.npy, (clips of the fold, classes), those that are missing."""
        valid = self.numbers == slot.fold
        for kind in list_missing_predictions(self.run, slot):
            head, which = load_slot_head(self.run, slot, kind, self.device), self.rows.find_rows(valid)
            predictions = predict_rows(self.run, head, self.rows, which, self.device)[valid]
            self.run.get_slot_folder(slot).save_predictions(kind, predictions)


class RemoteFoldWorker(FoldWorker):
    """Trains models on a node of a cluster, which sees the run's folder.

    Args:
        token: what `storage.hold_token` put into the run's folder. options: the head's.
        others: as `FoldWorker` takes them.
    Raises:
        UserError: the node does not see the run's folder, or the cache, or has other weights for the head.
    """

    def __init__(self, device: Device, token: str, options: dict[str, Any], run: Run, *others: Any):
        from earshot.cluster.storage import check_folder, check_weights

        check_folder(run.folder, token, "the run")
        found, wanted = replace_weights_path(options), run.config["record"]["head"]  # of a path, its content
        check_weights(found.get("weights"), wanted.get("weights"), f"the head, {options.get('weights')},")
        super().__init__(device, run, *others)


def list_missing_predictions(run: Run, slot: ModelSlot) -> list[str]:
    """Which of a fold's two checkpoints have not predicted its clips; none for a model on all clips."""
    if slot.fold is None:
        return []
    return [kind for kind in KINDS if run.get_slot_folder(slot).load_predictions(kind) is None]
