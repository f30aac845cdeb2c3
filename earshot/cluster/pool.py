"""A worker pool on a Ray cluster: an actor for each worker, which other nodes replace when it is lost."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from earshot.cluster.board import GO, STOP, Board, read_lease
from earshot.cluster.head import HeadWatch, is_there
from earshot.cluster.worker import FAILED, NodeWorker
from earshot.core.deadline import SIGNALS
from earshot.core.errors import OF_THE_MACHINE, TemporaryError, UserError

if TYPE_CHECKING:
    from earshot.cluster.probe import Probe
    from earshot.core.deadline import Deadline
    from earshot.core.device import Device

POLL = 0.1  # seconds between looks at messages and the clock
PATIENCE = 60.0  # seconds to wait for a first worker, or for those that have not begun to start
DEATHS = 6  # workers that a task may end
TRIES = 3  # how often a task may fail because of its node


class WorkersLost(UserError):
    """A task has ended one worker after the other."""

    def __init__(self, text: str, task: Any):
        super().__init__(text)
        self.task = task


@dataclass
class _Slot:
    """One worker: its actor, and what it is doing."""

    number: int
    actor: Any
    pending: Any  # of the call that runs, None where it is idle
    name: str
    node: str = ""
    about: Any = None
    ready: bool = False
    task: int | None = None


class RayPool:
    """A `WorkerPool` on a Ray cluster.

    Tasks of lost workers are given to others. They begin again from what was written, so they may send
    messages twice.

    Args:
        ray: the module, connected.
        slots: how many workers.
        resources: of each worker, as `ray.remote` takes them.
        device: of each worker. expected: a node that was compared with the others; a worker on a node that
            differs is refused.
        work, arguments: as in `WorkerPool`. threads: of each worker.
    """

    def __init__(
        self,
        ray: Any,
        slots: int,
        resources: dict[str, float],
        device: Device,
        expected: Probe,
        work: Callable[..., Any],
        arguments: tuple,
        threads: int,
    ):
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.ray, self.slots, self.lease = ray, slots, read_lease()
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.board = ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
        self.actor_class = ray.remote(
            **resources, scheduling_strategy="SPREAD", max_restarts=0, max_task_retries=0
        )(NodeWorker)
        self.begin = (os.getcwd(), threads, expected, pickle.dumps((work, device, arguments)))
        self.numbers = itertools.count()
        # before a lease is over: nobody starts another worker then
        self.head = HeadWatch(ray.get_runtime_context().gcs_address, self.lease / 2)
        self.names = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        self.members = [self._start() for _ in range(slots)]
        self.early_deaths = 0  # of workers that were starting

    def _start(self) -> _Slot:
        number = next(self.numbers)
        actor = self.actor_class.remote(self.board, number)
        return _Slot(number, actor, actor.start.remote(*self.begin), f"worker {number + 1}")

    def wait_until_ready(self) -> list[Any]:
        """The attribute `about` of each worker; those that do not begin to start in a minute join later.

        Raises:
            TemporaryError: none has begun in a minute.
        """
        began, failed = time.monotonic(), None
        with self._translate_errors():
            while failed is None and not all(slot.ready for slot in self.members):
                if SIGNALS.waiting is not None:
                    raise SystemExit(128 + SIGNALS.waiting)
                self._wait()
                silent = self._take(lambda value: None)
                failed = self._collect_started()
                for slot in [one for one in self.members if silent.get(one.number, 0) > self.lease]:
                    self._replace_unstarted(slot, f"silent for {self.lease:g} s")
                late = time.monotonic() - began >= PATIENCE
                if late and not silent:
                    raise TemporaryError(
                        f"no free slot on the cluster for {PATIENCE:.0f} s: other programs use it, or nodes "
                        "are lost; `ray status` shows what is free"
                    )
                waiting = [slot for slot in self.members if not slot.ready]
                if late and not any(slot.number in silent for slot in waiting):
                    break
        if failed is not None:  # out here, since it may be a ConnectionError of the worker's own
            raise failed
        ready = [slot for slot in self.members if slot.ready]
        return [slot.about for slot in ready]

    def run(self, tasks: Sequence[Any], on_message: Callable[[Any], None], deadline: Deadline) -> bool:
        """Run tasks as `WorkerPool.run` does, and those that `on_message` adds to the list while others run.

        Raises:
            WorkersLost: a task that ends one worker after the other. TemporaryError: the last worker is lost.
        """
        found = _Round(self, tasks, on_message, deadline)
        with self._translate_errors():
            self.ray.get(self.board.give_order.remote(GO))
            done = found.run()
        if found.failure is not None:
            raise found.failure
        return done

    def _wait(self) -> None:
        """Wait a moment, less where a call has finished."""
        self.head.check()
        calls = [slot.pending for slot in self.members if slot.pending is not None]
        if calls:
            self.ray.wait(calls, num_returns=1, timeout=POLL)
        else:
            time.sleep(POLL)

    def _take(self, on_message: Callable[[Any], None]) -> dict[int, float]:
        """Pass on the messages that came; for how many seconds each worker has been silent."""
        messages, silent = self.ray.get(self.board.take.remote())
        names = {slot.number: slot.name for slot in self.members}
        for number, kind, value in messages:
            if kind == "say":
                on_message(pickle.loads(value))
            elif number in names:
                print(f"{names[number]}: {value}", flush=True)
        return silent

    def _collect_started(self) -> BaseException | None:
        """Note which workers are ready; the error of one that failed. Those that died are replaced."""
        for slot, (kind, value) in self._collect(lambda slot: not slot.ready):
            if kind == FAILED:
                self.drop(slot)
                return value
            slot.node, slot.about = value
            slot.ready, slot.name = True, self._name_slot(slot)
            self.early_deaths = 0
        return None

    def _name_slot(self, slot: _Slot) -> str:
        """Its node's address, and a number where the node has several workers."""
        if slot.node not in self.names:  # it joined later
            self.names = {node["NodeID"]: node["NodeManagerAddress"] for node in self.ray.nodes()}
        place, taken = f"node {self.names.get(slot.node, slot.node)}", {other.name for other in self.members}
        numbered = (f"{place} ({number})" for number in range(2, len(taken) + 2))
        return next(name for name in (place, *numbered) if name not in taken)

    def _collect(self, which: Callable[[_Slot], bool]) -> Iterator[tuple[_Slot, tuple[str, Any]]]:
        """The finished calls of some workers; ("dead", reason) for a worker that died."""
        waiting = {slot.pending: slot for slot in self.members if slot.pending is not None and which(slot)}
        if not waiting:
            return
        done, _ = self.ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        for call in done:
            slot = waiting[call]
            slot.pending = None
            try:
                result = self.ray.get(call)
            except self.ray.exceptions.RayError as error:
                if slot.ready:
                    result = ("dead", "it died")
                else:
                    self._replace_unstarted(slot, shorten(error, 400))
                    continue
            yield slot, result

    def _replace_unstarted(self, slot: _Slot, reason: str) -> None:
        self.early_deaths += 1
        if self.early_deaths >= DEATHS:
            raise TemporaryError(
                f"{DEATHS} workers of the cluster were lost while they started; the last one: {reason}"
            )
        self.replace(slot)

    def drop(self, slot: _Slot) -> None:
        """End a worker for good; it may not write any more."""
        self.ray.get(self.board.revoke.remote(slot.number))
        self.members.remove(slot)
        with contextlib.suppress(Exception):
            self.ray.kill(slot.actor)

    def replace(self, slot: _Slot) -> None:
        """End a worker and start another, wherever there is a place."""
        self.drop(slot)
        self.members.append(self._start())

    def close(self) -> None:
        """End the workers, at once where they are busy."""
        if not is_there(self.head.address):  # Ray would wait for it, and the workers end by themselves
            self.members = []
            return
        idle = [slot.actor.close.remote() for slot in self.members if slot.ready and slot.pending is None]
        with contextlib.suppress(Exception):
            self.ray.wait(idle, num_returns=len(idle), timeout=1) if idle else None
        for actor in [*(slot.actor for slot in self.members), self.board]:
            with contextlib.suppress(Exception):
                self.ray.kill(actor)
        self.members = []

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """A lost cluster as one line."""
        try:
            yield
        except (self.ray.exceptions.RayError, ConnectionError) as error:
            if getattr(error, "errno", None) is not None:  # of a file or pipe of this process
                raise
            if SIGNALS.waiting is not None:  # which a local cluster has got, too
                raise SystemExit(128 + SIGNALS.waiting) from None
            raise TemporaryError(
                f"the connection to the cluster is lost ({type(error).__name__}): is its head running?"
            ) from None


