"""Predictions for each window of new recordings, and the events that they show."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from earshot.prediction.events import Event, list_events
from earshot.prediction.members import Member
from earshot.training.run import Run


class _Windows(NamedTuple):
    clip: np.ndarray
    start: np.ndarray
    length: np.ndarray
    probabilities: np.ndarray


class WindowPredictions:
    """What each run of a blend predicts for each window of the same new recordings."""

    def __init__(self) -> None:
        self._found: dict[tuple[Path, str], _Windows] = {}

    def add(self, run: Run, kind: str, split: dict[str, Any], probabilities: np.ndarray) -> None:
        """Take what a run predicts for the windows of new clips by its "best" or "last" checkpoints.

        Args:
            split: the clips, as a cache has them. probabilities: (windows, classes).
        """
        clip, start, length = (np.asarray(split[key]) for key in ("clip", "start", "length"))
        self._found[run.folder.resolve(), kind] = _Windows(clip, start, length, probabilities)

    def list_events(self, whole: Member) -> dict[int, list[Event]]:
        """The events of every clip with several windows, by the clip's index.

        The windows are those of the first run; of another run with other windows the nearest is used.
        """
        if not self._found:
            return {}
        first = next(iter(self._found.values()))
        middle = first.start + first.length / 2

        def find_nearest(run: Run, kind: str) -> np.ndarray:
            other = self._found[run.folder.resolve(), kind]
            found = np.full((len(first.clip), other.probabilities.shape[1]), np.nan)
            for clip in np.unique(first.clip):
                here, there = np.flatnonzero(first.clip == clip), np.flatnonzero(other.clip == clip)
                if len(there):
                    center = (other.start + other.length / 2)[there]
                    found[here] = other.probabilities[there[np.abs(center - middle[here, None]).argmin(1)]]
            return found

        probabilities = whole.predict(find_nearest)
        several = np.flatnonzero(np.bincount(first.clip) > 1)
        return {
            int(clip): list_events(probabilities[rows], first.start[rows], first.length[rows], whole.classes)
            for clip in several
            if len(rows := np.flatnonzero(first.clip == clip))
        }
