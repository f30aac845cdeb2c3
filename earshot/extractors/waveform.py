"""The wave itself: the view `wave` (1, 1, samples), for heads that learn from raw audio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from earshot.core.settings import Bounds
from earshot.extractors import base

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Settings:
    """raw audio: cost and size grow with the rate, and frequencies above half of it are lost"""

    COMMON: ClassVar = ("rate",)
    rate: Annotated[int | None, Bounds(100, 768000)] = 16000
    """samples per second to resample to (EnvNet-v2 takes 44100, ACDNet 20000); None: the most common rate in
    the data"""


class Extractor(base.Extractor):
    """See `base.Extractor`."""

    views = {"wave": "waveform"}

    def prepare(self) -> None:
        """Everything stays on the CPU: there is nothing to compute."""
        self.device = "cpu"

    def forward(self, waves: torch.Tensor, lengths: list[float]) -> dict[str, torch.Tensor]:
        """{"wave": (B, 1, 1, samples)}; see `base.Extractor.forward`."""
        return {"wave": waves[:, None, None]}
