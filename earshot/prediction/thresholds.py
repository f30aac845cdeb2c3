"""Factors per class before the likeliest is chosen; thresholds per class where a clip may have several."""

from __future__ import annotations

import numpy as np

from earshot.training.metrics import COUNTED, OF_SEVERAL, score_counts, score_each_class

KINDS = ("common", "each")
NAMES = {
    (False, "common"): "prior offsets",
    (False, "each"): "class offsets",
    (True, "common"): "one threshold",
    (True, "each"): "class thresholds",
}
POWERS = np.linspace(-1, 1, 21)
STEPS = np.linspace(-2, 2, 41)  # logarithms of factors
LOGITS = np.linspace(-6, 6, 49)  # of thresholds
SWEEPS = 2


def is_threshold_metric(metric: str, multilabel: bool) -> bool:
    """Do factors or thresholds change a metric? Rankings and the log loss use the probabilities directly."""
    return metric in (OF_SEVERAL if multilabel else COUNTED)


def fit(probabilities: np.ndarray, truth: np.ndarray, metric: str, kind: str) -> np.ndarray:
    """(classes,) factors or thresholds that score best on these clips.

    Args:
        probabilities: (clips, classes).
        truth: (clips,) class indices: factors are found; (clips, classes) of 0 and 1: thresholds are found.
        metric: one that `is_threshold_metric`.
        kind: "common": factors prior^-a with one a for all classes, or one threshold; "each": each class
            separately, starting there.
    """
    if truth.ndim == 2:
        return _fit_thresholds(probabilities, truth, metric, kind)
    scale = _fit_prior(probabilities, truth, metric)
    return scale if kind == "common" else _fit_factors(probabilities, truth, metric, scale)


def scale_classes(probabilities: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Rows of p * scale that sum to one."""
    found = probabilities * scale
    return found / np.maximum(found.sum(1, keepdims=True), 1e-300)


def recenter(probabilities: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Shift the probabilities of each class monotonically, so that its threshold becomes 0.5."""
    yes, no = probabilities * (1 - thresholds), (1 - probabilities) * thresholds
    return yes / (yes + no)


def apply(probabilities: np.ndarray, found: np.ndarray, multilabel: bool) -> np.ndarray:
    """Probabilities (clips, classes) after the factors or thresholds of `fit`: the prediction is then the
    likeliest class, or all from 0.5 on."""
    return (recenter if multilabel else scale_classes)(probabilities, found)


def _find_best(values: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """(...) the option where (options, ...) values are highest; of equals, the one with the smallest
    distance."""
    level = values.max(0) - 1e-12
    return np.where(values >= level, distance.reshape(-1, *[1] * (values.ndim - 1)), np.inf).argmin(0)


def _fit_prior(probabilities: np.ndarray, truth: np.ndarray, metric: str) -> np.ndarray:
    classes = probabilities.shape[1]
    log = np.log(np.bincount(truth, minlength=classes) + 1.0)
    log -= log.mean()
    values = []
    for power in POWERS:
        predicted = (probabilities * np.exp(-power * log)).argmax(1)
        values.append(_score(metric, truth, predicted, classes))
    return np.exp(-POWERS[_find_best(np.array(values), np.abs(POWERS))] * log)


def _score(metric: str, truth: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    three = (np.bincount(which, minlength=classes) for which in (truth[predicted == truth], truth, predicted))
    return float(score_counts(metric, *three, len(truth), False))


def _fit_factors(probabilities: np.ndarray, truth: np.ndarray, metric: str, scale: np.ndarray) -> np.ndarray:
    """Coordinate search: one class's factor at a time, the others held."""
    clips, classes = probabilities.shape
    log = np.log(np.maximum(probabilities.astype(np.float64), 1e-12))
    own, options = np.log(scale), len(STEPS)
    true = np.bincount(truth, minlength=classes)
    for _ in range(SWEEPS):
        before = own.copy()
        for c in range(classes):
            others = log + own
            others[:, c] = -np.inf
            rival = others.argmax(1)
            # From which step on the class is predicted: the counts at all steps are then sums over
            # the clips that have changed by then.
            at = np.searchsorted(STEPS, others[np.arange(clips), rival] - log[:, c] - own[c], side="right")
            right, mine = rival == truth, truth == c
            lost = [
                np.bincount(at[w] * classes + rival[w], minlength=(options + 1) * classes)
                .reshape(-1, classes)[:options]
                .cumsum(0)
                for w in (right, slice(None))
            ]
            predicted = np.bincount(rival, minlength=classes) - lost[1]
            good = np.bincount(rival[right], minlength=classes) - lost[0]
            predicted[:, c] = np.bincount(at, minlength=options + 1)[:options].cumsum()
            good[:, c] = np.bincount(at[mine], minlength=options + 1)[:options].cumsum()
            own[c] += STEPS[
                _find_best(score_counts(metric, good, true, predicted, clips, False), np.abs(STEPS))
            ]
        if np.array_equal(before, own):
            break
    return np.exp(own - own.mean())


def _score_thresholds(probabilities: np.ndarray, truth: np.ndarray, metric: str) -> tuple[np.ndarray, tuple]:
    """The score at each of the thresholds, and the counts (thresholds, classes) that it is made of."""
    classes = truth.shape[1]
    options = 1 / (1 + np.exp(-LOGITS))
    # How many thresholds a probability reaches; from that, how many clips reach each.
    cell = np.searchsorted(options, probabilities, side="right") * classes + np.arange(classes)
    right, predicted = (
        np.bincount(cells.ravel(), minlength=(len(options) + 1) * classes)
        .reshape(-1, classes)[::-1]
        .cumsum(0)[::-1][1:]
        for cells in (cell[truth == 1], cell)
    )
    counted = (right, truth.sum(0), predicted, len(truth), True)
    return score_counts(metric, *counted), counted


def _fit_thresholds(probabilities: np.ndarray, truth: np.ndarray, metric: str, kind: str) -> np.ndarray:
    levels, counted = _score_thresholds(probabilities, truth, metric)
    found = np.full(truth.shape[1], LOGITS[_find_best(levels, np.abs(LOGITS))])
    if kind == "each":
        found = LOGITS[_find_best(score_each_class(metric, *counted), np.abs(LOGITS - found[0]))]
    return 1 / (1 + np.exp(-found))
