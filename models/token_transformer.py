"""A transformer over the cells of a view: patches of an image, frames of a sequence, rows of an embedding."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from . import HeadError, register
from .common import pool_mask
from .head import Head
from .inception_transformer import find_square_grid
from .maps import Input

TOKENS = 256  # attention's cost grows with their square: patches grow until there are no more


def choose_patch(input_shape: tuple[int, int, int]) -> tuple[int, int]:
    """(frequencies, frames) of a patch: one cell of a feature map, 16 x 16 of a spectrogram, wider where
    tokens abound."""
    channels, height, frames = input_shape
    rows, columns = (min(16, height), min(16, frames)) if channels == 1 else (1, 1)
    while -(-height // rows) * -(-frames // columns) > TOKENS:
        if columns < frames:
            columns = min(2 * columns, frames)
        else:
            rows = min(2 * rows, height)
    return rows, columns


@register(
    "token_transformer",
    kinds=("vector", "sequence", "grid", "spectrogram", "waveform"),
    about="a small pre-norm transformer whose tokens are patches, frames or pieces of an embedding",
)
class TokenTransformer(Head):
    """Standardise, tokens with learned positions, pre-norm transformer, mean over real tokens, linear layer.

    ITMO's network (`inception_transformer`) without its faults: the cells are the tokens, instead of one
    token per clip, and there is no layer of 100 million weights. An image is cut into patches that share a
    projection (ViT, Dosovitskiy et al. 2020); padding becomes zero, and attention skips patches of padding
    alone. A vector's cells have no neighbours, so convolutions would mean nothing: each row of its grid (384:
    16 rows of 24 numbers) becomes a token by its own projection, which loses nothing that a linear layer
    would see.

    Args:
        input_shape: (D, F, T).
        num_classes: width of the logits.
        patch: (frequencies, frames) of an image's patch; () chooses it for at most 256 tokens.
        dim: width of the tokens.
        layers: of the transformer.
        heads: attention heads of a layer.
        feedforward: width of a layer's MLP.
        dropout: rate in the transformer, on its tokens and before the last layer.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        patch: tuple[int, ...] = (),
        dim: int = 256,
        layers: int = 2,
        heads: int = 4,
        feedforward: int = 512,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if len(patch) not in (0, 2) or not all(isinstance(side, int) and side >= 1 for side in patch):
            raise HeadError(
                "token_transformer: option patch is two whole numbers from 1, frequencies and frames, not "
                f"{patch!r}"
            )
        if min(dim, layers, heads, feedforward) < 1 or dim % heads:
            raise HeadError(
                f"token_transformer: sizes are whole numbers from 1, and heads divides dim, not {dim} by "
                f"{heads}"
            )
        depth, height, frames = input_shape
        self.input = Input(input_shape, standardise=True)
        if height == frames == 1:
            self.grid, self.patch = (find_square_grid(depth)[0], 1), None
            self.embed = nn.Conv1d(depth, self.grid[0] * dim, 1, groups=self.grid[0])
        else:
            self.patch = tuple(map(min, patch or choose_patch(input_shape), (height, frames)))
            self.grid = -(-height // self.patch[0]), -(-frames // self.patch[1])
            self.embed = nn.Conv2d(depth, dim, self.patch, self.patch)
        self.position = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1], dim))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(
            dim, heads, feedforward, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, layers, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.fc = nn.Linear(dim, num_classes)

    def adapt(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Take mean and deviation of each channel and frequency from the real frames of the training set."""
        self.input.fit(batches)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of x (B, D, F, T); mask (B, T) True where real."""
        x = self.input(x, mask)
        if self.patch is None:
            tokens, real = self.embed(x.flatten(2)).view(len(x), self.grid[0], -1), None
        else:
            tokens, real = self.embed_patches(x, mask)
        tokens = self.dropout(tokens + self.position)
        if real is None:
            return self.fc(self.dropout(self.transformer(tokens).mean(1)))
        tokens = self.transformer(tokens, src_key_padding_mask=~real)
        mean = tokens.masked_fill(~real[..., None], 0.0).sum(1) / real.sum(1, keepdim=True)
        return self.fc(self.dropout(mean))

    def pad_to_patches(self, x: Tensor) -> Tensor:
        """An image with zeros, the mean, up to whole patches."""
        height, frames = self.patch
        return nn.functional.pad(x, (0, -x.shape[3] % frames, 0, -x.shape[2] % height))

    def embed_patches(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, N, dim) tokens of an image, and which of them have any real frame, (B, N); None where all
        do."""
        tokens = self.embed(self.pad_to_patches(x)).flatten(2).transpose(1, 2)
        if mask is None:
            return tokens, None
        return tokens, pool_mask(mask, self.patch[1]).repeat(1, self.grid[0])
