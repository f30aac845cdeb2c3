"""Scores of predictions, all by scikit-learn."""

from __future__ import annotations

import numpy as np


def scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every metric of a set of clips.

    Args:
        probabilities: (clips, classes).
        labels: (clips,) class indices.
    Returns:
        f1_macro, f1_micro, f1_weighted, accuracy, balanced_accuracy and log_loss. Macro-F1 is over all classes that
        occur in the labels or the predictions.
    """
    from sklearn import metrics

    predicted = probabilities.argmax(1)
    picked = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    recalls = [(predicted[labels == c] == c).mean() for c in np.unique(labels)]
    return {
        **{f"f1_{how}": float(metrics.f1_score(labels, predicted, average=how, zero_division=0))
           for how in ("macro", "micro", "weighted")},
        "accuracy": float((predicted == labels).mean()),
        "balanced_accuracy": float(np.mean(recalls)),  # sklearn's warns when a rare class is only predicted
        "log_loss": float(-np.log(np.clip(picked, 1e-15, 1)).mean()),
    }


def report(probabilities: np.ndarray, labels: np.ndarray, classes: list[str]) -> str:
    """scikit-learn's classification report, and the confusion matrix below it, as text."""
    from sklearn import metrics

    predicted, every = probabilities.argmax(1), list(range(len(classes)))
    table = metrics.classification_report(labels, predicted, labels=every, target_names=classes, digits=4, zero_division=0)
    matrix = metrics.confusion_matrix(labels, predicted, labels=every)
    width = max(len(str(matrix.max())), len(str(len(classes) - 1)))
    name = max(map(len, classes))
    lines = [" " * (name + 5) + " ".join(f"{index:>{width}}" for index in every)]
    lines += [f"{label:>{name}} {index:>3} " + " ".join(f"{count:>{width}}" for count in row)
              for index, (label, row) in enumerate(zip(classes, matrix))]
    return f"{table}\nconfusion (rows: truth, columns: prediction)\n" + "\n".join(lines) + "\n"
