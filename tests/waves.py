"""Waves, synthetic and recorded, that the extractors are compared on."""

from __future__ import annotations

import numpy as np
from conftest import SHARED

from earshot.audio import load
from earshot.extractors import base


def window(seconds: float, rate: int, pad: str = "silence", hop=None, most=None) -> base.Window:
    return base.Window(seconds, hop, pad, most, rate)


def synthetic(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    """A sweep in noise with an offset and a silent part: something in every band, and something at the
    floor."""
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.4 * np.sin(2 * np.pi * (50 + 0.2 * rate * time / seconds) * time)
    wave += 0.01 * np.random.default_rng(seed).standard_normal(len(time)) + 0.02
    wave[len(wave) // 2 : len(wave) // 2 + len(wave) // 5] = 0
    return wave.astype(np.float32)


def real(rate: int, count: int) -> list[np.ndarray]:
    files = sorted((SHARED / "esc10" / "audio").glob("*.ogg"))[:: 400 // count][:count]
    return [load.read(file, rate, load.AudioSettings())[0] for file in files]


def clips(rate: int, count: int = 3) -> list[np.ndarray]:
    """Synthetic clips, and real ones where there are any."""
    found = real(rate, count) if (SHARED / "esc10" / "audio").is_dir() else []
    return [synthetic(5.0, rate, seed) for seed in range(2)] + found
