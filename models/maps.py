"""Parts that heads on maps (channels, frequency, time) share: standardised input, halving, pooling to a
grid."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .common import Standardise, Window, pool_mask, select_real_frames


class Input(nn.Module):
    """A view as a head's input: standardised per channel and frequency by the training set, padding set to
    zero.

    Args:
        input_shape: (D, F, T).
        standardise: False passes the view through unchanged, padding included.
    """

    def __init__(self, input_shape: tuple[int, int, int], standardise: bool) -> None:
        super().__init__()
        self.standardise = Standardise(input_shape[0] * input_shape[1]) if standardise else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, D, F, T) to the same shape; mask (B, T) True where real."""
        if self.standardise is None:
            return x
        x = self.standardise(x)
        return x if mask is None else x.masked_fill(~mask.bool()[:, None, None, :], 0.0)

    def fit(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Take mean and deviation from the real frames of the training set's (x, mask)."""
        if self.standardise is not None:
            self.standardise.fit(select_real_frames(x, mask) for x, mask in batches)


def halve_window(size: tuple[int, int], stride: int = 2) -> Window:
    """Kernel and stride 2 without padding (n become n // 2, an odd last one is dropped), 1 on an axis that
    has run out.

    Args:
        size: (F, T) of the map.
        stride: another kernel and stride than 2; an axis shorter than it is shortened to one cell.
    Returns:
        the window, axis by axis.
    """
    kernel = tuple(min(stride, length) for length in size)
    return Window(kernel, kernel, (0, 0), tuple(length // k for length, k in zip(size, kernel, strict=True)))


def resize_mask(mask: Tensor | None, stride: int, cells: int) -> Tensor | None:
    """Bring a mask to a map whose last, incomplete cells were dropped: their frames count for the last one
    left.

    Args:
        mask: (B, T), or None.
        stride: frames to a cell.
        cells: T' of the map, at most ceil(T / stride).
    Returns:
        (B, T') bool, or None.
    """
    if mask is None:
        return None
    cells_real = pool_mask(mask, stride)
    return torch.cat([cells_real[:, : cells - 1], cells_real[:, cells - 1 :].any(1, keepdim=True)], dim=1)


def pool_to_grid(x: Tensor, mask: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """Average a map over the cells of a grid, its real frames only, as adaptive average pooling draws the
    cells.

    Args:
        x: (B, C, F, T).
        mask: (B, T) bool, True where real; None: all are.
        size: (F', T') of the grid; a map that has this size is left alone.
    Returns:
        (B, C, F', T'), zero where a cell has no real frame, and (B, T') which cells have one, or None.
    """
    if tuple(x.shape[2:]) == tuple(size):
        return x, mask
    if mask is None:
        return F.adaptive_avg_pool2d(x, size), None
    real = mask[:, None, None, :]
    share = F.adaptive_avg_pool2d(real.to(x.dtype), (1, size[1]))
    x = F.adaptive_avg_pool2d(x.masked_fill(~real, 0.0), size) / share.clamp(min=torch.finfo(x.dtype).tiny)
    return x, share[:, 0, 0] > 0
