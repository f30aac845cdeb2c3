"""Randomly initialised networks of every family that the extractor `hf` takes, saved as their authors do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
POSITIONS = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
CONVOLUTIONS = {"conv_dim": (16,) * 7, **POSITIONS}
CLAP = {"patch_embeds_hidden_size": 16, "depths": [1] * 4, "num_attention_heads": [2] * 4, "hidden_size": 128}


def build_wave(name: str, **options: Any) -> Callable[[], tuple[Any, Any]]:
    """A network on the waveform: its class is `name` + Model."""

    def build() -> tuple[Any, Any]:
        import transformers

        config = getattr(transformers, f"{name}Config")(**{**SIZES, **CONVOLUTIONS, **options})
        masked = getattr(config, "feat_extract_norm", "layer") == "layer"  # data2vec-audio has no other
        processor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=masked)
        return getattr(transformers, f"{name}Model")(config), processor

    return build


def build_bert() -> tuple[Any, Any]:
    import transformers

    config = transformers.Wav2Vec2BertConfig(**SIZES)
    return transformers.Wav2Vec2BertModel(config), transformers.SeamlessM4TFeatureExtractor()


def build_whisper() -> tuple[Any, Any]:
    """Saved with the decoder and its output layer, as it is published."""
    import transformers

    parts = {
        f"{part}_{size}": value
        for part in ("encoder", "decoder")
        for size, value in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 64))
    }
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = transformers.WhisperConfig(d_model=32, vocab_size=100, **parts, **tokens)
    return transformers.WhisperForConditionalGeneration(config), transformers.WhisperFeatureExtractor()


def build_clap() -> tuple[Any, Any]:
    """Saved with the text model, as it is published."""
    import transformers

    text = {**SIZES, "num_hidden_layers": 1, "vocab_size": 50}
    config = transformers.ClapConfig(audio_config={**CLAP, "enable_fusion": True}, text_config=text)
    return transformers.ClapModel(config), transformers.ClapFeatureExtractor()


def build_ast() -> tuple[Any, Any]:
    import transformers

    return transformers.ASTModel(transformers.ASTConfig(**SIZES)), transformers.ASTFeatureExtractor()


def build_moonshine() -> tuple[Any, Any]:
    import transformers

    parts = {
        f"{part}_{size}": 2
        for part in ("encoder", "decoder")
        for size in ("num_hidden_layers", "num_attention_heads")
    }
    config = transformers.MoonshineConfig(hidden_size=32, intermediate_size=64, vocab_size=100, **parts)
    return transformers.MoonshineModel(config), transformers.Wav2Vec2FeatureExtractor()


def build_parakeet() -> tuple[Any, Any]:
    import transformers

    config = transformers.ParakeetEncoderConfig(**SIZES, subsampling_conv_channels=16)
    return transformers.ParakeetEncoder(config), transformers.ParakeetFeatureExtractor()


def build_pe_audio() -> tuple[Any, Any]:
    """Saved with the text model, as it is published."""
    import transformers

    codec = {
        "encoder_hidden_size": 8,
        "downsampling_ratios": [4, 8, 6, 10],
        "codebook_dim": 8,
        "hidden_size": 128,
    }
    text = {
        **SIZES,
        "vocab_size": 50,
        **{f"{token}_token_id": 0 for token in ("pad", "bos", "eos", "cls", "sep")},
    }
    audio = {**SIZES, "num_key_value_heads": 2, "head_dim": 16, "dac_config": codec}
    config = transformers.PeAudioConfig(text_config=text, audio_config=audio)
    return transformers.PeAudioModel(config), transformers.PeAudioFeatureExtractor()


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "wav2vec2": build_wave("Wav2Vec2"),
    "wav2vec2_large": build_wave("Wav2Vec2", feat_extract_norm="layer", do_stable_layer_norm=True),
    "hubert": build_wave("Hubert"),
    "wavlm": build_wave("WavLM"),
    "unispeech": build_wave("UniSpeech"),
    "unispeech_sat": build_wave("UniSpeechSat"),
    "data2vec_audio": build_wave("Data2VecAudio", num_conv_pos_embeddings=2, conv_pos_kernel_size=9),
    "sew": build_wave("SEW", conv_dim=(16,) * 13),
    "sew_d": build_wave("SEWD", conv_dim=(16,) * 13),
    "wav2vec2_conformer": build_wave("Wav2Vec2Conformer"),
    "wav2vec2_bert": build_bert,
    "whisper": build_whisper,
    "clap": build_clap,
    "ast": build_ast,
    "moonshine": build_moonshine,
    "parakeet": build_parakeet,
    "pe_audio": build_pe_audio,
}


def save(family: str, folder: Path) -> tuple[Any, Any]:
    """Save a tiny network and its feature extractor; both of them.

    Raises:
        pytest.skip: the installed transformers lacks the family.
    """
    import pytest
    import torch
    from transformers.utils import logging

    torch.manual_seed(0)
    logging.disable_progress_bar()
    try:
        network, processor = FAMILIES[family]()
    except AttributeError as error:
        pytest.skip(f"this transformers lacks it: {error}")
    network.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return network, processor


def complete_options(folder: Path, **options: Any) -> dict[str, Any]:
    """Options of the head `encoder` with what the folder's weights say."""
    import models
    from earshot import extractors

    return models.complete_options(
        "encoder", {"weights": str(folder), **options}, extractors.describe_network
    )
