"""Is one set of predictions better than another beyond noise? One metric at a time, fast enough to be asked
thousands of times."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from earshot import metrics

BLOCKS = 20  # of clips, each left out once
BEYOND = 2.0  # standard errors that a gain has to exceed, or it is taken for noise
COUNTED = ("f1_macro", "f1_micro", "f1_weighted", "accuracy", "balanced_accuracy")
OF_SEVERAL = tuple(name for name in COUNTED if name != "accuracy")  # of clips with several labels


def is_counted(metric: str, truth: np.ndarray) -> bool:
    """Is the metric a function of the counts that `counts` makes?"""
    return metric in (OF_SEVERAL if truth.ndim == 2 else COUNTED)


def counts(probabilities: np.ndarray, truth: np.ndarray, blocks: np.ndarray | None = None) -> np.ndarray:
    """How often each class was rightly said, was true, and was said.

    Args:
        probabilities: (clips, classes).
        truth: (clips,) or (clips, classes).
        blocks: (clips,) ints from 0; None: one block.
    Returns:
        (3, blocks, classes).
    """
    classes = probabilities.shape[1]
    blocks = np.zeros(len(truth), dtype=np.int64) if blocks is None else blocks
    number = int(blocks.max()) + 1
    if truth.ndim == 2:
        said, true = probabilities >= metrics.THRESHOLD, truth == 1
        found = [
            np.stack([part[blocks == b].sum(0) for b in range(number)]) for part in (said & true, true, said)
        ]
        return np.stack(found)
    said = probabilities.argmax(1)
    right = said == truth
    table = [(blocks[right], truth[right]), (blocks, truth), (blocks, said)]
    return np.stack(
        [np.bincount(b * classes + c, minlength=number * classes).reshape(number, classes) for b, c in table]
    )


def each_class(
    metric: str,
    right: np.ndarray,
    true: np.ndarray,
    said: np.ndarray,
    clips: np.ndarray | int,
    multilabel: bool,
) -> np.ndarray:
    """F1 of each class, or its recall (multi-label: yes against no) for the balanced accuracy; counts of any
    equal shapes."""
    if metric != "balanced_accuracy":
        return 2 * right / np.maximum(true + said, 1)
    recall = right / np.maximum(true, 1)
    if not multilabel:
        return recall
    others = clips - true
    return np.where(others > 0, (recall + (others - said + right) / np.maximum(others, 1)) / 2, recall)


def from_counts(
    metric: str,
    right: np.ndarray,
    true: np.ndarray,
    said: np.ndarray,
    clips: np.ndarray | int,
    multilabel: bool,
) -> np.ndarray:
    """A counted metric from (..., classes) counts, as `metrics.scores` has it; `clips` is a number, or (...,
    1)."""
    if metric == "f1_micro":
        return 2 * right.sum(-1) / np.maximum((true + said).sum(-1), 1)
    if metric == "accuracy":
        return right.sum(-1) / np.maximum(true.sum(-1), 1)
    each = each_class(metric, right, true, said, clips, multilabel)
    weight = (
        true if metric == "f1_weighted" else (true > 0 if metric == "balanced_accuracy" else true + said > 0)
    )
    return (each * weight).sum(-1) / np.maximum(weight.sum(-1), 1)


def likelihood(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The probability of what is true: (..., clips), or of each class's yes or no: (..., clips, classes)."""
    if truth.ndim == 2:
        return np.where(truth == 1, probabilities, 1 - probabilities)
    return probabilities[..., np.arange(len(truth)), truth]


