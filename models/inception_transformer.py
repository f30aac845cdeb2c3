"""Inception blocks with squeeze-and-excitation, then a transformer: ITMO's acoustic event detection 2025, 1st
place."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from . import HeadError, register
from .ast import NEEDS, build_ast, compute_embedding, load_ast
from .common import fit_window, pool_map
from .head import Head, LoadNetwork
from .maps import pool_to_grid


def find_square_grid(length: int) -> tuple[int, int]:
    """The most square factorisation (rows, columns), rows <= columns: 768 is 24 x 32, a prime 1 x itself."""
    rows = next(rows for rows in range(math.isqrt(length), 0, -1) if length % rows == 0)
    return rows, length // rows


def _build_conv(inputs: int, outputs: int, size: tuple[int, int], kernel: int) -> nn.Conv2d:
    window = fit_window(size, kernel)
    return nn.Conv2d(inputs, outputs, window.kernel, window.stride, window.padding)


class InceptionBlock(nn.Module):
    """Four branches of stride 1 (1x1, 5x5, 3x3, pooled 1x1), a shortcut, squeeze-and-excitation, BatchNorm,
    ReLU.

    The branches have no 1x1 convolution before them, unlike GoogLeNet's (Szegedy et al. 2014);
    squeeze-and-excitation (Hu et al. 2017, reduction 16) and the last BatchNorm come after the sum.
    """

    def __init__(self, inputs: int, outputs: int, size: tuple[int, int]) -> None:
        super().__init__()
        quarter = outputs // 4
        pool = fit_window(size, 3)
        average = nn.AvgPool2d(pool.kernel, pool.stride, pool.padding)
        branches = [[_build_conv(inputs, quarter, size, kernel)] for kernel in (1, 5, 3)]
        branches.append([average, nn.Conv2d(inputs, quarter, 1)])
        self.branches = nn.ModuleList(
            nn.Sequential(*b, nn.BatchNorm2d(quarter), nn.ReLU(inplace=True)) for b in branches
        )
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs))
        squeezed = max(1, outputs // 16)
        self.gate = nn.Sequential(
            nn.Linear(outputs, squeezed), nn.ReLU(inplace=True), nn.Linear(squeezed, outputs), nn.Sigmoid()
        )
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, C, F, T) to (B, C', F, T); the gate looks at the frames that the mask (B, T) calls real."""
        x = torch.cat([branch(x) for branch in self.branches], dim=1) + self.shortcut(x)
        return self.norm(x * self.gate(pool_map(x, mask))[:, :, None, None]).relu()


def isolate_clips(layer: nn.TransformerEncoderLayer, x: Tensor) -> Tensor:
    """What a post-norm encoder layer makes of sequences of a single token, without the work that cannot
    matter.

    The softmax over one token is 1 whatever queries and keys are (their gradients are zeros): only values and
    the output projection are computed. Attention's dropout drops that 1, so a whole head of a clip.

    Args:
        x: (B, d_model), the tokens.
    Returns:
        (B, d_model).
    """
    attention, size = layer.self_attn, x.shape[1]
    values = nn.functional.linear(x, attention.in_proj_weight[2 * size :], attention.in_proj_bias[2 * size :])
    if layer.training and attention.dropout:
        kept = nn.functional.dropout(values.new_ones(len(x), attention.num_heads, 1), attention.dropout)
        values = (values.view(len(x), attention.num_heads, -1) * kept).flatten(1)
    x = layer.norm1(x + layer.dropout1(attention.out_proj(values)))
    return layer.norm2(x + layer.dropout2(layer.linear2(layer.dropout(layer.activation(layer.linear1(x))))))


