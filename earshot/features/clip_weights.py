"""Weights of the training clips in the loss, where the data set has some."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from earshot.core.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def get_weights(clips: pd.DataFrame) -> np.ndarray | None:
    """The weights of clips, (clips,) float32; None where all are 1, so that such caches keep their
    fingerprints.

    Raises:
        UserError: a weight is not a number above 0.
    """
    with np.errstate(over="ignore"):
        found = clips["weight"].to_numpy(dtype=np.float64).astype(np.float32)
    wrong = ~(np.isfinite(found) & (found > 0))
    if wrong.any():
        from earshot.core.csv_table import format_cell  # with pandas, which a script's help does without

        first = int(wrong.argmax())
        raise UserError(
            f"the clip {format_cell(clips['id'].iloc[first])} has the weight "
            f"{clips['weight'].iloc[first]:g}: a weight is a number above 0; leave such clips out instead"
        )
    return found if (found != 1).any() else None
