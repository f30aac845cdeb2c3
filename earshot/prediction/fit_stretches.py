"""Fits how much neighbouring stretches count, on recordings mixed from a competition's training clips.

Each recording is made of one fold's clips and predicted by the models that were not trained on that fold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from earshot.audio.augment import FLOOR
from earshot.audio.load import AudioSettings
from earshot.competition import segments
from earshot.competition.labels import as_tuple
from earshot.competition.load import Competition
from earshot.competition.placeholder import STEP
from earshot.core.device import Device
from earshot.core.errors import UserError
from earshot.features.decode_ahead import decode
from earshot.prediction import new_audio, stretches
from earshot.prediction.significance import estimate_gain
from earshot.training import predict, training_clips
from earshot.training.dataset import WindowDataset
from earshot.training.metrics import compute_gain
from earshot.training.run import Run, list_fold_slots

RECORDINGS = 64  # of all folds together
STRETCHES = 12  # of each
EVENTS = (2, 6)  # of each, at least and at most
LEVELS = (0.0, 20.0)  # dB of an event above the background
BACKGROUND = 0.01  # root mean square of its pink noise
TRIM = 40.0  # dB below the loudest part of a clip: what is softer at its ends is no event
PRESENT = 1.0  # seconds of an event in a stretch that has its label; of a shorter event or stretch, half
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7)
METRIC = "roc_auc_macro"
BATCH = 16  # windows at a time


class Mixture(NamedTuple):
    """A recording that was mixed, and the labels of its stretches."""

    wave: np.ndarray
    """(samples,) float32."""
    truth: np.ndarray
    """(stretches, classes) of 0 and 1."""


class Fit(NamedTuple):
    """How much a neighbour counts, and the gain in macro ROC AUC of the weights chosen on the other folds."""

    weight: float
    before: float
    gain: float
    error: float


def mix_recording(
    events: Callable[[int], tuple[np.ndarray, Sequence[int]] | None],
    count: int,
    classes: int,
    step: float,
    rate: int,
    rng: np.random.Generator,
) -> Mixture:
    """Events of a fold's clips at random places in pink noise.

    Args:
        events: wave and classes of a clip by its number; None for one that cannot be read.
        count: clips to draw from. classes: of all. step: seconds of a stretch.
    """
    samples = round(STRETCHES * step * rate)
    wave, truth = BACKGROUND * _draw_pink_noise(samples, rng), np.zeros((STRETCHES, classes), np.int8)
    edges = np.arange(STRETCHES + 1) * step
    for number in rng.integers(count, size=rng.integers(EVENTS[0], EVENTS[1] + 1)):
        level, place = rng.uniform(*LEVELS), rng.random()  # drawn for every clip: bad ones shift no other
        found = events(int(number))
        if found is None:
            continue
        event = found[0][: samples // 2]
        first = int(place * (samples - len(event)))
        power = max(float(np.mean(np.square(event, dtype=np.float64))), FLOOR)
        wave[first : first + len(event)] += BACKGROUND * 10 ** (level / 20) / np.sqrt(power) * event
        start, end = first / rate, (first + len(event)) / rate
        inside = np.minimum(edges[1:], end) - np.maximum(edges[:-1], start)
        truth[np.ix_(inside >= min(PRESENT, (end - start) / 2, step / 2), found[1])] = 1
    return Mixture(wave.astype(np.float32), truth)


def _draw_pink_noise(samples: int, rng: np.random.Generator) -> np.ndarray:
    """(samples,) of a root mean square of 1."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    wave = np.fft.irfft(spectrum, samples)
    return wave / wave.std()


def choose_weight(
    probabilities: np.ndarray,
    truth: np.ndarray,
    recordings: np.ndarray,
    middles: np.ndarray,
    folds: np.ndarray,
) -> Fit:
    """The weight with the best macro ROC AUC; 0 where its gain is no larger than the gain's standard error.

    The gain is of weights chosen for each fold on the other folds. Arguments have an item a stretch.
    """
    by_weight = [stretches.smooth(probabilities, recordings, middles, weight) for weight in WEIGHTS]

    def choose(rows: np.ndarray) -> int:
        return int(np.argmax([compute_gain(METRIC, found[rows], truth[rows]) for found in by_weight]))

    cross_fitted = probabilities.copy()
    for fold in np.unique(folds):
        cross_fitted[folds == fold] = by_weight[choose(folds != fold)][folds == fold]
    blocks = np.unique(recordings, return_inverse=True)[1]
    gain, error = estimate_gain(METRIC, probabilities, cross_fitted, truth, blocks)
    before = compute_gain(METRIC, probabilities, truth)
    return Fit(WEIGHTS[choose(np.ones(len(folds), bool))] if gain > error else 0.0, before, gain, error)


