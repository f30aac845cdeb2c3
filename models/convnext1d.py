"""ConvNeXt blocks along time on raw audio or EnCodec latents, after hadaev8/test_task_ESC50_study."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import HeadError, register
from .common import pool_map, pool_mask
from .head import Head


class TimeNorm(nn.GroupNorm):
    """GroupNorm(1, C), the published norm: mean and deviation over all channels and all real frames of a
    clip."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, C, T) normalised; mask (B, T) True where real."""
        if mask is None:
            return super().forward(x)
        x = x.float()  # as autocast does for group_norm: sums over a clip overflow float16
        real = mask[:, None, :]
        count = mask.sum(1)[:, None, None] * x.shape[1]
        mean = x.masked_fill(~real, 0.0).sum((1, 2), keepdim=True) / count
        centred = (x - mean).masked_fill(~real, 0.0)
        variance = centred.square().sum((1, 2), keepdim=True) / count
        return centred * (variance + self.eps).rsqrt() * self.weight[:, None] + self.bias[:, None]


class FrameNorm(nn.LayerNorm):
    """LayerNorm over the channels of each frame: frames stay independent; as many parameters as TimeNorm."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, C, T) normalised; the mask is ignored."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """(B, C, T) with zeros where the mask (B, T) says padding: what convolutions see beyond the ends
    anyway."""
    return x if mask is None else x.masked_fill(~mask[:, None, :], 0.0)


class Block(nn.Module):
    """Depthwise convolution, norm, 1x1 to 4C, GELU, 1x1 to C, dropout of values and of whole channels,
    shortcut.

    Args:
        channels: C.
        kernel: of the depthwise convolution, odd.
        dropout: rate of both dropouts.
        causal: pad on the left only and normalise every frame by itself, so that no frame sees a later one.
    """

    def __init__(self, channels: int, kernel: int, dropout: float, causal: bool = False) -> None:
        super().__init__()
        self.pad = (kernel - 1, 0) if causal else (kernel // 2, kernel // 2)
        self.depthwise = nn.Conv1d(channels, channels, kernel, groups=channels)
        self.norm = FrameNorm(channels) if causal else TimeNorm(channels)
        self.expand = nn.Conv1d(channels, 4 * channels, 1)
        self.gelu = nn.GELU()
        self.reduce = nn.Conv1d(4 * channels, channels, 1)
        self.dropout = nn.Dropout(dropout)
        self.drop_channels = nn.Dropout1d(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, C, T) to (B, C, T), zero in the padding if it came in as zero there."""
        y = self.norm(self.depthwise(F.pad(x, self.pad)), mask)
        y = self.reduce(self.gelu(self.expand(y)))
        return x + zero_padding(self.drop_channels(self.dropout(y)), mask)


class Patch(nn.Module):
    """A convolution whose stride is its kernel, and a norm; a remainder at the end is left out, as
    published."""

    def __init__(self, inputs: int, outputs: int, frames: int, stride: int) -> None:
        super().__init__()
        self.stride = stride if frames >= stride else 1  # an axis that has run out
        self.frames = frames // self.stride
        self.conv = nn.Conv1d(inputs, outputs, self.stride, self.stride)
        self.norm = TimeNorm(outputs)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(B, C, T) and (B, T) to (B, C', T') and (B, T')."""
        x = self.conv(x)
        if mask is not None:
            cells = pool_mask(mask, self.stride)
            last = x.shape[2] - 1
            # a clip that is real only in the remainder keeps a frame
            mask = torch.cat([cells[:, :last], cells[:, last, None] | cells[:, -1:]], dim=1)
        return zero_padding(self.norm(x, mask), mask), mask


@register(
    "convnext1d",
    kinds=("waveform", "sequence", "grid", "spectrogram", "vector"),
    about="1-D ConvNeXt over time on raw audio, EnCodec latents or any view (ESC-50 study)",
)
class ConvNeXt1d(Head):
    """Stem, stages of a patch convolution and ConvNeXt blocks, a 1x1 convolution to the classes, mean over
    time.

    By default the published network on raw audio: 36,595,186 parameters for (1, 1, 220500) and 50 classes. On
    EnCodec latents (128, 1, 375) the published one has stem 256, stem_stride 4, channels 512 and 1024, stride
    2 and dropout 0.25: 33,218,354. Its norm takes statistics over the whole clip; here only over real frames,
    and padding is zeroed before every convolution, so that a clip's logits don't depend on the length of the
    padding. Frequencies are channels: convolutions run along time only.

    Args:
        input_shape: (D, F, T), read as D * F channels.
        num_classes: width of the logits.
        stem: channels of the stem.
        stem_stride: kernel and stride of the stem.
        channels: width of each stage.
        stride: kernel and stride at the start of each stage.
        blocks: blocks per stage.
        kernel: size of the depthwise convolutions, odd.
        dropout: rate for values and for whole channels, at the end of each block.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        stem: int = 64,
        stem_stride: int = 16,
        channels: tuple[int, ...] = (128, 256, 512, 1024),
        stride: int = 4,
        blocks: int = 3,
        kernel: int = 49,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not channels or not all(isinstance(number, int) and number >= 1 for number in channels):
            raise HeadError(f"convnext1d: option channels is a list of widths from 1, not {channels!r}")
        if min(stem, stem_stride, stride) < 1 or blocks < 0:
            raise HeadError(
                "convnext1d: stem, stem_stride and stride are at least 1 and blocks at least 0, not "
                f"{stem}, {stem_stride}, {stride} and {blocks}"
            )
        if kernel < 1 or kernel % 2 == 0:
            raise HeadError(f"convnext1d: option kernel is odd, not {kernel}")
        depth, height, frames = input_shape
        self.stem = Patch(depth * height, stem, frames, stem_stride)
        self.stages = nn.ModuleList()
        width, frames = stem, self.stem.frames
        for outputs in channels:
            patch = Patch(width, outputs, frames, stride)
            width, frames = outputs, patch.frames
            # Not common.fit_window: the published kernel of 49 stays where 23 frames are left.
            fitted = kernel if frames > 1 else 1
            self.stages.append(
                nn.ModuleList([patch, *(Block(width, fitted, dropout) for _ in range(blocks))])
            )
        self.fc = nn.Conv1d(width, num_classes, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of x (B, D, F, T); mask (B, T) True where real."""
        mask = None if mask is None else mask.bool()
        x, mask = self.stem(zero_padding(x.flatten(1, 2), mask), mask)
        for patch, *blocks in self.stages:
            x, mask = patch(x, mask)
            for block in blocks:
                x = block(x, mask)
        return pool_map(self.fc(x)[:, :, None, :], mask)
