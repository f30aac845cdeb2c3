"""Augmentation of training batches; all randomness comes from the generators that are passed in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from earshot.core.device import is_out_of_memory
from earshot.core.errors import UserError

if TYPE_CHECKING:
    from earshot.core.config import TrainingFlags


def mask_spans(x: Tensor, axis: int, longest: int, rng: np.random.Generator) -> Tensor:
    """One masked span per row along an axis, filled with the row's own minimum: silence, where 0 dB would be
    loud.

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


def shift_time(
    x: Tensor, mask: Tensor | None, share: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor | None]:
    """Roll every row in time by up to `share` of its length either way; (B, D, F, T) and its (B, T) mask."""
    frames = x.shape[3]
    reach = int(share * frames)
    offset = rng.integers(-reach, reach + 1, len(x))
    at = torch.from_numpy((np.arange(frames) - offset[:, None]) % frames).to(x.device)
    rolled = torch.take_along_dim(x, at[:, None, None, :], 3)
    return rolled, mask if mask is None else torch.take_along_dim(mask, at, 1)


def warp_time(
    x: Tensor, mask: Tensor | None, stretch: float, crop: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor | None]:
    """Read every row at a pace of its own from a place of its own, around its end; linear interpolation
    between frames.

    Args:
        x, mask: (B, D, F, T), (B, T).
        stretch: the pace is log-uniform in 1 / (1 + stretch) ... 1 + stretch.
        crop: share of the frames to read; below 1 the start is at any real frame.
    Returns:
        (B, D, F, T') and (B, T'), T' = crop * T.
    """
    frames = x.shape[3]
    width = max(1, round(crop * frames))
    pace = np.exp(rng.uniform(-1, 1, len(x)) * np.log1p(stretch))
    start = np.zeros(len(x))
    if width < frames:
        # At a real frame: a crop of nothing but padding would have nothing to pool.
        real = np.ones((len(x), frames), bool) if mask is None else mask.cpu().numpy()
        start = np.where(real, rng.random((len(x), frames)), -1.0).argmax(1) + rng.random(len(x))
    at = (start[:, None] + np.arange(width) * pace[:, None]) % frames
    lower = np.floor(at).astype(np.int64)
    x = _interpolate(x, lower % frames, (lower + 1) % frames, at - lower, 3)
    if mask is not None:
        mask = torch.take_along_dim(mask, torch.from_numpy(lower % frames).to(mask.device), 1)
    return x, mask


def check_crop(head: nn.Module, x: Tensor, mask: Tensor | None, share: float, autocast: Any) -> None:
    """Raise UserError where a head takes windows of one length only; x and mask as of `warp_time`."""
    x, mask = warp_time(x, mask, 0.0, share, np.random.default_rng(0))
    try:
        with torch.inference_mode(), autocast:
            head.eval()(x, mask)
    except (RuntimeError, ValueError, AssertionError) as error:  # timm asserts
        if is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--crop-share {share:g}: this head takes windows of one length only ({reason}): leave "
            "--crop-share out, or choose another head"
        ) from None


def shift_frequency(x: Tensor, reach: float, rng: np.random.Generator) -> Tensor:
    """Move every row's spectrum by up to `reach` bins either way; edge bins are repeated; (B, D, F, T)."""
    bins = x.shape[2]
    at = np.clip(np.arange(bins) + rng.uniform(-reach, reach, len(x))[:, None], 0, bins - 1)
    lower = np.floor(at).astype(np.int64)
    return _interpolate(x, lower, np.minimum(lower + 1, bins - 1), at - lower, 2)


def _interpolate(x: Tensor, lower: np.ndarray, upper: np.ndarray, share: np.ndarray, axis: int) -> Tensor:
    """Linear interpolation along an axis; lower, upper (indices) and share are (B, new length)."""
    shape = [len(x), 1, 1, 1]
    shape[axis] = lower.shape[1]
    below, above = (
        torch.take_along_dim(x, torch.from_numpy(i).to(x.device).view(shape), axis) for i in (lower, upper)
    )
    return below.lerp(above, torch.from_numpy(share.astype(np.float32)).to(x.device).view(shape))


def is_enabled(settings: TrainingFlags) -> bool:
    """Do the settings ask for any augmentation?"""
    spans = settings.num_masks and (settings.time_mask or settings.frequency_mask)
    return bool(
        settings.time_shift
        or settings.time_stretch
        or settings.crop_share < 1
        or settings.frequency_shift
        or settings.gain
        or settings.mixup
        or spans
    )


