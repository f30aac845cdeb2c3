"""Events in a long recording: the stretches of consecutive windows in which a class is likely."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from earshot.training.metrics import THRESHOLD

SLACK = 1e-3  # seconds; windows further apart than this are not consecutive


class Event(NamedTuple):
    """A stretch of a recording in which one class is likely.

    Args:
        label: the class. start, end: seconds from the start of the file.
        probability: the highest of its windows.
    """

    label: str
    start: float
    end: float
    probability: float


def list_events(
    windows: np.ndarray,
    start: np.ndarray,
    length: np.ndarray,
    classes: list[str],
    threshold: float = THRESHOLD,
    most: int | None = None,
) -> list[Event]:
    """The events of one recording, most likely first; of equally likely ones, the longest, then the earliest.

    Consecutive windows in which a class reaches the threshold are merged into one event.

    Args:
        windows: (windows, classes) probabilities, in the order of time. NaN counts as below the threshold.
        start, length: (windows,) seconds, as `Prediction` and `ClipFeatures` have them.
        classes: the names of the columns.
        threshold: the lowest probability of a window that belongs to an event.
        most: how many events to list at most; None: all.
    Returns:
        the events; none for a clip of a single window, whose prediction is the clip's own.
    """
    if len(windows) < 2:
        return []
    end = start + length
    found = []
    for index, label in enumerate(classes):
        rows = np.flatnonzero(windows[:, index] >= threshold)
        apart = (np.diff(rows) > 1) | (start[rows[1:]] > end[rows[:-1]] + SLACK)
        for stretch in np.split(rows, np.flatnonzero(apart) + 1):
            if len(stretch):
                found.append(
                    Event(
                        label,
                        float(start[stretch[0]]),
                        float(end[stretch[-1]]),
                        float(windows[stretch, index].max()),
                    )
                )
    found.sort(key=lambda event: (-event.probability, event.start - event.end, event.start))
    return found[:most]
