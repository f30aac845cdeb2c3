"""EnCodec, a neural audio codec (Defossez et al., 2022), its 24 kHz encoder frozen, through transformers.

Views: `latents` (128, 1, T), the encoder's output before quantisation, and `codes` (n_q, 1, T), the numbers
of the residual quantiser's entries, int16. The default network has 75 frames a second; its size is read from
its config.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from earshot.core.errors import UserError
from earshot.extractors import base, hub

if TYPE_CHECKING:
    import torch

RATE: int | None = 24000
PAD = "wrap"  # the network is causal: what fills a clip cannot change the frames of its real part
SECONDS: float | None = None
LIMIT = 10.0
DEFAULT_WEIGHTS: str | None = "facebook/encodec_24khz"

VIEWS = ("latents", "codes")
WEIGHTS = hub.Pretrained(
    "encodec", "encodec", "EncodecModel", "ast, efficientat, logmel or waveform", DEFAULT_WEIGHTS
)


@dataclass(frozen=True)
class Settings:
    """What to keep of EnCodec's encoder."""

    views: tuple[str, ...] = VIEWS
    """Any of latents (continuous) and codes (integers)."""
    bandwidth: float = 1.5
    """kbit/s of the codes, 0.75 per codebook: 1.5, 3, 6, 12 or 24 are 2, 4, 8, 16 or 32 codebooks."""


def weights_files(settings: Settings, weights: str | None) -> list[Path]:
    """The local files that define the network, without importing torch; see `hub.Pretrained.files`."""
    return WEIGHTS.files(weights or DEFAULT_WEIGHTS)


def fetch(settings: Settings, weights: str | None) -> None:
    """Make the weights available locally, from the hub if need be; UserError where they cannot be had."""
    WEIGHTS.folder(weights or DEFAULT_WEIGHTS)


class Extractor(base.Extractor):
    """See `base.Extractor`; UserError for weights that are missing, do not fit or hear in stereo.

    It computes in fp32 whatever `precision` says: half precision turns near ties between codes over.
    """

    integers = ("codes",)
    at_once = 4

    def __init__(
        self,
        settings: Settings,
        window: base.Window,
        device: str = "cpu",
        weights: str | None = None,
        precision: str = "fp32",
    ) -> None:
        super().__init__(settings, window, device, weights, "fp32")
        wrong = [view for view in settings.views if view not in VIEWS]
        if wrong or not settings.views:
            raise UserError(f"encodec: --views {' '.join(wrong) or '(none)'}: choose from {', '.join(VIEWS)}")
        self._build(WEIGHTS.load(WEIGHTS.folder(weights or DEFAULT_WEIGHTS)))

    def _build(self, network: torch.nn.Module) -> None:
        """Adopt a network: its rate, frames and codebooks follow from its config."""
        config, bandwidth = network.config, self.settings.bandwidth
        if config.audio_channels != 1 or config.normalize or config.chunk_length_s is not None:
            raise UserError(
                f"encodec: these weights hear {config.audio_channels} channels, normalised or in chunks: "
                f"give those of {DEFAULT_WEIGHTS}"
            )
        if self.rate != config.sampling_rate:
            raise UserError(
                f"encodec: these weights hear {config.sampling_rate} Hz, not {self.rate} Hz: give those of "
                f"{DEFAULT_WEIGHTS}"
            )
        if bandwidth not in config.target_bandwidths:
            allowed = ", ".join(f"{known:g}" for known in config.target_bandwidths)
            raise UserError(f"encodec: --bandwidth {bandwidth:g}: choose from {allowed} kbit/s")
        self.network = network.eval().requires_grad_(False).to(self.device)
        frames = -(-self.samples // config.hop_length)
        self.span = frames * config.hop_length / self.rate  # the last frame may reach beyond the window
        books = network.quantizer.get_num_quantizers_for_bandwidth(bandwidth)
        sizes = {"latents": config.hidden_size, "codes": books}
        self.shapes = {view: (sizes[view], 1, frames) for view in self.settings.views}

    def forward(self, waves: torch.Tensor, lengths: list[float]) -> dict[str, torch.Tensor]:
        """Views of a batch of windows; see `base.Extractor.forward`."""
        latents = self.network.encoder(waves[:, None])
        views = {"latents": latents[:, :, None]}
        if "codes" in self.shapes:
            # `encode` takes bandwidth=None for the lowest without a word: it is always named here.
            codes = self.network.quantizer.encode(latents, self.settings.bandwidth)
            views["codes"] = codes.transpose(0, 1)[:, :, None]
        return {view: views[view] for view in self.settings.views}
