"""Signals and --max-hours: stop at a safe point."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

from earshot.core import shell
from earshot.core.errors import UserError

LONG = 60.0  # seconds: shorter work needs no estimate


@dataclasses.dataclass
class Signals:
    """Whether signals wait for a loop's next safe point, and the signal that waits."""

    patient: bool = False
    waiting: int | None = None

    def handle(self, number: int, frame: Any) -> None:
        """Handle a signal: remember the first within `defer_signals`, else exit at once."""
        if self.patient and self.waiting is None:
            self.waiting = number
            return
        raise SystemExit(128 + number)


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Within this context the first SIGTERM or Ctrl-C makes `Deadline.is_over` true, so that the loop can
    save; a second exits at once."""
    SIGNALS.patient = True
    try:
        yield
    finally:
        SIGNALS.patient = False


def build_continue_command() -> str:
    """The command that continues this run: the same one, without --fresh."""
    kept = [a for a in sys.argv[1:] if a not in ("--fresh", "--no-fresh")]
    return shell.join_command("python", os.path.relpath(sys.argv[0]), *kept)


class Deadline:
    """When a loop stops at its next safe point: after --max-hours, or after a signal."""

    def __init__(self, hours: float | None):
        self.at = None if hours is None else time.monotonic() + 3600 * hours
        self.hours = hours

    def is_over(self) -> bool:
        """Is the time up, or has a signal come?"""
        return SIGNALS.waiting is not None or self.at is not None and time.monotonic() >= self.at

    def is_out_of_time(self) -> bool:
        """Is the time up, and no signal the reason to stop?"""
        return SIGNALS.waiting is None and self.is_over()

    def leave(self) -> None:
        """Print how to continue and exit: code 0, or the signal's."""
        if SIGNALS.waiting is not None:
            raise SystemExit(128 + SIGNALS.waiting)
        print(
            f"stopped at a safe point after --max-hours {self.hours:g}; continue with: "
            f"{build_continue_command()}",
            flush=True,
        )
        sys.exit(0)


def parse_duration(flag: str, text: str) -> float:
    """The seconds of a time such as 90m, 1.5h or 5400s, above 0; UserError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip().lower())
    seconds = float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0
    if not seconds:
        raise UserError(f"{flag} {text}: has to be a time such as 90m, 1.5h or 5400s")
    return seconds


def format_clock(seconds: float) -> str:
    """Seconds as 4:51 or 1:02:03."""
    minutes, rest = divmod(int(round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


SIGNALS = Signals()
