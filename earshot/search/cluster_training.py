"""The bake-off's training on a cluster: several candidates at once, from one queue for all workers."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from earshot.cluster.connect import connect
from earshot.core.deadline import SIGNALS, Deadline
from earshot.core.device import Device
from earshot.core.files import hold_lock
from earshot.search.candidate_training import GRACE, OPEN, OVERRUN, PATIENCE, CandidateTrainer
from earshot.search.fold_results import summarise_finished
from earshot.search.model_queue import DONE, FAILED, STOPPED, TIMED, ModelQueue, ModelTask, open_queue
from earshot.search.schedule import Schedule
from earshot.training.experiment import Job
from earshot.training.run import Run


@dataclass
class _Step:
    """A step under way.

    Args:
        decided: of `decisions`; None while the candidate is timed.
        each: predicted seconds of a task.
        lock: holds the run's lock.
        walls, overrun: as `CandidateTrainer.note_step` takes them.
    """

    decided: dict[str, Any] | None
    job: Job
    run: Run
    each: float
    lock: contextlib.ExitStack
    walls: dict[str, float] = field(default_factory=dict)
    overrun: float = 0.0


class ClusterTrainer(CandidateTrainer):
    """Trains candidates on a cluster.

    Whenever a worker is about to be free, the schedule decides on the next step of a candidate that has none
    under way. What the steps under way still need is not among the time that is left.
    """

    queue: ModelQueue

    def run(self) -> None:
        """Train what the time allows."""
        self.steps: dict[str, _Step] = {}
        try:
            with connect(self.machine) as self.cluster:
                super().run()
        finally:
            for step in self.steps.values():
                step.lock.close()

    @cached_property
    def chosen_devices(self) -> list[Device]:
        """The device of each worker."""
        assert self.cluster is not None
        return self.cluster.find_devices(self.machine.device, "auto")

    def take_steps(self) -> None:
        """Take the steps that were decided before an interruption, then decide on more while they fit."""
        assert self.cluster is not None
        for name in self.list_with_status(OPEN):  # before the workers take all places
            self.cluster.find_devices(self.machine.device, self.get_settings(name).precision)
        devices, caches = self.chosen_devices, {one.cache.folder for one in self.candidates.values()}
        self.report(f"device: {self.cluster.describe(devices)}")
        with open_queue(self.cluster, devices, self.folder, sorted(caches), self._end_task) as self.queue:
            while self._fill():
                self.queue.work(_TimeLeft(self))
                if SIGNALS.waiting is not None:
                    self.save()
                    raise SystemExit(128 + SIGNALS.waiting)
                for name in list(self.steps):  # out of time
                    self.queue.forget(name)
                    self.attempt(name, self._end_step)

    def build_schedule(self) -> Schedule:
        """What the schedule decides from; steps under way take their share of the time left."""
        schedule, now = super().build_schedule(), time.monotonic()
        if not self.steps:
            return schedule
        under_way = sum(
            max(0.0, step.each - now + self.queue.begun.get(task.name, now))
            for name, step in self.steps.items()
            for task in self.queue.list_open(name)
        )
        return replace(schedule, left=schedule.left - under_way / self.queue.pool.slots)

    def is_out_of_time(self) -> bool:
        """Should the steps under way stop?"""
        if any(step.decided and step.decided["anyhow"] for step in self.steps.values()):
            return False
        begun = any(self.state["of"][name]["folds"] for name in self.steps)
        return self.compute_seconds_left() + (GRACE * self.reserve if begun else 0.0) <= 0

    def _fill(self) -> bool:
        """Begin steps until each worker has a task, while they fit; is there a task?"""
        while len(self.queue.open) < self.queue.pool.slots:
            decided = [one for one in self.state["decisions"] if not one["done"]]
            waiting = next((one for one in decided if one["name"] not in self.steps), None)
            if waiting is None:
                step = self.build_schedule().choose(self.steps)
                if step is None:
                    break
                if step.kind == "time":
                    self.attempt(step.name, self._begin_timing, step.seconds)
                    continue
                waiting = self.log_decision(step)
            if waiting["name"] in self.list_with_status(OPEN):
                self.attempt(waiting["name"], self._begin_step, waiting)
            waiting["done"] = waiting["name"] not in self.steps  # it failed, or nothing was missing
        return bool(self.queue.open)

    def _begin_timing(self, name: str, seconds: float) -> None:
        job, run = self.prepare(name)
        self.steps[name] = _Step(None, job, run, seconds, contextlib.ExitStack())
        self.queue.add_timing(job, run)

    def _begin_step(self, name: str, decided: dict[str, Any]) -> None:
        job, run = self.prepare(name)
        each = decided["seconds"] / math.ceil(len(decided["folds"]) / len(job.devices))
        first = not self.state["of"][name]["folds"] and self.candidates[name].after is None
        limit = max(PATIENCE, OVERRUN * each) if first and not decided["anyhow"] else math.inf
        with contextlib.ExitStack() as lock:
            lock.enter_context(hold_lock(run.folder, "the run"))
            is_queued = self.queue.add(job, run, decided["folds"], limit)
            self.steps[name] = _Step(decided, job, run, each, lock.pop_all())
        if not is_queued:  # a kill came between its end and this account
            self._end_step(name)

    def _end_task(self, task: ModelTask, kind: str, value: Any, seconds: float) -> None:
        name, step = task.run, self.steps[task.run]
        if kind == FAILED:
            self.queue.forget(name)
            self.steps.pop(name).lock.close()
            self.set_status(name, "failed", value)
        elif kind == TIMED:
            del self.steps[name]
            self.note_time(name, value)
        else:
            if kind == DONE and task.slot is not None:
                step.walls[str(task.slot.fold)] = seconds
            elif kind == STOPPED:
                step.overrun = max(step.overrun, seconds)
            if not self.queue.list_open(name):
                self.attempt(name, self._end_step)
        if SIGNALS.waiting is None:
            self._fill()

    def _end_step(self, name: str) -> None:
        step = self.steps.pop(name)
        with step.lock:
            summarise_finished(step.run, step.job.rows, step.job.numbers)
        if step.decided:
            self.note_step(step.decided, step.job, step.run, step.walls, step.overrun)


class _TimeLeft(Deadline):
    """Over once the trainer's time is."""

    def __init__(self, trainer: ClusterTrainer):
        super().__init__(None)
        self.trainer = trainer

    def is_over(self) -> bool:
        return super().is_over() or self.trainer.is_out_of_time()
