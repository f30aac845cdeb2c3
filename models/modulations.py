"""Spectro-temporal modulations: how strongly a spectrogram ripples along time and frequency."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .functionals import FLOOR

FASTEST, RATES = 0.32, 6  # cycles per frame; octaves below it, as far as a window holds a period
SCALES = (0, 2, 4, 8, 16)  # cycles over all bands
SHARPEST = 0.25  # cycles per band, at most
ROW_STEP = 2  # bands from one filter's place to the next
PIXELS = 1 << 24  # values that a pass may make
SECTIONS = 3  # of a clip, whose means are apart: the order of sounds tells words from each other
SOFT = 1e-2  # added before the logarithm, in the spectrogram's units


class Modulations(nn.Module):
    """Mean and deviation over time of the responses to two-dimensional Gabor filters, and their means in
    sections of the clip, in areas of the frequency axis.

    The filters are products of a Hann-windowed complex wave along time and one along frequency, in octaves,
    rising and falling: the model of the auditory cortex of Chi, Ru & Shamma (2005). They have no weights.

    Args:
        height: bands.
        frames: of the window.
        areas: of the frequency axis, counted apart.
    """

    def __init__(self, height: int, frames: int, areas: int = 8) -> None:
        super().__init__()
        rates = [FASTEST / 2**number for number in range(RATES)]
        rates = [rate for rate in rates if rate * frames >= 1] or [FASTEST]
        self.steps = [max(1, int(0.5 / rate)) for rate in rates]  # four places in a window
        for number, rate in enumerate(rates):
            self.register_buffer(f"wave{number}", _build_wave(rate, 1 / rate)[:, None], persistent=False)
        scales = [count / height for count in SCALES if count <= SHARPEST * height]
        places = torch.arange(0, height, ROW_STEP)
        self.register_buffer(
            "ripples",  # (scales, 2, places, bands)
            torch.stack([_build_ripple(scale, places, height) for scale in scales]),
            persistent=False,
        )
        self.areas = min(areas, len(places))
        self.width = (2 + SECTIONS) * len(rates) * (2 * len(scales) - 1) * self.areas
        self.rows_at_once = max(1, PIXELS // (4 * len(scales) * len(places) * frames))

    def forward(self, levels: Tensor, real: Tensor) -> Tensor:
        """(B, width) of levels (B, 1, F, T), of which the first `real` (B,) frames count."""
        if len(levels) <= self.rows_at_once:
            return self._compute_responses(levels[:, 0], real)
        parts = zip(levels.split(self.rows_at_once), real.split(self.rows_at_once), strict=True)
        return torch.cat([self._compute_responses(part[:, 0], frames) for part, frames in parts])

    def _compute_responses(self, x: Tensor, real: Tensor) -> Tensor:
        inside = (torch.arange(x.shape[2], device=x.device) < real[:, None])[:, None].to(x.dtype)
        mean = (x * inside).sum((1, 2), keepdim=True) / (inside.sum((1, 2), keepdim=True) * x.shape[1])
        x, found = (x - mean) * inside, []
        for number, step in enumerate(self.steps):
            wave = getattr(self, f"wave{number}")
            along_time = nn.functional.conv1d(
                x.flatten(0, 1)[:, None], wave, stride=step, padding=wave.shape[2] // 2
            ).unflatten(0, x.shape[:2])
            # (B, scales, 2: cos and sin, places, 2: cos and sin, T / step)
            both = torch.einsum("scpf,bfwt->bscpwt", self.ripples, along_time)
            sums, mixed = both[:, :, 0, :, 0], both[:, :, 1, :, 1]
            crossed, other = both[:, :, 1, :, 0], both[:, :, 0, :, 1]
            falling = (sums - mixed).square() + (crossed + other).square()
            # a ripple of no cycles rises as it falls
            rising = ((sums + mixed).square() + (other - crossed).square())[:, 1:]
            responses = (torch.cat([falling, rising], 1) + 1e-6).sqrt()
            counted = inside[..., ::step][:, None]
            count, sections = counted.sum(3), _weigh_sections(counted, step, real)
            for area in responses.split(split_evenly(responses.shape[2], self.areas), 2):
                level = area.mean(2, keepdim=True)
                mean = (level * counted).sum(3) / count
                variance = ((level - mean[..., None]).square() * counted).sum(3) / count
                found += [(mean[..., 0] + SOFT).log(), (variance[..., 0] + SOFT**2).log() / 2]
                found += [
                    ((level * weight).sum(3) / weight.sum(3) + SOFT)[..., 0].log() for weight in sections
                ]
        return torch.cat(found, 1)


def _weigh_sections(counted: Tensor, step: int, real: Tensor) -> list[Tensor]:
    """What each place counts in each section, (B, 1, 1, places): triangles that overlap by half."""
    at = (torch.arange(counted.shape[3], device=counted.device) + 0.5) * step / real[:, None, None, None]
    # a section that no place is in is about the whole clip
    return [
        ((1 - (SECTIONS * at - number - 0.5).abs()).clamp(min=0) + 1e-3) * counted
        for number in range(SECTIONS)
    ]


def compute_levels(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Levels relative to each clip's loudest cell, with the floor of `functionals`; (B,) real frames."""
    real = x.new_full((len(x),), x.shape[3], dtype=torch.long) if mask is None else mask.sum(1)
    inside = (torch.arange(x.shape[3], device=x.device) < real[:, None])[:, None, None]
    peak = x.masked_fill(~inside, float("-inf")).amax((2, 3), keepdim=True)
    return (x - peak).clamp(min=-FLOOR).masked_fill(~inside, -FLOOR), real


def split_evenly(length: int, parts: int) -> list[int]:
    """The sizes of parts of an axis, the first ones larger by one where the length is no multiple."""
    return [length // parts + (number < length % parts) for number in range(parts)]


def _build_wave(cycles: float, reach: float) -> Tensor:
    """(2, 2 * reach + 1) cosine and sine of so many cycles per step below a Hann window of sum 1."""
    at = torch.arange(-math.floor(reach), math.floor(reach) + 1)
    taper = torch.hann_window(len(at) + 2, periodic=False)[1:-1]
    phase = 2 * math.pi * cycles * at
    return torch.stack([phase.cos(), phase.sin()]) * (taper / taper.sum())


def _build_ripple(cycles: float, places: Tensor, height: int) -> Tensor:
    """(2, places, bands) a wave along frequency around each place; bands beyond the ends count as 0."""
    wave = _build_wave(cycles, min(16, 1 / cycles) if cycles else 4)
    half = wave.shape[1] // 2
    at = torch.arange(height) - places[:, None] + half
    inside = (at >= 0) & (at < wave.shape[1])
    return wave[:, at.clamp(0, wave.shape[1] - 1)] * inside
