"""scikit-learn's logistic regression, stored as one linear layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from . import HeadError, register
from .common import stretch_time
from .sklearn_head import SklearnHead, compute_constant_logits, split_tasks

STRETCHES = (0.8, 1.25)


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
        stretches: also fit to copies of a spectrogram that are slower and faster, which count as much as one
            clip together, and predict by the mean over them: speakers differ in speed.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        c: float = 0.1,
        pool: str = "mean_max",
        modulations: bool = False,
        stretches: bool = False,
    ) -> None:
        super().__init__(input_shape, num_classes, pool, modulations)
        if stretches and self.functionals is None:
            raise HeadError(
                "logistic: option stretches needs a spectrogram, not a view of shape "
                f"{'x'.join(map(str, input_shape))}: leave it out, or extract log-mel"
            )
        self.stretches = STRETCHES if stretches else ()
        if not 0 < c < float("inf"):
            raise HeadError(f"logistic: c is above 0, not {c}")
        self.c = c
        self.fc = nn.Linear(self.width, num_classes)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of x (B, D, F, T); mask (B, T) True where real."""
        logits = [self.fc(self.compute_standardised(*copy)) for copy in self._list_copies(x, mask)]
        return torch.stack(logits).mean(0) if self.stretches else logits[0]

    def _list_copies(self, x: Tensor, mask: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
        return [(x, mask), *(stretch_time(x, mask, by) for by in self.stretches)]

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

        rows: list[np.ndarray] = []  # of every copy, the row that it is of

        def iterate_copies() -> Iterator[tuple[Tensor, Tensor | None]]:
            first = 0
            for x, mask in batches:
                for copy in self._list_copies(x, mask):
                    rows.append(np.arange(first, first + len(x)))
                    yield copy
                first += len(x)

        x = self.fit_standardisation(iterate_copies()).astype(np.float64)
        if self.stretches:
            copied = np.concatenate(rows)
            weights = (np.ones(len(targets)) if weights is None else weights)[copied]
            weights, targets = weights / (1 + len(self.stretches)), targets[copied]
        weight, bias = np.zeros((self.classes, self.width)), compute_constant_logits(targets)
        separable = list(split_tasks(targets))
        if multilabel:
            for number, yes in separable:
                fitted = LogisticRegression(C=self.c, max_iter=2000).fit(x, yes, weights)
                weight[number], bias[number] = fitted.coef_[0], fitted.intercept_[0]
        elif separable:
            fitted = LogisticRegression(C=self.c, max_iter=2000).fit(x, targets.argmax(1), weights)
            # of two classes one row is kept
            known = fitted.classes_ if len(fitted.coef_) > 1 else fitted.classes_[1:]
            weight[known], bias[known] = fitted.coef_, fitted.intercept_
        with torch.no_grad():
            self.fc.weight.copy_(torch.from_numpy(weight))
            self.fc.bias.copy_(torch.from_numpy(bias))

    def estimate_seconds(self, rows: int) -> tuple[float, float]:
        """Estimated seconds on two cores: to fit to this many rows, and to predict one."""
        each = 1 + 8e-8 * rows * self.width * self.classes * (1 + len(self.stretches))
        return each, each / rows / 30
