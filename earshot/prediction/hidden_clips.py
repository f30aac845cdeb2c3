"""The clips to submit of a code competition: extracted as saved runs need them, and predicted meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earshot.competition.load import load as load_competition
from earshot.core.deadline import Deadline
from earshot.core.device import Device
from earshot.core.files import hash_value
from earshot.features import settings
from earshot.features.make_cache import make_cache
from earshot.prediction.members import Member
from earshot.prediction.streamed_heads import HeadsThread, StreamedHeads
from earshot.training.run import Run

if TYPE_CHECKING:
    from earshot.features.shards import Shard
    from earshot.training.dataset import WindowDataset


def group_by_features(asked: Iterable[tuple[Run, str]]) -> list[list[tuple[Run, str]]]:
    """Runs with their kinds of checkpoint, those together that were trained on the same features."""
    groups: dict[str, list[tuple[Run, str]]] = {}
    for run, kind in asked:
        groups.setdefault(hash_value(run.config["record"]["features"]), []).append((run, kind))
    return list(groups.values())


def list_recordings(place: str, out: str) -> tuple[list[Path], float | None]:
    """The recordings of a competition's clips to submit that are here, and the seconds of each row where rows
    are stretches of recordings."""
    competition = load_competition(place, out=out)
    every = competition.clips.path[competition.clips.split == "subm"]
    return [Path(path) for path in dict.fromkeys(every) if path and Path(path).is_file()], competition.stretch


class EarlyPredictions:
    """Predicts the windows of each shard of clips to submit while the next ones are extracted.

    A shard that an earlier session made is not seen here. Then nothing is taken from here, and the finished
    cache is predicted as a whole.
    """

    def __init__(self, asked: list[tuple[Run, str]], device: Device):
        self._asked, self._device = asked, device
        self._thread: HeadsThread | None = None
        self._clip: list[np.ndarray] = []
        self._next = 0  # the first clip of the next shard

    def watch(self, shard: Shard, arrays: dict[str, np.ndarray], span: float) -> None:
        """Take a finished shard; shards come in order."""
        if shard.split != "subm" or shard.first != self._next:
            self._next = -1
            return
        self._next = shard.last
        if self._thread is None:
            heads = [StreamedHeads(run, kind, span, self._device) for run, kind in self._asked]
            self._thread = HeadsThread(heads, self._device)
        self._clip.append(arrays["clip"])
        self._thread.add({one.view: arrays[one.view] for one in self._thread.heads}, arrays["length"])

    def close(self) -> None:
        """Wait for the heads; an error of theirs is raised here."""
        if self._thread is not None:
            try:
                self._thread.wait()
            finally:
                self._thread.close()

    def get_prediction(
        self, run: Run, kind: str, split: dict[str, Any], load_rows: Callable[[], WindowDataset]
    ) -> np.ndarray | None:
        """(clips, classes) of the clips to submit, as the cache has them; None where some windows were not
        seen here."""
        clip = np.concatenate([np.zeros(0, np.int32), *self._clip])
        if self._thread is None or self._next < 0 or not np.array_equal(clip, split["clip"]):
            return None
        key = run.folder.resolve(), kind
        one = next(one for one in self._thread.heads if (one.run.folder.resolve(), one.kind) == key)
        return one.finish(split["ids"], clip, load_rows)[0]


class HiddenClips:
    """The caches of the clips to submit, one for each set of features among a blend's runs.

    Args:
        place: the competition's folder or zip. device: as `device` of get_features.py.
    """

    def __init__(self, whole: Member, place: str, device: str, out: str = "data"):
        self._place, self._device, self._out = place, device, out
        self._groups = group_by_features(whole.list_checkpoints())
        self._early: dict[tuple[Path, str], EarlyPredictions] = {}
        self.folders: dict[Path, str] = {}
        """By run folder: its cache."""

    def extract(self, at: Device, max_hours: float | None, weights: str | None = None) -> bool:
        """Extract them, and predict them meanwhile on a CPU; False where there are none.

        Args:
            max_hours: for all of them; the clips that are left are filled with class priors.
            weights: the extractor's, where they moved.
        """
        ends = None if max_hours is None else time.monotonic() + 3600 * max_hours
        for number, asked in enumerate(self._groups):
            left = None if ends is None else max(0.0, ends - time.monotonic()) / 3600
            early = EarlyPredictions(asked, at)
            try:
                folder = self._make_cache(
                    asked[0][0], left and left / (len(self._groups) - number), weights, early
                )
            finally:
                early.close()
            if folder is None:
                return False
            for run, kind in asked:
                self.folders[run.folder.resolve()] = str(folder)
                self._early[run.folder.resolve(), kind] = early
        return True

    def _make_cache(
        self, run: Run, hours: float | None, weights: str | None, early: EarlyPredictions
    ) -> Path | None:
        start = settings.build_settings(None, None, run)
        groups = dict(start.groups)
        groups["competition"] = replace(groups["competition"], out=self._out, weights=weights)
        groups["machine"] = replace(groups["machine"], device=self._device, max_hours=hours)
        deadline = Deadline(hours)
        return make_cache(self._place, None, start.extractor, run, groups, deadline, False, early.watch)

    def get_prediction(
        self, run: Run, kind: str, split: dict[str, Any], load_rows: Callable[[], WindowDataset]
    ) -> np.ndarray | None:
        """See `EarlyPredictions.get_prediction`."""
        return self._early[run.folder.resolve(), kind].get_prediction(run, kind, split, load_rows)
