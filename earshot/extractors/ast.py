"""AST, the Audio Spectrogram Transformer pretrained on AudioSet (Gong et al., 2021), frozen, through
transformers.

Views: `pooled` (768, 1, 1), `frames` (768, 1, T) = mean over the frequency patches, `tokens` (768, F, T) on
request; the default network has T 101 and F 12. Everything about its size is read from its config.

Short clips fill most of the 10.24 s window with padding, which costs as much as audio. `--short-clips`
computes only the patches within the window, with the first columns of the position embedding, as if the
padding's tokens were removed. The embeddings differ from the padded network's: no token attends to padding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from earshot.core.errors import UserError
from earshot.extractors import ast_fast, base, hub
from earshot.extractors.mel import KALDI_LOW, compute_ast_input, count_kaldi_frames

if TYPE_CHECKING:
    import torch

WEIGHTS = hub.Pretrained(
    "ast",
    "audio-spectrogram-transformer",
    "ASTModel",
    "efficientat or logmel",
    "MIT/ast-finetuned-audioset-10-10-0.4593",
)


@dataclass(frozen=True)
class Settings:
    """AST: a transformer pretrained on AudioSet"""

    COMMON: ClassVar = ("views",)
    views: tuple[str, ...] = ("pooled", "frames")
    """views to keep: pooled (one vector), frames (one per 100 ms), tokens (every patch: 12 times as large)"""
    short_clips: bool = field(default=False, metadata=base.RECORDED_WHERE_CHANGED)
    """choose the window from the data and compute no patches of padding: 5 s take less than half the time"""


class Extractor(hub.Extractor):
    """See `base.Extractor`; UserError for weights that are missing or do not fit."""

    views = {"pooled": "vector", "frames": "sequence", "tokens": "grid"}
    rate = 16000
    pad = "silence"  # the network was trained on zero-padded clips
    seconds = 10.24  # 1024 frames of 10 ms
    limit = 10.24
    pretrained = WEIGHTS
    default_weights = WEIGHTS.default
    half = True
    half_on_cpu = True  # bf16 where the processor is faster at it: products are nearly all that it does
    at_once = 2
    exportable = "_compute_tokens"

    @classmethod
    def get_default_seconds(cls, settings: Settings) -> float | None:
        """The network's own window; with `short_clips` none, it is chosen from the data."""
        return None if settings.short_clips else cls.seconds

    @property
    def band(self) -> tuple[float, float]:
        """See `base.Extractor.band`."""
        return KALDI_LOW, self.rate / 2

    def read_front_end(self, folder: Path) -> None:
        """Mean and deviation of the network's input; UserError where it takes another rate."""
        saved = folder / "preprocessor_config.json"
        front = WEIGHTS.read_json(saved) if saved.exists() else {}
        normalised = front.get("do_normalize", True)
        self.mean = float(front.get("mean", -4.2677393)) if normalised else 0.0
        self.std = float(front.get("std", 4.5689974)) if normalised else 0.5
        rate = front.get("sampling_rate", type(self).rate)
        if self.rate != rate:
            raise UserError(f"ast: these weights take {rate} Hz, not {self.rate} Hz: leave out --rate")

    def adopt(self, network: torch.nn.Module) -> None:
        """Set window, grid of patches and shapes from the network's config."""
        config = network.config
        network = network.eval().requires_grad_(False).to(self.device)
        self.bins, self.max_length = config.num_mel_bins, config.max_length
        longest = self.max_length * (self.rate // 100) / self.rate
        if self.window.seconds > longest + 0.005:
            raise UserError(
                f"ast: a window of {self.window.seconds:g} s is longer than the {longest:g} s that these "
                f"weights take: set --seconds {longest:g} or less"
            )
        patch = config.patch_size
        rows = (self.bins - patch) // config.frequency_stride + 1
        columns = (self.max_length - patch) // config.time_stride + 1
        if self.settings.short_clips:
            frames = min(self.max_length, count_kaldi_frames(self.samples, self.rate))
            columns = min(columns, max(1, (frames - patch) // config.time_stride + 1))
            self.max_length = min(self.max_length, max(frames, patch))
        else:
            self.span = longest  # shorter windows are padded to it
        self.grid = (rows, columns)
        try:
            self.network: ast_fast.Network | None = ast_fast.Network(network, columns)
        except ast_fast.UnknownNetwork as error:
            if self.settings.short_clips:
                raise UserError(
                    f"ast: --short-clips doesn't support this version of transformers ({error}): leave it out"
                ) from None
            self.network = None
        self.model = network
        sizes = {"pooled": (1, 1), "frames": (1, columns), "tokens": self.grid}
        self.shapes = {view: (config.hidden_size, *sizes[view]) for view in self.settings.views}

    def forward(self, waves: torch.Tensor, lengths: list[float]) -> dict[str, torch.Tensor]:
        """Views of a batch of windows; see `base.Extractor.forward`."""
        real = lengths if self.window.pad == "silence" else None  # a repeated clip is real to its end
        mel = compute_ast_input(waves, real, self.max_length, self.bins, self.mean, self.std, self.rate)
        tokens = self._compute_tokens(mel)
        views = {"pooled": tokens[:, :2].mean(dim=1)[:, :, None, None]}
        if self.shapes.keys() != views.keys():
            # two special tokens, then the patches with frequency as the slow index
            grid = tokens[:, 2:].unflatten(1, self.grid).permute(0, 3, 1, 2)
            views |= {"frames": grid.mean(dim=2, keepdim=True), "tokens": grid}
        return views

    def _compute_tokens(self, mel: torch.Tensor) -> torch.Tensor:
        """(B, tokens, hidden) float32; only the special tokens where no view needs the others."""
        import torch

        if self.network is None:
            return self.model(mel).last_hidden_state.float()
        device = mel.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        return self.network(mel, dtype, patches=set(self.settings.views) != {"pooled"})
