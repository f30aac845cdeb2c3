"""Scores of predictions; the truth's shape says which task: (clips,) or (clips, classes).

They equal scikit-learn's, but are computed here, because its checks take longer than an epoch of a small
head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from earshot.core.errors import UserError

COUNTED = ("f1_macro", "f1_micro", "f1_weighted", "accuracy", "balanced_accuracy")
OF_SEVERAL = tuple(name for name in COUNTED if name != "accuracy")  # of clips with several labels

NAMES = (*COUNTED, "roc_auc_macro", "roc_auc_micro", "log_loss")
OF_ONE = ("map_at_3",)  # where a clip has one label
RANKING = ("map_macro", "lwlrap")  # of multi-label probabilities, without a threshold
MINIMISED = ("log_loss",)
THRESHOLD = 0.5  # of multi-label probabilities; fixed, never fitted to the clips that are scored


def list_for_task(multilabel: bool) -> tuple[str, ...]:
    """The metrics of clips with one label each, or with several."""
    return (*NAMES, *(RANKING if multilabel else (*OF_ONE, "map_macro")))


def check_metric(metric: str, multilabel: bool) -> None:
    """Raise UserError for a metric that the task does not have."""
    if metric in RANKING and metric not in list_for_task(multilabel):
        raise UserError(
            f"--metric {metric} is for clips with several labels, and these have one each: choose "
            f"{', '.join(list_for_task(False))}"
        )
    if metric in OF_ONE and multilabel:
        raise UserError(
            f"--metric {metric} is for clips with one label each, and these may have several: choose "
            f"{', '.join(list_for_task(True))}"
        )


def to_gain(metric: str, value: float) -> float:
    """A score turned so that larger is better: minus a loss. Its own inverse."""
    return -value if metric in MINIMISED else value


def group_shown_scores(scored: dict[str, float], metric: str) -> list[list[str]]:
    """Names of the scores to show, the chosen metric among them: one line of them; of multi-label scores two
    lines, first those that need no threshold."""
    if RANKING[-1] not in scored:
        return [list(dict.fromkeys(("f1_macro", metric, "accuracy", "log_loss")))]
    ranking, counted = [*RANKING, "roc_auc_macro", "log_loss"], ["f1_macro", "accuracy"]
    if metric not in (*ranking, *counted):
        (counted if metric in COUNTED else ranking).insert(1, metric)
    return [ranking, counted]


def format_summary(scored: dict[str, float], metric: str = "f1_macro") -> str:
    """The scores that a line has room for."""
    return format_scores(scored, sum(group_shown_scores(scored, metric), []))


def format_scores(scored: dict[str, float], names: list[str]) -> str:
    """Some of the scores on a line."""
    return "  ".join(
        f"{name} undefined" if name in scored.get("undefined", ()) else f"{name} {scored[name]:.4f}"
        for name in names
    )


def list_undefined_metrics(truth: np.ndarray) -> list[str]:
    """The metrics that are undefined for a set of clips, which `compute_scores` sets to 0, such as those over
    the labels that occur if none does."""
    if truth.ndim == 2 and not truth.any():
        return [*OF_SEVERAL, *RANKING, "roc_auc_macro", "roc_auc_micro"]
    if (truth != truth[:1]).any():
        return []
    return ["roc_auc_macro"] + (["roc_auc_micro"] if truth.ndim == 2 and truth.all() else [])


def compute_scores(probabilities: np.ndarray, truth: np.ndarray, metric: str = "") -> dict[str, float]:
    """Every metric of a set of clips, as scikit-learn defines them.

    Args:
        probabilities: (clips, classes).
        truth: (clips,) class indices, or (clips, classes) of 0 and 1.
        metric: the chosen one; roc_auc_micro, and map_macro where a clip has one label, are computed only
            if chosen.
    Returns:
        f1_macro, f1_micro, f1_weighted, accuracy, balanced_accuracy, roc_auc_macro, roc_auc_micro and
        log_loss; where a clip has one label also map_at_3, where several map_macro and lwlrap. Macro-F1 is
        over all classes that occur in the truth or the predictions. Where multi-label: predicted is what has
        a probability of 0.5 or more; accuracy is the share of clips whose labels are all right;
        balanced_accuracy is that of each class that occurs, yes against no, then their mean; log_loss is the
        mean binary cross-entropy; map_macro is the mean average precision of the classes that occur, lwlrap
        the label-weighted label-ranking average precision of FSDKaggle2019. A clip without labels counts in
        neither of the two, and where no clip has any they are 0, so that epochs can be compared;
        `list_undefined_metrics` names them for the reader. A class that is only predicted counts as an F1 of
        0, one in neither truth nor predictions does not count. A probability of 0 costs 34.5 (that of 1e-15).
        roc_auc_macro is the mean over the classes that some clips have and some have not, each against the
        rest, ties counting half; 0 where there is no such class; of two classes, one label a clip, it is the
        usual ROC AUC, by the second's probability. roc_auc_micro is of all (clip, class) pairs together,
        those of classes that no clip has included; 0 where none is true, or all are. map_at_3 is 1, 1/2 or
        1/3 for a label that comes first, second or third, else 0.
    Raises:
        UserError: no clips, or a prediction that is not a number.
    """
    if not len(truth):
        raise UserError("there are no clips to score: the fold or hold-out is empty")
    not_finite = ~np.isfinite(probabilities).all(1)
    if not_finite.any():
        raise UserError(
            f"{int(not_finite.sum())} of {len(truth)} predictions are not numbers, which have no score: "
            "train again with a lower --lr, or --clip-grad 1"
        )
    multilabel, classes = truth.ndim == 2, probabilities.shape[1]
    right, true, predicted = count_classes(probabilities, truth)[:, 0]
    scored = {
        name: float(score_counts(name, right, true, predicted, len(truth), multilabel))
        for name in COUNTED
        if uses_counts(name, truth)
    }
    if multilabel:
        exact = ((probabilities >= THRESHOLD) == truth).all(1)
        balanced = scored.pop("balanced_accuracy")
        scored |= {"accuracy": float(exact.mean()), "balanced_accuracy": balanced}
        scored |= {name: rank(probabilities, truth) for name, rank in RANKED.items()}
    else:
        yes = truth[:, None] == np.arange(classes)
        # of two classes the second alone: close to 1 probabilities round sooner than near 0
        first = 1 if classes == 2 and yes.any(0).all() else 0
        scored["roc_auc_macro"] = RANKED["roc_auc_macro"](probabilities[:, first:], yes[:, first:])
        if metric == "roc_auc_micro":
            scored[metric] = _compute_roc_auc_micro(probabilities, truth)
        if metric == "map_macro":
            scored[metric] = RANKED[metric](probabilities, yes)
        scored["map_at_3"] = _compute_map_at_3(truth, probabilities)
    scored["log_loss"] = float(compute_losses(probabilities, truth).mean())
    if multilabel and metric == "roc_auc_micro":
        scored[metric] = _compute_roc_auc_micro(probabilities, truth)
    return scored


def _compute_map_at_3(truth: np.ndarray, probabilities: np.ndarray) -> float:
    best = np.argsort(-probabilities, 1, kind="stable")[:, :3]  # as `submission` orders them
    return float(((best == truth[:, None]) / np.arange(1, best.shape[1] + 1)).sum(1).mean())


def _compute_roc_auc_micro(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The area of all (clip, class) pairs as if they were clips of one class."""
    yes = truth if truth.ndim == 2 else truth[:, None] == np.arange(probabilities.shape[1])
    return RANKED["roc_auc_macro"](probabilities.reshape(-1, 1), yes.reshape(-1, 1))


