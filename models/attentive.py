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
    about="learned queries attend to the tokens of an encoder, then one linear layer",
)
class Attentive(Head):
    """Standardise, tokens, cross-attention from learned queries, LayerNorm, one linear layer.

    A mean weighs all frames alike; here each query's heads learn which tokens count (Lee et al. 2019, Set
    Transformer, pooling by multihead attention; the attentive probe of Bardes et al. 2024). Every cell of a grid
    is a token; a spectrogram's frame is one, with its frequencies as channels.

    Args:
        input_shape: (D, F, T).
        num_classes: width of the logits.
        queries: number of learned queries; what they gather is concatenated.
        heads: attention heads of a query.
        dim: width of keys and values; 0: that of the tokens, at most 384.
        mean: also give the mean over the tokens to the linear layer.
        layers: the grid's F axis are an encoder's layers: learn softmax weights of them, and sum them up.
        dropout: rate on the tokens and before the linear layer.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        queries: int = 4,
        heads: int = 4,
        dim: int = 0,
        mean: bool = True,
        layers: bool = False,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        depth, height, _ = input_shape
        self.image = depth == 1 and height > 1 and not layers
        width = height if self.image else depth
        dim = dim or min(width, 384) // heads * heads or heads
        if min(queries, heads, dim) < 1 or dim % heads:
            raise HeadError(
                f"attentive: queries, heads and dim are whole numbers from 1, and heads divides dim, not "
                f"{queries}, {heads} and {dim}"
            )
        self.heads, self.mean = heads, mean
        self.input = Input(input_shape, standardise=True)
        self.layer_weights = nn.Parameter(torch.zeros(height)) if layers else None
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.empty(1, heads, queries, dim // heads))
        nn.init.normal_(self.query, std=0.02)
        self.key, self.value = nn.Linear(width, dim), nn.Linear(width, dim)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.LayerNorm(queries * dim)
        self.fc = nn.Linear(queries * dim + (width if mean else 0), num_classes)

    def adapt(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Take mean and deviation of each channel and frequency from the real frames of the training set."""
        self.input.fit(batches)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of x (B, D, F, T); mask (B, T) True where real."""
        tokens, real = self.compute_tokens(x, mask)
        split = (-1, tokens.shape[1], self.heads, self.query.shape[3])
        key, value = (part(self.norm(tokens)).view(split).transpose(1, 2) for part in (self.key, self.value))
        found = nn.functional.scaled_dot_product_attention(
            self.query.expand(len(x), -1, -1, -1),
            key,
            value,
            attn_mask=None if real is None else real[:, None, None, :],
        )
        pooled = self.out(found.flatten(1))
        if self.mean:
            weight = None if real is None else real / real.sum(1, keepdim=True)
            mean = tokens.mean(1) if weight is None else (tokens * weight[..., None]).sum(1)
            pooled = torch.cat([pooled, mean], 1)
        return self.fc(self.dropout(pooled))

    def compute_tokens(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(B, N, C) tokens, and (B, N) which are real; None where all are."""
        x = self.input(x, mask)
        if self.layer_weights is not None:
            x = (x * self.layer_weights.softmax(0)[:, None]).sum(2, keepdim=True)
        if self.image:
            x = x.transpose(1, 2)
        real = None if mask is None else mask.bool().repeat(1, x.shape[2])
        return x.flatten(2).transpose(1, 2), real
