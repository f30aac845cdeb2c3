"""Log-mel spectrograms: the view `mel` (1, n_mels, frames), for heads that are trained from scratch.

The STFT is centred, its Hann window periodic, as librosa and torchaudio have it. Settings reproduce both
exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np

from earshot.audio import windows
from earshot.core.errors import UserError
from earshot.core.settings import Bounds
from earshot.extractors import base
from earshot.extractors.mel import build_hann, build_mel_bank

if TYPE_CHECKING:
    import torch

LONG = 30_000  # frames of the spectrum at a time: 10 minutes at 50 a second


@dataclass(frozen=True)
class Settings:
    """log-mel spectrograms"""

    COMMON: ClassVar = ("rate", "n_mels")
    rate: Annotated[int | None, Bounds(100, 768000)] = 16000
    """samples per second to resample to; None: the most common rate in the data"""
    n_fft: int = 1024
    """points of the Fourier transform"""
    win_length: int | None = None
    """samples of the analysis window (default: n_fft)"""
    hop_length: int = 320
    """samples from one frame to the next"""
    n_mels: int = 64
    """mel bands"""
    scale: Literal["htk", "slaney"] = "htk"
    """mel scale: htk is torchaudio's default, slaney librosa's"""
    norm: Literal["slaney"] | None = None
    """slaney divides each band by its width: librosa's default; torchaudio's is None"""
    fmin: float = 20.0
    """lowest frequency in Hz"""
    fmax: float | None = None
    """highest frequency in Hz (default: half the rate)"""
    power: Annotated[float, Bounds(0.1, 10)] = 2.0
    """exponent of the magnitude: 2: power, 1: amplitude"""
    edges: Literal["reflect", "zeros"] = "reflect"
    """padding of a clip's ends for the first and last frames: torchaudio reflects, librosa has zeros"""
    level: Literal["db", "log"] = "db"
    """decibels, or the natural logarithm"""
    ref: Literal["1", "max"] = "1"
    """0 dB is at 1, or at the clip's maximum (db only)"""
    top_db: Annotated[float | None, Bounds(0.1, 200)] = 80.0
    """raise everything to at least this many dB below the maximum (db only) (default: no limit)"""
    amin: Annotated[float, Bounds(1e-30, 1)] = 1e-10
    """floor of db, or what log adds before the logarithm"""
    standardise: bool = False
    """subtract the log-mel's mean and divide by its standard deviation + 1e-6; padding with silence then adds
    zeros"""
    over: Literal["clip", "window"] = "clip"
    """scope of ref, top_db and standardise: the whole clip, or each window"""
    frames: int | None = None
    """frames of a window (default: 1 + samples // hop_length)"""


