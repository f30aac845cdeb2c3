"""The extractor `hf` against transformers' own output, for tiny networks of every family."""

from __future__ import annotations

import json
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

POOLED_BY_ITSELF = ("ast", "clap", "pe_audio")
SECONDS = (2.0, 1.0, 0.37, 2.0, 3.1, 1.0)


def make(
    folder: Path, seconds: float = 2.0, pad: str = "silence", precision: str = "fp32", **settings: Any
) -> hf.Extractor:
    kind = hf.Extractor.configure(hf.Settings(), str(folder))
    shape = window(seconds, kind.rate, pad)
    return kind(hf.Settings(**settings), shape, weights=str(folder), precision=precision)


def make_waves(rate: int) -> list[np.ndarray]:
    return [synthetic(seconds, rate, seed) for seed, seconds in enumerate(SECONDS)]


def run(network: Any, processor: Any, wave: np.ndarray, **more: Any) -> tuple[Any, Any]:
    """The audio encoder of a network, and its output for a wave alone."""
    import torch

    inputs = processor(wave, sampling_rate=processor.sampling_rate, return_tensors="pt")
    part = {"ClapModel": "audio_model", "PeAudioModel": "audio_encoder"}.get(type(network).__name__)
    encoder = getattr(network, part) if part else network
    encoder = encoder.get_encoder() if encoder.config.is_encoder_decoder else encoder
    if "is_longer" in inputs:
        inputs["is_longer"] = torch.zeros(1, 1, dtype=torch.bool)
    with torch.inference_mode():
        return encoder, encoder(**inputs, **more)


