"""The networks that the head `encoder` fine-tunes, built from plain JSON, and Whisper's spectrogram."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from . import HeadError

# model_type -> class of transformers, beside its config
NETWORKS = {
    "data2vec-audio": "Data2VecAudioModel",
    "hubert": "HubertModel",
    "moonshine": "MoonshineEncoder",
    "sew": "SEWModel",
    "sew-d": "SEWDModel",
    "unispeech": "UniSpeechModel",
    "unispeech-sat": "UniSpeechSatModel",
    "wav2vec2": "Wav2Vec2Model",
    "wav2vec2-conformer": "Wav2Vec2ConformerModel",
    "wavlm": "WavLMModel",
    "whisper": "WhisperEncoder",
}
# Masks and skipped layers of pretraining: masks would come from numpy's generator, which is not seeded
OFF = {
    "apply_spec_augment": False,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    "layerdrop": 0.0,
    "encoder_layerdrop": 0.0,
    "use_cache": False,  # of a decoder, which is not there
}
UNUSED = "masked_spec_embed"  # what replaces masked frames
LARGEST = 10**6  # of a description's numbers, which may come from an untrusted file
# where a name has this in it; data2vec's conv_pos is a number of layers
LIMITS = {"layers": 1000, "conv_pos": 1000, "position": 10**5, "mel_bins": 1000, "fft": 10**4}
LONGEST = 100  # of its lists: an entry is a layer
FROM_ONE = ("hidden_layers", "encoder_layers", "_size", "stride", "kernel", "squeeze_factor", "mel_bins")
BASE = {"model_type": "wavlm"}  # WavLM base and base-plus
WAY_OUT = "take other weights, or leave the option network out (it follows from the weights)"


def _check_sizes(settings: dict[str, Any]) -> None:
    """HeadError for a number or a list that no real network has."""
    for key, value in settings.items():
        most = next((limit for word, limit in LIMITS.items() if word in key), LARGEST)
        least = -1 if "token" in key else int(any(word in key for word in FROM_ONE))  # -1: no such token
        numbers = value if isinstance(value, list | tuple) else [value]
        if len(numbers) > LONGEST:
            raise HeadError(
                f"encoder: the network's {key} has {len(numbers)} entries, more than {LONGEST}: {WAY_OUT}"
            )
        for number in numbers:
            if isinstance(number, int | float) and not least <= number <= most:
                raise HeadError(
                    f"encoder: the network's {key} is {number:g}, not from {least} to {most}: {WAY_OUT}"
                )


def explain(error: Exception) -> HeadError:
    """The HeadError, one line, for what transformers or torch raise where settings make no sense."""
    text = f"unknown value {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
    reason = " ".join(text.split())[:200]
    return HeadError(f"encoder: no network can be built from its settings ({reason}): {WAY_OUT}")


def check_description(network: Any) -> dict[str, Any]:
    """The option `network`, checked; without one WavLM base."""
    if network is None:
        return {"config": BASE, "rate": 16000, "normalise": False, "masked": True}
    kinds: dict[str, type] = {"config": dict, "rate": int, "normalise": bool, "masked": bool}
    if not isinstance(network, dict):
        raise HeadError(f"encoder: option network is a mapping, not {network!r:.80}")
    if isinstance(network.get("config"), dict) and network["config"].get("model_type") == "whisper":
        kinds |= {"samples": int, "fft": int, "hop": int}
    _check_sizes(network)
    for key, kind in kinds.items():
        if type(network.get(key)) is not kind or kind is int and network[key] < 1:
            raise HeadError(
                f"encoder: the network's {key} is {network.get(key)!r:.80}, not of type {kind.__name__}"
                f"{' from 1' if kind is int else ''}: {WAY_OUT}"
            )
    return network


def describe(weights: str, config: dict[str, Any], front_end: dict[str, Any]) -> dict[str, Any]:
    """What it takes to build an encoder again without its folder, as plain JSON.

    Args:
        weights: their folder or hub id, for messages.
        config: config.json.
        front_end: its feature extractor's settings.
    Returns:
        {"config", "rate", "normalise", "masked"}, with "samples", "fft" and "hop" where the network takes
        Whisper's log-mel spectrogram.
    Raises:
        HeadError: a network that this head cannot fine-tune.
    """
    kind = config.get("model_type")
    if kind not in NETWORKS:
        way = (
            "take --recipe ast_finetune"
            if kind == "audio-spectrogram-transformer"
            else f"train a head on its frozen features (get_features.py --extractor hf --weights {weights}), "
            f"or take weights of {', '.join(NETWORKS)}"
        )
        raise HeadError(
            f"encoder: {weights} holds a model of type {kind}, which this head cannot fine-tune: {way}"
        )
    kept = {"model_type", *list_own_keys(kind)}
    described: dict[str, Any] = {
        "config": {key: value for key, value in make_config(config).to_dict().items() if key in kept},
        "rate": front_end["sampling_rate"],
        "normalise": bool(front_end.get("do_normalize")) and kind != "whisper",
        "masked": bool(front_end.get("return_attention_mask")) and kind != "whisper",
    }
    if kind == "whisper":
        described |= {
            "samples": front_end["n_samples"],
            "fft": front_end["n_fft"],
            "hop": front_end["hop_length"],
        }
    return described


def list_own_keys(kind: str) -> set[str]:
    """The settings that only a family's own config has: those of every config, such as `auto_map`, may name
    code that transformers would run."""
    from transformers import AutoConfig, PretrainedConfig

    return set(AutoConfig.for_model(kind).to_dict()) - set(PretrainedConfig().to_dict())


def make_config(settings: Any) -> Any:
    """A config of transformers from its JSON; HeadError for one that makes no sense."""
    kind = settings.get("model_type") if isinstance(settings, dict) else None
    if kind not in NETWORKS:
        raise HeadError(
            f"encoder: the network's model_type is {kind!r:.80}, not one of {', '.join(NETWORKS)}: {WAY_OUT}"
        )
    from transformers import AutoConfig

    own = list_own_keys(kind)
    kept = {key: value for key, value in settings.items() if key in own}
    _check_sizes(kept)
    try:
        return AutoConfig.for_model(kind, **kept | {key: OFF[key] for key in OFF if key in own})
    except Exception as error:  # transformers 5 checks types by errors of its own
        raise explain(error) from None


def build_network(settings: dict[str, Any]) -> nn.Module:
    """A randomly initialised encoder from its config's JSON; HeadError for sizes that do not fit together."""
    config = make_config(settings)
    module = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    try:
        network = getattr(module, NETWORKS[config.model_type])(config)
    except Exception as error:  # by the setting: ValueError, KeyError, RuntimeError, ZeroDivisionError, ...
        raise explain(error) from None
    empty = [name for name, parameter in network.named_parameters() if not parameter.numel()]
    if empty:
        raise HeadError(f"encoder: the network's {empty[0]} has a size of 0: {WAY_OUT}")
    if hasattr(network, UNUSED):  # no part of the network that classifies
        getattr(network, UNUSED).requires_grad_(False)
    return network


class WhisperMel(nn.Module):
    """Whisper's log-mel spectrogram: (B, bands, frames) of waves (B, samples).

    Equal to transformers' feature extractor; the largest value is that of the row.
    """

    def __init__(self, bands: int, rate: int, fft: int, hop: int) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        bank = mel_filter_bank(1 + fft // 2, bands, 0.0, 8000.0, rate, norm="slaney", mel_scale="slaney")
        self.fft, self.hop = fft, hop
        self.register_buffer("bank", torch.from_numpy(bank).float().T.contiguous(), persistent=False)
        self.register_buffer("window", torch.hann_window(fft), persistent=False)

    def forward(self, waves: Tensor) -> Tensor:
        """See the class; float32 under autocast, too."""
        with torch.autocast(waves.device.type, enabled=False):
            spectrum = torch.stft(
                waves.float(), self.fft, self.hop, window=self.window, return_complex=True
            )  # centred
            power = spectrum[..., :-1].abs().square()
            mel = (self.bank @ power).clamp(min=1e-10).log10()
            return (torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8) + 4) / 4
