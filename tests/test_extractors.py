"""The extractors against the libraries that they stand in for: librosa, torchaudio, transformers, torchvision."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from earshot import audio, extractors
from earshot.errors import UserError
from earshot.extractors import ast, base, efficientat, frontend, logmel

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
WEIGHTS = SHARED / "weights" / "efficientat" / "mn04_as_mAP_432.pt"
needs_clips = pytest.mark.skipif(not (SHARED / "esc10" / "audio").is_dir(), reason="needs shared/esc10/audio")
needs_weights = pytest.mark.skipif(not WEIGHTS.is_file(), reason="needs shared/weights/efficientat")


def window(seconds: float, rate: int, pad: str = "silence", hop=None, most=None) -> base.Window:
    return base.Window(seconds, hop, pad, most, rate)


def synthetic(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    """A sweep in noise with an offset and a silent part: something in every band, and something at the floor."""
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.4 * np.sin(2 * np.pi * (50 + 0.2 * rate * time / seconds) * time)
    wave += 0.01 * np.random.default_rng(seed).standard_normal(len(time)) + 0.02
    wave[len(wave) // 2 : len(wave) // 2 + len(wave) // 5] = 0
    return wave.astype(np.float32)


def real(rate: int, count: int) -> list[np.ndarray]:
    files = sorted((SHARED / "esc10" / "audio").glob("*.ogg"))[:: 400 // count][:count]
    return [audio.read(file, rate, audio.AudioSettings())[0] for file in files]


def clips(rate: int, count: int = 3) -> list[np.ndarray]:
    """Synthetic clips, and real ones where there are any."""
    found = real(rate, count) if (SHARED / "esc10" / "audio").is_dir() else []
    return [synthetic(5.0, rate, seed) for seed in range(2)] + found


class Sums(base.Extractor):
    """An extractor whose features say what it was given."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.shapes, self.batches = {"sum": (1, 1, 2)}, []

    def forward(self, waves, lengths):
        import torch

        self.batches.append((tuple(waves.shape), list(lengths)))
        return {"sum": torch.stack([waves.sum(1), waves[:, 0]], dim=1)[:, None, None]}


# the registry and the base


def test_registry(tmp_path, monkeypatch):
    assert {"ast", "efficientat", "logmel"} <= set(extractors.names())
    assert not {"base", "frontend"} & set(extractors.names())
    (tmp_path / "mine.py").write_text("RATE = 123\n")
    (tmp_path / "_helper.py").write_text("")
    monkeypatch.setattr(extractors, "__path__", [*extractors.__path__, str(tmp_path)])
    assert "mine" in extractors.names() and "_helper" not in extractors.names()
    assert extractors.module("mine").RATE == 123
    with pytest.raises(UserError, match="efficientat, .*logmel"):
        extractors.module("base")


@pytest.mark.parametrize("name", ["ast", "efficientat", "logmel"])
def test_module_has_what_the_stages_ask_for(name):
    module = extractors.module(name)
    assert module.PAD in ("wrap", "silence") and module.LIMIT > 0 and module.__doc__
    for constant in ("RATE", "SECONDS", "DEFAULT_WEIGHTS", "weights_files", "fetch", "Settings"):
        assert hasattr(module, constant)
    assert issubclass(module.Extractor, base.Extractor)
    json.dumps(vars(module.Settings()))


def test_importing_them_is_light():
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "from earshot import audio, extractors\n"
        "for name in ('ast', 'efficientat', 'logmel'): extractors.module(name)\n"
        "heavy = {'torch', 'transformers', 'torchvision', 'torchaudio', 'librosa', 'scipy', 'soundfile'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_extract_cuts_batches_and_splits_back():
    extractor = Sums(None, window(1.0, 100, "silence"))
    waves = [np.full(50, 1, np.float32), np.full(250, 2, np.float32), np.full(100, 3, np.float32)]
    got = extractor.extract(waves, [0.0, 0.5, 0.25], batch_size=2)
    assert [shape for shape, _ in extractor.batches] == [(2, 100), (2, 100), (1, 100)]
    assert extractor.batches[0][1] == [0.5, 1.0]
    assert [clip.start.tolist() for clip in got] == [[0], [0.5, 1.5, 2.0], [0.25]]
    assert [clip.length.tolist() for clip in got] == [[0.5], [1, 1, 1], [1]]
    assert [clip.views["sum"][:, 0, 0, 0].tolist() for clip in got] == [[50], [200, 200, 200], [300]]
    assert got[1].views["sum"].dtype == np.float16 and got[1].start.dtype == np.float32


