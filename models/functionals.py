"""Statistics of a spectrogram over time and one layer on them: trains in seconds, hard to overfit."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn

from . import HeadError, register
from .common import Standardise
from .head import Head

FLOOR = 80.0  # dB below a clip's loudest cell that still count
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@register(
    "functionals",
    kinds=("spectrogram", "sequence", "grid", "vector", "waveform"),
    about="statistics of each band over time, modulation spectrum, correlations of bands; one layer on top",
)
class Functionals(Head):
    """What openSMILE calls functionals of low-level descriptors: standardise them, drop some, one linear
    layer.

    Per band: mean, deviation, five quantiles, mean and deviation of the change from frame to frame. Per group
    of neighbouring bands: the modulation spectrum (power of the envelope's slow changes, in octave-like
    steps: a rotor, a clock, waves) and its correlation with the other groups. A spectrogram of one channel is
    taken relative to its loudest cell, so that gain does not matter, down to 80 dB below it.

    Args:
        input_shape: (D, F, T); each of D * F rows is a band. One frame (T = 1): the vector itself.
        num_classes: width of the logits.
        groups: groups of bands for modulations and correlations, at most one per band.
        modulations: steps of the modulation spectrum.
        hidden: width of a hidden layer; 0: none.
        dropout: rate on the statistics and hidden units.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        groups: int = 16,
        modulations: int = 12,
        hidden: int = 0,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        channels, height, self.frames = input_shape
        if min(groups, modulations) < 1 or hidden < 0:
            raise HeadError(
                "functionals: groups and modulations are at least 1, hidden at least 0, "
                f"not {groups}, {modulations}, {hidden}"
            )
        bands = channels * height
        self.groups = min(groups, bands)
        self.relative = channels == 1 and height > 1
        steps = self.frames // 2
        edges = {round(steps ** (number / modulations)) for number in range(modulations + 1)}
        self.edges = sorted(edges) if steps > 1 else []
        width = bands
        if self.frames > 1:
            width = (
                bands * 9 + self.groups * max(0, len(self.edges) - 1) + self.groups * (self.groups - 1) // 2
            )
        self.standardise = Standardise(width)
        layers: list[nn.Module] = [nn.Dropout(dropout)]
        if hidden:
            layers += [nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout)]
        self.top = nn.Sequential(*layers, nn.Linear(hidden or width, num_classes))
        nn.init.zeros_(self.top[-1].weight)  # as in `linear`: the solution of least norm
        nn.init.zeros_(self.top[-1].bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of x (B, D, F, T); mask (B, T) True where real."""
        return self.top(self.standardise(self.compute_statistics(x, mask)).clamp(-8, 8))

    def adapt(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Take mean and deviation of every statistic from the training set."""
        self.standardise.fit(self.compute_statistics(x, mask) for x, mask in batches)

    def compute_statistics(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, statistics) of x (B, D, F, T); mask (B, T) True where real."""
        with torch.autocast(x.device.type, enabled=False):
            return self._compute_statistics(x.float(), mask)

    def _compute_statistics(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x.flatten(1, 2)  # (B, bands, T)
        if self.frames == 1:
            return x[:, :, 0]
        real = x.new_ones(len(x), x.shape[2], dtype=torch.bool) if mask is None else mask.bool()
        real = real[:, None]
        if self.relative:
            peak = x.masked_fill(~real, float("-inf")).amax((1, 2), keepdim=True)
            x = (x - peak).clamp(min=-FLOOR)
        x = x.masked_fill(~real, 0.0)
        count = real.sum(2, keepdim=True)
        mean, deviation = _compute_moments(x, real, count)
        pairs = real[:, :, 1:] & real[:, :, :-1]
        change = (x[:, :, 1:] - x[:, :, :-1]).abs().masked_fill(~pairs, 0.0)
        steps = pairs.sum(2, keepdim=True).clamp(min=1)
        statistics = [
            mean,
            deviation,
            *self._compute_quantiles(x, real, count),
            *_compute_moments(change, pairs, steps),
        ]
        statistics = [torch.cat([part.flatten(1) for part in statistics], 1)]
        centred = (x - mean).masked_fill(~real, 0.0).transpose(1, 2)
        envelope = nn.functional.adaptive_avg_pool1d(centred, self.groups).transpose(1, 2)
        if len(self.edges) > 1:
            statistics.append(self._compute_modulation(envelope, count).flatten(1))
        if self.groups > 1:
            unit = nn.functional.normalize(envelope, dim=2)
            upper = torch.triu_indices(self.groups, self.groups, 1, device=x.device)
            statistics.append((unit @ unit.transpose(1, 2))[:, upper[0], upper[1]])
        return torch.cat(statistics, 1)

    @staticmethod
    def _compute_quantiles(x: Tensor, real: Tensor, count: Tensor) -> list[Tensor]:
        ordered = x.masked_fill(~real, float("inf")).sort(2).values
        quantiles = []
        for share in QUANTILES:
            at = (share * (count - 1)).round().long().expand(-1, x.shape[1], -1)
            quantiles.append(ordered.gather(2, at))
        return quantiles

    def _compute_modulation(self, envelope: Tensor, count: Tensor) -> Tensor:
        """(B, groups, steps) logarithm of the envelope's power spectrum; steps are at fixed modulation
        frequencies."""
        taper = torch.hann_window(envelope.shape[2], periodic=False, device=envelope.device)
        power = torch.fft.rfft(envelope * taper, n=self.frames).abs().square() / count
        steps = [power[:, :, low:high].mean(2) for low, high in pairwise(self.edges)]
        return (torch.stack(steps, 2) + 1e-2).log()


def _compute_moments(x: Tensor, real: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation over the real frames, (B, bands, 1) each; x is 0 elsewhere."""
    mean = x.sum(2, keepdim=True) / count
    centred = (x - mean).masked_fill(~real, 0.0)
    return mean, (centred.square().sum(2, keepdim=True) / count + 1e-8).sqrt()