def losses(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(clips,) log loss, or mean binary cross-entropy, of each clip."""
    found = -np.log(np.clip(likelihood(probabilities, truth).astype(np.float64), 1e-15, 1))
    return found.mean(1) if truth.ndim == 2 else found


def one(metric: str, probabilities: np.ndarray, truth: np.ndarray) -> float:
    """A metric's value, the log loss negated: higher is better."""
    if metric == "log_loss":
        return -float(losses(probabilities, truth).mean())
    if is_counted(metric, truth):
        return float(from_counts(metric, *counts(probabilities, truth)[:, 0], len(truth), truth.ndim == 2))
    if truth.ndim == 2 and metric in RANKED:
        return RANKED[metric](probabilities, truth)
    return float(metrics.scores(probabilities, truth)[metric])


def _by_class(area: Callable[..., np.ndarray]) -> Callable[[np.ndarray, np.ndarray], float]:
    """The mean over classes of the mean of `area` over the clips that have the class; for clips with several
    labels."""

    def score(probabilities: np.ndarray, truth: np.ndarray) -> float:
        ordered, found = np.sort(probabilities, 0), []
        for c in np.flatnonzero(truth.any(0)):
            mine = np.sort(probabilities[truth[:, c] == 1, c])
            # How many clips lie below each, or no higher; of all, and of those that have the class.
            places = [
                np.searchsorted(those, mine, side)
                for those in (ordered[:, c], mine)
                for side in ("left", "right")
            ]
            if area is _precision or len(mine) < len(truth):
                found.append(area(*places, len(truth), len(mine)).mean())
        return float(np.mean(found)) if found else 0.0

    return score


def _precision(
    below: np.ndarray, upto: np.ndarray, own_below: np.ndarray, own_upto: np.ndarray, clips: int, own: int
) -> np.ndarray:
    return (own - own_below) / (clips - below)


def _area(
    below: np.ndarray, upto: np.ndarray, own_below: np.ndarray, own_upto: np.ndarray, clips: int, own: int
) -> np.ndarray:
    return (below + upto - own_below - own_upto) / (2 * (clips - own))


def _lwlrap(probabilities: np.ndarray, truth: np.ndarray) -> float:
    rows, columns = np.nonzero(truth)
    above = probabilities[rows] >= probabilities[rows, columns][:, None]
    return float(((above & (truth[rows] == 1)).sum(1) / above.sum(1)).mean()) if len(rows) else 0.0


# The values of `metrics.scores` without its other metrics.
RANKED = {"map_macro": _by_class(_precision), "roc_auc_macro": _by_class(_area), "lwlrap": _lwlrap}


def blocks_of(clips: int, groups: np.ndarray | None = None, number: int = BLOCKS) -> np.ndarray:
    """(clips,) a block for each clip, drawn evenly with a fixed seed; clips of one group (other than "")
    share theirs."""
    names = (
        np.array([str(name) or f"\0{index}" for index, name in enumerate(groups)])
        if groups is not None
        else np.arange(clips)
    )
    units = np.unique(names, return_inverse=True)[1]
    count = int(units.max()) + 1
    return (np.random.default_rng(0).permutation(count) % min(number, count))[units]


def gain(
    metric: str, old: np.ndarray, new: np.ndarray, truth: np.ndarray, blocks: np.ndarray
) -> tuple[float, float]:
    """By how much `new` scores better than `old` on the same clips, and that difference's standard error.

    The error is the delete-a-block jackknife's.
    """
    number = int(blocks.max()) + 1
    rises = one(metric, new, truth) - one(metric, old, truth)
    if metric == "log_loss" or not is_counted(metric, truth):
        left = [
            one(metric, new[blocks != b], truth[blocks != b])
            - one(metric, old[blocks != b], truth[blocks != b])
            for b in range(number)
        ]
    else:
        clips = (len(truth) - np.bincount(blocks, minlength=number))[:, None]
        each = [
            found.sum(1, keepdims=True) - found for found in (counts(p, truth, blocks) for p in (new, old))
        ]
        left = np.subtract(*(from_counts(metric, *found, clips, truth.ndim == 2) for found in each))
    return rises, float(np.sqrt((number - 1) * np.var(left)))


def beats(
    metric: str,
    old: np.ndarray,
    new: np.ndarray,
    truth: np.ndarray,
    blocks: np.ndarray,
    plain: tuple[np.ndarray, np.ndarray] | None = None,
) -> bool:
    """Is `new` better by more than two standard errors: in the metric, or in log loss while the metric is no
    worse?

    The log loss sees a weak member long before a few clips change sides.

    Args:
        plain: the probabilities before factors or thresholds, old and new, whose log losses are compared;
            None: only the metric is.
    """
    rises, error = gain(metric, old, new, truth, blocks)
    if rises > max(BEYOND * error, 1e-9):
        return True
    if plain is None or rises < 0:
        return False
    rises, error = gain("log_loss", *plain, truth, blocks)
    return rises > max(BEYOND * error, 1e-9)
