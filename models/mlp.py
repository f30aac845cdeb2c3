"""A multilayer perceptron on pooled statistics."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from torch import Tensor, nn

from . import HeadError, register
from .common import Standardise, count_stats, pool_stats
from .head import Head


@register(
    "mlp",
    kinds=("vector", "sequence", "grid", "spectrogram", "waveform"),
    about="hidden layers on the embedding, or on mean and maximum over time",
)
class MLP(Head):
    """Pool, standardise, hidden layers (Linear, LayerNorm, GELU, Dropout), one linear layer.

    LayerNorm rather than BatchNorm: a last batch of one clip is harmless, and small data sets have such
    batches.

    Args:
        input_shape: (D, F, T); see `common.pool_stats` for what is pooled.
        num_classes: width of the logits.
        hidden: widths of the hidden layers.
        dropout: rate after each hidden layer.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        hidden: tuple[int, ...] = (512,),
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        if not all(isinstance(width, int) and width >= 1 for width in hidden):
            raise HeadError(f"mlp: option hidden is a list of layer widths from 1, not {hidden!r}")
        widths = [count_stats(input_shape), *hidden]
        self.standardise = Standardise(widths[0])
        layers: list[nn.Module] = []
        for before, width in pairwise(widths):
            layers += [nn.Linear(before, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(dropout)]
        self.hidden = nn.Sequential(*layers)
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of x (B, D, F, T); mask (B, T) True where real."""
        return self.fc(self.hidden(self.standardise(pool_stats(x, mask))))

    def adapt(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Take the mean and deviation of the pooled features from the training set's (x, mask)."""
        self.standardise.fit(pool_stats(x, mask) for x, mask in batches)
