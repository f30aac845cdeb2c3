"""Which clip is validated in which fold; no group ever straddles two."""

from __future__ import annotations

import numpy as np

from earshot.errors import UserError


def assign(labels: np.ndarray, folds: np.ndarray, groups: np.ndarray, k: int | None, seed: int) -> tuple[np.ndarray, str]:
    """A fold per clip: the data's own, else K grouped stratified ones.

    Args:
        labels: (clips,) class indices.
        folds: (clips,) the data's folds, -1 where it has none.
        groups: (clips,) names of what must stay together, "" for a clip on its own.
        k: make this many folds although the data may have its own; None takes those, else 5.
        seed: of the folds that are made.
    Returns:
        (clips,) fold numbers (-1: always trained on, never validated), and a line that says whose folds they are.
    Raises:
        UserError: a group straddles two of the data's folds; too few clips or groups for K folds.
    """
    names = np.array([group or f"\0{index}" for index, group in enumerate(groups)])
    if k is None and (folds >= 0).any():
        found = folds.astype(np.int64)
        about = f"the data's own {len(np.unique(found[found >= 0]))} folds"
    else:
        count = k or 5
        units = len(np.unique(names))
        if count < 2:
            raise UserError(f"--folds {count}: at least 2 folds are needed")
        if units < count:
            raise UserError(f"{units} groups of clips cannot make {count} folds: give --folds {max(2, units)}")
        found = _grouped(labels, names, count, seed)
        grouped = f" over {units} groups" if units < len(labels) else ""
        about = f"{count} stratified folds{grouped}, seed {seed}"
    check(found, groups)
    if len(np.unique(found[found >= 0])) < 2:
        raise UserError("the data has a single fold of its own: give --folds K to make K")
    return found, about


def _grouped(labels: np.ndarray, names: np.ndarray, count: int, seed: int) -> np.ndarray:
    import warnings

    most = int(np.bincount(labels).max())
    if most < count:
        raise UserError(f"the commonest label has {most} clips, too few for {count} folds: give --folds {max(2, most)}")

    from sklearn.model_selection import StratifiedGroupKFold

    found = np.full(len(labels), -1, dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class rarer than K folds: spread as far as it goes
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
        for fold, (_, valid) in enumerate(splitter.split(labels, labels, names)):
            found[valid] = fold
    return found


def check(folds: np.ndarray, groups: np.ndarray) -> None:
    """Raise UserError if a named group lies in more than one fold: its score would be flattered."""
    home: dict[str, int] = {}
    for fold, group in zip(folds.tolist(), groups.tolist()):
        if group and home.setdefault(group, fold) != fold:
            raise UserError(f"group {group} lies in folds {home[group]} and {fold}, so that clips of one source would be "
                            "both trained on and validated: give --folds K to make grouped folds")
