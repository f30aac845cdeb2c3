"""Rows of `extraction.py` for base models of the extractor `hf`, against the loop of their model cards."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import torch
from extraction import Features, Ours, clips_for_ast, cosine, rounds, row

from earshot.core.device import choose
from earshot.features.precision import is_bf16_faster


def save_encoder(name: str, folder: Path) -> tuple[Any, Any]:
    """The base model of a family with random weights, saved as a folder; the encoder and its feature
    extractor."""
    import transformers

    torch.manual_seed(0)
    if name == "wav2vec2":
        network = transformers.Wav2Vec2Model(transformers.Wav2Vec2Config())
        front: Any = transformers.Wav2Vec2FeatureExtractor()
    else:
        sizes = {"layers": 6, "attention_heads": 8, "ffn_dim": 2048}
        both = {f"{part}_{key}": size for part in ("encoder", "decoder") for key, size in sizes.items()}
        network = transformers.WhisperModel(transformers.WhisperConfig(d_model=512, **both))
        front = transformers.WhisperFeatureExtractor()
    network.eval().save_pretrained(folder)
    front.save_pretrained(folder)
    return network.get_encoder() if name == "whisper" else network, front


@torch.inference_mode()
def hf_rows(data: Path, scratch: Path, count: int, repeats: int) -> dict[str, str]:
    """wav2vec 2.0 and Whisper, in fp32 and where it is faster in bf16, against a clip at a time."""
    clips_for_ast(data, scratch / "clips", count, pairs=False)
    lines: dict[str, str] = {}
    for name in ("wav2vec2", "whisper"):
        network, front = save_encoder(name, scratch / name)

        def usual(paths: list[str], network: Any = network, front: Any = front) -> Features:
            found: dict[str, list] = {"pooled": [], "frames": []}
            for path in paths:
                wave, rate = librosa.load(path, sr=16000)
                state = network(**front(wave, sampling_rate=rate, return_tensors="pt")).last_hidden_state
                seconds = front.chunk_length if hasattr(front, "chunk_length") else len(wave) / rate
                state = state[0, : round(state.shape[1] * len(wave) / rate / seconds)]
                found["pooled"].append(state.mean(0).numpy())
                found["frames"].append(state.T.numpy())
            return {view: np.stack(rows) for view, rows in found.items()}

        for precision in ("fp32", "bf16") if is_bf16_faster() else ("fp32",):
            at = replace(choose("cpu"), precision=precision)
            ours = Ours(
                scratch / "clips", scratch / precision, "hf", str(scratch / name), count, at, cache=name
            )
            ours.features()
            ours.watch("encode")
            ways = {"decoding": ours.decode, "usual": partial(usual, ours.paths), "ours": ours.features}
            seconds, got = rounds(ways, repeats)
            made = ours.made()
            lanes = min(torch.get_num_threads(), -(-count // ours.worker.extractor.at_once))
            share = ours.inside / (seconds["ours"] * repeats * lanes)
            columns = got["usual"]["frames"].shape[-1]
            cosines = (
                f"{cosine(made['pooled'], got['usual']['pooled']):.5f}, "
                f"{cosine(made['frames'][..., :columns], got['usual']['frames'][:, :, None]):.5f}"
            )
            key = f"hf, {name} base, 5 s, {precision}, threads: {torch.get_num_threads()}"
            lines |= row(key, count, seconds, cosines, f"{100 * share:.0f} %", precision)
            ours.worker.close()
    return lines
