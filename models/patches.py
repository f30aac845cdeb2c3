"""A dictionary of spectrogram patches, learned without labels, and a support vector machine on each word's
mean and deviation over time."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from . import HeadError, register
from .common import Standardise, stretch_time
from .modulations import compute_levels
from .svm import SVM, compute_gaussian_kernel

SAMPLED = 40_000  # patches that a dictionary is learnt from
AREAS = 3  # of the frequency axis, counted apart
PIXELS = 1 << 24  # values that a pass may make
WHITENED = 0.05  # added to the variances, those of patches whose own is about 1
MOST_ROWS = 6_000  # training rows with their varied copies: the machines' time grows with the square
# of varied copies: in units of F / 20 bands; of the time axis
SHIFTS, STRETCHES = (-1, 1, -2, 2), (0.8, 1.25)
PREDICTED = (0, 1, 2, 5, 6)  # the copies whose mean predicts a clip


@register(
    "patches",
    kinds=("spectrogram",),
    about="a dictionary of patches learned from the training clips, statistics over time, and a support "
    "vector machine; a minute",
)
class Patches(SVM):
    """Coates, Lee & Ng's single-layer features (2011), applied to audio by Salamon & Bello (2015), beside
    `functionals`.

    Patches of each size are normalised, whitened and clustered by spherical k-means; a patch activates the
    words that it resembles more than the average one. A clip's features are each word's mean and deviation
    over time in three frequency bands. The kernel is the mean of Gaussian kernels: one of the statistics, one
    of each dictionary. The machines are also fitted to copies shifted in frequency and stretched in time, and
    predict by the mean over five such copies.

    Args:
        input_shape: (1, F, T).
        num_classes: width of the logits.
        words: of each dictionary.
        sizes: of the patches, (bands, frames) each; 0 bands: a quarter of F, -1: an eighth.
        c: inverse strength of the penalty.
        gamma: of the Gaussian kernels, as in `svm`.
        rows: training vectors kept; set by the fit.
        modulations: also a kernel of spectro-temporal modulations, see `modulations.Modulations`.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        words: int = 200,
        sizes: Sequence[Sequence[int]] = ((0, 8), (-1, 24)),
        c: float = 3.0,
        gamma: float = 1.0,
        rows: int = 0,
        modulations: bool = False,
    ) -> None:
        channels, height, frames = input_shape
        if channels != 1 or height < 4 or frames < 4:
            raise HeadError(
                "patches: a spectrogram of one channel, 4 bands and 4 frames at least is needed, not "
                f"{input_shape}"
            )
        if words < 2 or not sizes or any(len(size) != 2 or size[0] < -1 or size[1] < 1 for size in sizes):
            raise HeadError(
                f"patches: words are at least 2, sizes are pairs (bands, frames), not {words}, {sizes}"
            )
        super().__init__(input_shape, num_classes, c=c, gamma=gamma, rows=rows, modulations=modulations)
        self.words, self.frames, self.height = words, frames, height
        self.sizes = [
            (min(height, {0: max(2, height // 4), -1: max(2, height // 8)}.get(h, h)), min(frames, w))
            for h, w in sizes
        ]
        self.stride = (max(1, height // 8), 2)
        # of a patch in a clip, at most
        self.places = (self.height // self.stride[0]) * (self.frames // self.stride[1])
        own = 0 if self.modulations is None else self.modulations.width
        self.parts = [self.width - own, own] if own else [self.width]
        for number, (h, w) in enumerate(self.sizes):
            self.register_buffer(f"words{number}", torch.zeros(words, 1, h, w))
            self.register_buffer(f"against{number}", torch.zeros(words))
            self.register_buffer(f"soft{number}", torch.ones(()))
            self.parts.append(2 * words * min(AREAS, (height - h) // self.stride[0] + 1))
        self.width = sum(self.parts)
        self.standardise = Standardise(self.width)
        self.vectors_kept = torch.zeros(rows, self.width, dtype=torch.float16)
        self.copies = [0.0, *SHIFTS, *STRETCHES]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of x (B, 1, F, T); mask (B, T) True where real."""
        kernels = [
            self._compute_kernel(
                self.compute_standardised(*self._copy(x, mask, number)).float(), self.vectors_kept
            )
            for number in PREDICTED
        ]
        return torch.stack(kernels).mean(0) @ self.coefficients.T + self.bias

    def compute_vectors(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, width): the statistics, the modulations, then each dictionary's."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            return torch.cat([super().compute_vectors(x, mask), *self._counts(x, mask)], 1)

    def _counts(self, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        """[(B, values)] of every dictionary."""
        x, real = compute_levels(x, mask)
        step = max(1, PIXELS // (len(self.sizes) * self.words * self.places))
        return [
            torch.cat(
                [
                    self._count_words(number, x[at : at + step], real[at : at + step])
                    for at in range(0, len(x), step)
                ]
            )
            for number in range(len(self.sizes))
        ]

    def _count_words(self, number: int, x: Tensor, real: Tensor) -> Tensor:
        words, against, soft = (getattr(self, f"{name}{number}") for name in ("words", "against", "soft"))
        size = words.shape[2:]
        mean, square = (nn.functional.avg_pool2d(one, size, self.stride) for one in (x, x.square()))
        deviation = _compute_root(square - mean.square())
        matches = (
            nn.functional.conv2d(x, words, stride=self.stride) / (deviation + soft) - against[:, None, None]
        )
        matches = (matches - matches.mean(1, keepdim=True) - matches.std(1, keepdim=True)).relu()
        # A patch counts where all of it is real; the first one always does.
        last = torch.arange(matches.shape[3], device=x.device) * self.stride[1] + size[1]
        inside = ((last <= real[:, None]) | (last == size[1]))[:, None, None].to(matches.dtype)
        count, areas = inside.sum((2, 3)), []
        for area in matches.tensor_split(min(AREAS, matches.shape[2]), 2):
            loudest = area.amax(2, keepdim=True)
            mean = (loudest * inside).sum((2, 3)) / count
            spread = ((loudest - mean[:, :, None, None]).square() * inside).sum((2, 3)) / count
            areas += [(area * inside).sum((2, 3)) / (count * area.shape[2]), _compute_root(spread)]
        return _compute_root(torch.cat(areas, 1))

    def _copy(self, x: Tensor, mask: Tensor | None, number: int) -> tuple[Tensor, Tensor | None]:
        """A copy of a clip, shifted by some bands or stretched in time; number 0 is the clip itself."""
        by = self.copies[number]
        if not number:
            return x, mask
        if number <= len(SHIFTS):
            bands = round(by * self.height / 20)
            at = (torch.arange(self.height, device=x.device) - bands).clamp(0, self.height - 1)
            return x[:, :, at], mask
        return stretch_time(x, mask, by)

    def _compute_kernel(self, x: Tensor, y: Tensor) -> Tensor:
        # not a stack of all: each is a fitting's largest piece of memory
        kernel = torch.zeros(len(x), len(y), device=x.device)
        for a, b in zip(x.split(self.parts, 1), y.split(self.parts, 1), strict=True):
            kernel = kernel + compute_gaussian_kernel(a, b, self.gamma)
        return kernel / len(self.parts)

    def solve(
        self,
        batches: Iterable[tuple[Tensor, Tensor | None]],
        targets: np.ndarray,
        groups: np.ndarray,
        multilabel: bool,
        weights: np.ndarray | None = None,
    ) -> None:
        """Learn the dictionaries from the training rows, all with equal weight, then fit the machines to the
        rows and their copies; arguments as in `svm`."""
        self._refuse(len(targets))
        batches = [(x.cpu(), None if mask is None else mask.cpu()) for x, mask in batches]
        for number in range(len(self.sizes)):
            self._learn(number, batches)
        # as many copies as there is time for, first those that predict
        order = [*PREDICTED, *(number for number in range(len(self.copies)) if number not in PREDICTED)][
            : max(1, MOST_ROWS // len(targets))
        ]
        every = [torch.from_numpy(self.fit_standardisation(batches))]
        with torch.no_grad():
            every += [
                torch.cat([self.compute_standardised(*self._copy(x, mask, number)) for x, mask in batches])
                for number in order[1:]
            ]
        predicting = list(range(min(len(order), len(PREDICTED))))
        self._fit_machine(torch.cat(every), targets, groups, multilabel, weights, predicting)

    def count_stored_values(self, rows: int) -> int:
        """The most 4-byte values stored after fitting to this many rows; vectors take 2 bytes per value."""
        return self._count_training_rows(rows) * (self.width // 2 + self.classes) + sum(
            self.words * h * w for h, w in self.sizes
        )

    def _count_training_rows(self, rows: int) -> int:
        return max(rows, min(len(self.copies) * rows, MOST_ROWS))

    def estimate_seconds(self, rows: int) -> tuple[float, float]:
        """Estimated seconds on two cores: to fit to this many rows, and to predict one."""
        copies = self._count_training_rows(rows)
        seconds_per_copy = sum(2 * self.words * h * w * self.places for h, w in self.sizes) / 2e10
        fitting = rows * (len(self.copies) + len(PREDICTED)) * seconds_per_copy + copies**2 * (
            1e-7 * self.classes + 4e-11 * self.width
        )
        return 2 + fitting, len(PREDICTED) * seconds_per_copy

    def _learn(self, number: int, batches: list[tuple[Tensor, Tensor | None]]) -> None:
        """Learn the dictionary of one patch size: whiten, cluster; whitening and words are kept as one set of
        filters."""
        from sklearn.cluster import MiniBatchKMeans
        from sklearn.exceptions import ConvergenceWarning

        size = self.sizes[number]
        patches = _sample_patches(batches, size, self.stride)
        deviation = patches.std(1, unbiased=False, keepdim=True)
        soft = (deviation.mean() / 2).clamp(min=1e-3)
        patches = (patches - patches.mean(1, keepdim=True)) / (deviation + soft)
        centre = patches.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov((patches - centre).T).double())
        whiten = ((vectors * (values.clamp(min=0) + WHITENED).rsqrt()) @ vectors.T).float()
        points = nn.functional.normalize((patches - centre) @ whiten, dim=1).numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different patches than words
            centres = (
                MiniBatchKMeans(self.words, n_init=1, batch_size=4096, max_iter=20, random_state=0)
                .fit(points)
                .cluster_centers_
            )
        filters = nn.functional.normalize(torch.from_numpy(centres).float(), dim=1) @ whiten
        # A patch's mean is taken off by filters that sum to nothing.
        words = (filters - filters.mean(1, keepdim=True)).unflatten(1, (1, *size))
        self.store_buffers(
            **{f"against{number}": filters @ centre, f"words{number}": words, f"soft{number}": soft}
        )


def _compute_root(x: Tensor) -> Tensor:
    """The square root, 0 below 0, where its gradient is 0, too: an infinite one would break saliency."""
    above = x > 0
    return torch.where(above, x, 1.0).sqrt() * above


def _sample_patches(
    batches: list[tuple[Tensor, Tensor | None]], size: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    """(patches, bands * frames) drawn evenly from all clips."""
    draw = np.random.default_rng(0)
    each, patches = -(-SAMPLED // sum(len(x) for x, _ in batches)), []
    for x, mask in batches:
        for clip, frames in zip(*compute_levels(x.float(), mask), strict=True):
            there = clip[0].unfold(0, size[0], stride[0]).unfold(1, size[1], stride[1])
            last = max(1, (int(frames) - size[1]) // stride[1] + 1)
            patches.append(there[draw.integers(0, len(there), each), draw.integers(0, last, each)].flatten(1))
    return torch.cat(patches)
