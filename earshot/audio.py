"""Decode, mix to mono, resample, trim; cut a clip into windows and fill a short one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Sequence

import numpy as np

from earshot.errors import UserError

SILENCE = 1e-5  # below one step of 16 bits (3.1e-5), so a clip with a single set bit still counts as sound
SHORTEST = 0.01  # seconds: less than half an analysis frame of any extractor
TOLERANCE = 0.01  # seconds by which a clip may exceed its windows: encoders pad by about this much
TRIM_FRAME, TRIM_HOP = 2048, 512  # librosa's


@dataclass(frozen=True)
class AudioSettings:
    """How a file becomes one wave."""

    mono: Literal["mean", "first"] = "mean"
    """Many channels to one: their mean, or the first channel."""
    trim: float | None = None
    """Cut silence at both ends that lies this many dB below the loudest part (60 is usual); None leaves it."""
    peak: bool = False
    """Divide each clip by its absolute maximum, before resampling."""


class BadAudio(Exception):
    """A clip that cannot be used; `args[0]` is the short reason for the ledger, one line without a path."""


def info(path: str | Path) -> tuple[float, int]:
    """Duration and sample rate from the header, decoding only where the header cannot be read.

    Returns:
        (seconds, samples per second).
    Raises:
        BadAudio: the file is missing, empty, unreadable or without samples.
    """
    import soundfile

    path = Path(path)
    _openable(path)
    try:
        header = soundfile.info(str(path))
        frames, rate = header.frames, header.samplerate
    except Exception:  # whatever it is, the full decode below either works or words the reason
        frames, rate = -1, 0
    if not 0 <= frames < 2**40:  # libsndfile answers 2**63-1 for a stream of unknown length
        wave, rate = _decode(path)
        frames = len(wave)
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
        BadAudio: missing, undecodable, without samples, NaN or infinite, shorter than 10 ms, or silent
            (absolute maximum below 1e-5 after mixing to mono).
    """
    path = Path(path)
    _openable(path)
    channels, native = _decode(path)
    if not channels.size:
        raise BadAudio("no samples")
    if not np.isfinite(channels).all():
        raise BadAudio("NaN or infinite samples")
    if len(channels) < SHORTEST * native:
        raise BadAudio(f"too short ({1000 * len(channels) / native:.0f} ms)")
    wave = channels[:, 0] if settings.mono == "first" else channels.mean(axis=1)
    wave = np.ascontiguousarray(wave, dtype=np.float32)
    loudest = float(np.abs(wave).max())
    if loudest < SILENCE:
        if np.abs(channels[:, 0]).max() >= SILENCE:
            raise BadAudio("silent: the channels cancel out (--mono first keeps one)")
        raise BadAudio("silent")
    if settings.peak:
        wave = wave / np.float32(loudest)
    if rate is not None and rate != native:
        import soxr

        wave = soxr.resample(wave, native, rate, quality="HQ")
    rate = rate or native
    if settings.trim is None:
        return wave, rate, 0.0
    start, end = trim_bounds(wave, settings.trim)
    return wave[start:end], rate, start / rate


def trim_bounds(wave: np.ndarray, top_db: float) -> tuple[int, int]:
    """First and last+1 sample that `librosa.effects.trim(wave, top_db=top_db)` keeps, without librosa's slow import.

    Frames of 2048 samples every 512, centred, zero-padded; a frame is kept above `top_db` below the loudest RMS.
    """
    half = TRIM_FRAME // 2
    total = np.concatenate([[0.0], np.cumsum(np.pad(wave, half).astype(np.float64) ** 2)])
    starts = np.arange(0, len(wave) + 2 * half - TRIM_FRAME + 1, TRIM_HOP)
    energy = np.maximum((total[starts + TRIM_FRAME] - total[starts]) / TRIM_FRAME, 1e-10)  # amin 1e-5 squared
    loud = np.flatnonzero(10 * np.log10(energy / energy.max()) > -top_db)
    if not loud.size:
        return 0, len(wave)
    return int(loud[0]) * TRIM_HOP, min(len(wave), (int(loud[-1]) + 1) * TRIM_HOP)