def augment_batch(
    x: Tensor,
    mask: Tensor | None,
    targets: Tensor,
    settings: TrainingFlags,
    rng: np.random.Generator,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Apply the augmentations of the settings: shift, stretch, crop, gain, then masks and mixing.

    Masks lie under a mixup of the batch, as it was published, and over a mix of two sounds, which is one new
    sound.

    Args:
        x, mask, targets, weights: (B, D, F, T), (B, T), (B, classes) shares, (B,) or None.
    """
    if settings.time_shift and x.shape[3] > 1:
        x, mask = shift_time(x, mask, settings.time_shift, rng)
    if (settings.time_stretch or settings.crop_share < 1) and x.shape[3] > 1:
        x, mask = warp_time(x, mask, settings.time_stretch, settings.crop_share, rng)
    if settings.frequency_shift and x.shape[2] > 1:
        x = shift_frequency(x, settings.frequency_shift, rng)
    if settings.gain:
        amount = torch.from_numpy(rng.uniform(-settings.gain, settings.gain, len(x)).astype(np.float32))
        x = x + amount.to(x.device)[:, None, None, None]
    if settings.mixup_pairs == "any":
        x = apply_masks(x, settings, rng)
    if settings.mixup:
        x, mask, targets, weights = mix_rows(x, mask, targets, settings, rng, weights)
    if settings.mixup_pairs == "different":
        x = apply_masks(x, settings, rng)
    return x, mask, targets, weights


def apply_masks(x: Tensor, settings: TrainingFlags, rng: np.random.Generator) -> Tensor:
    """Frequency and time masks as the settings say; (B, D, F, T)."""
    for _ in range(settings.num_masks):
        if settings.frequency_mask and x.shape[2] > 1:
            x = mask_spans(x, 2, settings.frequency_mask, rng)
        if settings.time_mask and x.shape[3] > 1:
            x = mask_spans(x, 3, settings.time_mask, rng)
    return x


def mix_rows(
    x: Tensor,
    mask: Tensor | None,
    targets: Tensor,
    settings: TrainingFlags,
    rng: np.random.Generator,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Mixup (Zhang et al. 2018) or between-class learning (Tokozume et al. 2018), as `mixup_pairs` says.

    "any": with probability `mixup_probability` the whole batch, each row with any other, one weight for all.
    "different": each row for itself with that probability, with a row of another class, each pair with its
    own weight. Weights are from Beta(alpha, alpha); alpha 1 is uniform.

    Args:
        x, mask: (B, D, F, T), (B, T); a mixed frame is real where either was.
        targets: (B, classes) shares.
        weights: (B,) what the rows count in the loss. The weight of a mixed row is the mean of its two
            clips', by their shares in it.
    """
    count = len(x)
    if settings.mixup_pairs == "any":
        if rng.random() >= settings.mixup_probability:
            return x, mask, targets, weights
        weight = np.full(count, rng.beta(settings.mixup, settings.mixup))
        other = rng.permutation(count)
    else:
        weight = np.where(
            rng.random(count) < settings.mixup_probability,
            rng.beta(settings.mixup, settings.mixup, count),
            1.0,
        )
        differs = (targets @ targets.T <= 0).cpu().numpy()
        # The largest of random numbers where classes differ is a fair draw; a row without any stays as it is.
        other = np.where(differs, rng.random((count, count)), -1.0).argmax(1)
        weight = np.where(differs.any(1), weight, 1.0)
    partner = torch.from_numpy(other).to(x.device)
    share = torch.from_numpy(weight.astype(np.float32)).to(x.device)
    mixed = _blend_sounds(x, x[partner], share[:, None, None, None], settings.mixup_domain)
    if mask is not None:
        mask = mask | mask[partner] & (share < 1)[:, None]
    if weights is not None:
        weights = share * weights + (1 - share) * weights[partner]
    return mixed, mask, share[:, None] * targets + (1 - share[:, None]) * targets[partner], weights


def _blend_sounds(one: Tensor, other: Tensor, share: Tensor, domain: str) -> Tensor:
    if domain == "linear":
        return share * one + (1 - share) * other
    # dB to power and back: two sounds at once, as a microphone would have them, where a mean of dB is a
    # geometric mean.
    scale = float(np.log(10) / 10)
    return torch.logaddexp(scale * one + share.log(), scale * other + (1 - share).log()) / scale
