"""The clips' weights as the loss takes them: one for each row. Scores never see them: validation, out-of-fold
predictions and the hold-out count every clip alike, as a leaderboard does."""

from __future__ import annotations

import numpy as np


def of_rows(
    weights: np.ndarray,
    whose: np.ndarray,
    first: int,
    partner: np.ndarray | None,
    share: np.ndarray | None,
) -> np.ndarray:
    """(rows,) float32: each row's weight, its clip's.

    A copy that is mixed of two clips says as much about each clip's label as the clip's share in it, so its
    weight is the mean of theirs by these shares.

    Args:
        weights: (clips,) of the training clips; clips beyond, which have no label, count 1.
        whose: (rows,) each row's clip.
        first: the row of the first augmented copy.
        partner, share: (copies,) the other clip of each, -1 where it is not mixed, and its own clip's share.
    """
    beyond = int(whose.max(initial=-1)) + 1 - len(weights)
    each = np.concatenate([weights, np.ones(max(0, beyond))]).astype(np.float32)
    found = each[whose]
    if partner is not None and share is not None:
        copies = slice(first, first + len(partner))
        mixed = share * found[copies] + (1 - share) * each[partner]
        found[copies] = np.where(partner >= 0, mixed, found[copies])
    return found


def about(weights: np.ndarray) -> str:
    """The line of the log about the weights of the training clips, (clips,), some of which are not 1."""
    other = weights[weights != 1]
    said = " to ".join(dict.fromkeys(f"{value:g}" for value in (other.min(), other.max())))
    return f"weights: {len(other)} of {len(weights)} clips count {said} in the loss; scores count all alike"
