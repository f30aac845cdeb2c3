"""One queue of models of several runs for all workers of a cluster: of the bake-off's candidates, or of the
trials of --tune."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import models
from earshot.core.deadline import SIGNALS, Deadline, defer_signals
from earshot.core.device import Device, use_threads
from earshot.core.errors import UserError
from earshot.search import timing
from earshot.training import cross_validation
from earshot.training.cross_validation import FoldTask, FoldWorker
from earshot.training.folds import list_folds
from earshot.training.run import ModelSlot, Run, list_slots

if TYPE_CHECKING:
    from earshot.cluster.connect import Cluster
    from earshot.core.worker_pool import WorkerPool
    from earshot.training.experiment import Job

BEGUN, LINE = "begun", "line"  # what a worker sends while it works on a task
# and at its end; STOPPED: by the task's own limit
DONE, TIMED, STOPPED, FAILED = "done", "timed", "stopped", "failed"


class ModelTask(NamedTuple):
    """A model to train, or, without a slot, a few steps of training to time.

    Args:
        run: the name of the run's folder.
        arguments: of a `FoldWorker`. threads: of torch.
        limit: seconds after which training stops at a safe point.
    """

    run: str
    slot: ModelSlot | None
    arguments: tuple
    threads: int | None
    limit: float = math.inf

    @property
    def name(self) -> str:
        """The model's, for messages."""
        return f"{self.run}, {self.slot.name if self.slot else 'timing'}"


# What a worker sends: the name of the task, the kind, a value, the task's seconds. For a class of its own the
# cluster's board would have to import this module, and torch with it.
Message = tuple[str, str, Any, float]


class ModelWorker:
    """Trains models of several runs on a node of a cluster, one after the other.

    Args:
        token: what `storage.hold_token` put into `folder`, which holds the runs. caches: their folders.
    Raises:
        UserError: the node does not see one of the folders.
    """

    def __init__(self, device: Device, token: str, folder: Path, caches: Sequence[Path]):
        from earshot.cluster.storage import check_folder, check_seen

        check_folder(folder, token, "the runs' folder")
        check_seen(caches, "cache")
        self.latest: tuple[str, FoldWorker] | None = None  # its rows stay in memory

    def __call__(self, task: ModelTask, report: Callable[[Message], None], deadline: Any) -> bool:
        """Work on a task; False if the pool's time ran out. A user error is the run's, not the others'."""
        began = time.monotonic()
        report((task.name, BEGUN, None, 0.0))
        try:
            with use_threads(task.threads):
                kind, value = self._work(task, report, _Limit(deadline, began + task.limit))
        except (UserError, models.HeadError) as error:
            kind, value = FAILED, " ".join(str(error).split())
        if kind == STOPPED and deadline.is_over():
            return False
        report((task.name, kind, value, time.monotonic() - began))
        return True

    def _work(self, task: ModelTask, report: Callable[[Message], None], limit: Any) -> tuple[str, Any]:
        if self.latest is None or self.latest[0] != task.run:
            self.latest = None  # frees the rows of the run before
            self.latest = (task.run, FoldWorker(*task.arguments))
        worker = self.latest[1]
        if task.slot is None:
            folds = len(worker.fold_numbers)
            return TIMED, timing.measure_fold_seconds(
                worker.build, worker.rows, worker.settings, worker.device, folds
            )

        def send(line: str | None) -> None:
            report((task.name, LINE, line, 0.0))

        return (DONE if worker(FoldTask(task.slot, 0), send, limit) else STOPPED), None


class _Limit:
    """A task's own time beside the pool's."""

    def __init__(self, deadline: Any, at: float):
        self.deadline, self.at = deadline, at

    def is_over(self) -> bool:
        return self.deadline.is_over() or time.monotonic() >= self.at


