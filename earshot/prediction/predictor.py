"""Runs and blends that are loaded once and then predict clip after clip, for the page."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from earshot.audio.load import BadAudio
from earshot.core.device import Device
from earshot.core.files import hash_value
from earshot.extractors.base import ClipFeatures
from earshot.features.decode_ahead import decode
from earshot.prediction import new_audio
from earshot.prediction.members import Member
from earshot.training.dataset import WindowDataset
from earshot.training.predict import average_predictions, list_predictors, load_slot_head, predict_rows
from earshot.training.run import Run


@dataclass(frozen=True)
class FeaturePipeline:
    """What turns files into features, shared by the runs that were trained on the same.

    Args:
        key: tells it from others. extractor, audio: as `new_audio.build_extractor` gives them.
    """

    key: str
    extractor: Any
    audio: Any


@dataclass(frozen=True)
class ClipInput:
    """A clip as one extractor hears it: its samples at the extractor's rate, the seconds trimmed from its
    start, its windows."""

    wave: np.ndarray
    offset: float
    features: ClipFeatures


@dataclass(frozen=True)
class Prediction:
    """What is said about a clip.

    Args:
        probabilities: (classes,). windows: (windows, classes), those of the first run.
        start, length: (windows,) seconds. seconds: the clip's length, without what was trimmed.
        heard: by `FeaturePipeline.key`.
    """

    probabilities: np.ndarray
    windows: np.ndarray
    start: np.ndarray
    length: np.ndarray
    seconds: float
    heard: dict[str, ClipInput]


class Predictor:
    """A run or a blend with its extractors and heads in memory; one clip at a time, whoever asks.

    Args:
        whole: what answers.
        device: where. weights: the extractor's, where they moved.
    Raises:
        UserError: a run is not finished, or damaged; weights are missing or are others.
    """

    def __init__(self, whole: Member, device: Device, weights: str | None = None):
        self.whole, self.device = whole, device
        self.runs, self.classes = whole.list_runs(), whole.classes
        self._from = Path.cwd()
        self._ears: dict[Path, FeaturePipeline] = {}  # by run
        self._heads: dict[tuple[Path, str], list[tuple[str, Any]]] = {}
        self.lock = threading.RLock()
        by_key: dict[str, FeaturePipeline] = {}
        for run in self.runs:
            key = hash_value(run.config["record"]["features"])[:16]
            if key not in by_key:
                by_key[key] = FeaturePipeline(key, *new_audio.build_extractor(run, weights, device))
            self._ears[self._resolve_run(run)] = by_key[key]
        # Loads the heads and wakes the kernels: the first clip is then as quick as the second.
        noise = np.random.default_rng(0).standard_normal
        warm_up = {}
        for key, ears in by_key.items():
            wave = 0.1 * noise(ears.extractor.samples, dtype=np.float32)
            warm_up[key] = self._listen(ears, wave, 0.0)
        self.answer(warm_up)

    def _resolve_run(self, run: Run) -> Path:
        # A blend may hold a run under another path.
        return (self._from / run.folder).resolve()

    def get_pipeline(self, run: Run) -> FeaturePipeline:
        """What a run hears with."""
        return self._ears[self._resolve_run(run)]

    def load_heads(self, run: Run, kind: str) -> list[tuple[str, Any]]:
        """(name, head) of all models of a run, each by its "best" or "last" checkpoint."""
        key = (self._resolve_run(run), kind)
        if key not in self._heads:
            self._heads[key] = [
                (slot.name, load_slot_head(run, slot, kind, self.device)) for slot in list_predictors(run)
            ]
        return self._heads[key]

    def get_checkpoint_kind(self, run: Run) -> str:
        """The checkpoint by which a run has answered: "best" or "last"."""
        return next(kind for folder, kind in self._heads if folder == self._resolve_run(run))

    def predict_file(self, path: Path | str) -> Prediction:
        """What a file is; BadAudio, with the reason in a line, where it cannot be heard."""
        with self.lock:
            heard = {}
            for ears in self._ears.values():
                if ears.key in heard:
                    continue
                decoded = decode(str(path), ears.extractor.rate, ears.audio)
                if isinstance(decoded, str):
                    raise BadAudio(decoded)
                heard[ears.key] = self._listen(ears, decoded.wave, decoded.offset)
            return self.answer(heard)

    def _listen(self, ears: FeaturePipeline, wave: np.ndarray, offset: float) -> ClipInput:
        return ClipInput(wave, offset, ears.extractor.extract([wave], [offset], 16)[0])

    def answer(self, heard: dict[str, ClipInput]) -> Prediction:
        """What a clip is, and each of its windows, from what the extractors made of it (by
        `FeaturePipeline.key`)."""
        ears = self.get_pipeline(self.runs[0])
        first = heard[ears.key]
        windows = first.features
        middle = windows.start + windows.length / 2

        def predict_clip(run: Run, kind: str) -> np.ndarray:
            return self.predict(run, kind, heard[self.get_pipeline(run).key].features, pooled=True)

        def predict_windows(run: Run, kind: str) -> np.ndarray:
            features = heard[self.get_pipeline(run).key].features
            # Other features may have other windows: the one that lies nearest speaks for each
            # of the first run's.
            nearest = np.abs(features.start + features.length / 2 - middle[:, None]).argmin(1)
            return self.predict(run, kind, features, pooled=False)[nearest]

        clip = self.whole.predict(predict_clip)[0]
        each = self.whole.predict(predict_windows) if len(middle) > 1 else clip[None]
        seconds = len(first.wave) / ears.extractor.rate
        return Prediction(clip, each, windows.start, windows.length, seconds, heard)

    def build_rows(self, run: Run, features: ClipFeatures, pooled: bool) -> WindowDataset:
        """Windows ready for the run's heads: of one clip, or each as a clip of its own."""
        count, extractor = len(features.start), self.get_pipeline(run).extractor
        ids = ["clip"] if pooled else [str(index) for index in range(count)]
        clip = [0] * count if pooled else list(range(count))
        split = new_audio.build_split(run, ids, clip, [features], extractor)
        return WindowDataset(
            split, run.config["record"]["view"], run.classes, extractor.span, self.device.name
        )

    def predict(self, run: Run, kind: str, features: ClipFeatures, pooled: bool) -> np.ndarray:
        """(1, classes) of the clip, or (windows, classes), by the mean of a run's models."""
        rows = self.build_rows(run, features, pooled)
        which, heads = np.arange(len(rows)), [head for _, head in self.load_heads(run, kind)]
        return average_predictions(
            run, rows, [predict_rows(run, head, rows, which, self.device) for head in heads]
        )
