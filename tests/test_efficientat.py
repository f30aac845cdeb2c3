"""EfficientAT's front end and network against torchaudio and a plain reading of the published tensors."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
from waves import clips, synthetic, window

from earshot.audio import load, windows
from earshot.core.errors import UserError
from earshot.extractors import efficientat, mel
from models.efficientat import get_width


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
    """MobileNetV3-large (Howard et al., 2019, table 1) with sigmoid gates, plainly from the published
    tensors."""
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
                squeezed = F.linear(
                    y.mean(dim=(2, 3)), state[f"{gate}.fc1.weight"], state[f"{gate}.fc1.bias"]
                ).relu()
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
        got = mel.build_mel_bank(bins, rate, n_fft, low, high, "kaldi").T
        np.testing.assert_allclose(got[:, :-1], want, atol=2e-5)
        np.testing.assert_allclose(got[:, -1], 0, atol=1e-6)


@pytest.fixture(scope="module")
def mn04(efficientat_weights):
    return efficientat.Extractor(
        efficientat.Settings(), window(5.0, 32000, "wrap"), weights=str(efficientat_weights)
    )


def test_efficientat_is_the_plain_reference(mn04, efficientat_weights):
    import torch

    assert mn04.shapes == {"pooled": (384, 1, 1), "frames": (384, 4, 16), "blocks": (2400, 1, 1)}
    waves = [windows.fill_window(wave, 160000, "wrap") for wave in clips(32000, 4)]
    with torch.inference_mode():
        spectra = mn04.compute_spectrogram(torch.from_numpy(np.stack(waves)))
        want = torch.stack([reference_spectrogram(wave) for wave in waves])
        assert spectra.shape == (len(waves), 1, 128, 500)
        assert (spectra[:, 0] - want).abs().max() < 1e-3
        state = torch.load(efficientat_weights, weights_only=True, map_location="cpu")
        maps = torch.cat([reference_maps(state, image) for image in want])
    got = mn04.extract(waves, [0.0] * len(waves), 4)
    for clip, image in zip(got, maps.numpy(), strict=True):
        np.testing.assert_allclose(clip.views["frames"][0].astype(np.float32), image, atol=2e-3, rtol=2e-3)
        pooled = clip.views["pooled"][0, :, 0, 0].astype(np.float32)
        np.testing.assert_allclose(pooled, image.mean(axis=(1, 2)), atol=1e-3, rtol=2e-3)
    assert np.ptp(pooled) > 0.1


def test_efficientat_features_do_not_depend_on_the_batch(mn04):
    import torch

    waves = torch.from_numpy(
        np.stack([windows.fill_window(wave, 160000, "wrap") for wave in clips(32000, 4)])
    )
    with torch.inference_mode():
        together = mn04.forward(waves, [5.0] * len(waves))
        for row in range(len(waves)):
            alone = mn04.forward(waves[row : row + 1], [5.0])
            for view in alone:
                assert (alone[view][0] - together[view][row]).abs().max() < 1e-4
    first, second = (mn04.extract(list(waves.numpy()), [0.0] * len(waves), 3) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert all(np.array_equal(a.views[view], b.views[view]) for view in a.views)


def test_blocks_are_the_means_of_what_each_block_projects(mn04, efficientat_weights):
    """By hooks on the network as published; the other views are those of an extractor without `blocks`."""
    import torch

    settings = efficientat.Settings(views=("pooled", "frames"))
    without = efficientat.Extractor(settings, window(5.0, 32000, "wrap"), weights=str(efficientat_weights))
    assert mn04.shapes == without.shapes | {"blocks": (2400, 1, 1)}
    waves = torch.from_numpy(
        np.stack([windows.fill_window(wave, 160000, "wrap") for wave in clips(32000, 2)])
    )
    network, want = efficientat.load(efficientat_weights, "mn04"), []
    for layer in network.features[1:16]:
        layer.block[-1].register_forward_pre_hook(lambda _, inputs: want.append(inputs[0].mean((2, 3))))
    with torch.inference_mode():
        want.append(network.features(mn04.compute_spectrogram(waves)).mean((2, 3)))
        found = mn04.forward(waves, [5.0, 5.0])
        plain = without.forward(waves, [5.0, 5.0])
    torch.testing.assert_close(found["blocks"][:, :, 0, 0], torch.cat(want, 1), atol=1e-4, rtol=1e-3)
    assert all(torch.equal(found[view], plain[view]) for view in plain)


@pytest.mark.parametrize("seconds", [0.1, 0.73, 2.0, 10.0])
def test_efficientat_shapes_for_any_window(efficientat_weights, seconds):
    extractor = efficientat.Extractor(
        efficientat.Settings(), window(seconds, 32000, "wrap"), weights=str(efficientat_weights)
    )
    views = extractor.extract([synthetic(0.9, 32000)], [0], 4)[0].views
    assert {name: view.shape[1:] for name, view in views.items()} == extractor.shapes


def published(network: str) -> dict:
    """A randomly initialised state dict under the published names, of any width."""
    from torchvision.models import mobilenet_v3_large

    state = mobilenet_v3_large(width_mult=get_width(network), num_classes=527).state_dict()
    state["features.0.0.weight"] = state["features.0.0.weight"].mean(dim=1, keepdim=True)
    renamed = {}
    for key, value in state.items():
        for fc in ("fc1", "fc2"):
            if f".{fc}." in key:
                key = key.replace(f".{fc}.", f".conc_se_layers.0.{fc}.")
                value = value[:, :, 0, 0] if value.ndim == 4 else value
        renamed[key.replace("classifier.3.", "classifier.5.").replace("classifier.0.", "classifier.2.")] = (
            value
        )
    return renamed


def test_published_names_are_as_assumed(efficientat_weights):
    import torch

    real_state = torch.load(efficientat_weights, weights_only=True, map_location="cpu")
    assert {k: v.shape for k, v in published("mn04").items()} == {k: v.shape for k, v in real_state.items()}
    assert efficientat._compute_sha256(efficientat_weights) == efficientat.SHA256[efficientat_weights.name]


@pytest.mark.parametrize("network, channels", [("mn05", 480), ("mn10", 960), ("mn20", 1920)])
def test_other_widths_load_and_mismatches_are_named(tmp_path, network, channels):
    import torch

    file = tmp_path / efficientat.FILES[network]
    state = published(network)
    torch.save(state, file)
    settings = efficientat.Settings(network)
    extractor = efficientat.Extractor(settings, window(0.5, 32000), weights=str(tmp_path))
    assert extractor.extract([synthetic(0.5, 32000)], [0], 1)[0].views["pooled"].shape == (1, channels, 1, 1)
    assert efficientat.Extractor.find_weights(settings, str(tmp_path.parent)) == [file], (
        "a folder within the folder"
    )
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
    assert efficientat.Extractor.find_weights(settings, None) == []
    with pytest.raises(UserError, match="online once.*--weights FOLDER.*another extractor"):
        efficientat.Extractor.fetch(settings, None)
    (source / cached.name).write_bytes(b"tampered")
    with pytest.raises(UserError, match="SHA-256"):
        efficientat.Extractor.fetch(settings, None)
    assert list(cached.parent.iterdir()) == [], "nothing half or wrong is left"
    monkeypatch.setitem(efficientat.SHA256, cached.name, efficientat._compute_sha256(source / cached.name))
    efficientat.Extractor.fetch(settings, None)
    assert (
        efficientat.Extractor.find_weights(settings, None) == [cached] and cached.read_bytes() == b"tampered"
    )


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
        efficientat.Extractor.find_weights(efficientat.Settings(), str(tmp_path / "absent.pt"))
    with pytest.raises(UserError, match="is not in"):
        efficientat.Extractor.find_weights(efficientat.Settings(), str(tmp_path))


def test_efficientat_tells_real_classes_apart(mn04, esc10):
    """A clip's nearest neighbour among the others mostly shares its class: the weights are where they
    belong."""
    import csv

    with open(next((esc10 / "meta").glob("*.csv"))) as file:
        rows = list(csv.DictReader(file))[::8]
    files = [esc10 / "audio" / row["filename"] for row in rows]
    waves = [load.read(file, 32000, load.AudioSettings())[0] for file in files]
    pooled = np.concatenate([clip.views["pooled"] for clip in mn04.extract(waves, [0.0] * len(waves), 16)])
    pooled = pooled.reshape(len(waves), -1).astype(np.float64)
    pooled = (pooled - pooled.mean(0)) / (pooled.std(0) + 1e-6)
    likeness = pooled @ pooled.T / np.outer(*[np.linalg.norm(pooled, axis=1)] * 2)
    np.fill_diagonal(likeness, -1)
    nearest = likeness.argmax(axis=1)
    labels = np.array([row["category"] for row in rows])
    assert (labels == labels[nearest]).mean() > 0.8
