"""Rows that are stretches of recordings: their probabilities are mixed with those of their neighbours."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from earshot.core import checksums
from earshot.core.errors import UserError
from earshot.core.shell import join_command
from earshot.training.run import Run

NAME = "stretches.json"  # in the folder of a run
LONGEST = 1e6  # seconds of a stretch
ADJACENT = 1.5  # steps between the middles of two stretches, at most, for them to be neighbours


def smooth(
    probabilities: np.ndarray, recordings: np.ndarray, middles: np.ndarray, weight: float
) -> np.ndarray:
    """The weighted mean of each stretch's probabilities and its neighbours'.

    Args:
        probabilities: (stretches, classes); NaN for a stretch without a prediction, which stays so and counts
            nowhere.
        recordings: (stretches,) the recording of each, "" for none, which has no neighbours.
        middles: (stretches,) seconds of each stretch's middle in its recording.
        weight: of a neighbour's probabilities; the stretch's own have the weight 1.
    Returns:
        (stretches, classes).
    """
    known = np.flatnonzero((recordings != "") & np.isfinite(probabilities).all(1))
    order = known[np.lexsort((middles[known], recordings[known]))]
    before, after = order[:-1], order[1:]
    steps = middles[after] - middles[before]
    together = (recordings[before] == recordings[after]) & (steps > 0)
    if not weight or not together.any():
        return probabilities
    together &= steps <= ADJACENT * np.median(steps[together])
    before, after = before[together], after[together]
    total, weights = probabilities.astype(np.float64), np.ones((len(probabilities), 1))
    for of, by in ((before, after), (after, before)):  # a stretch is at most once in each
        total[of] += weight * probabilities[by]
        weights[of] += weight
    return (total / weights).astype(probabilities.dtype)


def find_middles(split: dict[str, Any]) -> np.ndarray:
    """(clips,) seconds of the middle of each clip's windows in its file; NaN for a clip without windows."""
    clip, clips = np.asarray(split["clip"]), len(split["ids"])
    start, length = (np.asarray(split[key], dtype=np.float64) for key in ("start", "length"))
    count = np.bincount(clip, minlength=clips)
    with np.errstate(invalid="ignore"):
        return np.bincount(clip, start + length / 2, minlength=clips) / count


def write_weight(run: Run, weight: float, gain: float, error: float, recordings: int, seconds: float) -> None:
    """Keep what was fitted with a run.

    Args:
        weight: of a neighbour, see `smooth`. gain, error: of the macro ROC AUC. recordings: it was fitted on.
        seconds: of a stretch.
    """
    found = {
        "weight": weight,
        "gain": gain,
        "error": error,
        "recordings": recordings,
        "seconds": seconds,
    }
    checksums.write(run.folder / NAME, found)


def _read(run: Run) -> dict[str, float]:
    """The weight and the seconds that `write_weight` wrote; {} where nothing was fitted.

    Raises:
        UserError: the file is damaged.
    """
    path = run.folder / NAME
    if not path.exists():
        return {}
    hint = "fit it again with predict.py --fit-stretches COMPETITION, or delete it"
    try:
        content = checksums.read(path)
    except checksums.CorruptFile as error:
        raise UserError(f"{error}: {hint}") from None
    found = {}
    for key, missing, most in (("weight", None, 1.0), ("seconds", 0.0, LONGEST)):
        value = content.get(key, missing)  # files written before 0.2.0 was released lack the seconds
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= most:
            raise UserError(f"{path} is damaged ({key} {value!r}): {hint}")
        found[key] = float(value)
    return found


def read_weight(run: Run) -> float:
    """How much a neighbour counts; 0 where nothing was fitted. UserError where the file is damaged."""
    return _read(run).get("weight", 0.0)


def find_seconds(runs: Iterable[Run]) -> float | None:
    """Seconds of a stretch, by the first run for which neighbours were fitted; None where there is none.
    UserError where its file is damaged."""
    return next((seconds for run in runs if (seconds := _read(run).get("seconds"))), None)


def smooth_run(
    run: Run, split: dict[str, Any], probabilities: np.ndarray, whole: Path | None = None
) -> tuple[np.ndarray, list[str]]:
    """What a run predicts for the clips to submit, smoothed as fitted, and the lines about it; unchanged
    where nothing was fitted, or clips are not stretches.

    Args:
        split: the clips, as the cache has them. probabilities: (clips, classes).
        whole: folder of the blend that the run is part of, which a hint names in place of the run.
    """
    weight, recordings = read_weight(run), np.asarray(split["groups"])
    if not (run.folder / NAME).exists() and (recordings != "").any():
        named = whole or run.folder
        again = join_command("python", "predict.py", "--runs", named, "--fit-stretches", "COMPETITION")
        return probabilities, [f"stretches: to fit how much neighbours count: {again}"]
    if not weight:
        return probabilities, []
    if not (recordings != "").any():
        return probabilities, [
            f"warning: {run.folder / NAME} is not used: the cache names no recordings; its rows are not "
            "stretches, or an older version made it (get_features.py --fresh)"
        ]
    found = smooth(probabilities, recordings, find_middles(split), weight)
    return found, [f"stretches: neighbours count {weight:g}, as fitted in {run.folder / NAME}"]
