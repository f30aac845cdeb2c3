"""Assignment of clips to folds; a group is never split between folds."""

from __future__ import annotations

import numpy as np

from earshot.core.errors import UserError

TRAIN_ONLY = -2  # as a clip's fold: trained on, and never validated, whoever makes the folds


def assign_folds(
    labels: np.ndarray, folds: np.ndarray, groups: np.ndarray, k: int | None, seed: int
) -> tuple[np.ndarray, str]:
    """A fold per clip: the data's own, else K grouped stratified ones.

    Args:
        labels: (clips,) class indices, or (clips, classes) of 0 and 1 where a clip may have several.
        folds: (clips,) the data's folds, -1 where it has none, -2 for clips that are trained on only.
        groups: (clips,) names of what must stay together, "" for a clip on its own.
        k: make this many folds although the data may have its own; None takes those, else 5, or one a
            group where they are fewer.
        seed: of the folds that are made.
    Returns:
        (clips,) fold numbers (-1: always trained on, never validated; -2: the same, but see
        `select_training_clips`), and a line that says whose folds they are.
    Raises:
        UserError: a group straddles two of the data's folds; too few clips or groups for K folds.
    """
    scored = folds != TRAIN_ONLY
    if not scored.any():
        raise UserError(f"all {len(folds)} training clips are for training only: none is left for validation")
    found = np.full(len(folds), TRAIN_ONLY, dtype=np.int64)
    found[scored], about = _assign_validation_clips(labels[scored], folds[scored], groups[scored], k, seed)
    if not scored.all():
        held = ~scored & np.isin(groups, np.setdiff1d(groups[found >= 0], [""]))
        about += f"; {int((~scored).sum())} clips are only trained on" + (
            f", {int(held.sum())} of them not in the fold that validates their group" if held.any() else ""
        )
    return found, about


def select_training_clips(numbers: np.ndarray, groups: np.ndarray, fold: int) -> np.ndarray:
    """(clips,) booleans of the training clips of a fold: those outside it that share no group with it.

    Clips outside the fold share a group with it only where they are trained on only.

    Args:
        numbers: (clips,) from `assign_folds`. groups: (clips,) as there.
    """
    held = numbers == fold
    return ~held & ~np.isin(groups, np.setdiff1d(groups[held], [""]))


def list_folds(numbers: np.ndarray) -> list[int]:
    """The existing folds in order, without -1 and -2."""
    return sorted(int(n) for n in np.unique(numbers) if n >= 0)


def format_numbers(numbers: np.ndarray) -> str:
    """The folds that there are as text, such as "0-4", or "1, 3" where some numbers are missing."""
    every = list_folds(numbers)
    if len(every) > 2 and every[-1] - every[0] + 1 == len(every):
        return f"{every[0]}-{every[-1]}"
    return ", ".join(map(str, every))


def choose_folds(numbers: np.ndarray, wanted: tuple[int, ...]) -> list[int]:
    """The folds to train, in order, all of them by default; UserError for one that does not exist."""
    every = list_folds(numbers)
    for number in wanted:
        if number not in every:
            raise UserError(f"there is no fold {number}: the folds are {', '.join(map(str, every))}")
    return [number for number in every if not wanted or number in wanted]


def _assign_validation_clips(
    labels: np.ndarray, folds: np.ndarray, groups: np.ndarray, k: int | None, seed: int
) -> tuple[np.ndarray, str]:
    """`assign_folds` for the clips that may be validated."""
    names = np.array([group or f"\0{index}" for index, group in enumerate(groups)])
    if k is None and (folds >= 0).any():
        found = folds.astype(np.int64)
        about = f"the data's own {len(np.unique(found[found >= 0]))} folds"
    else:
        units = len(np.unique(names))
        count = k or max(2, min(5, units))  # as many as there are sources, where these are few
        if count < 2:
            raise UserError(f"--folds {count}: at least 2 folds are needed")
        if units < count:
            raise UserError(
                f"{units} groups of clips cannot make {count} folds: give --folds {max(2, units)}"
            )
        found = _stratify_groups(labels, names, count, seed)
        grouped = f" over {units} groups" if units < len(labels) else ""
        about = f"{count} stratified folds{grouped}, seed {seed}"
    check_groups(found, groups)
    if len(np.unique(found[found >= 0])) < 2:
        raise UserError("the data has a single fold of its own: give --folds K to make K")
    return found, about


def _stratify_groups(labels: np.ndarray, names: np.ndarray, count: int, seed: int) -> np.ndarray:
    most = int((np.bincount(labels) if labels.ndim == 1 else labels.sum(0)).max())
    if most < count:
        raise UserError(
            f"the commonest label has {most} clips, too few for {count} folds: give --folds {max(2, most)}"
        )
    # scikit-learn's StratifiedGroupKFold draws other folds from release to release, so that a run begun
    # at home could not be continued where another release is installed.
    several = labels if labels.ndim == 2 else labels[:, None] == np.arange(labels.max() + 1)
    return _stratify_iteratively(several, names, count, seed)


def _stratify_iteratively(labels: np.ndarray, names: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Iterative stratification (Sechidis, Tsoumakas & Vlahavas 2011) of whole groups: the rarest label that
    is left first, each of its groups to the fold that lacks most of that label. Where folds tie, the paper
    goes by their clips; here their lack of the group's other labels comes first, because the common labels'
    turn comes when nearly all of them are given away. Clips without a label count as a label more.
    """
    groups, sizes = np.unique(names, return_inverse=True, return_counts=True)[1:]
    labels = np.column_stack([labels, labels.sum(1) == 0]).astype(np.int64)
    amounts = np.zeros((len(sizes), labels.shape[1]), dtype=np.int64)
    np.add.at(amounts, groups, labels)
    lacking, room = np.tile(amounts.sum(0) / count, (count, 1)), np.full(count, len(groups) / count)
    share = amounts / np.maximum(amounts.sum(0), 1)
    rng = np.random.default_rng(seed)
    order, home = rng.permutation(len(sizes)), np.full(len(sizes), -1)
    while (home < 0).any():
        left = amounts[home < 0].sum(0)
        label = int(np.where(left > 0, left, left.max() + 1).argmin())
        waiting = order[(home[order] < 0) & (amounts[order, label] > 0)]
        # The largest first: what comes later evens out what they left uneven.
        for group in waiting[np.argsort(-amounts[waiting, label], kind="stable")]:
            fold = np.lexsort(
                (rng.random(count), -room, -(lacking @ share[group]).round(9), -lacking[:, label])
            )[0]
            home[group] = fold
            lacking[fold] -= amounts[group]
            room[fold] -= sizes[group]
    return home[groups].astype(np.int64)


def check_groups(folds: np.ndarray, groups: np.ndarray) -> None:
    """Raise UserError if a named group lies in more than one fold, which makes scores optimistic."""
    home: dict[str, int] = {}
    for fold, group in zip(folds.tolist(), groups.tolist(), strict=True):
        if group and home.setdefault(group, fold) != fold:
            raise UserError(
                f"group {group} is in folds {home[group]} and {fold}, so that clips of one source would be "
                "both trained on and validated: give --folds K to make grouped folds"
            )
