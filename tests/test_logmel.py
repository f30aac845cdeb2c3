"""Log-mel spectrograms against the libraries whose settings they reproduce: librosa and torchaudio."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import SHARED
from waves import clips, real, synthetic, window

from earshot.audio import windows
from earshot.core.errors import UserError
from earshot.extractors import base, logmel


def both(
    settings: logmel.Settings, where: base.Window, wave: np.ndarray
) -> tuple[np.ndarray, base.ClipFeatures]:
    extractor = logmel.Extractor(settings, where)
    features = extractor.extract([wave], [0.0], 1)[0]
    assert features.views["mel"].shape[1:] == extractor.shapes["mel"]
    return extractor.compute_spectrogram(wave).numpy(), features


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
    settings = logmel.Settings(
        22050, 2048, None, 512, 128, "htk", None, 0.0, None, top_db=100.0, over="window"
    )
    fixed = windows.fill_window(wave, 661500, "silence")
    want = AmplitudeToDB(top_db=100)(
        MelSpectrogram(22050, 2048, hop_length=512, n_mels=128)(torch.from_numpy(fixed))
    )
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
            y=wave,
            sr=16000,
            n_fft=512,
            hop_length=160,
            win_length=400,
            n_mels=64,
            fmin=20,
            fmax=8000,
            power=2.0,
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
    banks = {
        "sr": 16000,
        "n_fft": 1024,
        "hop_length": 320,
        "n_mels": 64,
        "fmin": 20,
        "htk": True,
        "norm": None,
    }
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
    for row, first in zip(features.views["mel"][:, 0], (0, 100, 165), strict=True):
        np.testing.assert_allclose(row.astype(np.float32), whole[:, first : first + 101], atol=6e-2)
    apart = both(logmel.Settings(ref="max", over="window"), window(2.0, 16000, "wrap"), wave)[1]
    assert [float(row.max()) for row in apart.views["mel"]] == [0, 0, 0], "each window has its own maximum"
    joint = both(logmel.Settings(ref="max"), window(2.0, 16000, "wrap"), wave)[1]
    assert sorted(float(row.max()) == 0 for row in joint.views["mel"]) == [False, False, True]


def test_logmel_fills_short_clips():
    wave = synthetic(0.7, 16000)
    wrapped = both(logmel.Settings(), window(2.0, 16000, "wrap"), wave)[1]
    by_hand = logmel.Extractor(logmel.Settings(), window(2.0, 16000)).compute_spectrogram(
        windows.fill_window(wave, 32000, "wrap")
    )
    np.testing.assert_allclose(wrapped.views["mel"][0, 0].astype(np.float32), by_hand.numpy(), atol=6e-2)
    silent = both(logmel.Settings(top_db=None), window(2.0, 16000, "silence"), wave)[1]
    assert (silent.views["mel"][0, 0, :, 60:] == -100).all()
    zeros = both(logmel.Settings(standardise=True), window(2.0, 16000, "silence"), wave)[1]
    assert (zeros.views["mel"][0, 0, :, 36:] == 0).all() and (zeros.views["mel"][0, 0, :, :36] != 0).any()
    tiny = both(logmel.Settings(standardise=True), window(2.0, 16000, "silence"), wave[:160])[1]
    assert np.isfinite(tiny.views["mel"]).all()


@pytest.mark.parametrize(
    "settings",
    [
        logmel.Settings(),
        logmel.Settings(edges="zeros", ref="max", standardise=True),
        logmel.Settings(top_db=None, over="window"),
    ],
)
def test_logmel_of_a_batch_has_the_bits_of_one(settings):
    waves = [
        synthetic(seconds, 16000, seed) for seed, seconds in enumerate((2.0, 0.4, 2.0, 5.3, 2.0, 5.3, 0.4))
    ]
    extractor = logmel.Extractor(settings, window(2.0, 16000, "silence"))
    together = extractor.extract(waves, [0.0] * 7, 4)
    for wave, features in zip(waves, together, strict=True):
        alone = extractor.extract([wave], [0.0], 1)[0]
        assert np.array_equal(features.views["mel"], alone.views["mel"]) and np.array_equal(
            features.start, alone.start
        )


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
        logmel.Extractor.fetch(logmel.Settings(), "somewhere")
