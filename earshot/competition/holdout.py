"""The hold-out of --holdout: a fraction of whole groups, or one of the data's own folds."""

from __future__ import annotations

import numpy as np
import pandas as pd

from earshot.competition.labels import as_tuple
from earshot.competition.layout import TRAIN_ONLY
from earshot.core.errors import UserError


def hold_out(clips: pd.DataFrame, holdout: str, seed: int) -> pd.DataFrame:
    """Move labelled clips to the split "test": a fraction, or one of the data's own folds. Clips of
    --extra-csv in the same groups are left out.

    Raises:
        UserError: neither a fraction nor a fold of the data, or there is a labelled hold-out already.
    """
    try:
        value = float(holdout)
    except ValueError:
        value = -1.0
    if value < 0 or not (value < 1 or value.is_integer()):
        raise UserError(f"--holdout {holdout}: give a fraction between 0 and 1, or the number of a fold")
    if (clips["split"] == "test").any():
        raise UserError(
            f"--holdout {holdout}: the data has {(clips['split'] == 'test').sum()} labelled clips to "
            "hold out already: remove --holdout"
        )
    train = (clips["split"].eq("train") & clips["fold"].ne(TRAIN_ONLY)).to_numpy()
    if 0 < value < 1:
        chosen = draw_holdout(clips[train], value, seed)
    else:
        folds = sorted(int(f) for f in clips["fold"][train].unique() if f >= 0)
        if int(value) not in folds:
            known = f"folds {', '.join(map(str, folds))}" if folds else "no folds of its own"
            raise UserError(
                f"--holdout {holdout}: the data has {known}; give one of them, or a fraction such as 0.2"
            )
        chosen = clips["fold"][train].to_numpy() == value
    if not chosen.any() or chosen.all():
        raise UserError(
            f"--holdout {holdout} would hold out {chosen.sum()} of {len(chosen)} labelled clips: "
            "choose another size (classes and groups are kept whole)"
        )
    clips = clips.copy()
    split = clips["split"].to_numpy(dtype=object, copy=True)
    split[np.flatnonzero(train)[chosen]] = "test"
    clips["split"] = pd.Series(split, dtype=object)
    held = set(clips["group"][clips["split"] == "test"]) - {""}
    clips = clips[~(clips["fold"].eq(TRAIN_ONLY) & clips["group"].isin(held))].reset_index(drop=True)
    order = clips["split"].map({"train": 0, "test": 1, "subm": 2})
    return clips.iloc[np.argsort(order.to_numpy(), kind="stable")].reset_index(drop=True)


def draw_holdout(train: pd.DataFrame, fraction: float, seed: int) -> np.ndarray:
    """Draw whole groups, stratified: in a seeded order, each group is taken if it brings the classes closer
    to their share and leaves training clips of each class.

    Returns:
        (clips,) bool, True where held out.
    """
    # A clip without group is a group of its own. (Not a zero: text ends there for pandas 2.2, which
    # Kaggle has, and all would be one.)
    alone = pd.Series([f"\1{i}" for i in train["id"]], index=train.index)
    groups, names = pd.factorize(train["group"].where(train["group"] != "", alone), sort=True)
    # clips without any label get their share, too
    labels = [as_tuple(label) or ("",) for label in train["label"]]
    classes = {
        label: index
        for index, label in enumerate(
            sorted({group_label for group_labels in labels for group_label in group_labels})
        )
    }
    per_group = np.zeros((len(names), len(classes)))
    for group, group_labels in zip(groups, labels, strict=True):
        per_group[group, [classes[label] for label in group_labels]] += 1
    total = per_group.sum(0)
    taken, held = np.zeros(len(names), dtype=bool), np.zeros(len(classes))
    for group in np.random.default_rng(seed).permutation(len(names)):
        more = held + per_group[group]
        closer = (
            np.square((more - fraction * total) / total).sum()
            < np.square((held - fraction * total) / total).sum()
        )
        if closer and ((more < total) | (per_group[group] == 0)).all():
            taken[group], held = True, more
    return taken[groups]


def find_straddling_groups(clips: pd.DataFrame) -> list[str]:
    """The groups that have labelled clips on both sides, train and test."""
    named = clips[clips["group"] != ""]
    return sorted(
        set(named["group"][named["split"] == "train"]) & set(named["group"][named["split"] == "test"])
    )
