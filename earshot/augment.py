"""What is done to a training batch; everything random comes from the generators that are handed in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from earshot.config import TrainingFlags


def mask_spans(x: Tensor, axis: int, longest: int, rng: np.random.Generator) -> Tensor:
    """One masked span per row along an axis, filled with the row's own minimum: silence, where 0 dB would be loud.

    Args:
        x: (B, D, F, T).
        axis: 2 for frequency, 3 for time.
        longest: spans are uniform in 0 ... longest, cut to the axis (SpecAugment, Park et al. 2019).
    """
    size = x.shape[axis]
    width = rng.integers(0, min(longest, size) + 1, len(x))
    start = (rng.random(len(x)) * (size - width + 1)).astype(np.int64)
    at = np.arange(size)
    hit = torch.from_numpy((at >= start[:, None]) & (at < (start + width)[:, None])).to(x.device)
    hit = hit[:, None, :, None] if axis == 2 else hit[:, None, None, :]
    return torch.where(hit, x.amin((1, 2, 3), keepdim=True), x)


def shift_time(x: Tensor, mask: Tensor | None, share: float, rng: np.random.Generator) -> tuple[Tensor, Tensor | None]:
    """Roll every row in time by up to `share` of its length either way; (B, D, F, T) and its (B, T) mask."""
    frames = x.shape[3]
    reach = int(share * frames)
    offset = rng.integers(-reach, reach + 1, len(x))
    at = torch.from_numpy((np.arange(frames) - offset[:, None]) % frames).to(x.device)
    rolled = torch.take_along_dim(x, at[:, None, None, :], 3)
    return rolled, mask if mask is None else torch.take_along_dim(mask, at, 1)


def apply(x: Tensor, mask: Tensor | None, settings: TrainingFlags, rng: np.random.Generator) -> tuple[Tensor, Tensor | None]:
    """Shift, gain and masks as the settings say, on rows of their own; (B, D, F, T) and (B, T)."""
    if settings.time_shift and x.shape[3] > 1:
        x, mask = shift_time(x, mask, settings.time_shift, rng)
    if settings.gain:
        amount = torch.from_numpy(rng.uniform(-settings.gain, settings.gain, len(x)).astype(np.float32))
        x = x + amount.to(x.device)[:, None, None, None]
    for _ in range(settings.masks):
        if settings.frequency_mask and x.shape[2] > 1:
            x = mask_spans(x, 2, settings.frequency_mask, rng)
        if settings.time_mask and x.shape[3] > 1:
            x = mask_spans(x, 3, settings.time_mask, rng)
    return x, mask


def mix(x: Tensor, mask: Tensor | None, targets: Tensor, alpha: float,
        rng: np.random.Generator) -> tuple[Tensor, Tensor | None, Tensor]:
    """Mixup (Zhang et al. 2018): every row with another, one weight from Beta(alpha, alpha) for the batch.

    Args:
        x, mask: (B, D, F, T), (B, T); a mixed frame is real where either was.
        targets: (B, classes) shares.
    """
    weight = float(rng.beta(alpha, alpha))
    other = torch.from_numpy(rng.permutation(len(x))).to(x.device)
    mixed = weight * x + (1 - weight) * x[other]
    return mixed, mask if mask is None else mask | mask[other], weight * targets + (1 - weight) * targets[other]
