"""Convolutions over the spectrogram, a recurrent layer over time, attention pooling: a CRNN as in sound event
detection."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from . import HeadError, register
from .common import fit_window
from .head import Head
from .maps import Input, halve_window, pool_to_grid, resize_mask


class AttentionPool(nn.Module):
    """The mean over time, each frame weighted by a softmax of a learned score."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Frames (B, T, C), real (B, T) True where a frame is real, to (B, C)."""
        score = self.score(x).float()
        if real is not None:
            score = score.masked_fill(~real[:, :, None], float("-inf"))
        return (x * score.softmax(1).to(x.dtype)).sum(1)


@register(
    "crnn",
    kinds=("spectrogram", "sequence", "grid", "vector", "waveform"),
    about="convolutions, a bidirectional GRU over time, attention pooling over the real frames",
)
class CRNN(Head):
    """Convolution blocks, a bidirectional GRU over the frames, attention pooling, dropout, one linear layer.

    The layout of Cakir et al. (2017), with attention in place of their output per frame. The GRU sees
    padding as zeros: the length of the padding may change a logit, its content never does.

    Args:
        input_shape: (D, F, T).
        num_classes: width of the logits.
        channels: width of each block: two 3x3 convolutions with BatchNorm and ReLU, then a max pool that
            halves the frequencies.
        time_pools: how many of the first blocks halve the frames too.
        max_frames: longer sequences are averaged to this many frames before the GRU.
        hidden: width of the GRU in each direction.
        layers: GRU layers, with dropout between them.
        dropout: rate before the GRU and before the last layer.
        standardise: per channel and frequency, with the training set's mean and deviation (`adapt`); padding
            becomes zero.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        channels: tuple[int, ...] = (32, 64, 128, 128),
        time_pools: int = 2,
        max_frames: int = 512,
        hidden: int = 128,
        layers: int = 1,
        dropout: float = 0.3,
        standardise: bool = True,
    ) -> None:
        super().__init__()
        if not channels or not all(
            isinstance(number, int) and number >= 1 for number in (*channels, hidden, layers, max_frames)
        ):
            raise HeadError("crnn: channels, hidden, layers and max_frames are whole numbers from 1")
        if time_pools < 0:
            raise HeadError(f"crnn: option time_pools is a whole number from 0, not {time_pools}")
        self.input = Input(input_shape, standardise)
        width, size, self.time_stride = input_shape[0], input_shape[1:], 1
        blocks: list[nn.Module] = []
        for index, outputs in enumerate(channels):
            for inputs in (width, outputs):
                window = fit_window(size, 3)
                conv = nn.Conv2d(inputs, outputs, window.kernel, padding=window.padding, bias=False)
                blocks += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
            rows, frames = halve_window(size).kernel
            frames = frames if index < time_pools else 1
            blocks.append(nn.MaxPool2d((rows, frames)))
            width, size, self.time_stride = (
                outputs,
                (size[0] // rows, size[1] // frames),
                self.time_stride * frames,
            )
        self.conv = nn.Sequential(*blocks)
        self.frames = min(size[1], max_frames)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(
            width * size[0],
            hidden,
            layers,
            batch_first=True,
            bidirectional=True,
            dropout=dropout if layers > 1 else 0.0,
        )
        self.pool = AttentionPool(2 * hidden)
        self.fc = nn.Linear(2 * hidden, num_classes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of x (B, D, F, T); mask (B, T) True where real."""
        x = self.conv(self.input(x, mask))
        x, real = pool_to_grid(x, resize_mask(mask, self.time_stride, x.shape[3]), (x.shape[2], self.frames))
        if real is not None:
            x = x.masked_fill(~real[:, None, None, :], 0.0)
        x, _ = self.gru(self.dropout(x.flatten(1, 2).transpose(1, 2)))
        return self.fc(self.dropout(self.pool(x, real)))

    def adapt(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Take mean and deviation of each channel and frequency from the real frames of the training set."""
        self.input.fit(batches)