def test_wrapped_clips_and_max_windows():
    extractor = Sums(None, window(1.0, 100, "wrap", hop=0.5, most=2))
    got = extractor.extract([np.arange(30, dtype=np.float32), np.ones(1000, np.float32)], [0, 0], 8)
    assert got[0].views["sum"][0, 0, 0, 0] == np.resize(np.arange(30), 100).sum()
    assert got[0].length.tolist() == [pytest.approx(0.3)]
    assert got[1].start.tolist() == [0, 0.5]


def test_overflow_is_clipped_and_integers_stay():
    import torch

    got = base.to_numpy(torch.tensor([1e6, -1e6, float("inf"), float("-inf"), float("nan"), 1.5]))
    assert got.tolist() == [65504, -65504, 65504, -65504, 0, 1.5] and got.dtype == np.float16
    assert base.to_numpy(torch.tensor([1023])).dtype == np.int16


def test_half_precision_that_overflows_is_repeated_in_full():
    import torch

    class Overflows(Sums):
        def forward(self, waves, lengths):
            super().forward(waves, lengths)
            bad = torch.is_autocast_enabled("cpu")
            return {"sum": torch.full((len(waves), 1, 1, 2), float("nan") if bad else 7.0)}

    extractor = Overflows(None, window(1.0, 100), precision="bf16")
    assert extractor.extract([np.ones(100, np.float32)], [0], 1)[0].views["sum"].tolist() == [[[[7, 7]]]]
    assert len(extractor.batches) == 2


def test_base_refuses_nonsense():
    for arguments in ({"precision": "int8"}, {"window": window(1, 100, "mirror")}):
        with pytest.raises(UserError):
            Sums(**{"settings": None, "window": window(1, 100), **arguments})


# logmel: the seeds' inputs


def both(settings: logmel.Settings, where: base.Window, wave: np.ndarray) -> tuple[np.ndarray, base.ClipFeatures]:
    extractor = logmel.Extractor(settings, where)
    features = extractor.extract([wave], [0.0], 1)[0]
    assert features.views["mel"].shape[1:] == extractor.shapes["mel"]
    return extractor.spectrogram(wave).numpy(), features


def test_logmel_seed_003_is_torchaudios():
    import torch
    from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

    settings = logmel.Settings(None, 1024, None, 512, 128, "htk", None, 0.0, 11025.0, top_db=None)
    for wave in clips(44100):
        reference = MelSpectrogram(44100, 1024, hop_length=512, n_mels=128, f_min=0, f_max=11025)
        want = AmplitudeToDB()(reference(torch.from_numpy(wave))).numpy()
        exact, features = both(settings, window(5.0, 44100), wave)
        assert features.views["mel"].shape == (1, 1, 128, 431)
        np.testing.assert_allclose(exact, want, atol=2e-2)
        np.testing.assert_allclose(features.views["mel"][0, 0].astype(np.float32), want, atol=6e-2)


@pytest.mark.parametrize("seconds", [7.0, 30.02])
def test_logmel_seed_004_is_torchaudios(seconds):
    import torch
    from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

    wave = synthetic(seconds, 22050)
    wave /= np.abs(wave).max()
    settings = logmel.Settings(22050, 2048, None, 512, 128, "htk", None, 0.0, None, top_db=100.0, over="window")
    fixed = audio.fill(wave, 661500, "silence")
    want = AmplitudeToDB(top_db=100)(MelSpectrogram(22050, 2048, hop_length=512, n_mels=128)(torch.from_numpy(fixed)))
    _, features = both(settings, window(30.0, 22050, "silence", most=1), wave)
    assert features.views["mel"].shape == (1, 1, 128, 1292)
    np.testing.assert_allclose(features.views["mel"][0, 0].astype(np.float32), want.numpy(), atol=6e-2)