@register(
    "inception_transformer",
    kinds=("vector", "sequence", "grid", "spectrogram", "waveform"),
    about="inception blocks on the embedding as a 24x32 image, then a transformer (ITMO 2025); ast: true "
    "fine-tunes AST below",
    needs=NEEDS,
)
class InceptionTransformer(Head):
    """Four inception blocks, 1x1 convolution, LayerNorm and linear layer on the flat map, transformer, linear
    layer.

    As published: 144,807,185 parameters for a 768-d embedding and 41 classes, 230,994,449 with AST below. A
    vector is reshaped to the squarest image, 24 x 32; its rows and columns have no meaning, so the 5x5 and
    3x3 neighbourhoods are arbitrary. Images are used as they are and their last map is averaged to 24 x 32
    (less for smaller images) over real frames only. The first layers' cost grows with the image, so a long
    mel is slow.

    Two faults of the published network are kept, to reproduce it: the transformer sees one token per clip, so
    attention's softmax is 1 and attention a linear map (`isolate_clips`); and the linear layer before it has
    100 million weights that add nothing in principle. The head `token_transformer` (recipe itmo2025_tokens)
    has neither. One fault is fixed: the published last layer has 131,072 outputs, the size of its input; here
    it has one per class.

    Args:
        input_shape: (D, F, T); with `ast`, (1, F, T) as AST expects it.
        num_classes: width of the logits.
        widths: channels of the blocks, multiples of 4.
        reduce: channels of the flat map.
        grid: (rows, columns) that an image's map is averaged to.
        d_model: width of the transformer (post-norm, ReLU).
        layers: of the transformer.
        heads: attention heads of the transformer.
        feedforward: width of the transformer's MLP.
        dropout: rate in the transformer and before the last layer.
        ast: put AST in front and fine-tune it; its embedding is the vector. AST ignores the mask.
        weights: of AST: a folder that save_pretrained made, or a hub id; null: random.
        ast_hidden_size: width of AST's tokens.
        ast_layers: number of AST's blocks.
        ast_heads: attention heads of an AST block.
        ast_intermediate: width of an AST block's MLP.
        gradient_checkpointing: recompute AST's activations: a third more time, and a batch of 10 fits 16 GB
            (estimated, not measured).
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        widths: tuple[int, ...] = (128, 256, 512, 768),
        reduce: int = 256,
        grid: tuple[int, int] = (24, 32),
        d_model: int = 512,
        layers: int = 12,
        heads: int = 8,
        feedforward: int = 2048,
        dropout: float = 0.4,
        ast: bool = False,
        weights: str | None = None,
        ast_hidden_size: int = 768,
        ast_layers: int = 12,
        ast_heads: int = 12,
        ast_intermediate: int = 3072,
        gradient_checkpointing: bool = True,
    ) -> None:
        super().__init__()
        if not widths or not all(
            isinstance(width, int) and width >= 4 and width % 4 == 0 for width in widths
        ):
            raise HeadError(
                f"inception_transformer: option widths is a list of multiples of 4, not {widths!r}"
            )
        if len(grid) != 2 or not all(isinstance(side, int) and side >= 1 for side in grid):
            raise HeadError(
                "inception_transformer: option grid is two whole numbers from 1, rows and columns, not "
                f"{grid!r}"
            )
        if min(reduce, d_model, layers, heads, feedforward) < 1 or d_model % heads:
            raise HeadError(
                f"inception_transformer: sizes are whole numbers from 1, and heads divides d_model, "
                f"not {d_model} by {heads}"
            )
        if weights is not None and not ast:
            raise HeadError(
                "inception_transformer: option weights is of AST, which is off: add ast true, or leave out "
                "weights"
            )
        self.weights, self.ast = weights, None
        if ast:
            sizes = (ast_hidden_size, ast_layers, ast_heads, ast_intermediate)
            self.ast = build_ast("inception_transformer", input_shape, *sizes, gradient_checkpointing)
            input_shape = (ast_hidden_size, 1, 1)
        channels, *size = input_shape
        self.vector = tuple(size) == (1, 1)
        if self.vector:
            channels, size = 1, find_square_grid(channels)
        self.size = tuple(size)
        self.grid = self.size if self.vector else tuple(map(min, grid, size))
        inputs = (channels, *widths)
        self.blocks = nn.ModuleList(
            InceptionBlock(before, after, self.size) for before, after in pairwise(inputs)
        )
        self.reduce = nn.Conv2d(widths[-1], reduce, 1)
        flat = reduce * self.grid[0] * self.grid[1]
        self.norm = nn.LayerNorm(flat)
        self.project = nn.Linear(flat, d_model)
        layer = nn.TransformerEncoderLayer(d_model, heads, feedforward, dropout, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(d_model, num_classes)

    def load_pretrained(self, load: LoadNetwork) -> None:
        """Load AST's weights if the option `weights` names some; HeadError if they cannot be loaded or don't
        fit."""
        if self.weights is not None:
            load_ast("inception_transformer", self.ast, self.weights)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of x (B, D, F, T); mask (B, T) True where real."""
        if self.ast is not None:
            x = compute_embedding(self.ast, x)
        if self.vector:
            x, mask = x.reshape(len(x), 1, *self.size), None
        if mask is not None:
            mask = mask.bool()
            x = x.masked_fill(~mask[:, None, None, :], 0.0)
        for block in self.blocks:
            x = block(x, mask)
        x = self.reduce(pool_to_grid(x, mask, self.grid)[0]).flatten(1)
        x = self.project(self.norm(x)).relu()
        for layer in self.transformer.layers:
            x = isolate_clips(layer, x)
        return self.fc(self.dropout(x))