def uses_counts(metric: str, truth: np.ndarray) -> bool:
    """Is the metric a function of the counts that `count_classes` makes?"""
    return metric in (OF_SEVERAL if truth.ndim == 2 else COUNTED)


def count_classes(
    probabilities: np.ndarray, truth: np.ndarray, blocks: np.ndarray | None = None
) -> np.ndarray:
    """Count for each class its correct predictions, its true labels and all its predictions.

    Args:
        probabilities: (clips, classes).
        truth: (clips,) or (clips, classes).
        blocks: (clips,) ints from 0; None: one block.
    Returns:
        (3, blocks, classes).
    """
    classes = probabilities.shape[1]
    blocks = np.zeros(len(truth), dtype=np.int64) if blocks is None else blocks
    block_count = int(blocks.max()) + 1
    if truth.ndim == 2:
        predicted, true = probabilities >= THRESHOLD, truth == 1
        totals = [
            np.stack([part[blocks == b].sum(0) for b in range(block_count)])
            for part in (predicted & true, true, predicted)
        ]
        return np.stack(totals)
    predicted = probabilities.argmax(1)
    right = predicted == truth
    table = [(blocks[right], truth[right]), (blocks, truth), (blocks, predicted)]
    return np.stack(
        [
            np.bincount(b * classes + c, minlength=block_count * classes).reshape(block_count, classes)
            for b, c in table
        ]
    )


