"""Load a clip: decode, mix to mono, resample, trim."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np

from earshot.audio import decode
from earshot.audio.decode import BadAudio
from earshot.core.settings import Bounds

SILENCE = 1e-5  # below one step of 16 bits (3.1e-5), so a clip with a single set bit still counts as audio
SHORTEST = 0.01  # seconds: less than half an analysis frame of any extractor
TOLERANCE = 0.01  # seconds by which a clip may exceed its windows: encoders pad by about as much
LOUDEST = 2.0**32  # float files may hold integers of 32 bits; squares of much more are infinite
CHUNK = 1 << 18  # samples processed at a time
# Share of the power that the mean of uncorrelated channels would have. With less than a
# fifth, most of the sound has cancelled out: a channel was wired with reversed polarity. What codecs leave
# of such a pair, in the same measure: MP3 and mu-law nothing, IMA ADPCM and Opus less than 0.01, Vorbis at
# its usual quality 0.02 to 0.06 of most clips.
CANCELS = 0.2
TRIM_FRAME, TRIM_HOP = 2048, 512  # librosa's


@dataclass(frozen=True)
class AudioSettings:
    """Settings for loading a file as one wave."""

    COMMON: ClassVar = ()
    mono: Literal["mean", "first"] = "mean"
    """Many channels to one: their mean (of a clip whose channels cancel out, the first), or the first
    channel."""
    trim: Annotated[float | None, Bounds(0.1, 200)] = None
    """Cut silence at both ends, this many dB below the loudest part (60 is usual); None keeps it."""
    peak: bool = False
    """Divide each clip by its absolute maximum, before resampling."""


def read_info(path: str | Path) -> tuple[float, int]:
    """Duration and sample rate from the header; decodes only where the header can't be read.

    Returns:
        (seconds, samples per second).
    Raises:
        BadAudio: the file is missing, empty, unreadable or without samples.
    """
    path = Path(path)
    frames, rate = decode.read_header(path)
    if frames < 0:  # decoded where the header is no use: at most `decode.LONGEST`
        rate, found = decode.read_blocks(path)
        frames = sum(map(len, found))
    if frames == 0:
        raise BadAudio("no samples")
    return frames / rate, rate


class Clip(NamedTuple):
    """A clip as one wave."""

    wave: np.ndarray
    """(samples,) float32."""
    rate: int
    """Samples per second."""
    trimmed: float
    """Seconds cut from the start."""
    cancelled: bool
    """The channels cancel each other out, so one of them was used."""
    partial: bool
    """Part of the file can't be decoded."""


def read(path: str | Path, rate: int | None, settings: AudioSettings) -> Clip:
    """One clip as a mono wave: decode, mono, peak, resample (soxr HQ), trim, in this order.

    Args:
        path: any format that soundfile, or audioread (ffmpeg), decodes.
        rate: samples per second wanted; None keeps the file's own.
        settings: channels, peak and trim.
    Raises:
        BadAudio: missing, undecodable, without samples, NaN or infinite, beyond +-2^32, shorter than 10 ms,
            longer than 12 h, or silent (absolute maximum, or distance of the extremes, below 1e-5 after
            mixing to mono).
        TemporaryError: the disk, the network or this process failed.
    """
    mixing = _Mixer(0 if settings.mono == "first" else None)
    wave, rate = _read_mono(Path(path), rate, mixing, settings.peak)
    cancelled = mixing.find_cancelled_channel()
    if cancelled is not None:
        mixing = _Mixer(cancelled)
        wave, rate = _read_mono(Path(path), rate, mixing, settings.peak)
    mixing.check_audible()
    start, end = (0, len(wave)) if settings.trim is None else find_trim_bounds(wave, settings.trim)
    return Clip(wave[start:end], rate, start / rate, cancelled is not None, bool(mixing.lost))


def _read_mono(path: Path, rate: int | None, mixing: _Mixer, peak: bool) -> tuple[np.ndarray, int]:
    native, blocks = decode.read_blocks(path, mixing.lost)
    mixing.rate = native
    mixed: Iterable[np.ndarray] = map(mixing.mix, blocks)
    if peak:  # known only at the end
        wave = decode.gather(mixed)
        loudest = np.float32(max(mixing.loudest, SILENCE))
        mixed = (wave[first : first + CHUNK] / loudest for first in range(0, len(wave), CHUNK))
    if rate is not None and rate != native:
        mixed = _resample(mixed, native, rate)
    return decode.gather(mixed), rate or native