def cut(seconds: float, window: float, hop: float | None, max_windows: int | None) -> list[tuple[float, float]]:
    """The windows that cover a clip: one if it fits, else regular ones and a last one moved back to the clip's end.

    Args:
        seconds: the clip's duration.
        window: a window's duration in seconds.
        hop: seconds between the starts of windows; None = `window` (no overlap).
        max_windows: keep only the first so many; None keeps all.
    Returns:
        (start, length of real audio) of each, in seconds; up to 10 ms at the very end may stay uncovered.
    Raises:
        UserError: a window, hop or count that is not positive, or a hop that would leave audio out.
    """
    hop = window if hop is None else hop
    if window <= 0:
        raise UserError(f"--seconds {window:g}: a window needs a positive length")
    if not 0 < hop <= window:
        raise UserError(f"--hop {hop:g}: has to lie between 0 and the window's {window:g} s, else audio is left out")
    if max_windows is not None and max_windows < 1:
        raise UserError(f"--max-windows {max_windows}: has to be 1 or more; leave it out for all windows")
    if seconds <= window + TOLERANCE:
        return [(0.0, min(seconds, window))]
    regular = 1 + int(math.floor((seconds - window) / hop + 1e-9))
    starts = [i * hop for i in range(regular)]
    if seconds - (starts[-1] + window) > TOLERANCE:
        starts.append(seconds - window)
    return [(start, window) for start in starts[:max_windows]]


def fill(wave: np.ndarray, samples: int, pad: Literal["wrap", "silence"]) -> np.ndarray:
    """A wave of exactly `samples`: a longer one is cut, a shorter one repeated ("wrap") or zero-filled ("silence").

    Returns:
        (samples,) float32.
    """
    if len(wave) >= samples:
        return np.ascontiguousarray(wave[:samples], dtype=np.float32)
    if pad == "wrap":
        return np.resize(wave, samples).astype(np.float32, copy=False)
    if pad == "silence":
        return np.pad(wave, (0, samples - len(wave))).astype(np.float32, copy=False)
    raise UserError(f"--pad {pad}: has to be wrap or silence")


def choose_seconds(durations: Sequence[float], limit: float = 10.0) -> float:
    """A window for this data: the duration that nearly all clips share, else the 95th percentile in steps of 0.5 s.

    Args:
        durations: seconds of each clip, at least one.
        limit: the longest window in seconds.
    Returns:
        Seconds: exactly the common duration where 90 % of the clips lie within 20 ms of it, else a multiple
        of 0.5, at least 0.5; never above `limit`.
    """
    durations = np.asarray(durations, dtype=np.float64)
    if not durations.size:
        raise ValueError("no durations to choose a window from")
    common = float(np.percentile(durations, 50, method="lower"))  # a duration that occurs, not a mean of two
    if (np.abs(durations - common) <= 0.02).mean() >= 0.9:
        return min(common, limit)
    longish = float(np.percentile(durations, 95))
    return min(max(0.5, 0.5 * math.ceil((longish - TOLERANCE) / 0.5)), limit)


def _openable(path: Path) -> None:
    """Raise BadAudio with a plain reason where the file cannot even be opened."""
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise BadAudio("empty file")
    except FileNotFoundError:
        raise BadAudio("no such file") from None
    except IsADirectoryError:
        raise BadAudio("is a directory") from None
    except PermissionError:
        raise BadAudio("no permission") from None
    except OSError as error:
        raise BadAudio(f"cannot be read: {error.strerror or type(error).__name__}") from None


def _decode(path: Path) -> tuple[np.ndarray, int]:
    """(samples, channels) float32 and the rate, by soundfile, else by audioread; BadAudio where both fail."""
    import soundfile

    try:
        return soundfile.read(str(path), dtype="float32", always_2d=True)
    except Exception as error:  # a decoder fed with garbage raises anything, MemoryError included
        first = error
    try:
        return _audioread(path)
    except Exception:  # no decoder, or a second one that fails: soundfile's reason is the plainer
        raise BadAudio(f"cannot be decoded: {_reason(path, first)}") from None


def _audioread(path: Path) -> tuple[np.ndarray, int]:
    """What librosa falls back on (ffmpeg and the like), without librosa: its import and warnings suit no thread."""
    import audioread

    with audioread.audio_open(str(path)) as file:
        rate, channels = int(file.samplerate), int(file.channels)
        pcm = np.frombuffer(b"".join(file), dtype="<i2")  # audioread's buffers are 16-bit little-endian, interleaved
    return (pcm / np.float32(32768)).astype(np.float32).reshape(-1, channels), rate


def _reason(path: Path, error: Exception) -> str:
    """Why soundfile could not, in one line without the path."""
    import soundfile

    suffix = path.suffix.lower().lstrip(".")
    if suffix and suffix.upper() not in {*soundfile.available_formats(), "OGA", "OPUS", "AIF", "AIFC", "SND"}:
        return f"nothing here decodes .{suffix} files (ffmpeg might)"
    if isinstance(error, MemoryError):
        return "its header claims more audio than memory holds"
    text = getattr(error, "error_string", "") or str(error) or type(error).__name__
    if "File does not exist" in text:  # libsndfile's words for an MP3 without a single frame; the file was opened above
        return "Format not recognised"
    text = text.replace(str(path.resolve()), path.name).replace(str(path), path.name)
    return " ".join(text.split())[:160].rstrip(".")
