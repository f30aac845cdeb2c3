"""Windows: cut a long clip into pieces of equal length, fill a short one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from earshot.audio.load import TOLERANCE
from earshot.core.errors import UserError


def cut_windows(
    seconds: float, window: float, hop: float | None, max_windows: int | None
) -> list[tuple[float, float]]:
    """The windows that cover a clip: one if it fits, else regular ones and a last one moved back to the
    clip's end.

    Args:
        seconds: the clip's duration.
        window: a window's duration in seconds.
        hop: seconds between the starts of windows; None = `window` (no overlap).
        max_windows: keep only the first so many; None keeps all.
    Returns:
        (start, length of real audio) of each, in seconds; up to 10 ms at the very end may stay uncovered.
    Raises:
        UserError: a window, hop or count that is not positive, or a hop that would leave audio out.
    """
    found = count_windows(seconds, window, hop, max_windows)
    if seconds <= window + TOLERANCE:
        return [(0.0, min(seconds, window))]
    hop = window if hop is None else hop
    regular = min(found, _count_regular(seconds, window, hop))
    return [(i * hop, window) for i in range(regular)] + [(seconds - window, window)] * (found - regular)


def count_windows(seconds: float, window: float, hop: float | None, max_windows: int | None) -> int:
    """The number of windows that `cut_windows` makes, without making them: a header may claim millions.

    Raises:
        UserError: as `cut_windows`.
    """
    hop = window if hop is None else hop
    if window <= 0:
        raise UserError(f"--seconds {window:g}: a window needs a positive length")
    if not 0 < hop <= window:
        raise UserError(
            f"--hop {hop:g}: must be between 0 and the window's {window:g} s, else audio is left out"
        )
    if max_windows is not None and max_windows < 1:
        raise UserError(f"--max-windows {max_windows}: must be 1 or more; leave it out for all windows")
    if seconds <= window + TOLERANCE:
        return 1
    regular = _count_regular(seconds, window, hop)
    found = regular + (seconds - ((regular - 1) * hop + window) > TOLERANCE)
    return found if max_windows is None else min(found, max_windows)


def _count_regular(seconds: float, window: float, hop: float) -> int:
    return 1 + int(math.floor((seconds - window) / hop + 1e-9))


def fill_window(wave: np.ndarray, samples: int, pad: Literal["wrap", "silence"]) -> np.ndarray:
    """A wave of exactly `samples`: a longer one is cut, a shorter one repeated ("wrap") or zero-filled
    ("silence").

    Returns:
        (samples,) float32.
    """
    if len(wave) >= samples:
        return np.ascontiguousarray(wave[:samples], dtype=np.float32)
    if pad == "wrap":
        return np.resize(wave, samples).astype(np.float32, copy=False)
    if pad == "silence":
        return np.pad(wave, (0, samples - len(wave))).astype(np.float32, copy=False)
    raise UserError(f"--pad {pad}: must be wrap or silence")


def choose_seconds(durations: Sequence[float], limit: float = 10.0) -> float:
    """The window length for a data set: the duration that nearly all clips share, else the 95th percentile in
    steps of 0.5 s.

    Args:
        durations: seconds of each clip, at least one.
        limit: the longest window in seconds.
    Returns:
        Seconds: exactly the common duration where 90 % of the clips lie within 20 ms of it, else a multiple
        of 0.5, at least 0.5; never above `limit`.
    """
    durations = np.asarray(durations, dtype=np.float64)
    if not durations.size:
        raise ValueError("no durations to choose a window from")
    common = float(np.percentile(durations, 50, method="lower"))  # an actual duration, not a mean of two
    if (np.abs(durations - common) <= 0.02).mean() >= 0.9:
        return min(common, limit)
    longish = float(np.percentile(durations, 95))
    return min(max(0.5, 0.5 * math.ceil((longish - TOLERANCE) / 0.5)), limit)
