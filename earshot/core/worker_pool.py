"""The contract of all worker pools, and the pool of this machine: a process per device, with pipes for tasks
and messages. `earshot.cluster` has another pool, with workers on several machines.

joblib also distributes work, but gets no messages from running workers and cannot stop them at a safe point.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import queue
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from earshot.core import device
from earshot.core.device import Device
from earshot.core.errors import TemporaryError, UserError
from earshot.core.files import LOCK, share_lock

if TYPE_CHECKING:
    from earshot.core.deadline import Deadline

POLL = 0.1  # seconds between looks at the clock while workers are silent
STOP = "stop"


class WorkerPool(Protocol):
    """Workers that are called with tasks, one at a time each.

    A worker is made by work(device, *arguments), a class or function that another process can import; the
    arguments can be pickled. It is called as worker(task, say, inbox): `say` sends any value to `run`'s
    `on_message`, `inbox.is_over()` is a Deadline's; it returns whether the task is done, False if it stopped
    early. What it prints is printed here, line by line, behind the worker's name. The workers end with the
    pool, and by themselves once this process is gone.
    """

    @property
    def slots(self) -> int:
        """How many workers there are when none has failed."""

    def wait_until_ready(self) -> list[Any]:
        """Wait until every worker is ready; the attribute `about` of each, None without one."""

    def run(self, tasks: Sequence[Any], on_message: Callable[[Any], None], deadline: Deadline) -> bool:
        """Give the tasks in order to free workers; False if time ran out before all were done.

        Args:
            on_message: called with the workers' messages.
            deadline: once it has passed the workers stop at their next safe point; each begins one task in
                any case.
        Raises:
            what a worker raised, once the others have stopped at a safe point; TemporaryError or UserError,
            which name the worker or the task, where workers were killed.
        """

    def close(self) -> None:
        """End the workers; like any kill, this is safe at any time."""


def split_tasks(items: Sequence[Any], slots: int, largest: int) -> list[Sequence[Any]]:
    """Items in order, in chunks: large ones first, single items last, so that the workers end together.

    Args:
        largest: items in a chunk, at most.
    """
    chunks: list[Sequence[Any]] = []
    first = 0
    while first < len(items):
        size = max(1, min(largest, (len(items) - first) // (2 * slots)))
        chunks.append(items[first : first + size])
        first += size
    return chunks


def choose(name: str = "auto", precision: str = "auto") -> list[Device]:
    """The devices to compute on, all of one kind and in one precision.

    Args:
        name: "auto" (all GPUs as good as the first, else the CPU), or one or more as `device.choose`
            takes them, with commas between: "cuda:0,cuda:1". "cpu,cpu" is two processes, each with half of
            the threads.
        precision: as `device.choose` takes it.
    Raises:
        UserError: a device that cannot be used; a CPU beside a GPU.
    """
    import torch

    if name == "auto":
        first = device.choose(name, precision)
        devices = [first]
        for index in range(1, torch.cuda.device_count() if first.name.startswith("cuda") else 0):
            # not named by the user, so an unusable one is skipped
            with contextlib.suppress(UserError):
                devices.append(device.choose(f"cuda:{index}", precision))
        return [item for item in devices if item.precision == first.precision]
    devices = [device.choose(item.strip(), precision) for item in name.split(",")]
    names = [item.name for item in devices]
    if len({item.partition(":")[0] for item in names}) > 1:
        raise UserError(
            f"--device {name}: name GPUs or the CPU, not both: what they compute differs in the last digits"
        )
    twice = [item for item in names if item != "cpu" and names.count(item) > 1]
    if twice:
        raise UserError(f"--device {name}: {twice[0]} twice: a GPU is one process's")
    return [replace(item, precision=devices[0].precision) for item in devices]


def count_threads(count: int) -> int:
    """Threads per process: an equal share, so that the same command computes the same bits again."""
    import torch

    return max(1, torch.get_num_threads() // count)


def describe_devices(devices: Sequence[Device], threads: int | None = None) -> str:
    """The devices as text for the log.

    Args:
        threads: of each process on a CPU; default: an equal share.
    """
    if len(devices) == 1 and threads is None:
        return devices[0].about
    if devices[0].name == "cpu":
        threads = threads or count_threads(len(devices))
        processes = f"{len(devices)} process{'es' if len(devices) > 1 else ''}"
        precision = "" if devices[0].precision == "fp32" else f", {devices[0].precision}"
        return f"CPU, {processes} of {threads} thread{'s' if threads > 1 else ''}{precision}"
    return f"{len(devices)} devices, a process each: " + "; ".join(
        f"{each.name} {each.about}" for each in devices
    )


class ProcessPool:
    """A `WorkerPool` of one process per device.

    Until the processes have ended they share the lock of `folder`, so that the next process waits for them.

    Args:
        work: a class or function that a new process can import; `arguments` can be pickled.
        folder: the folder that this process has locked with `files.hold_lock`.
        share: of the threads, for each process; default: an equal one.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        work: Callable[..., Any],
        arguments: tuple,
        folder: Path,
        share: int | None = None,
    ):
        # a fork would inherit CUDA, threads and locks in an unknown state
        context = multiprocessing.get_context("spawn")
        self.names = [
            f"{each.name} ({index + 1})" if each.name == "cpu" else each.name
            for index, each in enumerate(devices)
        ]
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []
        share_of_threads = share or count_threads(len(devices))
        # Starting the first process starts it, too, which unblocks the signals below.
        resource_tracker.ensure_running()
        # Blocked for them for good: a Ctrl-C reaches the whole terminal, and it is this process
        # that tells them to stop.
        signals = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            for each in devices:
                mine, its = context.Pipe()
                process = context.Process(
                    target=_serve,
                    args=(its, work, each, arguments, share_of_threads, folder / LOCK),
                    daemon=True,
                )
                self.pipes.append(mine)
                self.processes.append(process)
                with _hide_main():
                    process.start()
                its.close()  # so that the end of either process reaches the other
        except BaseException:
            self.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, signals)

    def __enter__(self) -> ProcessPool:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    @property
    def slots(self) -> int:
        """How many processes there are."""
        return len(self.pipes)

    def close(self) -> None:
        """End the processes; like any kill, this is safe at any time."""
        for process in self.processes:
            if process.pid is not None:
                process.kill()
                process.join()

    def wait_until_ready(self) -> list[Any]:
        """The attribute `about` of each worker, once it is ready."""
        return [self._receive(index)[1] for index in range(len(self.pipes))]

    def run(self, tasks: Sequence[Any], on_message: Callable[[Any], None], deadline: Deadline) -> bool:
        """Run tasks as `WorkerPool.run` does; TemporaryError where a process was killed."""
        waiting, busy, all_done, is_stopping = deque(tasks), set(), True, False
        failed: BaseException | None = None
        for index in range(min(len(self.pipes), len(waiting))):
            self._send_order(index, waiting.popleft())
            busy.add(index)
        while busy:
            if not is_stopping and (failed or deadline.is_over()):
                is_stopping = True
                for index in busy:
                    self._send_order(index, STOP)
            for pipe in wait([self.pipes[index] for index in busy], POLL):
                index = self.pipes.index(pipe)
                try:
                    message, value = self._receive(index)
                except BaseException as error:
                    if isinstance(error, (SystemExit, KeyboardInterrupt)):
                        raise
                    failed = failed or error
                    busy.discard(index)
                    continue
                if message == "say":
                    on_message(value)
                elif waiting and not is_stopping and not deadline.is_over() and value:
                    self._send_order(index, waiting.popleft())
                else:
                    all_done = all_done and value
                    busy.discard(index)
        if failed:
            raise failed
        return all_done and not waiting

    def _send_order(self, index: int, order: Any) -> None:
        with contextlib.suppress(OSError):  # it is gone, which the next read notices
            self.pipes[index].send((order,) if order is STOP else (None, order))

    def _receive(self, index: int) -> tuple[str, Any]:
        """The next message of a worker other than a printed line."""
        while True:
            try:
                message, value = self.pipes[index].recv()
            except (EOFError, OSError):
                self.processes[index].join()
                code = self.processes[index].exitcode
                how = f"exit code {code}" if code >= 0 else f"signal {-code}"
                how += ", out of memory?" if code == -signal.SIGKILL else ""
                text = f"the process for {self.names[index]} died ({how})"
                if code == -signal.SIGKILL:
                    raise TemporaryError(text) from None
                raise UserError(
                    f"{text}: what was finished is kept; run the same command again, or leave that device out"
                ) from None
            if message == "failed":
                raise value
            if message != "text":
                return message, value
            print(f"{self.names[index]}: {value}", flush=True)


