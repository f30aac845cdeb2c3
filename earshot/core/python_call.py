"""Calls from Python, in a notebook or a program: an exception where a script would end its process."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from earshot.core import process
from earshot.core.deadline import SIGNALS, Deadline
from earshot.core.errors import UserError


class TimeLimitReached(Exception):
    """`max_hours` are over before the work is done: what is finished is kept, and the same call continues."""


class CallDeadline(Deadline):
    """The deadline of a Python call, which raises an exception where a script ends its process."""

    def leave(self) -> None:
        """Raise TimeLimitReached, or leave for the signal that came."""
        if SIGNALS.waiting is not None:
            super().leave()
        raise TimeLimitReached(
            f"stopped at a safe point after max_hours={self.hours:g}: the same call continues"
        )


@contextlib.contextmanager
def start_call(verbose: bool) -> Iterator[None]:
    """Prepare the process as the scripts do. Within, the first Ctrl-C waits for the next safe point.

    Args:
        verbose: print progress, or nothing.
    Raises:
        UserError: also for what a head raises. KeyboardInterrupt: Ctrl-C, once the work is saved.
    """
    import models

    process.prepare()
    # Only the main thread may set handlers, and only it gets Ctrl-C.
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, SIGNALS.handle) if in_main else None
    SIGNALS.waiting = None
    try:
        with contextlib.ExitStack() as stack:
            if not verbose:
                nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            yield
    except models.HeadError as error:
        raise UserError(str(error)) from None
    except SystemExit as stopped:
        if stopped.code != 128 + signal.SIGINT:
            raise
        raise KeyboardInterrupt("what was finished is kept: the same call continues") from None
    finally:
        SIGNALS.waiting = None
        if in_main:
            signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)
