"""Attention pooling by learned queries: the usual probe on the tokens of a self-supervised encoder."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from . import HeadError, register
from .head import Head
from .maps import Input


@register(
    "attentive",
    kinds=("sequence", "grid", "spectrogram"),
    about="learned queries weigh the tokens of an encoder (attention pooling), then one linear layer",
)
class Attentive(Head):
    """Standardised tokens, means weighted by learned queries, a projection of each, LayerNorm, linear layer.

    A mean weighs all tokens alike. Here each query learns which tokens count (pooling by multihead attention,
    Lee et al. 2019). Keys need no projection, because a learned query times a projection is a learned query.
    Values are projected after the mean, which is the same and takes a fraction of the time. Every cell of a
    grid is a token; of a spectrogram every frame is one, with its frequencies as channels.

    Args:
        input_shape: (D, F, T).
        num_classes: width of the logits.
        queries: number of learned queries; divides `dim`.
        dim: width of all projections together, dim / queries each.
        layers: the grid's F axis holds layers of an encoder (view `layers`): learn softmax weights of the
            layers and sum them up, as SUPERB does (Yang et al. 2021).
        dropout: rate before the linear layer.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        queries: int = 16,
        dim: int = 512,
        layers: bool = False,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        if min(queries, dim) < 1 or dim % queries:
            raise HeadError(
                "attentive: queries and dim are whole numbers from 1, and queries divides dim, not "
                f"{queries} and {dim}"
            )
        depth, height, _ = input_shape
        self.image = depth == 1 and height > 1 and not layers
        width = height if self.image else depth
        self.input = Input(input_shape, standardise=True)
        self.layer_weights = nn.Parameter(torch.zeros(height)) if layers else None
        # From zero every query starts as the mean; their projections differ, so they part soon.
        self.query = nn.Parameter(torch.zeros(queries, width))
        self.value = nn.Parameter(torch.empty(queries, width, dim // queries))
        nn.init.uniform_(self.value, -(width**-0.5), width**-0.5)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of x (B, D, F, T); mask (B, T) True where real."""
        tokens, real = self.compute_tokens(x, mask)
        scores = self.query @ tokens.transpose(1, 2)  # (B, queries, N)
        if real is not None:
            scores = scores.masked_fill(~real[:, None], float("-inf"))
        pooled = torch.einsum("bqc,qcd->bqd", scores.softmax(2) @ tokens, self.value)
        return self.fc(self.dropout(self.norm(pooled.flatten(1))))

    def compute_tokens(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(B, N, C) standardised tokens, and which of them are real, (B, N); None where all are."""
        x = self.input(x, mask)
        if self.layer_weights is not None:
            x = (x * self.layer_weights.softmax(0)[:, None]).sum(2, keepdim=True)
        if self.image:
            x = x.transpose(1, 2)
        real = None if mask is None else mask.bool().repeat(1, x.shape[2])
        return x.flatten(2).transpose(1, 2), real

    def adapt(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Take mean and deviation of each channel and frequency from the real frames of the training set."""
        self.input.fit(batches)
