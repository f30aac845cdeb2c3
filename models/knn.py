"""The nearest neighbours by cosine: all training vectors are kept."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from . import HeadError, register
from .sklearn_head import SklearnHead


@register(
    "knn",
    kinds=("vector", "sequence", "grid", "spectrogram", "waveform"),
    about="the labels of the nearest training clips by cosine, on the embedding or on statistics over time",
)
class KNN(SklearnHead):
    """Votes of the nearest training rows, each weighing exp(cosine / temperature), and half a vote spread
    over all classes.

    Args:
        input_shape: (D, F, T); `sklearn_head.SklearnHead` says how it becomes a vector.
        num_classes: width of the logits.
        k: number of neighbours.
        temperature: of the neighbours' weights.
        rows: training vectors kept; set by the fit.
        multilabel: may a clip have several labels? Set by the fit.
        pool: statistics over time, except of a spectrogram: mean, mean_max or mean_std.
    """

    weighted = False

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        k: int = 10,
        temperature: float = 0.1,
        rows: int = 0,
        multilabel: bool = False,
        pool: str = "mean_max",
    ) -> None:
        super().__init__(input_shape, num_classes, pool)
        if k < 1 or not temperature > 0 or rows < 0:
            raise HeadError(
                f"knn: k is at least 1, temperature above 0 and rows at least 0, not {k}, {temperature}, "
                f"{rows}"
            )
        self.k, self.temperature, self.multilabel = k, temperature, multilabel
        self.register_buffer("vectors_kept", torch.zeros(rows, self.width))
        self.register_buffer("labels_kept", torch.zeros(rows, num_classes))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of x (B, D, F, T); mask (B, T) True where real."""
        unit = nn.functional.normalize(self.compute_standardised(x, mask).float(), dim=1)
        if not len(self.vectors_kept):
            return unit.new_zeros(len(unit), self.classes)
        near = (unit @ self.vectors_kept.T).topk(min(self.k, len(self.vectors_kept)), dim=1)
        weights = ((near.values - near.values[:, :1]) / self.temperature).exp()
        weights = weights / weights.sum(1, keepdim=True)
        # half a vote of the k, so that no class has probability 0
        spread = 0.5 / (near.values.shape[1] + 0.5)
        votes = (weights[:, :, None] * self.labels_kept[near.indices]).sum(1)
        if self.multilabel:
            shares = votes * (1 - spread) + spread * self.labels_kept.mean(0)
            return torch.logit(shares.clamp(1e-6, 1 - 1e-6))
        return (votes * (1 - spread) + spread / self.classes).log()

    def estimate_seconds(self, rows: int) -> tuple[float, float]:
        """Estimated seconds on two cores: to fit to this many rows, and to predict one."""
        each = 1 + 2e-10 * rows**2 * self.width
        return each, each / rows / 30

    def count_stored_values(self, rows: int) -> int:
        """Number of 4-byte values stored after fitting to this many rows."""
        return rows * (self.width + self.classes)

    def solve(
        self,
        batches: Iterable[tuple[Tensor, Tensor | None]],
        targets: np.ndarray,
        groups: np.ndarray,
        multilabel: bool,
    ) -> None:
        """Keep the training rows.

        Args:
            batches: (x, mask) of all of them in order. targets: (rows, classes) 0/1. groups: (rows,), not
                needed here.
        """
        x = torch.from_numpy(self.fit_standardisation(batches))
        labels = torch.from_numpy(np.asarray(targets, dtype=np.float32))
        self.store_buffers(vectors_kept=nn.functional.normalize(x, dim=1), labels_kept=labels)
        self.multilabel = multilabel
        self.update_options(rows=len(x), multilabel=multilabel)
