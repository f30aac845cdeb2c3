"""ConvNeXt, self-attention and a graph convolution on log-mel, after HazCodesLots/AudioForgeryDetection."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from timm.layers import DropPath, LayerNorm2d, LayerScale, Mlp, SEModule, trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from . import HeadError, register
from .graph import TokenGraph
from .head import Head
from .maps import Input, halve_window, pool_to_grid, resize_mask


class Block(nn.Module):
    """ConvNeXt block (Liu et al. 2022) on maps, with squeeze-and-excitation after the layer scale."""

    def __init__(
        self, width: int, size: tuple[int, int], kernel: int, layer_scale: float, drop_path: float
    ) -> None:
        super().__init__()
        # Not common.fit_window: the published last map has 4 rows under 9 taps, of which two never meet data.
        kernels = tuple(kernel if length > 1 else 1 for length in size)
        self.dwconv = nn.Conv2d(width, width, kernels, padding=tuple(k // 2 for k in kernels), groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)
        self.scale = LayerScale(width, layer_scale) if layer_scale else nn.Identity()
        self.se = SEModule(width, rd_channels=max(1, width // 16))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, F, T) to the same shape."""
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.scale(self.mlp(y)).permute(0, 3, 1, 2)
        return x + self.drop_path(self.se(y))