class _Round:
    """One call of `RayPool.run`."""

    def __init__(
        self, pool: RayPool, tasks: Sequence[Any], on_message: Callable[[Any], None], deadline: Deadline
    ):
        self.pool, self.tasks, self.on_message, self.deadline = pool, tasks, on_message, deadline
        self.waiting: deque[int] = deque()
        self.known = 0  # tasks that were waiting or still are
        self.deaths: Counter[int] = Counter()
        self.failed_on: dict[int, list[str]] = {}
        self.failure: BaseException | None = None
        self.all_done, self.is_stopping = True, False
        self.idle_since = time.monotonic()

    def run(self) -> bool:
        """Until all tasks are done, or time is up and the workers have stopped; `failure` is theirs."""
        pool = self.pool
        self._hand_out()  # before the clock is looked at: each begins one task in any case
        while self._is_busy() or self.waiting and not self.is_stopping:
            if not self.is_stopping and (self.failure is not None or self.deadline.is_over()):
                self.is_stopping = True
                pool.ray.get(pool.board.give_order.remote(STOP))
            pool._wait()
            # before the messages are taken: those of a finished task are all there
            finished = list(pool._collect(lambda slot: slot.ready))
            silent = pool._take(self.on_message)
            for slot, result in finished:
                self._finish(slot, *result)
            self._collect_started()
            for slot in [one for one in pool.members if silent.get(one.number, 0) > pool.lease]:
                self._lose(slot, f"silent for {pool.lease:g} s")
            if not self.is_stopping:
                self._hand_out()
            self._check_patience(bool(silent))
        return self.all_done and not self.waiting

    def _is_busy(self) -> bool:
        return any(slot.task is not None for slot in self.pool.members)

    def _hand_out(self) -> None:
        self.waiting.extend(range(self.known, len(self.tasks)))
        self.known = len(self.tasks)
        free = [slot for slot in self.pool.members if slot.ready and slot.task is None]
        for slot in free:
            # a task that failed because of a node goes to another
            fits = (task for task in self.waiting if slot.node not in self.failed_on.get(task, ()))
            self._give(slot, next(fits, None))
        if free and self.waiting and not self._is_busy():  # no other node is left
            self._give(free[0], self.waiting[0])

    def _give(self, slot: _Slot, task: int | None) -> None:
        if task is not None:
            self.waiting.remove(task)
            slot.task, slot.pending = task, slot.actor.run.remote(pickle.dumps(self.tasks[task]))

    def _finish(self, slot: _Slot, kind: str, value: Any) -> None:
        if kind == "dead":
            return self._lose(slot, value)
        task, slot.task = slot.task, None
        assert task is not None
        if kind == FAILED:
            self._fail(slot, task, value)
        else:
            self.all_done = self.all_done and value

    def _fail(self, slot: _Slot, task: int, error: BaseException) -> None:
        nodes = self.failed_on.setdefault(task, [])
        nodes.append(slot.node)
        others = {one.node for one in self.pool.members if one.ready}.difference(nodes)
        if _is_of_the_machine(error) and others and len(nodes) < TRIES and not self.is_stopping:
            print(
                f"warning: {slot.name}: {_name(self.tasks[task])} failed there: "
                f"{shorten(error)}; another node tries again",
                flush=True,
            )
            self.waiting.appendleft(task)
        else:
            self.failure = self.failure or error

    def _lose(self, slot: _Slot, reason: str) -> None:
        """A worker is dead or silent: its task is for another."""
        task, name = slot.task, slot.name
        if self.is_stopping:
            self.pool.drop(slot)
        else:
            self.pool.replace(slot)
        if task is None:
            return
        self.deaths[task] += 1
        self.waiting.appendleft(task)
        what = f"{name} was lost ({reason})"
        if self.deaths[task] >= DEATHS:
            self.failure = self.failure or WorkersLost(
                f"{_name(self.tasks[task])} has ended {DEATHS} workers, the last one on {name} ({reason}): "
                "is there enough memory for it?",
                self.tasks[task],
            )
        elif not self.is_stopping:
            print(f"warning: {what}: {_name(self.tasks[task])} is given to another worker", flush=True)

    def _collect_started(self) -> None:
        error = self.pool._collect_started()
        if error is None:
            return
        if any(slot.ready for slot in self.pool.members):
            print(f"warning: a worker could not start: {shorten(error)}", flush=True)
        else:
            self.failure = self.failure or error

    def _check_patience(self, is_any_alive: bool) -> None:
        if is_any_alive or self.is_stopping:
            self.idle_since = time.monotonic()
        elif time.monotonic() - self.idle_since >= PATIENCE:
            self.failure = TemporaryError(
                f"no worker of the cluster is left, and none has started for {PATIENCE:.0f} s"
            )


def shorten(error: BaseException, most: int | None = None) -> str:
    """An error's text in one line, at most so many letters of it."""
    return " ".join(str(error).split())[:most]


def _name(task: Any) -> str:
    return getattr(task, "name", None) or f"task {str(task)[:80]}"


def _is_of_the_machine(error: BaseException) -> bool:
    """Is it the node's fault, so that another one may succeed?"""
    return isinstance(error, (TemporaryError, MemoryError)) or (
        isinstance(error, OSError) and error.errno in OF_THE_MACHINE
    )
