"""The actor that works on a node: it makes a worker and calls it with tasks, as a local process does."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from earshot.cluster.board import LEASE, LOST, STOP
from earshot.cluster.probe import Probe, check_node
from earshot.core import files
from earshot.core.worker_pool import make_portable, prepare_process

BEAT = 0.5  # seconds
FULL = 32 << 20  # bytes of messages that wait for the driver, after which a worker waits, too
ROOM = 0.05  # seconds between two looks whether there is room again
DONE, FAILED = "done", "failed"


class NodeWorker:
    """A worker on a node; methods return (DONE, result) or (FAILED, error).

    Args:
        board: the handle of the `Board`.
        number: of this worker.
    """

    def __init__(self, board: Any, number: int):
        import ray

        self.ray, self.board, self.number = ray, board, number
        self.stopped = threading.Event()
        self.worker: Any = None
        self.waiting = 0  # bytes of messages that wait for the driver, at most
        files.GUARD.suffix = f".{socket.gethostname()}-{os.getpid()}"
        files.GUARD.check = self._beat
        self._beat()
        threading.Thread(target=self._keep_beating, daemon=True).start()

    def start(self, folder: str, threads: int, expected: Probe, loads: bytes) -> tuple[str, Any]:
        """Make the worker; the id of the node, and the worker's attribute `about`.

        Args:
            folder: the driver's working directory; relative paths are seen from there, if it is here, too.
            expected: a node that was compared with the others: this one must be like it.
            loads: the pickled class or function, device and arguments.
        """
        return self._try(lambda: self._make(folder, threads, expected, loads))

    def _make(self, folder: str, threads: int, expected: Probe, loads: bytes) -> Any:
        check_node(expected, threads, f"node {self.ray.util.get_node_ip_address()}")
        if os.path.isdir(folder):
            os.chdir(folder)
        prepare_process(self._post, threads)
        work, device, arguments = pickle.loads(loads)
        self.worker = work(device, *arguments)
        return self.ray.get_runtime_context().get_node_id(), getattr(self.worker, "about", None)

    def run(self, task: bytes) -> tuple[str, Any]:
        """Call the worker with a pickled task; is it done, False if it stopped early?"""
        self._beat()  # is there still an order to stop?
        return self._try(lambda: self.worker(pickle.loads(task), self._say, self))

    def is_over(self) -> bool:
        """Should the worker stop?"""
        return self.stopped.is_set()

    def close(self) -> None:
        """Let the worker clean up."""
        if hasattr(self.worker, "close"):
            self.worker.close()

    def _try(self, call: Callable[[], Any]) -> tuple[str, Any]:
        try:
            return DONE, call()
        except BaseException as error:
            return FAILED, make_portable(error)

    def _keep_beating(self) -> None:
        while True:
            time.sleep(BEAT)
            self._beat()

    def _beat(self) -> None:
        self._obey(lambda: self.board.beat.remote(self.number))

    def _say(self, value: Any) -> None:
        """Send a value; where the driver is behind, wait for it, so that the board's memory has a limit."""
        message = pickle.dumps(value)
        self._post("say", message)
        self.waiting += len(message)
        while self.waiting > FULL:
            self.waiting = self.ray.get(self.board.count_bytes.remote(self.number))
            if self.waiting > FULL:
                time.sleep(ROOM)

    def _post(self, kind: str, value: str | bytes) -> None:
        self._obey(lambda: self.board.post.remote(self.number, kind, value))

    def _obey(self, call: Callable[[], Any]) -> None:
        """Call the board and do what it returns; without a board, or as a lost worker, end at once: the work
        is another's."""
        order, limit = None, time.monotonic() + LEASE
        while order is None:
            try:
                order = self.ray.get(call())
            except self.ray.exceptions.ActorUnavailableError:  # it may be back soon
                order = LOST if time.monotonic() > limit else None
                time.sleep(BEAT)
            except BaseException:
                order = LOST
        if order == LOST:
            with contextlib.suppress(Exception):
                self.close()  # a temporary folder
            os._exit(1)
        if order == STOP:
            self.stopped.set()
        else:
            self.stopped.clear()
