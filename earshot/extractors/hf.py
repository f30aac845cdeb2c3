"""Any audio encoder whose network is part of transformers, frozen: wav2vec 2.0 and its relatives, Whisper,
CLAP, AST.

`--weights` is a hub id, or a folder with config.json, preprocessor_config.json and model.safetensors. Rate
and form of the input follow from the folder's own feature extractor. No code of the folder is run.

Views: `pooled` (D, 1, 1), the mean over the window's real frames (what the network pools itself, for AST and
CLAP); `frames` (D, 1, T), zero beyond the real audio; `layers` (D, L, T), those of the layers that `--layer`
names, for a head that weighs them.

A window is cut to its real audio and computed beside others of the same length only: padding changes the
embeddings of many of these networks, and an embedding must not depend on its batch.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from earshot.core.device import is_out_of_memory
from earshot.core.errors import UserError, raise_if_temporary
from earshot.core.kinds import Kind
from earshot.extractors import hub
from earshot.extractors.hf_processor import SHORTEST, FineTunedEncoder, NativeEncoder, find_fixed_seconds

if TYPE_CHECKING:
    import torch
    from torch import nn

AUDIO_PARTS = {"clap": "audio_model", "pe_audio": "audio_encoder"}  # beside a text model
LONG = 20.0  # seconds: two such windows in a pass take longer than one by one, by a CPU's caches
LONGEST = 30.0  # seconds, where the network has no limit of its own: attention's cost grows with their square

WEIGHTS = NativeEncoder("hf", "", "", "ast, efficientat or logmel")
FINE_TUNED = FineTunedEncoder("encoder", "", "", "", flag="--head.weights")
NEEDED = (
    "hf: which encoder? Name it with --weights HUB_ID or --weights FOLDER, for example --weights "
    "microsoft/wavlm-base-plus"
)


@dataclass(frozen=True)
class Settings:
    """hf: any audio encoder of transformers, named by --weights"""

    COMMON: ClassVar = ("views", "layer")
    views: tuple[str, ...] = ("pooled", "frames")
    """views to keep: pooled (one vector), frames (20 to 80 ms each), layers (the frames of every --layer)"""
    layer: tuple[int, ...] = ()
    """hidden layers, 0 is the input of the first, -1 the last; pooled and frames are of the first one named,
    layers of all (default: the network's output)"""


class Extractor(hub.Extractor):
    """See `base.Extractor`; UserError for weights that are missing, of an unknown type, or do not fit."""

    views = {"pooled": "vector", "frames": "sequence", "layers": "grid"}
    pad = "silence"  # which is never computed: see the module's docstring
    limit = LONGEST
    pretrained = WEIGHTS
    half = True
    half_on_cpu = True
    at_once = 2

    @classmethod
    def find_weights(cls, settings: Settings, weights: str | None) -> list[Path]:
        """See `hub.Pretrained.find_files`; [] where none are named."""
        return WEIGHTS.find_files(weights) if weights else []

    @classmethod
    def fetch(cls, settings: Settings, weights: str | None) -> None:
        """See `hub.Pretrained.get_folder`."""
        if not weights:
            raise UserError(NEEDED)
        WEIGHTS.get_folder(weights)

    @classmethod
    def configure(cls, settings: Settings, weights: str | None) -> type[Extractor]:
        """The class with the rate and the longest window of these weights."""
        if not weights:
            raise UserError(NEEDED)
        folder = WEIGHTS.get_folder(weights)
        processor = WEIGHTS.load_processor(folder)
        fixed = find_fixed_seconds(processor)
        limits = {} if fixed is None else {"seconds": fixed, "limit": fixed}
        return type(
            "Extractor", (cls,), {"rate": processor.sampling_rate, "__module__": cls.__module__, **limits}
        )

    @classmethod
    def get_default_seconds(cls, settings: Settings) -> float | None:
        """Chosen from the data, whatever the network's limit."""
        return None

    @classmethod
    def choose_views(cls, settings: Settings) -> dict[str, Kind]:
        """See `base.Extractor.choose_views`; UserError for `layers` without --layer."""
        if "layers" in settings.views and not settings.layer:
            raise UserError("hf: the view layers needs --layer, for example --layer 4 8 12")
        return super().choose_views(settings)

    def prepare(self) -> None:
        """Load the feature extractor and the network."""
        if not self.weights:
            raise UserError(NEEDED)
        folder = WEIGHTS.get_folder(self.weights)
        self.processor = WEIGHTS.load_processor(folder)
        self.wave_input = find_wave_input(self.processor)
        takes = inspect.signature(self.processor.__call__).parameters
        self.masking = {"return_attention_mask": True} if "return_attention_mask" in takes else {}
        if self.rate != self.processor.sampling_rate:
            raise UserError(
                f"hf: these weights take {self.processor.sampling_rate} Hz, not {self.rate} Hz: leave out "
                "--rate"
            )
        self.fixed = find_fixed_seconds(self.processor)
        if self.window.seconds < SHORTEST or self.fixed and self.window.seconds > self.fixed + 1e-3:
            upper = f" to {self.fixed:g}" if self.fixed else " or more"
            raise UserError(f"hf: a window of {self.window.seconds:g} s: set --seconds {SHORTEST:g}{upper}")
        self.network = load_encoder(folder).requires_grad_(False).to(self.device)
        self.halved = self.precision == "bf16" and self.device == "cpu"
        simplify(self.network, self.halved)
        if (self.fixed or self.window.seconds) >= LONG:
            self.at_once = 1
        self.kind = self.network.config.model_type
        self.accepted = set(inspect.signature(self.network.forward).parameters)
        try:
            self.shapes = self._try_shapes()
        except UserError:
            raise
        except Exception as error:  # of settings that fit the weights, but no window: a step of 0, a width
            if isinstance(error, MemoryError) or is_out_of_memory(error):
                raise
            raise_if_temporary(folder, error)
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise UserError(
                f"hf: the network in {folder} fails on a window of {self.window.seconds:g} s ({reason}): set "
                "other --seconds or --weights"
            ) from None

    def forward(self, waves: torch.Tensor, lengths: list[float]) -> dict[str, torch.Tensor]:
        """Views of a batch of windows; see `base.Extractor.forward`."""

        counts = [self.samples] * len(lengths)
        if self.window.pad == "silence":
            least = round(SHORTEST * self.rate)
            counts = [min(self.samples, max(least, round(length * self.rate))) for length in lengths]
        groups = defaultdict(list)
        for row, count in enumerate(counts):
            groups[count].append(row)
        views: dict[str, torch.Tensor] = {}
        for count, rows in groups.items():
            for view, values in self.encode(waves[rows, :count]).items():
                if view not in views:
                    frames = self.shapes[view][2] if self.shapes else values.shape[3]
                    views[view] = values.new_zeros(len(waves), *values.shape[1:3], frames)
                views[view][rows, :, :, : values.shape[3]] = values
        return views

    def encode(self, waves: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views (B, D, F, t) of windows of one length (B, samples), real to their end."""
        import torch

        if self.wave_input:
            inputs = {"input_values": self.wave_input.convert(waves)}
        else:
            with torch.autocast("cpu", enabled=False):  # some make their spectrogram by torch's products
                inputs = self.processor(
                    list(waves.cpu().numpy()), sampling_rate=self.rate, return_tensors="pt", **self.masking
                )
            inputs = {key: value.to(self.device) for key, value in inputs.items() if key in self.accepted}
        if "is_longer" in inputs:  # CLAP's processor marks one clip of a batch by chance where none is longer
            inputs["is_longer"] = torch.zeros_like(inputs["is_longer"], dtype=torch.bool)
        layers = self.settings.layer
        with torch.autocast("cpu", torch.bfloat16) if self.halved else contextlib.nullcontext():
            output = self.network(**inputs, output_hidden_states=bool(layers))
        states = [output.last_hidden_state]
        if layers:
            known = output.hidden_states
            if any(not -len(known) <= layer < len(known) for layer in layers):
                raise UserError(
                    f"hf: --layer {' '.join(map(str, layers))}: this network has the layers 0 to "
                    f"{len(known) - 1}"
                )
            states = [known[layer] for layer in layers]
        frames = [self.to_frames(state.float(), output.last_hidden_state) for state in states]
        mask = inputs.get("attention_mask")
        count = frames[0].shape[2]
        if self.fixed:
            count = math.ceil(count * waves.shape[1] / (self.fixed * self.rate) - 1e-6)
        elif (
            mask is not None and mask.shape[1] == count
        ):  # frames that only fill the feature extractor's blocks
            count = int(mask[0].sum())
        frames = [each[:, :, :count] for each in frames]
        pooled = frames[0].mean(dim=2)
        if not layers and getattr(output, "pooler_output", None) is not None:
            pooled = output.pooler_output.float()
        views = {"pooled": pooled[:, :, None, None], "frames": frames[0][:, :, None]}
        if "layers" in self.views:
            if len({each.shape for each in frames}) > 1:
                raise UserError(
                    f"hf: --layer {' '.join(map(str, layers))}: these layers have different sizes: choose one"
                )
            views["layers"] = torch.stack(frames, dim=2)
        return {view: views[view] for view in self.views}

    def to_frames(self, state: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """(B, D, T) of a hidden state: tokens (B, T, D), AST's (B, 2 + F x T, D), CLAP's map (B, D, F, T).

        Args:
            last: the network's output, which has no token for the whole.
        """
        if state.ndim == 4:
            return state.mean(dim=2)
        if self.kind == "audio-spectrogram-transformer":
            config = self.network.config
            rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
            return state[:, 2:].unflatten(1, (rows, -1)).mean(dim=1).transpose(1, 2)
        if self.kind == "pe_audio_encoder" and state.shape[1] > last.shape[1]:
            state = state[:, 1:]  # the layers before the last have a token for the whole in front
        return state.transpose(1, 2)


@dataclass(frozen=True)
class WaveInput:
    """The input of a network on the waveform, in place of its feature extractor."""

    rate: int
    """Samples per second."""
    normalise: bool
    """Each clip to mean 0 and variance 1?"""
    masked: bool
    """Was it trained with an attention mask (0 on padding)? Else on padded clips without one."""

    def convert(self, waves: torch.Tensor) -> torch.Tensor:
        """`input_values` (B, samples) of waves (B, samples), which are real to their end."""
        if not self.normalise:
            return waves
        centred = waves - waves.mean(dim=1, keepdim=True)
        return centred / (centred.square().mean(dim=1, keepdim=True) + 1e-7).sqrt()


def find_wave_input(processor: Any) -> WaveInput | None:
    """How waves become the network's input where that is the waveform; None: a spectrogram, which only the
    feature extractor makes."""
    if type(processor).__name__ != "Wav2Vec2FeatureExtractor":
        return None
    return WaveInput(
        processor.sampling_rate, bool(processor.do_normalize), bool(processor.return_attention_mask)
    )


def load_network(weights: str) -> nn.Module:
    """The audio encoder of a folder or hub id, in evaluation mode: CLAP's without its text model, Whisper's
    without its decoder.

    Returns:
        the network of transformers; its `config` says its sizes, `wave_input` (`WaveInput` or None) how waves
        become its input.
    Raises:
        UserError: the weights are not here and cannot be downloaded, or do not fit.
    """
    folder = FINE_TUNED.get_folder(weights)
    network = load_encoder(folder, FINE_TUNED)
    network.wave_input = find_wave_input(FINE_TUNED.load_processor(folder))
    return network


def describe_network(weights: str) -> dict[str, Any]:
    """The settings of the network of a folder or hub id as plain JSON, without its weights.

    Returns:
        {"config", "front_end"}: config.json and the feature extractor's settings.
    Raises:
        UserError: see `load_network`; or the weights' files are too small for such a network.
    """
    folder = FINE_TUNED.get_folder(weights)
    FINE_TUNED.check_size(folder)  # a head takes the memory by these settings alone
    return {
        "config": FINE_TUNED.read_json(folder / "config.json"),
        "front_end": FINE_TUNED.load_processor(folder).to_dict(),
    }


def load_encoder(folder: Path, weights: NativeEncoder = WEIGHTS) -> nn.Module:
    """See `load_network`."""
    network = weights.load(folder)
    part = AUDIO_PARTS.get(network.config.model_type)
    network = getattr(network, part) if part else network
    if network.config.is_encoder_decoder:
        network = network.get_encoder()
    return network.eval()


def simplify(network: nn.Module, halve: bool) -> None:
    """Compute once what a frozen network computes in every pass: normalised weights and, for bf16 on a CPU,
    those that autocast would round."""
    import torch
    from torch import nn
    from torch.nn.utils import parametrize

    for module in list(network.modules()):
        for name in list(getattr(module, "parametrizations", ())):
            parametrize.remove_parametrizations(module, name)
        if halve and isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            module.to(torch.bfloat16)