class TokenAttention(nn.Module):
    """Multi-head self-attention from one width to another; the residual is a linear map of the input, then
    LayerNorm."""

    def __init__(self, inputs: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value = (nn.Linear(inputs, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.residual = nn.Linear(inputs, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Tokens (B, N, C), real (B, N) True where a token is real, to (B, N, width)."""
        query, key, value = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        features = F.scaled_dot_product_attention(
            query,
            key,
            value,
            None if real is None else real[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        features = F.dropout(self.out(features.transpose(1, 2).flatten(2)), self.dropout, self.training)
        return self.norm(features + self.residual(x))


@register(
    "convnext_ggcn",
    kinds=("spectrogram", "sequence", "grid", "vector", "waveform"),
    about="2-D ConvNeXt, self-attention and graph convolutions over a clip's own tokens, MLP",
)
class ConvNeXtGGCN(Head):
    """Stem, ConvNeXt stages, self-attention over the map's cells, graph convolutions over them, their mean,
    an MLP.

    By default the published network except for its graph: 30,770,528 parameters for (1, 64, 250) and 2
    classes, 60 tokens of 4 x 15 cells. The published graph connects the clips of a batch after averaging
    their tokens, so a clip's logits depend on its batch mates and a batch of one has no graph. Here the
    tokens of one clip are the nodes and the mean is taken after the graph: the same weights, and each clip
    is predicted on its own. The published edges run one way: a node receives from nodes that chose it, not
    from its own neighbours. Here they run both ways. The published code treats padding as audio; here
    attention, graph and mean skip tokens that the mask marks as padding. A layer scale of 1e-6 with the
    published learning rate of 1e-5 keeps the blocks near the identity for a long time: from scratch, raise
    it or set it to 0.

    Args:
        input_shape: (D, F, T).
        num_classes: width of the logits.
        depths: blocks of each stage; every stage but the first halves the map.
        dims: width of each stage, as many numbers as `depths`.
        stem: kernel and stride of the first convolution.
        kernel: size of the depthwise convolutions, odd.
        drop_path: probability of skipping the last block in training; it rises linearly from 0 at the first.
        layer_scale: initial scale of each block's branch; 0: no layer scale.
        init_std: standard deviation of the backbone's initial weights, with zero biases; 0: torch's own
            initialisation. In narrow stages 0.02 weakens the branches as a small layer scale does, and
            without biases the first LayerNorm removes a patch's loudness.
        attention: width of the self-attention.
        heads: of the self-attention.
        attention_dropout: rate in the self-attention.
        max_tokens: larger maps are averaged to a grid of at most this many cells (AST's input gives 512, the
            published one 60): attention and distances grow with their square.
        graph: width of the graph convolutions.
        graph_layers: number of graph convolutions.
        graph_dropout: rate in the graph convolutions.
        k: neighbours of a token.
        hidden: widths of the MLP's hidden layers.
        dropout: rate after each hidden layer.
        standardise: per channel and frequency, with the training set's mean and deviation (`adapt`); padding
            becomes zero.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        depths: tuple[int, ...] = (3, 3, 9, 3),
        dims: tuple[int, ...] = (96, 192, 384, 768),
        stem: int = 2,
        kernel: int = 9,
        drop_path: float = 0.1,
        layer_scale: float = 1e-6,
        init_std: float = 0.02,
        attention: int = 512,
        heads: int = 8,
        attention_dropout: float = 0.1,
        max_tokens: int = 512,
        graph: int = 256,
        graph_layers: int = 2,
        graph_dropout: float = 0.2,
        k: int = 5,
        hidden: tuple[int, ...] = (512, 256, 128),
        dropout: float = 0.3,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        if len(depths) != len(dims) or not dims:
            raise HeadError(
                f"convnext_ggcn: depths and dims are as long as each other, not {depths} and {dims}"
            )
        counts = (*depths, *dims, *hidden, stem, attention, heads, max_tokens, graph, graph_layers, k)
        if not all(isinstance(number, int) and number >= 1 for number in counts):
            raise HeadError(
                "convnext_ggcn: depths, dims, hidden, stem, attention, heads, max_tokens, graph, "
                "graph_layers and k are whole numbers from 1"
            )
        if kernel % 2 == 0 or kernel < 1:
            raise HeadError(f"convnext_ggcn: option kernel is odd, not {kernel}")
        if attention % heads:
            raise HeadError(
                f"convnext_ggcn: option attention is a multiple of heads, not {attention} with {heads}"
            )
        chances = (drop_path, attention_dropout, graph_dropout, dropout)
        if not all(0.0 <= chance < 1.0 for chance in chances):
            raise HeadError(
                f"convnext_ggcn: drop_path and the dropouts are probabilities below 1, not {chances}"
            )
        if min(init_std, layer_scale) < 0:
            raise HeadError(
                f"convnext_ggcn: init_std and layer_scale are numbers from 0, not {init_std} and "
                f"{layer_scale}"
            )
        self.max_tokens = max_tokens
        self.input = Input(input_shape, standardise)
        width, size, self.time_stride = input_shape[0], input_shape[1:], 1
        blocks = sum(depths)
        rates = (drop_path * index / max(1, blocks - 1) for index in range(blocks))
        layers: list[nn.Module] = []
        for depth, outputs in zip(depths, dims, strict=True):
            window = halve_window(size, 2 if layers else stem)
            conv = nn.Conv2d(width, outputs, window.kernel, window.stride)
            layers += [LayerNorm2d(width), conv] if layers else [conv, LayerNorm2d(outputs, eps=1e-5)]
            width, size, self.time_stride = outputs, window.out, self.time_stride * window.stride[1]
            layers += [Block(width, size, kernel, layer_scale, next(rates)) for _ in range(depth)]
        self.backbone = nn.Sequential(*layers)
        if init_std:
            self.backbone.apply(lambda module: _initialise(module, init_std))
        self.attention = TokenAttention(width, attention, heads, attention_dropout)
        self.graph = TokenGraph(attention, graph, graph_layers, k, graph_dropout)
        widths = [graph, *hidden]
        mlp: list[nn.Module] = []
        for before, after in pairwise(widths):
            mlp += [nn.Linear(before, after), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        self.mlp = nn.Sequential(*mlp, nn.Linear(widths[-1], num_classes))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of x (B, D, F, T); mask (B, T) True where real."""
        tokens, real = self.compute_tokens(x, mask)
        features = self.graph(self.attention(tokens, real), real)
        if real is None:
            return self.mlp(features.mean(1))
        total = features.masked_fill(~real[:, :, None], 0.0).sum(1)
        return self.mlp(total / real.sum(1, keepdim=True))

    def compute_tokens(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The cells of the backbone's map as tokens, frequency by frequency.

        Args:
            x: (B, D, F, T).
            mask: (B, T), True where real; None: all are.
        Returns:
            (B, N, C), and (B, N) which are real, or None.
        """
        x = self.backbone(self.input(x, mask))
        rows, frames = x.shape[2:]
        x, real = pool_to_grid(
            x, resize_mask(mask, self.time_stride, frames), fit_grid(rows, frames, self.max_tokens)
        )
        if real is not None:
            real = real[:, None, :].expand(-1, x.shape[2], -1).flatten(1)
        return x.flatten(2).transpose(1, 2), real

    def adapt(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Take mean and deviation of each channel and frequency from the real frames of the training set."""
        self.input.fit(batches)


def fit_grid(rows: int, columns: int, most: int) -> tuple[int, int]:
    """The largest grid of about the same proportions with at most this many cells; a smaller map keeps its
    own."""
    if rows * columns <= most:
        return rows, columns
    if rows > columns:
        return fit_grid(columns, rows, most)[::-1]
    height = max(1, int(rows * (most / (rows * columns)) ** 0.5))
    return height, min(columns, most // height)


def _initialise(module: nn.Module, std: float) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        trunc_normal_(module.weight, std=std)
        nn.init.zeros_(module.bias)
