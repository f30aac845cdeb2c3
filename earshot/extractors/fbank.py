"""AST's input, for heads that fine-tune AST itself: the view `fbank` (1, 128, 1024), Kaldi's filter bank,
normalised.

Frames beyond the clip are 0 in log-mel, then normalised with the rest: AST was trained on
windows with silence in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from earshot.core.errors import UserError
from earshot.extractors import base, mel

if TYPE_CHECKING:
    import torch

BINS = 128


@dataclass(frozen=True)
class Settings:
    """AST's input: 128 Kaldi mel bands, 100 frames a second, (x - mean) / (2 std)"""

    COMMON: ClassVar = ()
    max_length: int = 1024
    """frames of 10 ms in a window; AST's cost grows with their square"""
    mean: float = -4.2677393
    """mean of the log-mel, which is subtracted; the default is AudioSet's, for AST's weights"""
    std: float = 4.5689974
    """standard deviation of the log-mel, which is divided by twice this"""


class Extractor(base.Extractor):
    """See `base.Extractor`; UserError for a window longer than its frames."""

    views = {"fbank": "spectrogram"}
    rate = 16000
    pad = "silence"
    seconds = 10.24  # 1024 frames of 10 ms
    limit = 10.24
    weights_hint = "give them to the head (train.py --head.weights)"
    at_once = 4

    @classmethod
    def describe(cls, settings: Settings, rate: int) -> dict[str, Any]:
        """Its rate, bands, hop and filter bank."""
        return {"rate": rate, "bands": BINS, "hop": 0.01, "bank": "kaldi"}

    def prepare(self) -> None:
        """Check the window against the frames."""
        settings, seconds = self.settings, self.window.seconds
        if settings.max_length < 16 or not settings.std > 0:
            raise UserError(
                f"fbank: --max-length {settings.max_length} and --std {settings.std:g}: at least 16 frames, "
                "AST's patch, and a deviation above 0"
            )
        self.span = settings.max_length / 100  # shorter windows are padded to it
        if seconds > self.span + 0.005:
            raise UserError(
                f"fbank: a window of {seconds:g} s is more than {settings.max_length} frames of 10 ms "
                f"hold: add --seconds {self.span:g}"
            )
        self.shapes = {"fbank": (1, BINS, settings.max_length)}

    @property
    def band(self) -> tuple[float, float]:
        """See `base.Extractor.band`."""
        return mel.KALDI_LOW, self.rate / 2

    def forward(self, waves: torch.Tensor, lengths: list[float]) -> dict[str, torch.Tensor]:
        """{"fbank": (B, 1, 128, max_length)}; see `base.Extractor.forward`."""
        s = self.settings
        real = lengths if self.window.pad == "silence" else None  # a repeated clip is real to its end
        fbank = mel.compute_ast_input(waves, real, s.max_length, BINS, s.mean, s.std, self.rate)
        return {"fbank": fbank.transpose(1, 2)[:, None]}
