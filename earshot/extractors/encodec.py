"""EnCodec, a neural audio codec (Defossez et al., 2022), its 24 kHz encoder frozen, through transformers.

Views: `latents` (128, 1, T), the encoder's output before quantisation, and `codes` (n_q, 1, T), the numbers
of the residual quantiser's entries, int16. The default network has 75 frames a second; its size is read from
its config.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from earshot.core.errors import UserError
from earshot.extractors import hub

if TYPE_CHECKING:
    import torch

WEIGHTS = hub.Pretrained(
    "encodec", "encodec", "EncodecModel", "ast, efficientat, logmel or waveform", "facebook/encodec_24khz"
)


@dataclass(frozen=True)
class Settings:
    """EnCodec: the encoder of a neural audio codec"""

    COMMON: ClassVar = ("views",)
    views: tuple[str, ...] = ("latents", "codes")
    """views to keep: latents (continuous), codes (integers)"""
    bandwidth: float = 1.5
    """kbit/s of the codes, 0.75 per codebook: 1.5, 3, 6, 12 or 24 are 2, 4, 8, 16 or 32 codebooks."""


class Extractor(hub.Extractor):
    """See `base.Extractor`; UserError for weights that are missing, do not fit or are stereo.

    It always computes in fp32: half precision flips near ties between codes.
    """

    views = {"latents": "sequence", "codes": "codes"}
    rate = 24000  # its pad stays "wrap": the network is causal, so padding cannot change what comes before
    pretrained = WEIGHTS
    default_weights = WEIGHTS.default
    at_once = 4

    def adopt(self, network: torch.nn.Module) -> None:
        """Set rate, frames and codebooks from the network's config."""
        config, bandwidth = network.config, self.settings.bandwidth
        if config.audio_channels != 1 or config.normalize or config.chunk_length_s is not None:
            raise UserError(
                f"encodec: these weights take {config.audio_channels} channels, normalised or in chunks: "
                f"give those of {WEIGHTS.default}"
            )
        if self.rate != config.sampling_rate:
            raise UserError(
                f"encodec: these weights take {config.sampling_rate} Hz, not {self.rate} Hz: give those of "
                f"{WEIGHTS.default}"
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
            # without a bandwidth `encode` silently takes the lowest
            codes = self.network.quantizer.encode(latents, self.settings.bandwidth)
            views["codes"] = codes.transpose(0, 1)[:, :, None]
        return views