def score_each_class(
    metric: str,
    right: np.ndarray,
    true: np.ndarray,
    predicted: np.ndarray,
    clips: np.ndarray | int,
    multilabel: bool,
) -> np.ndarray:
    """F1 of each class, or its recall (multi-label: yes against no) for the balanced accuracy; counts of any
    equal shapes."""
    if metric != "balanced_accuracy":
        return 2 * right / np.maximum(true + predicted, 1)
    recall = right / np.maximum(true, 1)
    if not multilabel:
        return recall
    others = clips - true
    return np.where(others > 0, (recall + (others - predicted + right) / np.maximum(others, 1)) / 2, recall)


def score_counts(
    metric: str,
    right: np.ndarray,
    true: np.ndarray,
    predicted: np.ndarray,
    clips: np.ndarray | int,
    multilabel: bool,
) -> np.ndarray:
    """A counted metric from (..., classes) counts, as `compute_scores` has it; `clips` is a number, or (...,
    1)."""
    if metric == "f1_micro":
        return 2 * right.sum(-1) / np.maximum((true + predicted).sum(-1), 1)
    if metric == "accuracy":
        return right.sum(-1) / np.maximum(true.sum(-1), 1)
    each = score_each_class(metric, right, true, predicted, clips, multilabel)
    weight = (
        true
        if metric == "f1_weighted"
        else (true > 0 if metric == "balanced_accuracy" else true + predicted > 0)
    )
    return (each * weight).sum(-1) / np.maximum(weight.sum(-1), 1)


def get_likelihood(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The probability of the truth: (..., clips), or (..., clips, classes) if multi-label."""
    if truth.ndim == 2:
        return np.where(truth == 1, probabilities, 1 - probabilities)
    return probabilities[..., np.arange(len(truth)), truth]


def compute_losses(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(clips,) log loss, or mean binary cross-entropy, of each clip."""
    values = -np.log(np.clip(get_likelihood(probabilities.astype(np.float64), truth), 1e-15, 1))
    return values.mean(1) if truth.ndim == 2 else values


def compute_gain(metric: str, probabilities: np.ndarray, truth: np.ndarray) -> float:
    """A metric's value, the log loss negated: higher is better."""
    if metric == "log_loss":
        return -float(compute_losses(probabilities, truth).mean())
    if uses_counts(metric, truth):
        right, true, predicted = count_classes(probabilities, truth)[:, 0]
        return float(score_counts(metric, right, true, predicted, len(truth), truth.ndim == 2))
    if metric == "roc_auc_micro":
        return _compute_roc_auc_micro(probabilities, truth)
    if truth.ndim == 2 and metric in RANKED:
        return RANKED[metric](probabilities, truth)
    return float(compute_scores(probabilities, truth, metric)[metric])


def _average_over_classes(
    score: Callable[..., float | None], probabilities: np.ndarray, truth: np.ndarray
) -> float:
    """The mean of a score over the classes that some clips have; (clips, classes) each, truth of 0 and 1.

    Args:
        score: is given, for the clips of a class in the order of its probabilities, how many clips have a
            lower one, and how many none higher; the same among the class's own; how many clips there are.
    """
    ordered, values = np.sort(probabilities, 0), []
    for c in np.flatnonzero(truth.any(0)):
        own = np.sort(probabilities[truth[:, c] == 1, c])
        below, up_to = (np.searchsorted(ordered[:, c], own, side) for side in ("left", "right"))
        own_below, own_up_to = (np.searchsorted(own, own, side) for side in ("left", "right"))
        values.append(score(below, up_to, own_below, own_up_to, len(truth)))
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else 0.0


def _compute_average_precision(
    below: np.ndarray, up_to: np.ndarray, own_below: np.ndarray, own_up_to: np.ndarray, clips: int
) -> float:
    return ((len(below) - own_below) / (clips - below)).mean()


def _compute_roc_auc(
    below: np.ndarray, up_to: np.ndarray, own_below: np.ndarray, own_up_to: np.ndarray, clips: int
) -> float | None:
    """The share of pairs with a clip of another class in which that one is lower; equal ones count half."""
    others = clips - len(below)
    twice = (below + up_to - own_below - own_up_to).sum()
    return twice / (2 * len(below) * others) if others else None


def _compute_lwlrap(probabilities: np.ndarray, truth: np.ndarray) -> float:
    rows, columns = np.nonzero(truth)
    above = probabilities[rows] >= probabilities[rows, columns][:, None]
    return float(((above & (truth[rows] == 1)).sum(1) / above.sum(1)).mean()) if len(rows) else 0.0


# Of clips with several labels; of a class a clip where `truth` says 0 and 1 for each.
RANKED: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "map_macro": partial(_average_over_classes, _compute_average_precision),
    "lwlrap": _compute_lwlrap,
    "roc_auc_macro": partial(_average_over_classes, _compute_roc_auc),
}
