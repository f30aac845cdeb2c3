"""The extractor `hf` against transformers' own output, for tiny networks of every family."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_competition, read_csv
from tiny_encoders import FAMILIES, save
from waves import synthetic, window

import get_features
import train
from earshot.core.errors import UserError
from earshot.extractors import hf
from earshot.features.cache import Cache

SECONDS = (2.0, 1.0, 0.37, 2.0, 3.1, 1.0)


def make(folder: Path, seconds: float = 2.0, pad: str = "silence", **settings: Any) -> hf.Extractor:
    kind = hf.Extractor.configure(hf.Settings(), str(folder))
    return kind(hf.Settings(**settings), window(seconds, kind.rate, pad), weights=str(folder))


def make_waves(rate: int) -> list[np.ndarray]:
    return [synthetic(seconds, rate, seed) for seed, seconds in enumerate(SECONDS)]


def compute(network: Any, processor: Any, wave: np.ndarray) -> np.ndarray:
    """(D, t): what transformers makes of a wave alone, frames of its real part only."""
    import torch

    inputs = processor(wave, sampling_rate=processor.sampling_rate, return_tensors="pt")
    encoder = getattr(network, "audio_model", network)
    encoder = encoder.get_encoder() if encoder.config.is_encoder_decoder else encoder
    if "is_longer" in inputs:
        inputs["is_longer"] = torch.zeros(1, 1, dtype=torch.bool)
    with torch.inference_mode():
        state = encoder(**inputs).last_hidden_state[0]
    if state.ndim == 3:
        state = state.mean(1).T
    if encoder.config.model_type == "audio-spectrogram-transformer":
        state = state[2:].unflatten(0, (12, -1)).mean(0)
    fixed = hf.find_fixed_seconds(processor)
    count = int(np.ceil(len(state) * len(wave) / processor.sampling_rate / fixed - 1e-6)) if fixed else None
    return state[:count].T.numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_embedding_is_transformers_own_and_does_not_depend_on_its_batch(
    family: str, tmp_path: Path
) -> None:
    network, processor = save(family, tmp_path)
    extractor = make(tmp_path)
    waves = make_waves(extractor.rate)
    alone, together = (extractor.extract(waves, [0.0] * len(waves), size) for size in (1, 16))
    assert [len(clip.start) for clip in alone] == [1, 1, 1, 1, 2, 1]
    for one, other in zip(alone, together, strict=True):
        for view, values in one.views.items():
            np.testing.assert_allclose(values, other.views[view], rtol=1e-3, atol=1e-5)
    for wave, clip in zip(waves, together, strict=True):
        frames = clip.views["frames"][0, :, 0].astype(np.float32)
        want = compute(network, processor, wave[: extractor.samples])
        if family == "wav2vec2_bert":  # the processor fills up pairs of frames, and says so in its mask
            want = want[:, : int((np.abs(frames) > 0).any(0).sum())]
        count = want.shape[1]
        np.testing.assert_allclose(frames[:, :count], want, rtol=2e-3, atol=2e-3)
        assert not frames[:, count:].any(), "beyond the real audio"
        if family not in ("clap", "ast"):
            np.testing.assert_allclose(clip.views["pooled"][0, :, 0, 0], want.mean(1), rtol=5e-3, atol=2e-3)


def test_unrounded_embeddings_alone_and_in_a_batch(tmp_path: Path) -> None:
    import torch

    save("wav2vec2_large", tmp_path)
    extractor = make(tmp_path)
    waves = torch.from_numpy(np.stack([synthetic(2.0, 16000, seed) for seed in range(6)]))
    lengths = [2.0, 1.0, 2.0, 0.5, 1.0, 2.0]
    with torch.inference_mode():
        together = extractor.forward(waves, lengths)
        for row, length in enumerate(lengths):
            for view, values in extractor.forward(waves[row : row + 1], [length]).items():
                assert (values[0] - together[view][row]).abs().max() < 1e-5


def test_layers(tmp_path: Path) -> None:
    import torch

    network, processor = save("hubert", tmp_path)
    wave = synthetic(2.0, 16000)
    with torch.inference_mode():
        inputs = processor(wave, sampling_rate=16000, return_tensors="pt")
        states = network(**inputs, output_hidden_states=True).hidden_states
    views = make(tmp_path, views=("pooled", "layers"), layer=(0, 2)).extract([wave], [0.0], 1)[0].views
    assert views["layers"].shape == (1, 32, 2, 99) and list(views) == ["pooled", "layers"]
    for row, layer in enumerate((0, 2)):
        want = states[layer][0].T.numpy()
        np.testing.assert_allclose(views["layers"][0, :, row], want, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(views["pooled"][0, :, 0, 0], states[0][0].mean(0), rtol=5e-3, atol=2e-3)
    with pytest.raises(UserError, match="--layer 7: this network has the layers 0 to 2"):
        make(tmp_path, layer=(7,))
    with pytest.raises(UserError, match="the view layers needs --layer"):
        make(tmp_path, views=("layers",))


def test_wrapped_windows_are_real_to_their_end(tmp_path: Path) -> None:
    save("wavlm", tmp_path)
    views = make(tmp_path, pad="wrap").extract([synthetic(0.6, 16000)], [0.0], 1)[0].views
    assert np.abs(views["frames"][0, :, 0, -1]).max() > 0


@pytest.mark.parametrize(
    ("family", "rate", "seconds"), [("whisper", 16000, 30.0), ("clap", 48000, 10.0), ("ast", 16000, 10.24)]
)
def test_rate_and_longest_window_are_the_weights(
    family: str, rate: int, seconds: float, tmp_path: Path
) -> None:
    save(family, tmp_path)
    kind = hf.Extractor.configure(hf.Settings(), str(tmp_path))
    assert (kind.rate, kind.seconds, kind.limit) == (rate, seconds, seconds)
    assert kind.get_name() == "hf" and kind.get_default_seconds(hf.Settings()) is None
    with pytest.raises(UserError, match=f"a window of 40 s: set --seconds 0.1 to {seconds:g}"):
        kind(hf.Settings(), window(40.0, rate), weights=str(tmp_path))
    with pytest.raises(UserError, match=f"take {rate} Hz, not 8000 Hz"):
        kind(hf.Settings(), window(1.0, 8000), weights=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "millions"), [("Wav2Vec2", 94.4), ("WavLM", 94.4), ("Hubert", 94.4), ("Wav2Vec2Bert", 580.5)]
)
def test_full_sizes_by_default(name: str, millions: float) -> None:
    import torch
    import transformers

    with torch.device("meta"):
        network = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")())
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == millions


def refuse(folder: Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as error:
        make(folder)
    assert "\n" not in str(error.value)


def test_folders_that_are_no_encoder(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    save("wav2vec2", whole)

    def change(name: str, **values: Any) -> Path:
        folder = tmp_path / f"changed{len(list(tmp_path.iterdir()))}"
        shutil.copytree(whole, folder)
        saved = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**saved, **values}))
        return folder

    refuse(change("config.json", model_type="bert"), "holds a model of type bert, not audio-spectrogram")
    refuse(change("config.json", model_type=None), "holds a model of type None")
    refuse(change("config.json", num_hidden_layers=3), "lack .* of the network's tensors")
    refuse(change("preprocessor_config.json", sampling_rate=0), "no sampling rate from 1000 to 192000")
    refuse(change("preprocessor_config.json", feature_size=10**12), "feature_size is too large to be true")
    refuse(change("preprocessor_config.json", feature_extractor_type="Other"), "cannot be loaded")
    lacking = change("config.json")
    (lacking / "preprocessor_config.json").unlink()
    refuse(lacking, "has no preprocessor_config.json")
    refuse(tmp_path / "absent", "no such folder, and not a hub id")
    code = change("config.json", auto_map={"AutoModel": "evil.Model"}, model_type="evil")
    (code / "evil.py").write_text("raise SystemExit('run')")
    refuse(code, "holds a model of type evil")


def test_no_weights_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_competition(tmp_path / "c")
    with pytest.raises(UserError, match="hf: which encoder[?] Name it with --weights HUB_ID"):
        get_features.main(
            ["--competition", str(tmp_path / "c"), "--extractor", "hf", "--out", str(tmp_path / "d")]
        )


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_from_audio_to_a_submission(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(family, tmp_path / "weights")
    make_competition(tmp_path / "c")
    monkeypatch.chdir(tmp_path)
    get_features.main(["--competition", "c", "--extractor", "hf", "--weights", "weights"])
    assert Cache(tmp_path / "data" / "c" / "hf").kinds == {"pooled": "vector", "frames": "sequence"}
    train.main(["--recipe", "linear", "--epochs", "2", "--folds", "2", "--no-report"])
    assert len(read_csv(tmp_path / "submissions" / "submission.csv")) == len(
        read_csv(tmp_path / "c" / "sample_submission.csv")
    )