def compute(network: Any, processor: Any, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """(D, t): what transformers makes of a wave alone, frames of its real part only; and (D,), what the
    network pools itself, if it does."""
    encoder, output = run(network, processor, wave)
    pooled, state = getattr(output, "pooler_output", None), output.last_hidden_state[0]
    if state.ndim == 3:
        state = state.mean(1).T
    if encoder.config.model_type == "audio-spectrogram-transformer":
        state = state[2:].unflatten(0, (12, -1)).mean(0)
    fixed = hf.find_fixed_seconds(processor)
    count = int(np.ceil(len(state) * len(wave) / processor.sampling_rate / fixed - 1e-6)) if fixed else None
    return state[:count].T.numpy(), None if pooled is None else pooled[0].numpy()


def check_batches(extractor: hf.Extractor, waves: list[np.ndarray]) -> None:
    """An embedding alone and in a batch of clips of several lengths, before rounding."""
    import torch

    lengths = [min(2.0, len(wave) / extractor.rate) for wave in waves]
    batch = np.stack([np.resize(wave, extractor.samples) for wave in waves])
    for row, length in enumerate(lengths):
        batch[row, round(length * extractor.rate) :] = 0
    together = torch.from_numpy(batch)
    with torch.inference_mode():
        views = extractor.forward(together, lengths)
        for row, length in enumerate(lengths):
            for view, values in extractor.forward(together[row : row + 1], [length]).items():
                assert (values[0] - views[view][row]).abs().max() < 1e-5


def compute_cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_embedding_is_transformers_own_and_does_not_depend_on_its_batch(
    family: str, tmp_path: Path
) -> None:
    network, processor = save(family, tmp_path)
    extractor = make(tmp_path)
    waves = make_waves(extractor.rate)
    clips = extractor.extract(waves, [0.0] * len(waves), 16)
    assert [len(clip.start) for clip in clips] == [1, 1, 1, 1, 2, 1]
    check_batches(extractor, waves)
    half = make(tmp_path, precision="bf16").extract(waves[:1], [0.0], 1)[0].views["pooled"]
    exact = clips[0].views["pooled"]
    assert compute_cosine(*(values.astype(np.float32).ravel() for values in (half, exact))) > 0.99
    for wave, clip in zip(waves, clips, strict=True):
        frames = clip.views["frames"][0, :, 0].astype(np.float32)
        want, pooled = compute(network, processor, wave[: extractor.samples])
        if family == "wav2vec2_bert":  # the processor fills up pairs of frames, and says so in its mask
            want = want[:, : int((np.abs(frames) > 0).any(0).sum())]
        count = want.shape[1]
        np.testing.assert_allclose(frames[:, :count], want, rtol=2e-3, atol=2e-3)
        assert compute_cosine(frames[:, :count], want) >= 0.9999
        assert not frames[:, count:].any(), "beyond the real audio"
        assert (pooled is not None) == (family in POOLED_BY_ITSELF)
        mean, found = want.mean(1) if pooled is None else pooled, clip.views["pooled"][0, :, 0, 0]
        np.testing.assert_allclose(found, mean, rtol=5e-3, atol=2e-3)
        assert compute_cosine(found.astype(np.float32), mean) >= 0.9999


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


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_is_the_output_where_transformers_says_so(family: str, tmp_path: Path) -> None:
    network, processor = save(family, tmp_path)
    wave = synthetic(1.0, processor.sampling_rate)
    _, output = run(network, processor, wave, output_hidden_states=True)
    last, states = output.last_hidden_state, output.hidden_states
    same = states[-1].shape == last.shape and bool((states[-1] - last).abs().max() < 1e-5)
    assert same or family not in ("wav2vec2", "wavlm", "whisper", "pe_audio")
    usual, named = (make(tmp_path, 1.0, layer=layer).extract([wave], [0.0], 1)[0] for layer in ((), (-1,)))
    one, other = (clip.views["frames"].astype(np.float32) for clip in (usual, named))
    if same:
        assert one.shape == other.shape and np.allclose(one, other, atol=2e-3)
    first = make(tmp_path, 1.0, layer=(0, -1)).extract([wave], [0.0], 1)[0].views["frames"]
    assert first.shape[1] == states[0].shape[1 if states[0].ndim == 4 else 2], "of the first one named"


def test_layers_of_several_sizes(tmp_path: Path) -> None:
    save("clap", tmp_path)
    with pytest.raises(
        UserError, match="--layer 0 4: these layers have different sizes: choose one"
    ) as error:
        make(tmp_path, views=("layers",), layer=(0, 4))
    assert "\n" not in str(error.value)
    assert make(tmp_path, views=("layers",), layer=(-1, -2)).shapes["layers"][:2] == (128, 2)
    with pytest.raises(UserError, match="--layer 5: this network has the layers 0 to 4"):
        make(tmp_path, layer=(5,))


def test_layers_are_whole_numbers() -> None:
    with pytest.raises(UserError, match="--layer 4 b: must be whole numbers, for example --layer 4 8"):
        get_features.main(["--extractor", "hf", "--weights", "w", "--layer", "4", "b"])


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


def test_a_folders_code_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is the user asked whether it may run."""
    monkeypatch.setattr("builtins.input", lambda *question: pytest.fail("asked"))
    save("wav2vec2", tmp_path)
    usual = make(tmp_path).extract([synthetic(1.0, 16000)], [0.0], 1)[0].views["pooled"]
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for name, auto, saved_as in (
        ("config.json", "AutoModel", "model_type"),
        ("preprocessor_config.json", "AutoFeatureExtractor", "feature_extractor_type"),
    ):
        plain = json.loads((tmp_path / name).read_text())
        changed = {**plain, "auto_map": {auto: "evil.Thing"}}
        (tmp_path / name).write_text(json.dumps(changed))
        views = make(tmp_path).extract([synthetic(1.0, 16000)], [0.0], 1)[0].views
        assert np.array_equal(views["pooled"], usual), "the native classes are taken"
        (tmp_path / name).write_text(json.dumps({**changed, saved_as: "evil"}))
        refuse(tmp_path, "evil, (not|but)")
        (tmp_path / name).write_text(json.dumps(plain))
    assert not (tmp_path / "ran").exists()


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
