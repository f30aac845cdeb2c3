"""A support vector machine with a Gaussian kernel, its training vectors and coefficients kept as arrays."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from . import HeadError, register
from .sklearn_head import SklearnHead, compute_constant_logits, split_tasks

MOST = 25_000  # rows: their kernel takes 5 GB
INNER = 3  # folds within the training rows that the scale of the decisions is found on


def compute_gaussian_kernel(x: Tensor, y: Tensor, gamma: float) -> Tensor:
    """exp(-gamma |x - y|^2 / width) of all pairs of rows; in float32, for the squares cancel."""
    with torch.autocast(x.device.type, enabled=False):
        x, y = x.float(), y.float()
        squares = x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * (x @ y.T)
        return (-gamma / x.shape[1] * squares.clamp(min=0)).exp()


@register(
    "svm",
    kinds=("vector", "sequence", "grid", "spectrogram", "waveform"),
    about="scikit-learn's support vector machine (Gaussian kernel, one against the rest)",
)
class SVM(SklearnHead):
    """One machine per class; logits are the decisions times a factor found by cross-validation within the
    training rows.

    Args:
        input_shape: (D, F, T); `sklearn_head.SklearnHead` says how it becomes a vector.
        num_classes: width of the logits.
        c: inverse strength of the penalty.
        gamma: of the kernel exp(-gamma |x - y|^2 / width).
        rows: training vectors kept; set by the fit.
        pool: statistics over time, except of a spectrogram: mean, mean_max or mean_std.
        modulations: also a spectrogram's spectro-temporal modulations, see `modulations.Modulations`.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        c: float = 3.0,
        gamma: float = 1.0,
        rows: int = 0,
        pool: str = "mean_max",
        modulations: bool = False,
    ) -> None:
        super().__init__(input_shape, num_classes, pool, modulations)
        if not (0 < c < float("inf") and 0 < gamma < float("inf") and rows >= 0):
            raise HeadError(f"svm: c and gamma are above 0 and rows at least 0, not {c}, {gamma}, {rows}")
        self.c, self.gamma = c, gamma
        self.register_buffer("vectors_kept", torch.zeros(rows, self.width))
        self.register_buffer("coefficients", torch.zeros(num_classes, rows))
        self.register_buffer("bias", torch.zeros(num_classes))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of x (B, D, F, T); mask (B, T) True where real."""
        kernel = self._compute_kernel(self.compute_standardised(x, mask).float(), self.vectors_kept)
        return kernel @ self.coefficients.T + self.bias

    def _compute_kernel(self, x: Tensor, y: Tensor) -> Tensor:
        return compute_gaussian_kernel(x, y, self.gamma)

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
            batches: (x, mask) of all of them in order. targets: (rows, classes) 0/1.
            groups: (rows,) groups that the cross-validation keeps together.
            weights: (rows,) what each counts; None: all count 1.
        """
        self._refuse(len(targets))
        self._fit_machine(
            torch.from_numpy(self.fit_standardisation(batches)), targets, groups, multilabel, weights, [0]
        )

    @staticmethod
    def _refuse(rows: int) -> None:
        if rows > MOST:
            raise HeadError(
                f"{rows:,} rows are too many for a support vector machine ({MOST:,} at most): choose linear, "
                "mlp or a network"
            )

    def _fit_machine(
        self,
        x: Tensor,
        targets: np.ndarray,
        groups: np.ndarray,
        multilabel: bool,
        weights: np.ndarray | None,
        predicted: list[int],
    ) -> None:
        """Fit to standardised vectors: of all rows, then of copies of all rows; `predicted`: the copies that
        predict."""
        kernel = self._compute_kernel(x, x).double().numpy()
        copies = len(x) // len(targets)
        weights = np.tile(np.ones(len(targets)) if weights is None else weights, copies)
        targets, groups = np.tile(targets, (copies, 1)), np.tile(groups, copies)
        coefficients, bias = self._fit_machines(kernel, targets, weights, np.arange(len(x)))
        scale = self._scale(kernel, targets, groups, weights, multilabel, copies, predicted)
        separable = {number for number, _ in split_tasks(targets)}
        left = [number for number in range(self.classes) if number not in separable]
        bias = scale * bias
        bias[left] = compute_constant_logits(targets)[left]
        used = np.flatnonzero(coefficients.any(0))
        x, coefficients = x[used], coefficients[:, used]
        self.store_buffers(
            vectors_kept=x.to(self.vectors_kept.dtype),
            coefficients=torch.from_numpy((scale * coefficients).astype(np.float32)),
            bias=torch.from_numpy(bias.astype(np.float32)),
        )
        self.update_options(rows=len(x))

    def estimate_seconds(self, rows: int) -> tuple[float, float]:
        """Estimated seconds on two cores: to fit to this many rows, and to predict one."""
        each = 1 + 1e-9 * rows**2 * self.width + 2e-6 * self.classes * rows**2
        return each, each / rows / 30

    def count_stored_values(self, rows: int) -> int:
        """The most 4-byte values stored after fitting to this many rows."""
        return rows * (self.width + self.classes)

    def _fit_machines(
        self, kernel: np.ndarray, targets: np.ndarray, weights: np.ndarray, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(classes, all rows) coefficients and (classes,) offsets of machines fitted to these rows only."""
        from sklearn.svm import SVC

        coefficients, bias = np.zeros((self.classes, len(kernel))), np.full(self.classes, -1.0)
        inside = kernel[np.ix_(rows, rows)]
        for number, yes in split_tasks(targets[rows]):
            fitted = SVC(C=self.c, kernel="precomputed").fit(inside, yes, weights[rows])
            coefficients[number, rows[fitted.support_]] = fitted.dual_coef_[0]
            bias[number] = fitted.intercept_[0]
        return coefficients, bias

    def _scale(
        self,
        kernel: np.ndarray,
        targets: np.ndarray,
        groups: np.ndarray,
        weights: np.ndarray,
        multilabel: bool,
        copies: int,
        predicted: list[int],
    ) -> float:
        """The factor that turns decisions into logits with the lowest log loss, on rows outside the machines'
        training rows."""
        from scipy.optimize import minimize_scalar
        from scipy.special import log_softmax
        from sklearn.model_selection import GroupKFold

        if len(np.unique(groups)) < INNER:
            return 3.0
        decisions = np.zeros(targets.shape)
        for train, valid in GroupKFold(INNER, shuffle=True, random_state=0).split(kernel, groups=groups):
            coefficients, bias = self._fit_machines(kernel, targets, weights, train)
            decisions[valid] = kernel[valid] @ coefficients.T + bias
        decisions = decisions.reshape(copies, -1, self.classes)[predicted].mean(0)
        targets, weights = targets[: len(decisions)], weights[: len(decisions), None]

        def loss(power: float) -> float:
            logits = np.exp(power) * decisions
            if multilabel:
                return float((weights * (np.logaddexp(0, logits) - targets * logits)).mean())
            return float(-(weights * targets * log_softmax(logits, 1)).sum(1).mean())

        return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.3), np.log(30)), method="bounded").x))
