"""Blends of ranks: for metrics that only compare clips within a class, such as ROC AUC."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from earshot.core.errors import UserError
from earshot.features.cache import Cache
from earshot.prediction import members, submission
from earshot.prediction.blend_weights import RANK, FittedBlend
from earshot.prediction.members import Member
from earshot.training.metrics import COUNTED

OF_A_CLASS = ("roc_auc_macro", "map_macro")  # metrics that compare nothing but the clips within a class
MIDDLE = 0.5  # the rank of a clip without a prediction


def build(inside: list[Member]) -> Member:
    """The blend of the members' mean ranks, each by its best checkpoints; nothing is fitted.

    Raises:
        UserError: other classes or another task; the metric of a run is the log loss, which needs
            probabilities.
    """
    for member in inside:
        if member.metric == "log_loss":
            raise UserError(
                f"--blend rank: the metric of {member.folder} is log_loss, and ranks are not "
                "probabilities: use --blend mean or auto"
            )
    return members.mean_blend(inside, RANK)


def is_rank(fitted: FittedBlend | None) -> bool:
    """Does a blend give ranks in place of probabilities?"""
    return fitted is not None and fitted.method == RANK


def check_submission(cache: Cache) -> None:
    """UserError where the submission holds labels, or yes and no: they would need probabilities."""
    ids, mark = cache.split("subm")["ids"], 0.25
    filled = np.full((len(ids), len(cache.classes)), mark)
    columns, sample = tuple(cache.manifest["columns"]), submission.find_sample(cache)
    separator = cache.manifest.get("separator")
    _, table = submission.render(ids, filled, cache.classes, columns, sample, cache.multilabel, separator)
    if not (table == str(mark)).to_numpy().any():
        raise UserError(
            "--blend rank: the submission holds labels, which are chosen by probabilities, and ranks are "
            "not: use --blend mean or auto"
        )


def describe_gain(inside: list[Member]) -> str:
    """The out-of-fold score of the mean ranks beside that of the mean of the probabilities, as a line."""
    try:
        oof, probabilities, _ = members.align_oof(inside)
    except (UserError, OSError) as error:
        return f"out-of-fold score of the ranks: not known ({error})"
    metric = inside[0].metric if inside[0].metric not in COUNTED else OF_A_CLASS[0]
    weights = np.full(len(inside), 1 / len(inside))
    scores = [
        replace(oof, probabilities=FittedBlend(method, weights).apply(probabilities)).score(metric)[metric]
        for method in (RANK, "mean")
    ]
    more = "" if metric in OF_A_CLASS else "; this metric also compares classes, which ranks put on one scale"
    return (
        f"out-of-fold {metric}, {len(oof.ids)} clips: ranks {scores[0]:.4f}, mean of the probabilities "
        f"{scores[1]:.4f} (last epoch, nothing fitted: unbiased){more}"
    )