@contextlib.contextmanager
def _hide_main() -> Iterator[None]:
    """Within, a new process does not run the program again that started this one.

    Workers need nothing of it, and a user's script that calls `earshot.train` at its top level would call it
    again in every worker.
    """
    main = vars(sys.modules["__main__"])
    kept: dict[str, Any] = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    try:
        main.update(dict.fromkeys(kept))
        yield
    finally:
        main.update(kept)


class WorkerInbox:
    """A worker's orders: tasks to come, and whether to stop at the next safe point."""

    def __init__(self, pipe: Connection):
        self.pipe, self.stopped, self.waiting = pipe, threading.Event(), queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            while True:
                order = self.pipe.recv()
                self.stopped.set() if order[0] is not None else self.waiting.put(order[1])
        except (EOFError, OSError):
            os._exit(1)  # the parent is gone, and the folder may be another's soon

    def is_over(self) -> bool:
        """Should the worker stop?"""
        return self.stopped.is_set()

    def iterate_tasks(self) -> Iterator[Any]:
        """The tasks as they arrive, without end."""
        while True:
            yield self.waiting.get()


class LineSender(io.TextIOBase):
    """Standard output that sends whole lines."""

    def __init__(self, send: Callable[[str, Any], None]):
        self.send, self.rest = send, ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in filter(str.strip, lines):
            self.send("text", line)
        return len(text)


