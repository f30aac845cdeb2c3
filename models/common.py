"""Parts that heads share: standardisation, masked pooling, convolutions on axes shorter than the kernel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import HeadError

POOLS = ("mean", "mean_max", "mean_std")  # what heads offer as their option `pool`


class Standardise(nn.Module):
    """Subtract the training set's mean and divide by its standard deviation, feature by feature.

    The identity until `fit` is called. Mean and deviation are buffers: they are saved, and are not trained.

    Args:
        num_features: number of features; a (B, D, F, T) input has one per channel and frequency, D * F of
            them.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Standardise (B, num_features), or (B, D, F, T) with D * F features."""
        if x.ndim == 4:
            shape = (1, x.shape[1], x.shape[2], 1)
            return (x - self.mean.view(shape)) / self.std.view(shape)
        return (x - self.mean) / self.std

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Take mean and (population) standard deviation over all rows of all batches, in one pass.

        Float64 on the CPU whatever the device: MPS has no float64, and the same order gives the same bits.
        Batches are merged by Chan, Golub & LeVeque's update (1979), which does not cancel as sum-of-squares
        does.

        Args:
            batches: (rows, num_features) each.
        """
        count = 0
        mean = torch.zeros(self.mean.numel(), dtype=torch.float64)
        squares = torch.zeros_like(mean)
        for batch in batches:
            rows = batch.detach().to("cpu").double()
            if not len(rows):
                continue
            batch_mean = rows.mean(0)
            delta = batch_mean - mean
            total = count + len(rows)
            squares += (rows - batch_mean).square().sum(0) + delta.square() * (count * len(rows) / total)
            mean += delta * (len(rows) / total)
            count = total
        if not count:
            raise HeadError("there are no training batches to take a mean and standard deviation of")
        self.mean.copy_(mean)
        self.std.copy_(_replace_constant((squares / count).sqrt(), mean))


def _replace_constant(std: Tensor, mean: Tensor) -> Tensor:
    # A feature that is constant in training (an empty mel filter) would turn the least change in a test
    # clip into a huge number, whatever the floor: it gets the deviation that is typical for its fellows
    # instead.
    varies = std > 1e-7 * mean.abs()  # below: float32 rounding of the features, not variation
    typical = std[varies].median() if varies.any() else std.new_tensor(1.0)
    return torch.where(varies & (std > 1e-4 * typical), std, typical)


def select_real_frames(x: Tensor, mask: Tensor | None) -> Tensor:
    """The frames of (B, D, F, T) that the mask (B, T) calls real, as rows of D * F features: what
    `Standardise.fit` takes."""
    rows = x.flatten(1, 2).transpose(1, 2)  # (B, T, D * F)
    return rows.flatten(0, 1) if mask is None else rows[mask.bool()]


def pool_map(x: Tensor, mask: Tensor | None = None, how: str = "mean") -> Tensor:
    """Pool a feature map over frequency and over the frames that are real.

    Args:
        x: (B, C, F, T).
        mask: (B, T), True where real, at least once a row; None: all are.
        how: which of "mean", "max" and "std" (the population's), joined by "_"; concatenated in this order.
    Returns:
        (B, C) for each of them.
    """
    if mask is None:
        mean = x.mean((2, 3))
    else:
        # Filling, not multiplying, so that not even NaN or infinity in the padding gets through.
        padding = ~mask.bool()[:, None, None, :]
        frames = mask.sum(1, keepdim=True) * x.shape[2]
        mean = x.masked_fill(padding, 0.0).sum((2, 3)) / frames
    if how == "mean":
        return mean
    pooled = [mean] if "mean" in how else []
    if "max" in how:
        pooled.append((x if mask is None else x.masked_fill(padding, float("-inf"))).amax((2, 3)))
    if "std" in how:
        squares = (x - mean[:, :, None, None]).square()
        if mask is None:
            variance = squares.mean((2, 3))
        else:
            variance = squares.masked_fill(padding, 0.0).sum((2, 3)) / frames
        pooled.append((variance + 1e-8).sqrt())  # the root of 0 has no gradient
    return torch.cat(pooled, dim=1)