@pytest.mark.parametrize("seconds", [1.3, 2.5, 4.0])
def test_logmel_seed_000_is_librosas(seconds):
    import librosa

    bands = (16000, 512, 400, 160, 64, "slaney", "slaney", 20.0, 8000.0)
    settings = logmel.Settings(*bands, edges="zeros", ref="max", standardise=True, frames=250)
    found = real(16000, 2) if (SHARED / "esc10" / "audio").is_dir() else []
    for wave in [synthetic(seconds, 16000)] + [clip[: round(seconds * 16000)] for clip in found]:
        mel = librosa.feature.melspectrogram(
            y=wave, sr=16000, n_fft=512, hop_length=160, win_length=400, n_mels=64, fmin=20, fmax=8000, power=2.0
        )
        level = librosa.power_to_db(mel, ref=np.max)
        level = (level - level.mean()) / (level.std() + 1e-6)
        want = np.zeros((64, 250), np.float32)
        want[:, : min(250, level.shape[1])] = level[:, :250]
        exact, features = both(settings, window(2.5, 16000, "silence", most=1), wave)
        np.testing.assert_allclose(exact, level, atol=2e-3)
        np.testing.assert_allclose(features.views["mel"][0, 0].astype(np.float32), want, atol=5e-3)
        assert features.length[0] == pytest.approx(min(seconds, 2.5), abs=1e-3)


def test_logmel_amplitude_and_logarithm():
    import librosa

    wave = synthetic(2.0, 16000)
    banks = {"sr": 16000, "n_fft": 1024, "hop_length": 320, "n_mels": 64, "fmin": 20, "htk": True, "norm": None}
    mel = librosa.feature.melspectrogram(y=wave, power=1.0, **banks)
    settings = logmel.Settings(power=1.0, edges="zeros", top_db=70.0)
    want = librosa.amplitude_to_db(mel, ref=1.0, amin=1e-10, top_db=70.0)
    np.testing.assert_allclose(both(settings, window(2.0, 16000), wave)[0], want, atol=2e-2)
    settings = logmel.Settings(edges="zeros", level="log", amin=1e-6)
    want = np.log(librosa.feature.melspectrogram(y=wave, power=2.0, **banks) + 1e-6)
    np.testing.assert_allclose(both(settings, window(2.0, 16000), wave)[0], want, atol=2e-3)


def test_logmel_windows_are_slices_of_the_clip():
    wave = synthetic(5.3, 16000)
    whole, features = both(logmel.Settings(), window(2.0, 16000, "wrap"), wave)
    assert features.start.tolist() == pytest.approx([0, 2, 3.3])
    for row, first in zip(features.views["mel"][:, 0], (0, 100, 165)):
        np.testing.assert_allclose(row.astype(np.float32), whole[:, first : first + 101], atol=6e-2)
    apart = both(logmel.Settings(ref="max", over="window"), window(2.0, 16000, "wrap"), wave)[1]
    assert [float(row.max()) for row in apart.views["mel"]] == [0, 0, 0], "each window has its own maximum"
    joint = both(logmel.Settings(ref="max"), window(2.0, 16000, "wrap"), wave)[1]
    assert sorted(float(row.max()) == 0 for row in joint.views["mel"]) == [False, False, True]


def test_logmel_fills_short_clips():
    wave = synthetic(0.7, 16000)
    wrapped = both(logmel.Settings(), window(2.0, 16000, "wrap"), wave)[1]
    by_hand = logmel.Extractor(logmel.Settings(), window(2.0, 16000)).spectrogram(audio.fill(wave, 32000, "wrap"))
    np.testing.assert_allclose(wrapped.views["mel"][0, 0].astype(np.float32), by_hand.numpy(), atol=6e-2)
    silent = both(logmel.Settings(top_db=None), window(2.0, 16000, "silence"), wave)[1]
    assert (silent.views["mel"][0, 0, :, 60:] == -100).all()
    zeros = both(logmel.Settings(standardise=True), window(2.0, 16000, "silence"), wave)[1]
    assert (zeros.views["mel"][0, 0, :, 36:] == 0).all() and (zeros.views["mel"][0, 0, :, :36] != 0).any()
    tiny = both(logmel.Settings(standardise=True), window(2.0, 16000, "silence"), wave[:160])[1]
    assert np.isfinite(tiny.views["mel"]).all()


def test_logmel_names_contradictions():
    for settings, where in (
        (logmel.Settings(fmax=9000.0), window(2, 16000)),
        (logmel.Settings(frames=50), window(2, 16000)),
        (logmel.Settings(win_length=2048), window(2, 16000)),
    ):
        with pytest.raises(UserError) as caught:
            logmel.Extractor(settings, where)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no weights"):
        logmel.fetch(logmel.Settings(), "somewhere")


# ast


