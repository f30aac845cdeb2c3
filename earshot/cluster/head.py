"""Is the head of a cluster there? Ray ends a program that has lost it after a minute, from C++ and with exit
code 1, so that it has to be noticed before."""

from __future__ import annotations

import socket
import time

from earshot.core.errors import TemporaryError

STEP = 1.0  # seconds between two looks, and for an answer


def is_there(address: str) -> bool:
    """Does something listen at HOST:PORT?"""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), STEP).close()
    except (OSError, ValueError):
        return False
    return True


class HeadWatch:
    """Looks for the head at times.

    Args:
        limit: seconds without it that are allowed: it may be restarted.
    """

    def __init__(self, address: str, limit: float):
        self.address, self.limit = address, limit
        self.looked = time.monotonic()
        self.lost_since: float | None = None

    def check(self) -> None:
        """Raise TemporaryError where the head has been away for too long."""
        now = time.monotonic()
        if now - self.looked < STEP:
            return
        if is_there(self.address):
            self.lost_since = None
        elif self.lost_since is None:
            self.lost_since = now
        elif now - self.lost_since >= self.limit:
            raise TemporaryError(
                f"the head of the cluster, {self.address}, has not responded for {self.limit:g} s: is it "
                "running?"
            )
        self.looked = time.monotonic()
