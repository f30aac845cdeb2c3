"""Audio encoders of transformers, fine-tuned end to end: wav2vec 2.0, its relatives, Moonshine, Whisper."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import HeadError, register
from .ast import checkpoint_activations
from .encoder_network import (
    UNUSED,
    WAY_OUT,
    WhisperMel,
    build_network,
    check_description,
    describe,
    explain,
)
from .head import DescribeNetwork, Head, LoadNetwork

SHORTEST = 0.1  # seconds that count as real at least, as in the extractor hf: convolutions need some


def get_needs(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a view that the weights need; {} where they are not described yet."""
    network = options.get("network")
    return {"rate": network.get("rate")} if options.get("weights") and isinstance(network, dict) else {}


@register(
    "encoder",
    kinds=("waveform",),
    about="wav2vec 2.0, HuBERT, WavLM, Whisper and their relatives, fine-tuned end to end",
    needs=get_needs,
)
class Encoder(Head):
    """A pretrained encoder of transformers, the mean over its real frames, LayerNorm, one linear layer.

    Waves are normalised, masked and padded as the encoder's own feature extractor does it. 94.4 M parameters
    by default, WavLM base. Batch normalisation, where a family has it, keeps its pretrained statistics.
    Logits depend a little on how much padding the window has, never on what is in it or on other clips of the
    batch: with group norm (`feat_extract_norm`), and in data2vec and conformer with layer norm, too.

    Args:
        input_shape: (1, 1, T) samples at the encoder's rate.
        num_classes: width of the logits.
        weights: a folder that save_pretrained made, or a hub id; null: random weights.
        network: the network, without its weights; follows from `weights` (null without them: WavLM
            base).
        freeze: the lowest layers that are not trained; above 0 nothing outside the layers is, either.
        freeze_convolutions: the convolutions in front are not trained (not of Moonshine and Whisper).
        weigh_layers: a learned mean of all layers instead of the last one.
        dropout: before the linear layer; the encoder's own rates follow from its weights.
        lr_decay: each layer has this factor of the learning rate of the one above it.
        head_lr: factor of the learning rate for what is on top, which has no pretrained weights.
        gradient_checkpointing: recompute activations: a third more time, a fraction of the memory.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        weights: str | None = None,
        network: dict | None = None,
        freeze: int = 0,
        freeze_convolutions: bool = True,
        weigh_layers: bool = False,
        dropout: float = 0.1,
        lr_decay: float = 1.0,
        head_lr: float = 10.0,
        gradient_checkpointing: bool = True,
    ) -> None:
        super().__init__()
        self.samples, self.weights, self.freeze = input_shape[2], _check_weights(weights), freeze
        if input_shape[:2] != (1, 1):
            raise HeadError(
                f"encoder: it takes the waveform, (1, 1, samples), not {input_shape}: extract with "
                "--extractor waveform"
            )
        described = check_description(network)
        self.rate, self.normalise, self.masked = (described[key] for key in ("rate", "normalise", "masked"))
        self.network = build_network(described["config"])
        config = self.network.config
        # the layers' list, whatever the family calls what is around it
        self.layers = next(
            name
            for name, module in self.network.named_modules()
            if isinstance(module, nn.ModuleList) and re.search(r"(^|\.)layers?$", name) and "conv" not in name
        )
        layers = self.network.get_submodule(self.layers)
        if not 0 <= freeze <= len(layers):
            raise HeadError(
                f"encoder: option freeze is a number of layers from 0 to {len(layers)}, not {freeze}"
            )
        for option, value, fits, allowed in (
            ("lr_decay", lr_decay, 0 < lr_decay <= 1, "above 0 and at most 1"),
            ("head_lr", head_lr, 0 < head_lr < float("inf"), "above 0"),
            ("dropout", dropout, 0 <= dropout < 1, "from 0 to below 1"),
        ):
            if not fits:
                raise HeadError(f"encoder: option {option} is a number {allowed}, not {value:g}")
        self.lr_decay, self.head_lr, self.depth = lr_decay, head_lr, len(layers)
        self.mel = None
        if config.model_type == "whisper":
            self.full, hop = described["samples"], described["hop"]
            frames, takes = self.full // hop, 2 * config.max_source_positions
            if frames != takes:
                raise HeadError(
                    f"encoder: {self.full} samples with a hop of {hop} are {frames} frames, but the network "
                    f"takes 2 x max_source_positions, {takes}: {WAY_OUT}"
                )
            self.mel = WhisperMel(config.num_mel_bins, self.rate, described["fft"], hop)
        self._check_length()
        width = getattr(config, "d_model", None) or config.hidden_size
        if getattr(config, "add_adapter", False) and not weigh_layers:
            width = config.output_hidden_size
        self.layer_weights = nn.Parameter(torch.zeros(self.depth + 1)) if weigh_layers else None
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width, num_classes)
        if gradient_checkpointing:
            checkpoint_activations(self.network)
        if freeze:
            self.network.requires_grad_(False)
            layers[freeze:].requires_grad_(True)
            if self.mel is not None:
                self.network.dropout = 0.0  # in front of the layers, no module of its own
        if freeze_convolutions and hasattr(self.network, "feature_extractor"):
            self.network.feature_extractor._freeze_parameters()

    def _check_length(self) -> None:
        """HeadError where the window is too long or too short for the network."""
        if self.mel is not None:
            if self.samples > self.full:
                raise HeadError(
                    f"encoder: Whisper takes up to {self.full / self.rate:g} s, the view has "
                    f"{self.samples / self.rate:g} s: extract with --seconds {self.full / self.rate:g}"
                )
            return
        try:
            frames = int(self._count_frames(torch.tensor(self.samples, device="cpu")))
        except Exception as error:  # such as a stride that cannot be
            raise explain(error) from None
        if frames < 1:
            raise HeadError(
                f"encoder: {self.samples} samples give no frame: extract with --seconds {SHORTEST:g} or more"
            )

    def _count_frames(self, samples: Tensor) -> Tensor:
        """Frames of the network's output for so many samples."""
        if self.mel is not None:
            return torch.ceil(samples / (2 * self.mel.hop)).long()
        if self.network.config.model_type == "moonshine":  # its own function takes one clip only
            for layer in (self.network.conv1, self.network.conv2, self.network.conv3):
                kernel, stride = layer.kernel_size[0], layer.stride[0]
                samples = torch.div(samples - kernel, stride, rounding_mode="floor") + 1
            return samples
        return self.network._get_feat_extract_output_lengths(samples).long()

    @classmethod
    def complete_options(cls, options: dict[str, Any], describe_network: DescribeNetwork) -> dict[str, Any]:
        """The options with `network` as the weights have it."""
        weights = _check_weights(options.get("weights"))
        if weights is None:
            return options
        return {**options, "network": describe(weights, **describe_network("hf", weights))}

    def load_pretrained(self, load: LoadNetwork) -> None:
        """Load the weights that the option `weights` names; HeadError if they do not fit."""
        if self.weights is None:
            return
        theirs = dict(load("hf", self.weights).state_dict())
        mine = self.network.state_dict()
        if UNUSED in theirs and UNUSED not in mine:
            del theirs[UNUSED]
        odd = [name for name in {**mine, **theirs} if _get_shape(mine, name) != _get_shape(theirs, name)]
        if odd:
            raise HeadError(
                f"encoder: the weights {self.weights} do not fit the option network: {odd[0]} is "
                f"{_get_shape(theirs, odd[0])} there, {_get_shape(mine, odd[0])} in the head: leave the "
                "option out, it follows from the weights"
            )
        self.network.load_state_dict(theirs)

    def scale_lr(self, parameter: str) -> float:
        """`head_lr` for what is on top of the encoder, 1 for its last layer, `lr_decay` times that of the
        layer above for the others, and once more for what is beneath the first."""
        if not parameter.startswith("network."):
            return self.head_lr
        found = re.match(rf"network\.{re.escape(self.layers)}\.(\d+)\.", parameter)
        return self.lr_decay ** (self.depth - 1 - int(found[1]) if found else self.depth)

    def train(self, mode: bool = True) -> Encoder:
        """As `nn.Module.train`, but frozen parts and batch normalisation stay in evaluation mode, with
        `freeze` also the dropout outside the layers."""
        super().train(mode)
        for name, module in self.network.named_modules():
            parameters = list(module.parameters())
            outside = bool(self.freeze) and not name.startswith(f"{self.layers}.")
            frozen = not any(each.requires_grad for each in parameters) and (bool(parameters) or outside)
            if frozen or isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of x (B, 1, 1, T); mask (B, T), True where a sample is real."""
        waves, counts = self._prepare(x[:, 0, 0], mask)
        inside = None if counts is None else torch.arange(waves.shape[1], device=x.device) < counts[:, None]
        if self.normalise:
            waves = _normalise(waves, inside)
        if inside is not None:
            waves = waves.masked_fill(~inside, 0.0)
        if self.mel is not None:
            waves = self.mel(nn.functional.pad(waves, (0, self.full - waves.shape[1])))
            counts = torch.full((len(x),), x.shape[3], device=x.device) if counts is None else counts
        extra = {"attention_mask": inside.long()} if self.masked and inside is not None else {}
        output = self.network(waves, **extra, output_hidden_states=self.layer_weights is not None)
        frames = None if counts is None else self._count_frames(counts).clamp(min=1)
        last = output.last_hidden_state
        if self.layer_weights is None:
            pooled = _pool(last, frames)
        else:
            # SEW's layers have fewer frames than its output
            states = [
                _pool(each, None if frames is None else -(-frames * each.shape[1] // last.shape[1]))
                for each in output.hidden_states
            ]
            pooled = torch.einsum("l,lbd->bd", self.layer_weights.softmax(0), torch.stack(states))
        return self.fc(self.dropout(self.norm(pooled)))

    def _prepare(self, waves: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Waves (B, T) that begin with their real samples, and the numbers (B,) of these; None: all are."""
        if mask is None:
            return waves, None
        # shifts and mixes leave real samples elsewhere than at the start
        waves = waves.gather(1, mask.int().argsort(dim=1, descending=True, stable=True))
        least = min(round(SHORTEST * self.rate), waves.shape[1])
        return waves, mask.sum(1).clamp(min=least)