def cut_segment(wave: np.ndarray, rate: int, start: float, end: float) -> np.ndarray:
    """A part of a recording as a clip; the last one ends with the recording.

    Args:
        wave: (samples,).
        start, end: seconds.
    Raises:
        BadAudio: the recording ends before it, or it is silent.
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
    """Mixes blocks to mono and collects the statistics that decide whether the clip can be used.

    Args:
        channel: the one to use; None: the mean of all.
    """

    def __init__(self, channel: int | None) -> None:
        self.channel, self.samples, self.rate = channel, 0, 0
        self.lost: list[str] = []  # why part of it can't be decoded
        self.lowest, self.highest = np.inf, -np.inf
        self.sums, self.products = np.zeros(0), np.zeros((0, 0))  # of the channels, and of each two of them

    @property
    def loudest(self) -> float:
        return max(-self.lowest, self.highest)

    def mix(self, block: np.ndarray) -> np.ndarray:
        """(samples, channels) to (samples,) float32; BadAudio for invalid samples."""
        least, most = float(block.min()), float(block.max())  # NaN if there is any
        if not (math.isfinite(least) and math.isfinite(most)):
            raise BadAudio("NaN or infinite samples")
        if most > LOUDEST or least < -LOUDEST:
            raise BadAudio(f"samples of {np.abs(block).max():.0e}, where 1 is full scale")
        if block.shape[1] == 1:
            wave, lowest, highest = block[:, 0], least, most
        else:
            wave = block.mean(axis=1) if self.channel is None else block[:, self.channel % block.shape[1]]
            lowest, highest = float(wave.min()), float(wave.max())
            if self.channel is None:
                self._weigh(block)
        self.samples += len(block)
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)
        return np.ascontiguousarray(wave, dtype=np.float32)

    def _weigh(self, block: np.ndarray) -> None:
        """Sum the channels' correlations, while their number stays the same."""
        columns = block.astype(np.float64)
        if not self.samples:
            self.sums, self.products = np.zeros(block.shape[1]), np.zeros((block.shape[1],) * 2)
        if len(self.sums) != block.shape[1]:  # joined streams
            self.sums, self.products = np.zeros(0), np.zeros((0, 0))
            return
        self.sums += columns.sum(0)
        self.products += columns.T @ columns

    def find_cancelled_channel(self) -> int | None:
        """The first channel with sound, if the channels cancel in the mean; else None. A constant offset does
        not count as sound."""
        if len(self.sums) < 2 or not self.samples:
            return None
        means = self.sums / self.samples
        covariance = self.products / self.samples - np.outer(means, means)
        power = covariance.diagonal()
        independent = power.sum() / len(power) ** 2  # power of the mean of uncorrelated channels
        if power.max() < SILENCE**2 or covariance.mean() >= CANCELS * independent:
            return None
        return int(np.flatnonzero(power >= power.max() / 4)[0])

    def check_audible(self) -> None:
        """BadAudio for a silent clip, or one that is too short."""
        if not self.samples:
            raise BadAudio("no samples")
        if self.samples < SHORTEST * self.rate:
            raise BadAudio(f"too short ({1000 * self.samples / self.rate:.0f} ms)")
        if self.loudest < SILENCE:
            raise BadAudio("silent")
        if self.highest - self.lowest < SILENCE:
            raise BadAudio("silent: all samples are equal")


def _resample(pieces: Iterable[np.ndarray], native: int, rate: int) -> Iterator[np.ndarray]:
    """Resample a wave in pieces, with the same bits as `soxr.resample(wave, native, rate, quality="HQ")`."""
    import soxr

    stream = soxr.ResampleStream(native, rate, 1, dtype="float32", quality="HQ")
    # Few samples at a time where each becomes thousands: soxr ends the process at billions of samples
    # at once.
    chunk = max(1, min(CHUNK, CHUNK * native // rate))
    for piece in pieces:
        for first in range(0, len(piece), chunk):
            yield stream.resample_chunk(piece[first : first + chunk])
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def find_trim_bounds(wave: np.ndarray, top_db: float) -> tuple[int, int]:
    """First and last+1 sample of `librosa.effects.trim(wave, top_db=top_db)`, without librosa's slow import.

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
