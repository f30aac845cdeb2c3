"""HiFi-GAN's scale discriminator as a classifier of raw audio, after hadaev8/test_task_ESC50_study."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from . import HeadError, register
from .common import fit_window, pool_map, pool_mask
from .head import Head


@register(
    "hifigan",
    kinds=("waveform", "sequence", "grid", "spectrogram", "vector"),
    about="HiFi-GAN's scale discriminator on raw audio (ESC-50 study): strided grouped convolutions, mean "
    "over time",
)
class HiFiGAN(Head):
    """Weight-normalised convolutions along time, LeakyReLU between them, logits frame by frame, their mean.

    By default the published network: 10,024,932 parameters (4,146 of them the gains of the weight norm) for
    (1, 1, 220500) and 50 classes. Kong et al. 2020 (HiFi-GAN), section 2.3, with the widths of the ESC-50
    study. There the mean is over all frames; here over the real ones, and padding is zeroed before every
    convolution, so that a clip's logits don't depend on the length of the padding. Frequencies are channels.

    Args:
        input_shape: (D, F, T), read as D * F channels.
        num_classes: width of the logits.
        channels: width of the first layer and of each strided one; the second-last layer repeats the last.
        strides: of the strided layers, one fewer than `channels`.
        groups: of the strided layers; each divides the channels before and after it.
        kernels: of the first layer, the strided ones, the second-last and the last; odd.
        slope: of the LeakyReLU.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        channels: tuple[int, ...] = (128, 128, 256, 512, 1024, 1024),
        strides: tuple[int, ...] = (4, 4, 4, 4, 1),
        groups: tuple[int, ...] = (4, 16, 16, 16, 16),
        kernels: tuple[int, ...] = (15, 41, 5, 3),
        slope: float = 0.1,
    ) -> None:
        super().__init__()
        if not all(
            isinstance(number, int) and number >= 1 for number in (*channels, *strides, *groups, *kernels)
        ):
            raise HeadError(
                "hifigan: channels, strides, groups and kernels are lists of whole numbers from 1, not "
                f"{channels}, {strides}, {groups} and {kernels}"
            )
        if not len(strides) == len(groups) == len(channels) - 1 or len(kernels) != 4:
            raise HeadError(
                "hifigan: strides and groups are one shorter than channels, and kernels are four, not "
                f"{channels}, {strides}, {groups} and {kernels}"
            )
        uneven = [
            g
            for g, sides in zip(groups, pairwise(channels), strict=True)
            if any(width % g for width in sides)
        ]
        if uneven:
            raise HeadError(
                f"hifigan: groups divide the channels before and after them: {uneven[0]} does not in "
                f"channels {channels}, groups {groups}"
            )
        depth, height, frames = input_shape
        first, strided, late, last = kernels
        width = depth * height
        self.layers, self.strides = nn.ModuleList(), []
        for outputs, kernel, stride, group in [
            (channels[0], first, 1, 1),
            *(
                (outputs, strided, stride, group)
                for outputs, stride, group in zip(channels[1:], strides, groups, strict=True)
            ),
            (channels[-1], late, 1, 1),
            (num_classes, last, 1, 1),
        ]:
            window = fit_window((1, frames), kernel, stride)
            (_, kernel), (_, stride), (_, padding), (_, frames) = window
            self.layers.append(weight_norm(nn.Conv1d(width, outputs, kernel, stride, padding, groups=group)))
            self.strides.append(stride)
            width = outputs
        self.relu = nn.LeakyReLU(slope)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of x (B, D, F, T); mask (B, T) True where real."""
        x = x.flatten(1, 2)
        mask = None if mask is None else mask.bool()
        for number, (layer, stride) in enumerate(zip(self.layers, self.strides, strict=True)):
            if mask is not None:
                x = x.masked_fill(~mask[:, None, :], 0.0)
                mask = pool_mask(mask, stride)
            x = layer(self.relu(x) if number else x)
        return pool_map(x[:, :, None, :], mask)