class ModelQueue:
    """The models that wait for a pool's workers, or are being trained.

    Args:
        on_end: called with a task that has ended, how it did, a value (what was timed, or the error) and its
            seconds. It may add tasks.
    """

    def __init__(self, pool: WorkerPool, on_end: Callable[[ModelTask, str, Any, float], None]):
        self.pool, self.on_end = pool, on_end
        self.open: dict[str, ModelTask] = {}
        self.begun: dict[str, float] = {}  # when, on the monotonic clock
        self.runs: dict[str, tuple[Run, list[ModelSlot]]] = {}
        self.given: list[ModelTask] = []

    def add(self, job: Job, run: Run, folds: list[int], limit: float = math.inf) -> bool:
        """Queue what is missing of a run's folds; False: nothing is.

        Raises:
            UserError: the disk is too full for it.
        """
        training = asdict(job.settings)
        self.runs[run.folder.name] = (run, list_slots(training, list_folds(job.numbers)))
        slots = cross_validation.find_open_models(job, run, list_slots(training, folds))
        for slot in slots:
            self._queue(job, run, slot, limit)
        return bool(slots)

    def add_timing(self, job: Job, run: Run) -> None:
        """Queue `timing.measure_fold_seconds` with a run's settings."""
        self.runs[run.folder.name] = (run, [])
        self._queue(job, run, None, math.inf)

    def _queue(self, job: Job, run: Run, slot: ModelSlot | None, limit: float) -> None:
        rows = job.load_for_processes(len(job.devices))
        own = (job.numbers, job.settings, job.head_spec.build, job.machine.save_every)
        task = ModelTask(run.folder.name, slot, (job.devices[0], run, rows, *own), job.threads, limit)
        self.open[task.name] = task
        self.given.append(task)

    def list_open(self, run: str) -> list[ModelTask]:
        """A run's tasks that have not ended."""
        return [task for task in self.open.values() if task.run == run]

    def forget(self, run: str) -> None:
        """Ignore what a run's tasks still do."""
        for task in self.list_open(run):
            del self.open[task.name]

    def work(self, deadline: Deadline) -> bool:
        """Until all tasks have ended, or time is up and the workers have stopped: then False."""
        from earshot.cluster.pool import WorkersLost

        done = True
        with defer_signals():
            while self.open and done:
                self.given = list(self.open.values())
                try:
                    done = self.pool.run(self.given, self._receive, deadline) and not deadline.is_over()
                except WorkersLost as error:  # too large for the nodes, which the others may not be
                    self._receive((error.task.name, FAILED, str(error), 0.0))
        for name in {task.run for task in self.open.values()}:
            self._refresh(name)
        return not self.open and SIGNALS.waiting is None

    def _receive(self, message: Message) -> None:
        name, kind, value, seconds = message
        task = self.open.get(name)
        if task is None:  # a lost worker's task may send everything twice
            return
        if kind == BEGUN:
            self.begun[name] = time.monotonic()
        elif kind == LINE:
            cross_validation.record_message(*self.runs[task.run], value)
        else:
            del self.open[name]
            self.begun.pop(name, None)
            if not self.list_open(task.run):
                self._refresh(task.run)
            self.on_end(task, kind, value, seconds)

    def _refresh(self, name: str) -> None:
        run, slots = self.runs[name]
        cross_validation.refresh_folders(run, slots)
        cross_validation.record_message(run, slots, None)


@contextlib.contextmanager
def open_queue(
    cluster: Cluster,
    devices: list[Device],
    folder: Path,
    caches: Sequence[Path],
    on_end: Callable[[ModelTask, str, Any, float], None],
) -> Iterator[ModelQueue]:
    """A queue for workers of a cluster, one for each device.

    Args:
        folder: holds the runs; this process has locked it. caches: the folders of their features.
    """
    from earshot.cluster.storage import hold_token

    with hold_token(folder) as token:
        with contextlib.closing(cluster.open_pool(devices, ModelWorker, (token, folder, caches))) as pool:
            pool.wait_until_ready()
            yield ModelQueue(pool, on_end)