def tiny_ast(folder: Path, mean: float = -4.0, std: float = 4.2):
    """A randomly initialised AST of 1.28 s saved as a folder, with its feature extractor."""
    import torch
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_length=128,
        num_mel_bins=64, patch_size=16, frequency_stride=10, time_stride=12,
    )  # fmt: skip
    network = ASTModel(config).eval()
    with torch.no_grad():  # all zero at birth, which would hide a grid read in the wrong order
        network.embeddings.position_embeddings.normal_(std=0.5)
    front = ASTFeatureExtractor(num_mel_bins=64, max_length=128, mean=mean, std=std)
    network.save_pretrained(folder)
    front.save_pretrained(folder)
    return network, front


def test_ast_front_end_is_transformers():
    import torch
    from transformers import ASTFeatureExtractor

    front = ASTFeatureExtractor()
    waves = [wave[: round(seconds * 16000)] for wave, seconds in zip(clips(16000, 6), (5, 1.234, 0.5, 5, 3.3, 0.03, 5))]
    waves.append(synthetic(10.24, 16000))
    want = np.stack([front(wave, sampling_rate=16000)["input_values"][0] for wave in waves])
    batch = torch.from_numpy(np.stack([audio.fill(wave, 163840, "silence") for wave in waves]))
    got = frontend.ast_input(batch, [len(wave) / 16000 for wave in waves]).numpy()
    assert got.shape == want.shape == (len(waves), 1024, 128)
    assert np.abs(got - want).max() < 1e-3
    assert got[1, -1, 0] == pytest.approx(0.46703, abs=1e-4), "padding is 0 in log-mel, then normalised"


def test_ast_is_transformers_through_a_saved_folder(tmp_path):
    import torch

    network, front = tiny_ast(tmp_path)
    settings = ast.Settings(("tokens", "frames", "pooled"))
    extractor = ast.Extractor(settings, window(1.28, 16000, "silence"), weights=str(tmp_path))
    assert extractor.shapes == {"tokens": (32, 5, 10), "frames": (32, 1, 10), "pooled": (32, 1, 1)}
    waves = [synthetic(1.28, 16000), synthetic(0.4, 16000, 1), synthetic(2.0, 16000, 2)]
    got = extractor.extract(waves, [0.0, 0.1, 0.0], batch_size=3)
    assert [len(clip.start) for clip in got] == [1, 1, 2]
    pieces = [waves[0], waves[1], waves[2][:20480], waves[2][-20480:]]
    values = np.stack([front(piece, sampling_rate=16000)["input_values"][0] for piece in pieces])
    with torch.inference_mode():
        want = network(torch.from_numpy(values))
    tokens = want.last_hidden_state.numpy()
    joined = {view: np.concatenate([clip.views[view] for clip in got]).astype(np.float32) for view in extractor.shapes}
    np.testing.assert_allclose(joined["pooled"][:, :, 0, 0], want.pooler_output.numpy(), atol=2e-3)
    for f, t in ((0, 0), (0, 9), (4, 0), (2, 7)):
        np.testing.assert_allclose(joined["tokens"][:, :, f, t], tokens[:, 2 + f * 10 + t], atol=4e-3)
    np.testing.assert_allclose(joined["frames"][:, :, 0, 3], tokens[:, 2 + 3 :: 10].mean(axis=1), atol=4e-3)
    assert np.ptp(joined["tokens"]) > 1 and np.abs(tokens[0, 2] - tokens[0, 3]).max() > 0.05


def test_ast_wrap_leaves_no_padding(tmp_path):
    tiny_ast(tmp_path)
    wave = synthetic(0.4, 16000)
    made = {}
    for pad in ("wrap", "silence"):
        extractor = ast.Extractor(ast.Settings(), window(1.28, 16000, pad), weights=str(tmp_path))
        made[pad] = extractor.extract([wave], [0], 1)[0].views["pooled"]
        full = extractor.extract([audio.fill(wave, 20480, pad)], [0], 1)[0].views["pooled"]
        if pad == "wrap":
            np.testing.assert_array_equal(made[pad], full)
        else:
            assert np.abs(made[pad] - full).max() > 1e-3, "zeros in the wave are not the network's padding"
    assert np.abs(made["wrap"] - made["silence"]).max() > 1e-2