class LogStream(io.TextIOWrapper):
    """Standard error without a terminal: several processes' progress bars would overwrite each other."""

    def isatty(self) -> bool:
        return False


def prepare_process(send: Callable[[str, Any], None], threads: int) -> None:
    """Prepare a worker's process: its threads, a log without a terminal, and `send` for what it prints."""
    import torch
    from tqdm import tqdm

    sys.stdout = LineSender(send)
    sys.stderr = LogStream(os.fdopen(os.dup(2), "wb"), encoding="utf-8", errors="replace", write_through=True)
    # a folder of its own would be left behind after a kill
    tqdm.set_lock(threading.RLock())
    torch.set_num_threads(threads)


def _serve(
    pipe: Connection, work: Callable[..., Any], on: Device, arguments: tuple, count: int, lock: Path
) -> None:
    """The main function of a worker process."""
    inbox, sending = WorkerInbox(pipe), threading.Lock()

    def send(kind: str, value: Any) -> None:
        with sending:
            pipe.send((kind, value))

    prepare_process(send, count)
    with share_lock(lock):
        try:
            worker = work(on, *arguments)
            send("ready", getattr(worker, "about", None))
            for task in inbox.iterate_tasks():
                send("done", worker(task, lambda value: send("say", value), inbox))
        except BaseException as error:
            send("failed", make_portable(error))
            inbox.waiting.get()  # it is the parent that ends this process


def make_portable(error: BaseException) -> BaseException:
    """The error, or an equivalent one that can be pickled."""
    if not isinstance(error, (UserError, OSError)):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
        return error
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