class _Events:
    """The waves and classes of one fold's clips, without the silence at their ends."""

    def __init__(self, clips: pd.DataFrame, classes: list[str], rate: int, audio: AudioSettings):
        self._rows, self._rate, self._audio = list(clips.itertuples()), rate, audio
        self._index = {name: index for index, name in enumerate(classes)}
        self._read: dict[int, tuple[np.ndarray, list[int]] | None] = {}

    def __call__(self, number: int) -> tuple[np.ndarray, list[int]] | None:
        if number not in self._read:
            self._read[number] = self._decode(self._rows[number])
        return self._read[number]

    def _decode(self, row: Any) -> tuple[np.ndarray, list[int]] | None:
        is_part = not np.isnan(row.start)  # its times are the file's
        found = decode(row.path, self._rate, replace(self._audio, trim=None if is_part else TRIM), True)
        if isinstance(found, str):
            return None
        span = slice(round(row.start * self._rate), round(row.end * self._rate)) if is_part else slice(None)
        known = [self._index[name] for name in as_tuple(row.label or ()) if name in self._index]
        return (found.wave[span], known) if len(found.wave[span]) else None


def fit_run(run: Run, competition: Competition, weights: str | None, device: Device) -> str:
    """Fit a run's weight of neighbours and keep it with the run; a line about what it gains.

    Args:
        weights: the extractor's, where they moved.
    Raises:
        UserError: fewer than two folds have clips in the competition, or none of them can be read.
    """
    from tqdm import tqdm

    fold_of = {clip.id: clip.fold for clip in training_clips.read_clips(run.folder) or []}
    train = competition.clips[competition.clips.split == "train"]
    train = train.assign(fold=[fold_of.get(str(id), -1) for id in train.id])
    numbers = [number for number in run.list_finished_folds() if (train.fold == number).any()]
    if len(numbers) < 2:
        raise UserError(
            f"--fit-stretches needs two finished folds of {run.folder} with clips in {competition.root}, and "
            f"there are {len(numbers)}: name the competition that it was trained on, or train more folds"
        )
    extractor, audio = new_audio.build_extractor(run, weights, device)
    # BirdCLEF's where the sample submission names no stretches
    step, each = competition.stretch or float(STEP), -(-RECORDINGS // len(numbers))
    predicted, truth = [], []
    with tqdm(total=each * len(numbers), desc="recordings", disable=None, leave=False) as bar:
        for number in numbers:
            clips, features = train[train.fold == number], []
            events = _Events(clips, run.classes, extractor.rate, audio)
            for index in range(each):
                rng = np.random.default_rng([number, index])
                mixed = mix_recording(events, len(clips), len(run.classes), step, extractor.rate, rng)
                features += _extract(mixed.wave, step, extractor)
                truth.append(mixed.truth)
                bar.update()
            predicted.append(_predict_fold(run, number, features, extractor, device))
    shape = (len(numbers) * each, STRETCHES)
    recordings = np.repeat(np.arange(shape[0]).astype(str), STRETCHES)
    middles = np.tile((np.arange(STRETCHES) + 0.5) * step, shape[0])
    folds = np.repeat(numbers, each * STRETCHES)
    if not np.concatenate(truth).any():
        raise UserError(f"--fit-stretches: none of the clips in {competition.root} can be read")
    fit = choose_weight(np.concatenate(predicted), np.concatenate(truth), recordings, middles, folds)
    stretches.write_weight(run, fit.weight, fit.gain, fit.error, shape[0], step)
    gain = f"{fit.gain:+.4f} +- {fit.error:.4f}"
    of = f"macro ROC AUC {fit.before:.4f} without, {shape[0]} recordings mixed from the folds' own clips"
    if not fit.weight:
        return f"stretches: neighbours off: their gain {gain} is not above its error ({of})"
    return f"stretches: neighbours count {fit.weight:g}: gain {gain} ({of})"


def _extract(wave: np.ndarray, step: float, extractor: Any) -> list[Any]:
    """The features of a recording's stretches, cut as those of a submission."""
    window, rate = extractor.window, extractor.rate
    spans = segments.list_stretches(STRETCHES, step, window.seconds, window.hop)
    waves = [wave[round(start * rate) : round(end * rate)] for start, end in spans]
    return extractor.extract(waves, [start for start, _ in spans], BATCH)


def _predict_fold(run: Run, number: int, features: list[Any], extractor: Any, device: Device) -> np.ndarray:
    """(stretches, classes) by the models that were not trained on a fold."""
    clip = [index for index, one in enumerate(features) for _ in one.start]
    split = new_audio.build_split(
        run, [str(index) for index in range(len(features))], clip, features, extractor
    )
    rows = WindowDataset(split, run.config["record"]["view"], run.classes, extractor.span, device.name)
    slots = list_fold_slots(run.config["record"]["training"], number)
    found = [predict.predict_slot(run, slot, "best", rows, device) for slot in slots]
    return predict.average_predictions(run, rows, found)
