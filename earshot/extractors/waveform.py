"""The wave itself: the view `wave` (1, 1, samples), for heads that learn from raw audio."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from earshot.core.settings import Bounds
from earshot.extractors import base

if TYPE_CHECKING:
    import torch

RATE: int | None = None  # `Settings.rate`, or the data's own where that is None
PAD = "wrap"
SECONDS: float | None = None
LIMIT = 10.0
DEFAULT_WEIGHTS: str | None = None


@dataclass(frozen=True)
class Settings:
    """The rate decides: a head's work and a cache's size grow with it, what lies above half of it is lost."""

    rate: Annotated[int | None, Bounds(100, 768000)] = 16000
    """Samples per second to resample to (EnvNet-v2 hears 44100, ACDNet 20000); None = the commonest rate in
    the data."""


def weights_files(settings: Settings, weights: str | None) -> list[Path]:
    """No files: a wave has no weights, and UserError if some are given."""
    return base.no_weights("waveform", weights)


def fetch(settings: Settings, weights: str | None) -> None:
    """Nothing to fetch."""
    weights_files(settings, weights)


class Extractor(base.Extractor):
    """See `base.Extractor`."""

    def __init__(
        self,
        settings: Settings,
        window: base.Window,
        device: str = "cpu",
        weights: str | None = None,
        precision: str = "fp32",
    ) -> None:
        super().__init__(settings, window, "cpu", weights, "fp32")  # there is nothing to compute
        weights_files(settings, weights)
        self.shapes = {"wave": (1, 1, self.samples)}

    def forward(self, waves: torch.Tensor, lengths: list[float]) -> dict[str, torch.Tensor]:
        """{"wave": (B, 1, 1, samples)}; see `base.Extractor.forward`."""
        return {"wave": waves[:, None, None]}