def _pool(states: Tensor, counts: Tensor | None) -> Tensor:
    """(B, D), the mean of the first `counts` (B,) frames of (B, frames, D); None: of all."""
    states = states.float()
    if counts is None:
        return states.mean(1)
    inside = torch.arange(states.shape[1], device=states.device) < counts[:, None]
    kept = inside.sum(1, keepdim=True)
    return states.masked_fill(~inside[:, :, None], 0.0).sum(1) / kept


def _normalise(waves: Tensor, inside: Tensor | None) -> Tensor:
    """Each row's real samples to mean 0 and variance 1, as Wav2Vec2FeatureExtractor does it."""
    if inside is None:
        inside = torch.ones_like(waves, dtype=torch.bool)
    counts = inside.sum(1, keepdim=True)
    mean = waves.masked_fill(~inside, 0.0).sum(1, keepdim=True) / counts
    variance = (waves - mean).masked_fill(~inside, 0.0).square().sum(1, keepdim=True) / counts
    return (waves - mean) / (variance + 1e-7).sqrt()


def _check_weights(weights: Any) -> str | None:
    if weights is None or isinstance(weights, str):
        return weights
    raise HeadError(f"encoder: option weights is a folder or a hub id (owner/name), not {weights!r:.80}")


def _get_shape(state: dict[str, Tensor], name: str) -> list[int] | str:
    return list(state[name].shape) if name in state else "missing"
