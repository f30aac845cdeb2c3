"""The windows of long clips: sampling them in training, and pooling their predictions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

HIGHEST = {"max": 1, "top3": 3}  # of a class's logits over a clip's windows: the mean of so many


def sample_windows(rows: np.ndarray, clip: np.ndarray, max_per_clip: int | None, seed: int) -> np.ndarray:
    """Some windows of every clip: at most so many, each as likely as any other of its clip.

    Args:
        rows: the rows to draw from.
        clip: (all rows,) each row's clip.
        max_per_clip: windows of a clip; None: all.
        seed: the same one, the same windows.
    Returns:
        the chosen of `rows`, in their order.
    """
    if max_per_clip is None or not len(rows):
        return rows
    # by clip, at random within
    order = np.lexsort((np.random.default_rng(seed).random(len(rows)), clip[rows]))
    new = np.flatnonzero(np.diff(clip[rows][order], prepend=-1))
    rank = np.arange(len(rows)) - np.repeat(new, np.diff(new, append=len(rows)))
    return rows[np.sort(order[rank < max_per_clip])]


def pool_logits(
    logits: Tensor, clip: Tensor, clips: int, how: str = "mean", multilabel: bool = False
) -> Tensor:
    """Probabilities of clips from the logits of their windows.

    Args:
        logits: (windows, classes).
        clip: (windows,) each window's clip, in 0 ... clips - 1.
        clips: how many there are.
        how: "mean" of the logits, which for one label a clip is the geometric mean of the probabilities;
            "probability": the mean of the probabilities; "max": the largest logit of each class; "top3": the
            mean of each class's three largest.
        multilabel: a sigmoid of each class, in place of a softmax.
    Returns:
        (clips, classes); NaN for a clip without windows.
    """
    if how == "probability":
        return pool_windows(to_probabilities(logits, multilabel), clip, clips)
    return to_probabilities(pool_windows(logits, clip, clips, HIGHEST.get(how)), multilabel)


def to_probabilities(logits: Tensor, multilabel: bool) -> Tensor:
    """(windows, classes) probabilities of logits: a softmax, or a sigmoid of each class."""
    return logits.sigmoid() if multilabel else logits.softmax(1)


def pool_windows(values: Tensor, clip: Tensor, clips: int, highest: int | None = None) -> Tensor:
    """One row per clip: the mean over its windows, or over those where a class is highest.

    Args:
        values: (windows, classes).
        clip: (windows,) each window's clip, in 0 ... clips - 1.
        clips: how many there are.
        highest: take so many windows of a clip, for each class its own; None: all.
    Returns:
        (clips, classes); NaN for a clip without windows.
    """
    counts = torch.bincount(clip, minlength=clips)
    if highest is not None:
        order = values.argsort(dim=0, descending=True, stable=True)
        # clip by clip, from high to low, for each class
        order = order.gather(0, clip[order].argsort(dim=0, stable=True))
        clip = clip.sort().values
        first = counts.cumsum(0) - counts
        kept = torch.arange(len(clip)) - first[clip] < highest
        values, clip, counts = values.gather(0, order)[kept], clip[kept], counts.clamp(max=highest)
    total = torch.zeros(clips, values.shape[1], dtype=values.dtype).index_add_(0, clip, values)
    return total / counts[:, None]
