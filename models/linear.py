"""Logistic regression on pooled statistics: the baseline."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from . import register
from .common import Standardise, check_pool, count_stats, pool_stats
from .head import Head


@register(
    "linear",
    kinds=("vector", "sequence", "grid", "spectrogram", "waveform"),
    about="logistic regression on the embedding, or on statistics over time",
)
class Linear(Head):
    """Pool, standardise, one linear layer.

    SGD with momentum (lr 0.1, 0.9) reaches scikit-learn's logistic regression; AdamW converges to
    another solution, which scored four to five points lower where many features are each weakly informative
    (the synthetic data of tests/test_models.py).

    Args:
        input_shape: (D, F, T); see `common.pool_stats` for what is pooled.
        num_classes: width of the logits.
        dropout: rate on the standardised features.
        pool: statistics of the real frames: mean, mean_max or mean_std.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        dropout: float = 0.0,
        pool: str = "mean_max",
    ) -> None:
        super().__init__()
        self.pool = check_pool("linear", pool)
        width = count_stats(input_shape, pool)
        self.standardise = Standardise(width)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width, num_classes)
        # From zero, gradient descent finds the solution of least norm; random initial weights on features
        # that the training clips don't determine would remain, as noise on test clips.
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of x (B, D, F, T); mask (B, T) True where real."""
        return self.fc(self.dropout(self.standardise(self._pool(x, mask))))

    def adapt(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Take the mean and deviation of the pooled features from the training set's (x, mask)."""
        self.standardise.fit(self._pool(x, mask) for x, mask in batches)

    def _pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return pool_stats(x, mask, self.pool)
