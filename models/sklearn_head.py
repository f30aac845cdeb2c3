"""What scikit-learn heads share: they are fitted without epochs, on one vector per row.

Such a head has `solve(batches, targets, groups, multilabel)`, also with `weights` if it is `weighted`, and
stores the fit in buffers, so it is saved, rebuilt and used like any other head: no scikit-learn object is
ever stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import HeadError
from .common import Standardise, check_pool, count_stats, pool_stats
from .functionals import Functionals
from .head import Head
from .modulations import Modulations, compute_levels

NEVER = -12.0  # logit of a class that no training clip has


class SklearnHead(Head):
    """Vectors of a view, standardised: the embedding, mean and maximum over time, or a spectrogram's
    functionals.

    Args:
        input_shape: (D, F, T).
        num_classes: width of the logits.
        pool: statistics of the real frames of other views than spectrograms, see `common.pool_stats`.
        modulations: also a spectrogram's spectro-temporal modulations.
    """

    is_sklearn = True
    weighted = True  # does `solve` take weights of the rows?

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        pool: str = "mean_max",
        modulations: bool = False,
    ) -> None:
        super().__init__()
        self.pool = check_pool(type(self).__name__.lower(), pool)
        channels, height, frames = input_shape
        self.classes = num_classes
        self.functionals = (
            Functionals(input_shape, num_classes) if channels == 1 and height > 1 and frames > 1 else None
        )
        if self.functionals is None:
            width = count_stats(input_shape, pool)
        else:
            width = self.functionals.standardise.mean.numel()
            # only its statistics are used
            self.functionals.top = self.functionals.standardise = nn.Identity()
        self.modulations: Modulations | None = None
        if modulations:
            if self.functionals is None:
                raise HeadError(
                    f"{type(self).__name__.lower()}: option modulations needs a spectrogram, not a view of "
                    f"shape {'x'.join(map(str, input_shape))}: leave it out, or extract log-mel"
                )
            self.modulations = Modulations(height, frames)
            width += self.modulations.width
        self.width = width
        self.standardise = Standardise(width)

    def compute_vectors(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, width), before standardisation."""
        if self.functionals is None:
            return pool_stats(x, mask, self.pool)
        vectors = self.functionals.compute_statistics(x, mask)
        if self.modulations is None:
            return vectors
        with torch.autocast(x.device.type, enabled=False):
            return torch.cat([vectors, self.modulations(*compute_levels(x.float(), mask))], 1)

    def compute_standardised(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, width) with mean 0 and deviation 1 in training, clipped at eight deviations."""
        return self.standardise(self.compute_vectors(x, mask)).clamp(-8, 8)

    def fit_standardisation(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> np.ndarray:
        """Fit the standardisation to the training rows; the standardised rows: (rows, width) float32."""
        with torch.inference_mode():
            vectors = torch.cat([self.compute_vectors(x, mask).float().cpu() for x, mask in batches])
        self.standardise.fit([vectors])
        return self.standardise.cpu()(vectors).clamp(-8, 8).numpy()

    def store_buffers(self, **tensors: Tensor) -> None:
        """Set buffers to copies with the memory layout of a loaded checkpoint.

        Another layout means another summation kernel, whose results differ in the last bits on some CPUs.
        """
        for name, value in tensors.items():
            setattr(self, name, value.clone(memory_format=torch.contiguous_format))

    def update_options(self, **options: Any) -> None:
        """Write options that only the fit decides into `config`, such as the number of rows kept: rebuilding
        needs them."""
        self.config["options"].update(options)


def split_tasks(targets: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(class, (rows,) 0/1) of every class that some rows have and some don't."""
    for number in range(targets.shape[1]):
        yes = targets[:, number] > 0.5
        if yes.any() and not yes.all():
            yield number, yes.astype(np.int64)


def compute_constant_logits(targets: np.ndarray) -> np.ndarray:
    """(classes,) logits for the classes that all rows have, or none, and `split_tasks` leaves out; 0 for the
    others."""
    yes = targets > 0.5
    return np.where(yes.all(0), -NEVER, np.where(yes.any(0), 0.0, NEVER)).astype(np.float32)
