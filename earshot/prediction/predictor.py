"""Runs and blends that are loaded once to predict clip after clip, for the page."""

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
from earshot.prediction import exported, new_audio
from earshot.prediction.members import Member
from earshot.training.dataset import WindowDataset
from earshot.training.predict import (
    average_predictions,
    list_predictors,
    load_slot_head,
    predict_rows,
    predict_with_windows,
)
from earshot.training.run import Run


@dataclass(frozen=True)
class FeaturePipeline:
    """Turns files into features; shared by the runs that were trained on the same features.

    Args:
        key: its identity. extractor, audio: from `new_audio.build_extractor`.
    """

    key: str
    extractor: Any
    audio: Any


@dataclass(frozen=True)
class ClipInput:
    """A clip as one extractor's input: its samples at the extractor's rate, the seconds trimmed from its
    start, its windows."""

    wave: np.ndarray
    offset: float
    features: ClipFeatures


@dataclass(frozen=True)
class Prediction:
    """The prediction for a clip.

    Args:
        probabilities: (classes,). windows: (windows, classes), those of the first run.
        start, length: (windows,) seconds. seconds: the clip's length, without what was trimmed.
        inputs: by `FeaturePipeline.key`.
    """

    probabilities: np.ndarray
    windows: np.ndarray
    start: np.ndarray
    length: np.ndarray
    seconds: float
    inputs: dict[str, ClipInput]


class Predictor:
    """A run or a blend with its extractors and heads in memory; predicts one clip at a time, from any thread.

    Args:
        whole: the run or blend.
        device: where to run. weights: the extractor's, where they moved.
    Raises:
        UserError: a run is not finished, or damaged; weights are missing or different.
    """

    def __init__(self, whole: Member, device: Device, weights: str | None = None):
        self.whole, self.device = whole, device
        self.runs, self.classes = whole.list_runs(), whole.classes
        self._from = Path.cwd()
        self._pipelines: dict[Path, FeaturePipeline] = {}  # by run folder
        self._heads: dict[tuple[Path, str], list[tuple[str, Any]]] = {}
        self._exported: dict[tuple[Path, str], exported.ExportedHeads | None] = {}
        self.lock = threading.RLock()
        by_key: dict[str, FeaturePipeline] = {}
        for run in self.runs:
            key = hash_value(run.config["record"]["features"])[:16]
            if key not in by_key:
                by_key[key] = FeaturePipeline(key, *new_audio.build_extractor(run, weights, device, print))
            self._pipelines[self._resolve_run(run)] = by_key[key]
        # Warm up heads and kernels, so that the first clip is as quick as the second.
        noise = np.random.default_rng(0).standard_normal
        warm_up = {}
        for key, pipeline in by_key.items():
            wave = 0.1 * noise(pipeline.extractor.samples, dtype=np.float32)
            warm_up[key] = self._extract(pipeline, wave, 0.0)
        self.predict_inputs(warm_up)

    def _resolve_run(self, run: Run) -> Path:
        # A blend may hold a run under another path.
        return (self._from / run.folder).resolve()

    def get_pipeline(self, run: Run) -> FeaturePipeline:
        """The feature pipeline of a run."""
        return self._pipelines[self._resolve_run(run)]

    def load_heads(self, run: Run, kind: str) -> list[tuple[str, Any]]:
        """(name, head) of all models of a run, each by its "best" or "last" checkpoint."""
        key = (self._resolve_run(run), kind)
        if key not in self._heads:
            self._heads[key] = [
                (slot.name, load_slot_head(run, slot, kind, self.device)) for slot in list_predictors(run)
            ]
        return self._heads[key]

    def get_checkpoint_kind(self, run: Run) -> str:
        """The checkpoint that a run predicts by: "best" or "last"."""
        return next(kind for folder, kind in self._exported if folder == self._resolve_run(run))

    def predict_file(self, path: Path | str) -> Prediction:
        """Predict a file; BadAudio, with the reason in a line, where it can't be read."""
        with self.lock:
            inputs = {}
            for pipeline in self._pipelines.values():
                if pipeline.key in inputs:
                    continue
                decoded = decode(str(path), pipeline.extractor.rate, pipeline.audio)
                if isinstance(decoded, str):
                    raise BadAudio(decoded)
                inputs[pipeline.key] = self._extract(pipeline, decoded.wave, decoded.offset)
            return self.predict_inputs(inputs)

    def _extract(self, pipeline: FeaturePipeline, wave: np.ndarray, offset: float) -> ClipInput:
        return ClipInput(wave, offset, pipeline.extractor.extract([wave], [offset], 16)[0])

    def predict_inputs(self, inputs: dict[str, ClipInput]) -> Prediction:
        """Predict a clip and each of its windows from its inputs, by `FeaturePipeline.key`."""
        pipeline = self.get_pipeline(self.runs[0])
        first = inputs[pipeline.key]
        windows = first.features
        middle = windows.start + windows.length / 2

        def predict_clip(run: Run, kind: str) -> np.ndarray:
            return self.predict(run, kind, inputs[self.get_pipeline(run).key].features, pooled=True)

        def predict_windows(run: Run, kind: str) -> np.ndarray:
            features = inputs[self.get_pipeline(run).key].features
            # Other features may have other windows: the nearest one is used for each window of
            # the first run.
            nearest = np.abs(features.start + features.length / 2 - middle[:, None]).argmin(1)
            return self.predict(run, kind, features, pooled=False)[nearest]

        clip = self.whole.predict(predict_clip)[0]
        each = self.whole.predict(predict_windows) if len(middle) > 1 else clip[None]
        seconds = len(first.wave) / pipeline.extractor.rate
        return Prediction(clip, each, windows.start, windows.length, seconds, inputs)

    def build_rows(self, run: Run, features: ClipFeatures, pooled: bool) -> WindowDataset:
        """Windows as input for the run's heads: of one clip, or each as a separate clip."""
        count, extractor = len(features.start), self.get_pipeline(run).extractor
        ids = ["clip"] if pooled else [str(index) for index in range(count)]
        clip = [0] * count if pooled else list(range(count))
        split = new_audio.build_split(run, ids, clip, [features], extractor)
        return WindowDataset(
            split, run.config["record"]["view"], run.classes, extractor.span, self.device.name
        )

    def predict(self, run: Run, kind: str, features: ClipFeatures, pooled: bool) -> np.ndarray:
        """(1, classes) of the clip, or (windows, classes), by the mean of a run's models."""
        rows, key = self.build_rows(run, features, pooled), (self._resolve_run(run), kind)
        if key not in self._exported:
            self._exported[key] = exported.open_heads(run, kind, self.device)
        if graph := self._exported[key]:
            return predict_with_windows(run, rows, self.device, kind, graph)[0]
        which, heads = np.arange(len(rows)), [head for _, head in self.load_heads(run, kind)]
        return average_predictions(
            run, rows, [predict_rows(run, head, rows, which, self.device) for head in heads]
        )
