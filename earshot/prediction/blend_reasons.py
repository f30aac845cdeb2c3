"""Why a blend was chosen although its table has rows that look better."""

from __future__ import annotations

from typing import Any

import numpy as np

from earshot.prediction import significance

VISIBLE = 5e-5  # a smaller gain does not show in the table


def explain_gains(name: str, chosen: str, gains: dict[str, tuple[float, float]], used: bool) -> str:
    """What the weights gain over the best run alone, in a sentence.

    Args:
        name: of the weights. chosen: the name of what is used.
        gains: by metric the gain, more is better, and its standard error.
    """
    listed = ", ".join(f"{metric} {gain:+.4f} ± {error:.4f}" for metric, (gain, error) in gains.items())
    why = "" if used else f": {chosen} is used alone, since one is a loss of more than its error"
    return f"{name} gains over the best run, ± a standard error: {listed}{why}"


def explain_better_row(
    name: str, predictions: dict[str, np.ndarray], truth: np.ndarray, metric: str, blocks: np.ndarray
) -> str:
    """A sentence about the row with the best metric, where it is not the chosen one; else empty.

    Args:
        name: of the chosen row.
        predictions: (clips, classes) of each row, by name.
        truth: (clips,) or (clips, classes).
        blocks: (clips,) for the noise, see `significance`.
    """
    own = predictions[name]
    gains = {
        rival: significance.estimate_gain(metric, own, found, truth, blocks)
        for rival, found in predictions.items()
        if rival != name
    }
    best = max(gains, key=lambda rival: gains[rival][0], default="")
    if not best or gains[best][0] < VISIBLE:
        return ""
    gain, noise = gains[best][0], significance.BEYOND * gains[best][1]
    sentence = f"{best} has a better {metric} than {name}, by {gain:.4f}"
    if gain > noise:
        return f"{sentence}, more than noise (2 standard errors: {noise:.4f})"
    return f"{sentence}: within noise (2 standard errors: {noise:.4f}), so {name} stays"


def differs_from_own_row(name: str, table: list[dict[str, Any]]) -> bool:
    """Does the last row of a blend's table, the chosen, show other numbers than the row of that name?"""
    own = next(row for row in table if row["name"] == name)
    return any(f"{own[key]:.4f}" != f"{table[-1][key]:.4f}" for key in ("score", "log_loss"))