def check_pool(name: str, how: str) -> str:
    """A head's option `pool`, one of POOLS; HeadError if it is another."""
    if how not in POOLS:
        raise HeadError(f"{name}: option pool is one of {', '.join(POOLS)}, not {how!r}")
    return how


def pool_stats(x: Tensor, mask: Tensor | None = None, how: str = "mean_max") -> Tensor:
    """Turn a view into one vector a clip: itself where it is a vector, else statistics of each channel.

    A view of one channel over several frequencies (a spectrogram) keeps its frequencies as channels and is
    pooled over time only: pooled over both it would be two numbers.

    Args:
        x: (B, D, F, T).
        mask: (B, T), True where real; None: all are.
        how: see `pool_map`; by default mean and maximum.
    Returns:
        (B, D) where F = T = 1; (B, F) for each statistic where D = 1 < F; else (B, D) for each. `count_stats`
        tells the width.
    """
    channels, height, frames = x.shape[1:]
    if height == frames == 1:
        return x.flatten(1)
    if channels == 1:
        x = x.transpose(1, 2)
    return pool_map(x, mask, how)


def count_stats(input_shape: tuple[int, int, int], how: str = "mean_max") -> int:
    """The width of `pool_stats` for a view of shape (D, F, T)."""
    channels, height, frames = input_shape
    if height == frames == 1:
        return channels
    return len(how.split("_")) * (height if channels == 1 else channels)


def pool_mask(mask: Tensor, stride: int) -> Tensor:
    """Bring a mask to the frames of a feature map: a cell is real if any of its frames is.

    Args:
        mask: (B, T).
        stride: frames to a cell, the product of the strides along time.
    Returns:
        (B, ceil(T / stride)) bool.
    """
    if stride == 1:
        return mask.bool()
    return nn.functional.max_pool1d(mask.float()[:, None], stride, stride, ceil_mode=True)[:, 0] > 0


class Window(NamedTuple):
    """Kernel, stride and padding of a convolution over (frequency, time), and the size that it leaves."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    out: tuple[int, int]


def fit_window(size: tuple[int, int], kernel: int, stride: int | tuple[int, int] = 1) -> Window:
    """Fit a centred ("same"-padded) kernel to a map; an axis that has run out gets kernel and stride 1.

    An axis has run out when it is no longer than the padding, kernel // 2: then part of the kernel never
    meets data.

    Args:
        size: (F, T) of the map.
        kernel: odd.
        stride: wanted stride, or one for frequency and one for time; n frames become ceil(n / stride).
    Returns:
        the window, axis by axis.
    """
    wanted = (stride, stride) if isinstance(stride, int) else stride
    if kernel % 2 == 0 or kernel < 1 or min(wanted) < 1:
        raise HeadError(f"kernels are odd and strides at least 1, not kernel {kernel} with stride {stride}")
    fits = [length > kernel // 2 for length in size]
    kernels = tuple(kernel if fit else 1 for fit in fits)
    strides = tuple(step if fit else 1 for step, fit in zip(wanted, fits, strict=True))
    paddings = tuple(k // 2 for k in kernels)
    return Window(
        kernels, strides, paddings, tuple(-(-length // s) for length, s in zip(size, strides, strict=True))
    )


def stretch_time(x: Tensor, mask: Tensor | None, by: float) -> tuple[Tensor, Tensor]:
    """Clips stretched in time and their mask: x (B, D, F, T) of as many frames, cut or padded with 0 at the
    end; mask (B, T) True where real."""
    length = x.shape[3]
    frames = round(by * length)
    if mask is not None:
        x = x.masked_fill(~mask[:, None, None], 0.0)
    x = nn.functional.interpolate(x.float(), size=(x.shape[2], frames), mode="bilinear", align_corners=False)
    real = torch.full((len(x),), length, device=x.device) if mask is None else mask.sum(1)
    real = (by * real).round().clamp(1, length)
    x = nn.functional.pad(x, (0, max(0, length - frames)))[..., :length]
    return x, torch.arange(length, device=x.device) < real[:, None]
