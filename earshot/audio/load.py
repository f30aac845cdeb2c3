"""Decode, mix to mono, resample, trim; cut a clip into windows and fill a short one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from earshot.audio import decode
from earshot.audio.decode import BadAudio

SILENCE = 1e-5  # below one step of 16 bits (3.1e-5), so a clip with a single set bit still counts as sound
SHORTEST = 0.01  # seconds: less than half an analysis frame of any extractor
TOLERANCE = 0.01  # seconds by which a clip may exceed its windows: encoders pad by about this much
LOUDEST = 2.0**32  # float files may hold integers of 32 bits; squares of much more are infinite
CHUNK = 1 << 18  # samples worked on at a time
TRIM_FRAME, TRIM_HOP = 2048, 512  # librosa's


@dataclass(frozen=True)
class AudioSettings:
    """How a file becomes one wave."""

    mono: Literal["mean", "first"] = "mean"
    """Many channels to one: their mean, or the first channel."""
    trim: float | None = None
    """Cut silence at both ends that lies this many dB below the loudest part (60 is usual); None leaves
    it."""
    peak: bool = False
    """Divide each clip by its absolute maximum, before resampling."""


def info(path: str | Path) -> tuple[float, int]:
    """Duration and sample rate from the header, decoding only where the header cannot be read.

    Returns:
        (seconds, samples per second).
    Raises:
        BadAudio: the file is missing, empty, unreadable or without samples.
    """
    path = Path(path)
    frames, rate = decode.header(path)
    if frames < 0:  # decoded where the header does not help: at most `decode.LONGEST`
        rate, found = decode.blocks(path)
        frames = sum(map(len, found))
    if frames == 0:
        raise BadAudio("no samples")
    return frames / rate, rate


def read(path: str | Path, rate: int | None, settings: AudioSettings) -> tuple[np.ndarray, int, float]:
    """One clip as a mono wave: decode, mono, peak, resample (soxr HQ), trim, in this order.

    Args:
        path: any format that soundfile, or audioread (ffmpeg), decodes.
        rate: samples per second wanted; None keeps the file's own.
        settings: channels, peak and trim.
    Returns:
        (samples,) float32, its rate, and the seconds that were trimmed from the front.
    Raises:
        BadAudio: missing, undecodable, without samples, NaN or infinite, beyond +-2^32, shorter than 10 ms,
            longer than 12 h, or silent (absolute maximum, or distance of the extremes, below 1e-5 after
            mixing to mono).
    """
    native, found = decode.blocks(Path(path))
    mixing = _Mixer(settings.mono)
    wave = decode.gather(map(mixing.mix, found))
    mixing.judge(len(wave), native)
    loudest = np.float32(mixing.loudest) if settings.peak else None
    if rate is not None and rate != native:
        wave = decode.gather(_resampled(wave, native, rate, loudest))
    elif settings.peak:
        wave = decode.gather(wave[i : i + CHUNK] / loudest for i in range(0, len(wave), CHUNK))
    rate = rate or native
    if settings.trim is None:
        return wave, rate, 0.0
    start, end = trim_bounds(wave, settings.trim)
    return wave[start:end], rate, start / rate


def stretch(wave: np.ndarray, rate: int, start: float, end: float) -> np.ndarray:
    """A part of a recording as a clip of its own; the last one ends with the recording.

    Args:
        wave: (samples,).
        start, end: seconds.
    Raises:
        BadAudio: the recording ends before it, or nothing can be heard in it.
    """
    part = wave[round(start * rate) : round(end * rate)]
    if not len(part):
        raise BadAudio(f"the recording ends at {len(wave) / rate:.1f} s")
    if len(part) < SHORTEST * rate:
        raise BadAudio(f"too short ({1000 * len(part) / rate:.0f} ms)")
    if part.max() - part.min() < SILENCE:
        raise BadAudio("silent")
    return part


class _Mixer:
    """Mixes blocks to mono and remembers what decides whether the clip can be used."""

    def __init__(self, mono: str) -> None:
        self.mono, self.lowest, self.highest, self.first = mono, np.inf, -np.inf, 0.0

    @property
    def loudest(self) -> float:
        return max(-self.lowest, self.highest)

    def mix(self, block: np.ndarray) -> np.ndarray:
        """(samples, channels) to (samples,) float32; BadAudio for what is no sample."""
        least, most = float(block.min()), float(block.max())  # NaN where there is one
        if not (math.isfinite(least) and math.isfinite(most)):
            raise BadAudio("NaN or infinite samples")
        if most > LOUDEST or least < -LOUDEST:
            raise BadAudio(f"samples of {np.abs(block).max():.0e}, where 1 is full scale")
        if block.shape[1] == 1:
            wave, lowest, highest = block[:, 0], least, most
        else:
            wave = block[:, 0] if self.mono == "first" else block.mean(axis=1)
            lowest, highest = float(wave.min()), float(wave.max())
            self.first = max(self.first, float(np.abs(block[:, 0]).max()))
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)
        return np.ascontiguousarray(wave, dtype=np.float32)

    def judge(self, samples: int, rate: int) -> None:
        """BadAudio for a clip in which nothing can be heard."""
        if not samples:
            raise BadAudio("no samples")
        if samples < SHORTEST * rate:
            raise BadAudio(f"too short ({1000 * samples / rate:.0f} ms)")
        if self.loudest < SILENCE:
            cancel = self.first >= SILENCE
            raise BadAudio("silent: the channels cancel out (--mono first keeps one)" if cancel else "silent")
        if self.highest - self.lowest < SILENCE:
            raise BadAudio("silent: all samples are equal")


def _resampled(wave: np.ndarray, native: int, rate: int, divisor: np.float32 | None) -> Iterator[np.ndarray]:
    """The wave at another rate, chunk by chunk, bit for bit what `soxr.resample(wave, native, rate,
    quality="HQ")` gives."""
    import soxr

    stream = soxr.ResampleStream(native, rate, 1, dtype="float32", quality="HQ")
    # Few samples at a time where each becomes thousands: soxr ends the process when asked for billions
    # at once.
    chunk = max(1, min(CHUNK, CHUNK * native // rate))
    for first in range(0, len(wave), chunk):
        piece = wave[first : first + chunk]
        yield stream.resample_chunk(
            piece if divisor is None else piece / divisor, last=first + chunk >= len(wave)
        )


def trim_bounds(wave: np.ndarray, top_db: float) -> tuple[int, int]:
    """First and last+1 sample that `librosa.effects.trim(wave, top_db=top_db)` keeps, without librosa's slow
    import.

    Frames of 2048 samples every 512, centred, zero-padded; a frame is kept above `top_db` below the loudest
    RMS.
    """
    half, steps = TRIM_FRAME // 2, TRIM_FRAME // TRIM_HOP
    marks, sum_before = [np.zeros(1)], 0.0  # the running sum of squares after every hop
    for first in range(-half, len(wave) + half, CHUNK):  # CHUNK is a multiple of the hop
        squares = np.zeros(min(CHUNK, len(wave) + half - first) + 1)
        part = wave[max(0, first) : max(0, first + CHUNK)]
        squares[1 + max(0, -first) :][: len(part)] = part.astype(np.float64) ** 2
        squares[0] = sum_before
        running = np.cumsum(squares)
        marks.append(running[TRIM_HOP::TRIM_HOP])
        sum_before = running[-1]
    total = np.concatenate(marks)
    energy = np.maximum((total[steps:] - total[:-steps]) / TRIM_FRAME, 1e-10)  # amin 1e-5 squared
    loud = np.flatnonzero(10 * np.log10(energy / energy.max()) > -top_db)
    if not loud.size:
        return 0, len(wave)
    return int(loud[0]) * TRIM_HOP, min(len(wave), (int(loud[-1]) + 1) * TRIM_HOP)
