"""Dense graph convolutions over the tokens of one clip, in plain torch: clips never share a graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def find_neighbours(x: Tensor, k: int, real: Tensor | None = None) -> Tensor:
    """The symmetric k-nearest-neighbour graph of each clip's tokens.

    Two tokens are joined if either is among the k nearest of the other, by Euclidean distance.

    Args:
        x: (B, N, C) tokens.
        k: neighbours of a token; fewer where a clip has fewer other tokens.
        real: (B, N), True where a token is real; padding gets no edges. None: all are
            real.
    Returns:
        (B, N, N) bool, without loops.
    """
    size = x.shape[1]
    # Differences, not products: a matrix product rounds otherwise in another batch, and silence has
    # many tokens that are nearly equal. For the same reason ties, by rounding made such, go to the
    # earlier token.
    distance = torch.cdist(x.float(), x.float(), compute_mode="donot_use_mm_for_euclid_dist").round(
        decimals=3
    )
    out = (torch.eye(size, device=x.device) > 0)[None]
    if real is not None:
        out = out | ~(real[:, :, None] & real[:, None, :])
    order = distance.masked_fill(out, float("inf")).argsort(dim=2, stable=True)[:, :, : min(k, size - 1)]
    chosen = (torch.zeros_like(distance).scatter(2, order, 1.0) > 0) & ~out
    return chosen | chosen.transpose(1, 2)


def normalise_adjacency(edges: Tensor) -> Tensor:
    """D^-1/2 (A + I) D^-1/2 of Kipf & Welling (2017, eq. 2), D the degrees of A + I.

    Args:
        edges: (B, N, N) bool, symmetric, without loops.
    Returns:
        (B, N, N) float32.
    """
    loops = edges.float() + torch.eye(edges.shape[1], device=edges.device)
    scale = loops.sum(2).rsqrt()
    return scale[:, :, None] * loops * scale[:, None, :]


class GraphConv(nn.Module):
    """Graph convolution of Kipf & Welling (2017): the normalised adjacency times X W, plus a bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Tokens (B, N, C) and their normalised adjacency (B, N, N) to (B, N, C')."""
        return adjacency.to(x.dtype) @ self.linear(x) + self.bias


class TokenGraph(nn.Module):
    """GGCN: graph convolutions on the k-nearest-neighbour graph, each with LayerNorm, GELU and dropout.

    From the second layer on the input is added to the output. The graph follows from the tokens that come in
    and is the same for all layers.

    Args:
        inputs: width of the tokens.
        width: width of the layers.
        layers: number of graph convolutions, at least 1.
        k: neighbours of a token.
        dropout: after each layer.
    """

    def __init__(self, inputs: int, width: int, layers: int, k: int, dropout: float) -> None:
        super().__init__()
        self.k = k
        self.convs = nn.ModuleList(GraphConv(width if i else inputs, width) for i in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.act = nn.GELU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Tokens (B, N, C), real (B, N) True where a token is real, to (B, N, width)."""
        adjacency = normalise_adjacency(find_neighbours(x, self.k, real))
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = self.dropout(self.act(norm(conv(x, adjacency))))
            x = x + y if index else y
        return x
