"""The scores of each class as text, for a run's report files."""

from __future__ import annotations

import numpy as np

from earshot.training import metrics


def format_report(probabilities: np.ndarray, truth: np.ndarray, classes: list[str]) -> str:
    """scikit-learn's classification report as text, and below it the confusion matrix; where multi-label, the
    average precision of each class and its true positives, missed labels and false positives."""
    import sklearn.metrics

    every = list(range(len(classes)))
    name = max(map(len, classes))
    if truth.ndim == 2:
        predicted = (probabilities >= metrics.THRESHOLD).astype(np.int64)
        table = sklearn.metrics.classification_report(
            truth, predicted, target_names=classes, digits=4, zero_division=0
        )
        lines = [f"{'':>{name}} precision  true positives  missed  false positives"]
        for index, label in enumerate(classes):
            yes, predicted_yes = truth[:, index] == 1, predicted[:, index] == 1
            precision = (
                f"{sklearn.metrics.average_precision_score(yes, probabilities[:, index]):.4f}"
                if yes.any()
                else "-"
            )
            hits, missed, false = (
                (yes & predicted_yes).sum(),
                (yes & ~predicted_yes).sum(),
                (~yes & predicted_yes).sum(),
            )
            lines.append(f"{label:>{name}} {precision:>9}  {hits:>14}  {missed:>6}  {false:>15}")
        return (
            f"{table}\naverage precision, and numbers of clips at threshold {metrics.THRESHOLD}\n"
            + "\n".join(lines)
            + "\n"
        )
    predicted = probabilities.argmax(1)
    table = sklearn.metrics.classification_report(
        truth, predicted, labels=every, target_names=classes, digits=4, zero_division=0
    )
    matrix = sklearn.metrics.confusion_matrix(truth, predicted, labels=every)
    width = max(len(str(matrix.max())), len(str(len(classes) - 1)))
    lines = [" " * (name + 5) + " ".join(f"{index:>{width}}" for index in every)]
    lines += [
        f"{label:>{name}} {index:>3} " + " ".join(f"{count:>{width}}" for count in row)
        for index, (label, row) in enumerate(zip(classes, matrix, strict=True))
    ]
    return f"{table}\nconfusion (rows: truth, columns: prediction)\n" + "\n".join(lines) + "\n"
