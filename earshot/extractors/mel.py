"""Mel banks and the Kaldi filter bank in torch, batched, on any device: torchaudio's formulas without
importing it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

KALDI_LOW = 20.0  # Hz, where Kaldi's lowest band begins
FLOOR = 1.1920928955078125e-07  # float32's epsilon, Kaldi's floor before the logarithm


@functools.lru_cache(maxsize=16)
def build_mel_bank(
    bins: int,
    rate: int,
    n_fft: int,
    fmin: float,
    fmax: float | None = None,
    scale: str = "htk",
    norm: str | None = None,
) -> np.ndarray:
    """Triangular mel filters, by transformers' `mel_filter_bank` (which follows librosa and torchaudio).

    Args:
        scale: "htk", "slaney", or "kaldi" (triangles in mel rather than in Hz).
        fmin, fmax: Hz; fmax None = half the rate.
    Returns:
        (n_fft // 2 + 1, bins) float32.
    """
    with warnings.catch_warnings():
        # "at least one mel filter has all zero values": true of published recipes
        warnings.simplefilter("ignore")
        from transformers.audio_utils import mel_filter_bank

        bank = mel_filter_bank(
            num_frequency_bins=n_fft // 2 + 1,
            num_mel_filters=bins,
            min_frequency=fmin,
            max_frequency=rate / 2 if fmax is None else fmax,
            sampling_rate=rate,
            norm=norm,
            mel_scale=scale,
            triangularize_in_mel_space=scale == "kaldi",
        )
    return np.ascontiguousarray(bank, dtype=np.float32)


def build_hann(samples: int, periodic: bool, device: torch.device | str = "cpu") -> torch.Tensor:
    """A Hann window; Kaldi's is the symmetric one (periodic=False)."""
    import torch

    return torch.hann_window(samples, periodic=periodic, device=device)


def disable_autocast(waves: torch.Tensor) -> torch.autocast:
    """Switches autocast off: a power spectrum spans more than half precision can hold."""
    import torch

    return torch.autocast(waves.device.type, enabled=False)


def count_kaldi_frames(samples: int, rate: int = 16000) -> int:
    """Number of frames that `compute_kaldi_fbank` makes of a number of samples."""
    return max(1, 1 + (samples - rate * 25 // 1000) // (rate // 100))


def compute_kaldi_fbank(waves: torch.Tensor, bins: int = 128, rate: int = 16000) -> torch.Tensor:
    """Log-mel filter bank of `torchaudio.compliance.kaldi.fbank(window_type="hanning", num_mel_bins=bins)`.

    Frames of 25 ms every 10 ms (whole ones only), mean removed, pre-emphasis 0.97, power, 20 Hz to half the
    rate.

    Args:
        waves: (B, samples) float32.
    Returns:
        (B, frames, bins), frames = 1 + (samples - 400) // 160 at 16 kHz; a shorter wave is zero-padded to one
        frame.
    """
    import torch

    frame, hop = rate * 25 // 1000, rate // 100
    n_fft = 1 << (frame - 1).bit_length()
    with disable_autocast(waves):
        if waves.shape[1] < frame:
            waves = torch.nn.functional.pad(waves, (0, frame - waves.shape[1]))
        frames = waves.float().unfold(1, frame, hop)
        frames = frames - frames.mean(dim=-1, keepdim=True)
        frames = frames - 0.97 * torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        spectrum = torch.fft.rfft(frames * build_hann(frame, False, waves.device), n=n_fft)
        power = spectrum.real.square() + spectrum.imag.square()
        bank = torch.from_numpy(build_mel_bank(bins, rate, n_fft, KALDI_LOW, None, "kaldi")).to(waves.device)
        return (power @ bank).clamp(min=FLOOR).log()


def compute_ast_input(
    waves: torch.Tensor,
    lengths: Sequence[float] | None,
    max_length: int = 1024,
    bins: int = 128,
    mean: float = -4.2677393,
    std: float = 4.5689974,
    rate: int = 16000,
) -> torch.Tensor:
    """What transformers' `ASTFeatureExtractor` makes of the real part of each wave, for a whole batch.

    Missing frames are 0 in log-mel, then everything becomes (x - mean) / (2 std): as the published
    network has it.

    Args:
        waves: (B, samples) float32 at `rate`.
        lengths: seconds of real audio in each: frames beyond become padding; None = all of it is real.
    Returns:
        (B, max_length, bins) float32.
    """
    import torch

    mel = compute_kaldi_fbank(waves, bins, rate)[:, :max_length]
    if lengths is not None:
        real = [count_kaldi_frames(round(length * rate), rate) for length in lengths]
        last = torch.tensor(real, device=mel.device)[:, None]
        mel = mel * (torch.arange(mel.shape[1], device=mel.device)[None] < last)[..., None]
    mel = torch.nn.functional.pad(mel, (0, 0, 0, max_length - mel.shape[1]))
    return (mel - mean) / (2 * std)
