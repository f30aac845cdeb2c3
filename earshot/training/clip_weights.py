"""Clip weights in the loss, one per row. Scores ignore them and count every clip alike, as a leaderboard
does."""

from __future__ import annotations

import numpy as np


def weigh_rows(
    weights: np.ndarray,
    clip_of_row: np.ndarray,
    first: int,
    partner: np.ndarray | None,
    share: np.ndarray | None,
) -> np.ndarray:
    """(rows,) float32: each row's weight, its clip's.

    The weight of a copy mixed of two clips is the mean of theirs, by their shares in it.

    Args:
        weights: (clips,) of the training clips; clips beyond, which have no label, count 1.
        clip_of_row: (rows,) each row's clip.
        first: the row of the first augmented copy.
        partner, share: (copies,) the other clip of each, -1 where it is not mixed, and its own clip's share.
    """
    beyond = int(clip_of_row.max(initial=-1)) + 1 - len(weights)
    clip_weights = np.concatenate([weights, np.ones(max(0, beyond))]).astype(np.float32)
    row_weights = clip_weights[clip_of_row]
    if partner is not None and share is not None:
        copies = slice(first, first + len(partner))
        mixed = share * row_weights[copies] + (1 - share) * clip_weights[partner]
        row_weights[copies] = np.where(partner >= 0, mixed, row_weights[copies])
    return row_weights


def format_weights(weights: np.ndarray) -> str:
    """The line of the log about the weights of the training clips, (clips,), some of which are not 1."""
    changed = weights[weights != 1]
    span = " to ".join(dict.fromkeys(f"{value:g}" for value in (changed.min(), changed.max())))
    return f"weights: {len(changed)} of {len(weights)} clips count {span} in the loss; scores count all alike"
