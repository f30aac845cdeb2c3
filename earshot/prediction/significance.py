"""Is one set of predictions better than another beyond noise? One metric at a time, fast enough for thousands
of calls."""

from __future__ import annotations

import numpy as np

from earshot.training.metrics import compute_gain, count_classes, score_counts, uses_counts

BLOCKS = 20  # of clips, each left out once
BEYOND = 2.0  # standard errors that a gain has to exceed, else it counts as noise


def draw_blocks(clips: int, groups: np.ndarray | None = None, number: int = BLOCKS) -> np.ndarray:
    """(clips,) a block for each clip, drawn evenly with a fixed seed; clips of one group (other than "")
    share a block."""
    names = (
        np.array([str(name) or f"\0{index}" for index, name in enumerate(groups)])
        if groups is not None
        else np.arange(clips)
    )
    units = np.unique(names, return_inverse=True)[1]
    count = int(units.max()) + 1
    return (np.random.default_rng(0).permutation(count) % min(number, count))[units]


def estimate_gain(
    metric: str, old: np.ndarray, new: np.ndarray, truth: np.ndarray, blocks: np.ndarray
) -> tuple[float, float]:
    """The gain of `new` over `old` on the same clips, and its standard error.

    The error is the delete-a-block jackknife's.
    """
    number = int(blocks.max()) + 1
    rises = compute_gain(metric, new, truth) - compute_gain(metric, old, truth)
    if metric == "log_loss" or not uses_counts(metric, truth):
        left = [
            compute_gain(metric, new[blocks != b], truth[blocks != b])
            - compute_gain(metric, old[blocks != b], truth[blocks != b])
            for b in range(number)
        ]
    else:
        clips = (len(truth) - np.bincount(blocks, minlength=number))[:, None]
        each = [
            found.sum(1, keepdims=True) - found
            for found in (count_classes(p, truth, blocks) for p in (new, old))
        ]
        left = np.subtract(*(score_counts(metric, *found, clips, truth.ndim == 2) for found in each))
    return rises, float(np.sqrt((number - 1) * np.var(left)))


def exceeds_noise(gain: float, error: float) -> bool:
    """Is a gain more than two of its standard errors?"""
    return gain > max(BEYOND * error, 1e-9)
