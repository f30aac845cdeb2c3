"""scikit-learn's logistic regression, stored as one linear layer."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from . import HeadError, register
from .sklearn_head import SklearnHead, compute_constant_logits, split_tasks


@register(
    "logistic",
    kinds=("vector", "sequence", "grid", "spectrogram", "waveform"),
    about="scikit-learn's logistic regression on the embedding or on statistics over time",
)
class Logistic(SklearnHead):
    """Multinomial, or one-vs-rest where clips have several labels; often the best head for few clips.

    Args:
        input_shape: (D, F, T); `sklearn_head.SklearnHead` says how it becomes a vector.
        num_classes: width of the logits.
        c: inverse strength of the L2 penalty on the standardised features.
        pool: statistics over time, except of a spectrogram: mean, mean_max or mean_std.
        modulations: also a spectrogram's spectro-temporal modulations, see `modulations.Modulations`.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        c: float = 0.1,
        pool: str = "mean_max",
        modulations: bool = False,
    ) -> None:
        super().__init__(input_shape, num_classes, pool, modulations)
        if not 0 < c < float("inf"):
            raise HeadError(f"logistic: c is above 0, not {c}")
        self.c = c
        self.fc = nn.Linear(self.width, num_classes)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of x (B, D, F, T); mask (B, T) True where real."""
        return self.fc(self.compute_standardised(x, mask))

    def solve(
        self,
        batches: Iterable[tuple[Tensor, Tensor | None]],
        targets: np.ndarray,
        groups: np.ndarray,
        multilabel: bool,
        weights: np.ndarray | None = None,
    ) -> None:
        """Fit to the training rows.

        Args:
            batches: (x, mask) of all of them in order. targets: (rows, classes) 0/1. groups: (rows,), not
                needed here. weights: (rows,) what each counts; None: all count 1.
        """
        from sklearn.linear_model import LogisticRegression

        x = self.fit_standardisation(batches).astype(np.float64)
        weight, bias = np.zeros((self.classes, self.width)), compute_constant_logits(targets)
        separable = list(split_tasks(targets))
        if multilabel:
            for number, yes in separable:
                fitted = LogisticRegression(C=self.c, max_iter=2000).fit(x, yes, weights)
                weight[number], bias[number] = fitted.coef_[0], fitted.intercept_[0]
        elif separable:
            fitted = LogisticRegression(C=self.c, max_iter=2000).fit(x, targets.argmax(1), weights)
            # of two classes one row is kept
            rows = fitted.classes_ if len(fitted.coef_) > 1 else fitted.classes_[1:]
            weight[rows], bias[rows] = fitted.coef_, fitted.intercept_
        with torch.no_grad():
            self.fc.weight.copy_(torch.from_numpy(weight))
            self.fc.bias.copy_(torch.from_numpy(bias))

    def estimate_seconds(self, rows: int) -> tuple[float, float]:
        """Estimated seconds on two cores: to fit to this many rows, and to predict one."""
        each = 1 + 8e-8 * rows * self.width * self.classes
        return each, each / rows / 30
