"""Runs and blends that are loaded once and then predict clip after clip, for the page."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from earshot.audio.load import BadAudio
from earshot.core.device import Device
from earshot.core.files import digest_of
from earshot.extractors.base import ClipFeatures
from earshot.features.decode_ahead import decode
from earshot.prediction import new_audio
from earshot.prediction.members import Member
from earshot.training.dataset import Rows
from earshot.training.predict import load_part, mean, predict_rows, predictors
from earshot.training.run import Run


@dataclass(frozen=True)
class Ears:
    """What turns files into features, shared by the runs that were trained on the same.

    Args:
        key: tells it from others. extractor, audio: as `new_audio.extractor_of` gives them.
    """

    key: str
    extractor: Any
    audio: Any


@dataclass(frozen=True)
class Heard:
    """A clip as one extractor hears it: its samples at the extractor's rate, the seconds trimmed from its
    start, its windows."""

    wave: np.ndarray
    offset: float
    features: ClipFeatures


@dataclass(frozen=True)
class Answer:
    """What is said about a clip.

    Args:
        probabilities: (classes,). windows: (windows, classes), those of the first run.
        start, length: (windows,) seconds. seconds: the clip's length, without what was trimmed.
        heard: by `Ears.key`.
    """

    probabilities: np.ndarray
    windows: np.ndarray
    start: np.ndarray
    length: np.ndarray
    seconds: float
    heard: dict[str, Heard]


class Hearing:
    """A run or a blend with its extractors and heads in memory; one clip at a time, whoever asks.

    Args:
        whole: what answers.
        device: where. weights: the extractor's, where they moved.
    Raises:
        UserError: a run is not finished, or damaged; weights are missing or are others.
    """

    def __init__(self, whole: Member, device: Device, weights: str | None = None):
        self.whole, self.device = whole, device
        self.runs, self.classes = whole.runs(), whole.classes
        self._from = Path.cwd()
        self._ears: dict[str, Ears] = {}
        self._of: dict[Path, str] = {}
        self._heads: dict[tuple[Path, str], list[tuple[str, Any]]] = {}
        self.lock = threading.RLock()
        for run in self.runs:
            key = digest_of(run.config["record"]["features"])[:16]
            self._of[self._key(run)] = key
            if key not in self._ears:
                self._ears[key] = Ears(key, *new_audio.extractor_of(run, weights, device))
        # Loads the heads and wakes the kernels: the first clip is then as quick as the second.
        noise = np.random.default_rng(0).standard_normal
        waves = {
            key: 0.1 * noise(ears.extractor.samples, dtype=np.float32) for key, ears in self._ears.items()
        }
        self.answer({key: self._listen(self._ears[key], wave, 0.0) for key, wave in waves.items()})

    def _key(self, run: Run) -> Path:
        # A blend may hold a run under another path.
        return (self._from / run.folder).resolve()

    def ears(self, run: Run) -> Ears:
        """What a run hears with."""
        return self._ears[self._of[self._key(run)]]

    def heads(self, run: Run, kind: str) -> list[tuple[str, Any]]:
        """(name, head) of all models of a run, each by its "best" or "last" checkpoint."""
        key = (self._key(run), kind)
        if key not in self._heads:
            self._heads[key] = [
                (slot.name, load_part(run, slot, kind, self.device)) for slot in predictors(run)
            ]
        return self._heads[key]

    def kind(self, run: Run) -> str:
        """The checkpoint by which a run has answered: "best" or "last"."""
        return next(kind for folder, kind in self._heads if folder == self._key(run))

    def hear(self, path: Path | str) -> Answer:
        """What a file is; BadAudio, with the reason in a line, where it cannot be heard."""
        with self.lock:
            heard = {}
            for key, ears in self._ears.items():
                found = decode(str(path), ears.extractor.rate, ears.audio)
                if isinstance(found, str):
                    raise BadAudio(found)
                heard[key] = self._listen(ears, found.wave, found.offset)
            return self.answer(heard)

    def _listen(self, ears: Ears, wave: np.ndarray, offset: float) -> Heard:
        return Heard(wave, offset, ears.extractor.extract([wave], [offset], 16)[0])

    def answer(self, heard: dict[str, Heard]) -> Answer:
        """What a clip is, and each of its windows, from what the extractors heard (by `Ears.key`)."""
        first = heard[self._of[self._key(self.runs[0])]]
        middle = first.features.start + first.features.length / 2

        def clip(run: Run, kind: str) -> np.ndarray:
            return self.predict(run, kind, heard[self._of[self._key(run)]].features, pooled=True)

        def each(run: Run, kind: str) -> np.ndarray:
            features = heard[self._of[self._key(run)]].features
            # Other features may have other windows: the one that lies nearest speaks for each
            # of the first run's.
            near = np.abs(features.start + features.length / 2 - middle[:, None]).argmin(1)
            return self.predict(run, kind, features, pooled=False)[near]

        whole = self.whole.predict(clip)[0]
        windows = self.whole.predict(each) if len(middle) > 1 else whole[None]
        seconds = len(first.wave) / self._ears[self._of[self._key(self.runs[0])]].extractor.rate
        return Answer(whole, windows, first.features.start, first.features.length, seconds, heard)

    def rows(self, run: Run, features: ClipFeatures, pooled: bool) -> Rows:
        """Windows ready for the run's heads: of one clip, or each as a clip of its own."""
        count = len(features.start)
        ids, clip = (
            (["clip"], [0] * count) if pooled else ([str(i) for i in range(count)], list(range(count)))
        )
        extractor = self.ears(run).extractor
        return Rows(
            new_audio.split(run, ids, clip, [features], extractor),
            run.config["record"]["view"],
            run.classes,
            extractor.span,
            self.device.name,
        )

    def predict(self, run: Run, kind: str, features: ClipFeatures, pooled: bool) -> np.ndarray:
        """(1, classes) of the clip, or (windows, classes), by the mean of a run's models."""
        rows = self.rows(run, features, pooled)
        which, heads = np.arange(len(rows)), [head for _, head in self.heads(run, kind)]
        return mean(run, rows, [predict_rows(run, head, rows, which, self.device) for head in heads])
