"""The GTZAN CNN of ayush-kitnawat-2023160/Music_Gener_Classification, and one without its wide layer."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from torch import Tensor, nn

from . import HeadError, register
from .common import fit_window, pool_map
from .head import Head
from .maps import Input, halve_window, pool_to_grid, resize_mask


@register(
    "genre_cnn",
    kinds=("spectrogram", "sequence", "grid", "vector", "waveform"),
    about="three convolutions, the whole map flattened into two wide layers (GTZAN CNN); or its average",
)
class GenreCNN(Head):
    """Blocks of convolution, BatchNorm, ReLU and max pool; the flattened map; hidden layers with BatchNorm
    and dropout.

    By default the published network: 169,049,802 parameters for (1, 128, 1292) and 10 classes, of which
    168,821,248 are the first hidden layer's, one weight for every cell of the 128 x 16 x 161 map: it
    memorises when in a song something sounds. `pool="gap"` averages the map over the real frames instead.

    Args:
        input_shape: (D, F, T).
        num_classes: width of the logits.
        channels: width of each block; each halves the map, an odd last row or frame is dropped.
        hidden: widths of the hidden layers.
        dropout: rate after each hidden layer.
        pool: "flatten" (padding as zeros), or "gap", the mean over frequency and real frames.
        grid: (rows, frames); larger maps are averaged to it before flattening; the published size.
        standardise: per channel and frequency, with the training set's mean and deviation (`adapt`); padding
            becomes zero.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        channels: tuple[int, ...] = (32, 64, 128),
        hidden: tuple[int, ...] = (512, 256),
        dropout: float = 0.5,
        pool: str = "flatten",
        grid: tuple[int, int] = (16, 161),
        standardise: bool = False,
    ) -> None:
        super().__init__()
        if pool not in ("flatten", "gap"):
            raise HeadError(f"genre_cnn: option pool is flatten or gap, not {pool!r}")
        if not channels or len(grid) != 2:
            raise HeadError(
                f"genre_cnn: channels are not empty and grid is two numbers, not {channels} and {grid}"
            )
        if not all(isinstance(number, int) and number >= 1 for number in (*channels, *hidden, *grid)):
            raise HeadError(
                f"genre_cnn: channels, hidden and grid are whole numbers from 1, not {channels}, {hidden}, "
                f"{grid}"
            )
        self.pool = pool
        self.input = Input(input_shape, standardise)
        width, size, self.time_stride = input_shape[0], input_shape[1:], 1
        layers: list[nn.Module] = []
        for outputs in channels:
            conv, window = fit_window(size, 3), halve_window(size)
            layers += [
                nn.Conv2d(width, outputs, conv.kernel, padding=conv.padding),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(window.kernel, window.stride),
            ]
            width, size, self.time_stride = outputs, window.out, self.time_stride * window.stride[1]
        self.conv = nn.Sequential(*layers)
        self.grid = tuple(min(length, most) for length, most in zip(size, grid, strict=True))
        widths = [width * self.grid[0] * self.grid[1] if pool == "flatten" else width, *hidden]
        layers = []
        for before, after in pairwise(widths):
            layers += [
                nn.Linear(before, after),
                nn.BatchNorm1d(after),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
            ]
        self.fc = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of x (B, D, F, T); mask (B, T) True where real."""
        x = self.conv(self.input(x, mask))
        real = resize_mask(mask, self.time_stride, x.shape[3])
        if self.pool == "gap":
            return self.fc(pool_map(x, real))
        x, real = pool_to_grid(x, real, self.grid)
        if real is not None:
            x = x.masked_fill(~real[:, None, None, :], 0.0)
        return self.fc(x.flatten(1))

    def adapt(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Take mean and deviation of each channel and frequency from the real frames of the training set."""
        self.input.fit(batches)