def test_ast_full_size_by_default():
    import torch
    from transformers import ASTConfig, ASTModel

    with torch.device("meta"):
        network = ASTModel(ASTConfig())
    assert sum(parameter.numel() for parameter in network.parameters()) == 86_187_264
    network = network.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.01)
    extractor = ast.Extractor.__new__(ast.Extractor)
    base.Extractor.__init__(extractor, ast.Settings(ast.VIEWS), window(10.24, 16000))
    extractor.mean, extractor.std = -4.2677393, 4.5689974
    extractor._build(network)
    want = {"pooled": (768, 1, 1), "frames": (768, 1, 101), "tokens": (768, 12, 101)}
    assert extractor.shapes == want
    views = extractor.extract([synthetic(5.0, 16000)], [0], 1)[0].views
    assert {name: view.shape for name, view in views.items()} == {name: (1, *shape) for name, shape in want.items()}


def test_ast_weights_files_and_refusals(tmp_path, monkeypatch):
    import huggingface_hub
    import torch

    nested = tmp_path / "dataset" / "ast"
    tiny_ast(nested)
    found = {path.name for path in ast.weights_files(ast.Settings(), str(tmp_path / "dataset"))}
    assert found == {"config.json", "preprocessor_config.json", "model.safetensors"}

    def refused(match: str, folder: Path, seconds: float = 1.28, settings=ast.Settings()) -> None:
        with pytest.raises(UserError, match=match) as caught:
            ast.Extractor(settings, window(seconds, 16000), weights=str(folder))
        assert "\n" not in str(caught.value)

    refused("--views sums", nested, settings=ast.Settings(("sums",)))
    refused("set --seconds 1.28", nested, 5.0)
    refused("no such folder", tmp_path / "absent")
    refused("is a file", nested / "config.json")
    (tmp_path / "empty").mkdir()
    refused("no config.json", tmp_path / "empty")
    safe = (nested / "model.safetensors").read_bytes()
    (nested / "model.safetensors").write_bytes(safe[:1000])
    refused("cannot be loaded", nested)
    (nested / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1)}, nested / "pytorch_model.bin")
    refused("pickled", nested)
    (nested / "model.safetensors").write_bytes(safe)
    config = json.loads((nested / "config.json").read_text())
    (nested / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    refused("lack", nested)
    (nested / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    refused("type bert", nested)

    def offline(*args, **kwargs):
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **kwargs: None)
    assert ast.weights_files(ast.Settings(), None) == []
    with pytest.raises(UserError, match="online once.*--weights FOLDER.*another extractor") as caught:
        ast.fetch(ast.Settings(), None)
    assert "\n" not in str(caught.value)


# efficientat


def reference_spectrogram(wave: np.ndarray):
    """The published front end, plainly, a clip at a time, with torchaudio's mel banks."""
    import torch
    import torchaudio

    x = torch.from_numpy(wave)[None, None]
    x = torch.nn.functional.conv1d(x, torch.tensor([[[-0.97, 1.0]]]))[0]
    taper = torch.hann_window(800, periodic=False)
    x = torch.stft(x, 1024, 320, 800, taper, center=True, normalized=False, return_complex=True).abs() ** 2
    banks, _ = torchaudio.compliance.kaldi.get_mel_banks(128, 1024, 32000, 0.0, 15000.0, 100.0, -500.0, 1.0)
    banks = torch.nn.functional.pad(banks, (0, 1))
    return (((banks @ x + 1e-5).log() + 4.5) / 5)[0]


def reference_maps(state: dict, image):
    """MobileNetV3-large (Howard et al., 2019, table 1) with sigmoid gates, plainly from the published tensors."""
    import torch.nn.functional as F

    def layer(x, name: str, stride: int = 1):
        weight = state[f"{name}.0.weight"]
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        mean, variance = state[f"{name}.1.running_mean"], state[f"{name}.1.running_var"]
        return F.batch_norm(x, mean, variance, state[f"{name}.1.weight"], state[f"{name}.1.bias"], eps=1e-3)

    x = F.hardswish(layer(image[None, None], "features.0", 2))
    for i in range(1, 16):
        stride, active = (2 if i in (2, 4, 7, 13) else 1), (F.relu if i < 7 else F.hardswish)
        parts = sorted({int(key.split(".")[3]) for key in state if key.startswith(f"features.{i}.block.")})
        y = x
        for part in parts:
            name = f"features.{i}.block.{part}"
            gate = f"{name}.conc_se_layers.0"
            if f"{gate}.fc1.weight" in state:
                squeezed = F.linear(y.mean(dim=(2, 3)), state[f"{gate}.fc1.weight"], state[f"{gate}.fc1.bias"]).relu()
                excited = F.linear(squeezed, state[f"{gate}.fc2.weight"], state[f"{gate}.fc2.bias"]).sigmoid()
                y = y * excited[:, :, None, None]
                continue
            depthwise = state[f"{name}.0.weight"].shape[1] == 1
            y = layer(y, name, stride if depthwise else 1)
            y = active(y) if part != parts[-1] else y
        x = x + y if x.shape == y.shape else y
    return F.hardswish(layer(x, "features.16"))


def test_kaldi_banks_are_torchaudios():
    from torchaudio.compliance.kaldi import get_mel_banks

    for rate, n_fft, low, high, bins in ((32000, 1024, 0.0, 15000.0, 128), (16000, 512, 20.0, 8000.0, 128)):
        want = get_mel_banks(bins, n_fft, rate, low, high, 100.0, -500.0, 1.0)[0].numpy()
        got = frontend.mel_bank(bins, rate, n_fft, low, high, "kaldi").T
        np.testing.assert_allclose(got[:, :-1], want, atol=2e-5)
        np.testing.assert_allclose(got[:, -1], 0, atol=1e-6)


@pytest.fixture(scope="module")
def mn04():
    if not WEIGHTS.is_file():
        pytest.skip("needs shared/weights/efficientat")
    return efficientat.Extractor(efficientat.Settings(), window(5.0, 32000, "wrap"), weights=str(WEIGHTS))


def test_efficientat_is_the_plain_reference(mn04):
    import torch

    assert mn04.shapes == {"pooled": (384, 1, 1), "frames": (384, 4, 16)}
    waves = [audio.fill(wave, 160000, "wrap") for wave in clips(32000, 4)]
    with torch.inference_mode():
        spectra = mn04.spectrogram(torch.from_numpy(np.stack(waves)))
        want = torch.stack([reference_spectrogram(wave) for wave in waves])
        assert spectra.shape == (len(waves), 1, 128, 500)
        assert (spectra[:, 0] - want).abs().max() < 1e-3
        state = torch.load(WEIGHTS, weights_only=True, map_location="cpu")
        maps = torch.cat([reference_maps(state, image) for image in want])
    got = mn04.extract(waves, [0.0] * len(waves), 4)
    for clip, image in zip(got, maps.numpy()):
        np.testing.assert_allclose(clip.views["frames"][0].astype(np.float32), image, atol=2e-3, rtol=2e-3)
        pooled = clip.views["pooled"][0, :, 0, 0].astype(np.float32)
        np.testing.assert_allclose(pooled, image.mean(axis=(1, 2)), atol=1e-3, rtol=2e-3)
    assert np.ptp(pooled) > 0.1


def test_efficientat_features_do_not_depend_on_the_batch(mn04):
    import torch

    waves = torch.from_numpy(np.stack([audio.fill(wave, 160000, "wrap") for wave in clips(32000, 4)]))
    with torch.inference_mode():
        together = mn04.forward(waves, [5.0] * len(waves))
        for row in range(len(waves)):
            alone = mn04.forward(waves[row : row + 1], [5.0])
            for view in alone:
                assert (alone[view][0] - together[view][row]).abs().max() < 1e-4
    first, second = (mn04.extract(list(waves.numpy()), [0.0] * len(waves), 3) for _ in range(2))
    for a, b in zip(first, second):
        assert all(np.array_equal(a.views[view], b.views[view]) for view in a.views)


@pytest.mark.parametrize("seconds", [0.1, 0.73, 2.0, 10.0])
def test_efficientat_shapes_for_any_window(mn04, seconds):
    extractor = efficientat.Extractor(efficientat.Settings(), window(seconds, 32000, "wrap"), weights=str(WEIGHTS))
    views = extractor.extract([synthetic(0.9, 32000)], [0], 4)[0].views
    assert {name: view.shape[1:] for name, view in views.items()} == extractor.shapes


def published(network: str) -> dict:
    """A randomly initialised state dict under the published names, of any width."""
    from torchvision.models import mobilenet_v3_large

    state = mobilenet_v3_large(width_mult=efficientat._width(network), num_classes=527).state_dict()
    state["features.0.0.weight"] = state["features.0.0.weight"].mean(dim=1, keepdim=True)
    renamed = {}
    for key, value in state.items():
        for fc in ("fc1", "fc2"):
            if f".{fc}." in key:
                key = key.replace(f".{fc}.", f".conc_se_layers.0.{fc}.")
                value = value[:, :, 0, 0] if value.ndim == 4 else value
        renamed[key.replace("classifier.3.", "classifier.5.").replace("classifier.0.", "classifier.2.")] = value
    return renamed


@needs_weights
def test_published_names_are_as_assumed():
    import torch

    real_state = torch.load(WEIGHTS, weights_only=True, map_location="cpu")
    assert {k: v.shape for k, v in published("mn04").items()} == {k: v.shape for k, v in real_state.items()}
    assert efficientat._sha256(WEIGHTS) == efficientat.SHA256[WEIGHTS.name]


@pytest.mark.parametrize("network, channels", [("mn05", 480), ("mn10", 960), ("mn20", 1920)])
def test_other_widths_load_and_mismatches_are_named(tmp_path, network, channels):
    import torch

    file = tmp_path / efficientat.FILES[network]
    state = published(network)
    torch.save(state, file)
    settings = efficientat.Settings(network)
    extractor = efficientat.Extractor(settings, window(0.5, 32000), weights=str(tmp_path))
    assert extractor.extract([synthetic(0.5, 32000)], [0], 1)[0].views["pooled"].shape == (1, channels, 1, 1)
    assert efficientat.weights_files(settings, str(tmp_path.parent)) == [file], "a folder within the folder"
    with pytest.raises(UserError, match=f"{channels} channels, mn04 has 384: add --network {network}"):
        efficientat.Extractor(efficientat.Settings(), window(0.5, 32000), weights=str(file))
    state.pop("classifier.5.bias")
    torch.save(state, file)
    with pytest.raises(UserError, match="does not fit"):
        efficientat.load(file, network)


def test_efficientat_download(tmp_path, monkeypatch):
    source = tmp_path / "release"
    source.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(efficientat, "URL", source.as_uri() + "/")
    settings = efficientat.Settings("mn04")
    cached = tmp_path / "home" / "hub" / "checkpoints" / "mn04_as_mAP_432.pt"
    assert efficientat.weights_files(settings, None) == []
    with pytest.raises(UserError, match="online once.*--weights FOLDER.*another extractor"):
        efficientat.fetch(settings, None)
    (source / cached.name).write_bytes(b"tampered")
    with pytest.raises(UserError, match="SHA-256"):
        efficientat.fetch(settings, None)
    assert list(cached.parent.iterdir()) == [], "nothing half or wrong is left"
    monkeypatch.setitem(efficientat.SHA256, cached.name, efficientat._sha256(source / cached.name))
    efficientat.fetch(settings, None)
    assert efficientat.weights_files(settings, None) == [cached] and cached.read_bytes() == b"tampered"


def test_efficientat_refuses_what_is_no_weights(tmp_path):
    import pickle

    import torch

    (tmp_path / "text.pt").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "code.pt").write_bytes(pickle.dumps(subprocess.run))
    for name in ("text.pt", "list.pt", "code.pt"):
        with pytest.raises(UserError) as caught:
            efficientat.load(tmp_path / name, "mn04")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such file or folder"):
        efficientat.weights_files(efficientat.Settings(), str(tmp_path / "absent.pt"))
    with pytest.raises(UserError, match="is not in"):
        efficientat.weights_files(efficientat.Settings(), str(tmp_path))


@needs_clips
@needs_weights
def test_efficientat_tells_real_classes_apart(mn04):
    """A clip's nearest neighbour among the others mostly shares its class: the weights are where they belong."""
    import csv

    with open(next((SHARED / "esc10" / "meta").glob("*.csv"))) as file:
        rows = list(csv.DictReader(file))[::8]
    files = [SHARED / "esc10" / "audio" / row["filename"] for row in rows]
    waves = [audio.read(file, 32000, audio.AudioSettings())[0] for file in files]
    pooled = np.concatenate([clip.views["pooled"] for clip in mn04.extract(waves, [0.0] * len(waves), 16)])
    pooled = pooled.reshape(len(waves), -1).astype(np.float64)
    pooled = (pooled - pooled.mean(0)) / (pooled.std(0) + 1e-6)
    likeness = pooled @ pooled.T / np.outer(*[np.linalg.norm(pooled, axis=1)] * 2)
    np.fill_diagonal(likeness, -1)
    nearest = likeness.argmax(axis=1)
    labels = np.array([row["category"] for row in rows])
    assert (labels == labels[nearest]).mean() > 0.8
