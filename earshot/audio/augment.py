"""Augmentations of a wave: speed, tempo, pitch, shift, mixing, level and noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from earshot.core.config import AugmentFlags

FRAME = 0.1  # seconds over which a clip's level is measured
BLOCK = 256  # frames at a time
FLOOR = 1e-10  # power, below any 16-bit sound
NOISE_RANGE = 20.0  # dB from the lowest to the highest signal-to-noise ratio drawn


def change_speed(wave: np.ndarray, factor: float) -> np.ndarray:
    """The wave played `factor` times as fast, with a higher pitch: (samples / factor,)."""
    import soxr

    return soxr.resample(wave, factor, 1.0, quality="HQ")


def stretch(wave: np.ndarray, factor: float) -> np.ndarray:
    """The wave `factor` times as fast at the same pitch, by librosa's phase vocoder: (samples / factor,)."""
    from librosa.effects import time_stretch

    return time_stretch(wave, rate=factor, n_fft=_choose_n_fft(wave))


def shift_pitch(wave: np.ndarray, rate: int, semitones: float) -> np.ndarray:
    """The wave so many semitones higher at the same tempo, by librosa's phase vocoder: (samples,)."""
    from librosa.effects import pitch_shift

    return pitch_shift(wave, sr=rate, n_steps=semitones, res_type="soxr_hq", n_fft=_choose_n_fft(wave))


def _choose_n_fft(wave: np.ndarray) -> int:
    """FFT size: librosa's 2048, smaller where the wave is shorter."""
    return min(2048, 1 << max(4, len(wave).bit_length() - 1))


def change_gain(wave: np.ndarray, decibels: float) -> np.ndarray:
    """The wave, louder by some dB."""
    return wave * np.float32(10 ** (decibels / 20))


def add_noise(wave: np.ndarray, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """The wave with white noise added, `ratio` dB below the wave's mean power."""
    added = rng.standard_normal(len(wave), dtype=np.float32)
    power = float(np.mean(np.square(wave, dtype=np.float64)))
    return wave + added * np.float32(
        math.sqrt(power / 10 ** (ratio / 10) / max(float(np.mean(np.square(added))), FLOOR))
    )


def measure_level(wave: np.ndarray, rate: int) -> float:
    """The A-weighted level of a wave's loudest 0.1 s in dB, as between-class learning compares clips."""
    from librosa import A_weighting

    frame = max(2, round(FRAME * rate))
    padded = np.pad(wave, (0, max(0, frame - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, frame)[:: frame // 2]
    # the weight of 0 Hz is minus infinity in decibels
    frequencies = np.maximum(np.fft.rfftfreq(frame, 1 / rate), 1.0)
    weights = 10 ** (A_weighting(frequencies, min_db=None) / 10)
    loudest = FLOOR
    for first in range(0, len(frames), BLOCK):  # a recording of an hour has more frames than fit
        spectrum = np.fft.rfft(frames[first : first + BLOCK] * np.hanning(frame)) / frame
        loudest = max(loudest, float((np.square(np.abs(spectrum)) @ weights).max()))
    return 10 * math.log10(loudest)


def mix(own: np.ndarray, other: np.ndarray, share: float, rate: int) -> np.ndarray:
    """Mix two waves of equal length so that `own` has the given perceived share, whatever their levels.

    t own + (1 - t) other over sqrt(t^2 + (1 - t)^2), t = 1 / (1 + 10^((g1 - g2) / 20) (1 - r) / r):
    between-class learning, Tokozume et al., ICLR 2018, eq. 2.

    Args:
        share: r in (0, 1].
    """
    apart = 10 ** ((measure_level(own, rate) - measure_level(other, rate)) / 20)
    t = 1 / (1 + apart * (1 - share) / share)
    return ((t * own + (1 - t) * other) / math.sqrt(t**2 + (1 - t) ** 2)).astype(np.float32)


def vary(wave: np.ndarray, rate: int, flags: AugmentFlags, rng: np.random.Generator) -> np.ndarray:
    """A wave with random speed, tempo, pitch and shift, each within its flag; never longer than before."""
    samples = len(wave)
    wave = change_speed(wave, _draw_factor(flags.speed, rng)) if flags.speed > 1 else wave
    wave = stretch(wave, _draw_factor(flags.stretch, rng)) if flags.stretch > 1 else wave
    wave = shift_pitch(wave, rate, rng.uniform(-flags.pitch, flags.pitch)) if flags.pitch else wave
    wave = crop_at_random(wave, samples, rng)
    return np.roll(wave, round(rng.uniform(-flags.shift, flags.shift) * len(wave))) if flags.shift else wave


def finish(wave: np.ndarray, flags: AugmentFlags, rng: np.random.Generator) -> np.ndarray:
    """A wave, mixed or not, with random level and noise, each within its flag."""
    wave = (
        change_gain(wave, rng.uniform(-flags.augment_gain, flags.augment_gain))
        if flags.augment_gain
        else wave
    )
    if flags.noise is not None:
        wave = add_noise(wave, rng.uniform(flags.noise, flags.noise + NOISE_RANGE), rng)
    return np.ascontiguousarray(wave, dtype=np.float32)


def crop_at_random(wave: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """At most `samples` of a wave, from a random position."""
    return (
        wave
        if len(wave) <= samples
        else wave[(first := int(rng.integers(len(wave) - samples + 1))) : first + samples]
    )


def _draw_factor(largest: float, rng: np.random.Generator) -> float:
    """A factor in [1 / largest, largest], even on the logarithmic scale."""
    return math.exp(rng.uniform(-1, 1) * math.log(largest))
