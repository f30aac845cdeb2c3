"""The actor through which driver and workers exchange messages, and which knows the workers that count."""

from __future__ import annotations

import contextlib
import os
import time

from earshot.core.errors import UserError

GO, STOP, LOST = "go", "stop", "lost"  # a worker's orders
LEASE = 30.0  # seconds of silence after which a worker's task goes to another; EARSHOT_LEASE overrides
STEP = 1.0  # seconds between two of the driver's looks that count at most: it may have been frozen itself

# a worker's number, the kind of the message, its value: text that was printed, or a pickled value
Message = tuple[int, str, str | bytes]


def read_lease() -> float:
    """EARSHOT_LEASE, or its default; UserError where it is not a number above 0."""
    text, lease = os.environ.get("EARSHOT_LEASE", str(LEASE)), 0.0
    with contextlib.suppress(ValueError):
        lease = float(text)
    if not lease > 0:
        raise UserError(f"EARSHOT_LEASE={text}: has to be a number of seconds above 0")
    return lease


class Board:
    """Messages of the workers to the driver, its order to stop, and who may still write.

    A worker whose lease is over is lost for good: it may be frozen and wake up beside its replacement.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.heard: dict[int, float] = {}  # when a worker was heard last, by the board's clock
        self.lost: set[int] = set()
        self.order = GO
        self.clock, self.looked = 0.0, time.monotonic()

    def beat(self, worker: int) -> str:
        """A worker is alive; what it should do."""
        if worker in self.lost:
            return LOST
        self.heard[worker] = self.clock
        return self.order

    def post(self, worker: int, kind: str, value: str | bytes) -> str:
        """A worker's message; what it should do."""
        if worker not in self.lost:
            self.messages.append((worker, kind, value))
        return self.beat(worker)

    def count_bytes(self, worker: int) -> int:
        """The size of a worker's messages that wait for the driver."""
        return sum(len(value) for number, _, value in self.messages if number == worker)

    def take(self) -> tuple[list[Message], dict[int, float]]:
        """The messages since the last call, and for how many seconds each worker has been silent."""
        now = time.monotonic()
        self.clock += min(now - self.looked, STEP)
        self.looked = now
        messages, self.messages = self.messages, []
        return messages, {worker: self.clock - heard for worker, heard in self.heard.items()}

    def revoke(self, worker: int) -> None:
        """From now on a worker may not write."""
        self.lost.add(worker)
        self.heard.pop(worker, None)
        self.messages = [message for message in self.messages if message[0] != worker]

    def give_order(self, order: str) -> None:
        """Let the workers go on, or stop at their next safe point."""
        self.order = order