class Extractor(base.Extractor):
    """See `base.Extractor`; UserError for settings that contradict each other or the window."""

    views = {"mel": "spectrogram"}
    at_once = 4

    @classmethod
    def describe(cls, settings: Settings, rate: int) -> dict[str, Any]:
        """Its rate, bands, hop and filter bank."""
        hop = settings.hop_length / rate
        return {"rate": rate, "bands": settings.n_mels, "hop": hop, "bank": settings.scale}

    def prepare(self) -> None:
        """Check the settings and make the filter bank."""
        import torch

        s, window = self.settings, self.window
        fmax = self.rate / 2 if s.fmax is None else s.fmax
        if not 0 <= s.fmin < fmax <= self.rate / 2:
            raise UserError(
                f"logmel: --fmin {s.fmin:g} and --fmax {fmax:g} must rise and stay within half the rate "
                f"of {self.rate} Hz: lower them, or raise --rate"
            )
        win = s.win_length or s.n_fft
        if min(s.n_fft, win, s.hop_length, s.n_mels) < 1 or win > s.n_fft:
            raise UserError(
                "logmel: n_fft, win_length, hop_length and n_mels have to be positive, win_length <= n_fft"
            )
        natural = 1 + self.samples // s.hop_length
        self.frames = s.frames or natural
        if self.frames < natural - 1:
            raise UserError(
                f"logmel: --frames {self.frames} holds {self.frames * s.hop_length / self.rate:g} s, less "
                f"than the window of {window.seconds:g} s: add --seconds "
                f"{self.frames * s.hop_length / self.rate:g}"
            )
        self.span = max(window.seconds, (self.frames - 1) * s.hop_length / self.rate)
        self.needed = max(self.samples, (self.frames - 1) * s.hop_length)
        self.zeros_after = s.standardise and window.pad == "silence"
        self.taper = build_hann(win, True, self.device)
        bank = build_mel_bank(s.n_mels, self.rate, s.n_fft, float(s.fmin), float(fmax), s.scale, s.norm)
        self.bank = torch.from_numpy(bank.T.copy()).to(self.device)
        self.shapes = {"mel": (1, s.n_mels, self.frames)}
        self.edges = (float(s.fmin), float(fmax))

    @property
    def band(self) -> tuple[float, float]:
        """See `base.Extractor.band`."""
        return self.edges

    def compute_spectrogram(self, wave: np.ndarray) -> torch.Tensor:
        """Log-mel of a whole wave; level and standardisation use all of it.

        Args:
            wave: (samples,) float32.
        Returns:
            (n_mels, 1 + samples // hop_length) float32 on the device.
        """
        return self._compute_batch(wave[None])[0]

    def compute_spectrograms(
        self, waves: Sequence[np.ndarray], batch_size: int
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Log-mels of whole waves, batched by length; on a CPU the same bits as `spectrogram`.

        Args:
            waves: (samples,) float32 each.
            batch_size: windows to a batch; a wave of many windows counts as many.
        Yields:
            the index of a wave and its `spectrogram`, in any order.
        """
        import torch

        places: dict[int, list[int]] = {}
        for place, wave in enumerate(waves):
            places.setdefault(len(wave), []).append(place)
        batches = []
        for length, same in places.items():
            rows = max(1, batch_size * self.needed // max(1, length))
            rows = min(rows, self.at_once) if self.device == "cpu" else rows
            batches += [same[first : first + rows] for first in range(0, len(same), rows)]

        def compute_batch(batch: list[int]) -> torch.Tensor:
            with torch.inference_mode():
                return self._compute_batch(
                    np.stack([waves[place] for place in batch]) if len(batch) > 1 else waves[batch[0]][None]
                )

        for batch, mels in zip(batches, self.run_passes(compute_batch, batches), strict=True):
            yield from zip(batch, mels, strict=True)

    def _compute_batch(self, waves: np.ndarray) -> torch.Tensor:
        """(B, n_mels, frames) of waves (B, samples)."""
        import torch

        s = self.settings
        count = 1 + (waves.shape[1] + s.n_fft // 2 * 2 - s.n_fft) // s.hop_length
        if count <= LONG:
            mel = self._compute_bands(waves, (s.n_fft // 2, s.n_fft // 2))
        else:  # a recording of hours, whose spectrum would take many times its own memory
            mel = torch.cat(
                [
                    self._compute_part(waves, first, min(LONG, count - first))
                    for first in range(0, count, LONG)
                ],
                dim=2,
            )
        if s.level == "log":
            mel = (mel + s.amin).log()
        else:
            mel = mel.clamp(min=s.amin)
            mel = mel / mel.amax((1, 2), keepdim=True) if s.ref == "max" else mel
            mel = (20 / s.power) * mel.log10()
            if s.top_db is not None:
                mel = mel.maximum(mel.amax((1, 2), keepdim=True) - s.top_db)
        if s.standardise:  # one by one: the order in which a batch is summed depends on its size
            mel = torch.stack([(clip - clip.mean()) / (clip.std(correction=0) + 1e-6) for clip in mel])
        return mel

    def _compute_part(self, waves: np.ndarray, first: int, count: int) -> torch.Tensor:
        """`_compute_bands` of the frames [first, first + count) of long waves."""
        half, hop = self.settings.n_fft // 2, self.settings.hop_length
        start, end = first * hop - half, (first + count - 1) * hop - half + self.settings.n_fft
        # reflection at an edge needs more than the half frame beyond it
        begin, stop = max(0, min(start, waves.shape[1] - 2 * self.settings.n_fft)), min(end, waves.shape[1])
        padding = (max(0, -start), max(0, end - waves.shape[1]))
        mel = self._compute_bands(waves[:, begin:stop], padding, max(0, start) - begin)
        return mel[:, :, :count]

    def _compute_bands(self, waves: np.ndarray, padding: tuple[int, int], skip: int = 0) -> torch.Tensor:
        """(B, n_mels, frames) before level and standardising, of waves padded at their ends and then without
        `skip` samples."""
        import torch

        s = self.settings
        # numpy reflects as often as a very short wave needs, which torch.stft refuses
        padded = np.pad(waves, ((0, 0), padding), mode="reflect" if s.edges == "reflect" else "constant")[
            :, skip:
        ]
        spectrum = torch.stft(
            torch.from_numpy(padded).to(self.device),
            s.n_fft,
            s.hop_length,
            window=self.taper,
            win_length=len(self.taper),
            center=False,
            return_complex=True,
        )
        power = spectrum.real.square() + spectrum.imag.square()
        return self.bank @ (power if s.power == 2 else power.pow(s.power / 2))

    def forward(self, waves: torch.Tensor, lengths: list[float]) -> dict[str, torch.Tensor]:
        """Each window as its own clip: {"mel": (B, 1, n_mels, frames)}; see `base.Extractor.forward`."""
        import torch

        real = [
            wave[: max(1, round(length * self.rate))]
            for wave, length in zip(waves.cpu().numpy(), lengths, strict=True)
        ]
        mels = dict(self.compute_spectrograms([self._fill(wave) for wave in real], len(real)))
        return {"mel": torch.stack([self._take(mels[place], 0) for place in range(len(real))])}

    def extract(
        self, waves: Sequence[np.ndarray], offsets: Sequence[float], batch_size: int
    ) -> list[base.ClipFeatures]:
        """As `base.Extractor.extract`; windows are slices of the whole clip's log-mel unless `over` is
        "window"."""
        import torch

        if self.settings.over == "window":
            return super().extract(waves, offsets, batch_size)
        clips: dict[int, base.ClipFeatures] = {}
        with torch.inference_mode():
            for place, mel in self.compute_spectrograms([self._fill(wave) for wave in waves], batch_size):
                pieces = self.cut_windows(waves[place])
                firsts = [round(start * self.rate / self.settings.hop_length) for start, _ in pieces]
                rows = torch.stack([self._take(mel, first) for first in firsts])
                clips[place] = base.build_clip(pieces, offsets[place], {"mel": base.to_numpy(rows)})
        return [clips[place] for place in range(len(waves))]

    def _fill(self, wave: np.ndarray) -> np.ndarray:
        """A clip of at least one window: short ones are padded, except with silence that is zero after
        standardising."""
        if len(wave) < self.needed and not self.zeros_after:
            return windows.fill_window(wave, self.needed, self.window.pad)
        return wave

    def _take(self, mel: torch.Tensor, first: int) -> torch.Tensor:
        """(1, n_mels, frames) from a frame on, moved back at the clip's end, zero-padded if it is short."""
        import torch

        first = max(0, min(first, mel.shape[1] - self.frames))
        part = mel[:, first : first + self.frames]
        return torch.nn.functional.pad(part, (0, self.frames - part.shape[1]))[None]
