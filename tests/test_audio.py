"""Reading any file, naming what is wrong with a bad one, and cutting clips into windows."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile

from earshot.audio import load, source, windows
from earshot.audio.load import AudioSettings, BadAudio
from earshot.core.errors import UserError
from earshot.extractors.base import Window
from earshot.features.plan import _estimate_windows

ROOT = Path(__file__).resolve().parents[1]
ESC10 = ROOT.parent / "shared" / "esc10" / "audio"
PLAIN = AudioSettings()


def tone(seconds: float, rate: int, hertz: float = 440.0, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def reason(path: Path, settings: AudioSettings = PLAIN) -> str:
    with pytest.raises(BadAudio) as caught:
        load.read(path, 16000, settings)
    text = caught.value.args[0]
    assert "\n" not in text and str(path.parent) not in text
    return text


@pytest.mark.parametrize(
    "suffix, subtype, rate, channels, tolerance",
    [
        ("wav", "PCM_16", 44100, 1, 1e-3),
        ("wav", "PCM_24", 48000, 2, 1e-3),
        ("wav", "PCM_U8", 8000, 1, 2e-2),
        ("wav", "FLOAT", 96000, 6, 1e-3),
        ("flac", "PCM_16", 22050, 2, 1e-3),
        ("ogg", "VORBIS", 44100, 1, 5e-2),
        ("mp3", None, 32000, 2, 5e-2),
        ("au", "PCM_16", 22050, 1, 1e-3),
        ("aiff", "PCM_16", 11025, 3, 1e-3),
    ],
)
def test_every_format_rate_width_and_channel_count(tmp_path, suffix, subtype, rate, channels, tolerance):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.repeat(tone(1.0, rate)[:, None], channels, axis=1), rate, subtype=subtype)
    seconds, native = load.read_info(path)
    assert native == rate and seconds == pytest.approx(1.0, abs=0.06)
    wave, given, offset, *noted = load.read(path, None, PLAIN)
    assert given == rate and offset == 0 and not any(noted) and wave.dtype == np.float32 and wave.ndim == 1
    middle = wave[rate // 4 : rate // 2]
    assert np.abs(middle).max() == pytest.approx(0.5, abs=tolerance)
    wave, given, *_ = load.read(path, 16000, PLAIN)
    assert given == 16000 and len(wave) == pytest.approx(16000 * seconds, abs=2)
    spectrum = np.abs(np.fft.rfft(wave[4000:12000]))
    assert np.argmax(spectrum) * 2 == 440, "resampling has to keep the pitch"


def test_resampling_is_soxr_hq(tmp_path):
    import soxr

    wave = np.random.default_rng(0).standard_normal(22050).astype(np.float32) * 0.1
    soundfile.write(tmp_path / "a.wav", wave, 22050, subtype="FLOAT")
    got = load.read(tmp_path / "a.wav", 16000, PLAIN)[0]
    np.testing.assert_array_equal(got, soxr.resample(wave, 22050, 16000, quality="HQ"))


def test_mono_and_peak(tmp_path):
    left, right = tone(0.5, 16000, level=0.4), tone(0.5, 16000, level=0.2)
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([left, right], axis=1), 16000, subtype="FLOAT")
    np.testing.assert_allclose(load.read(path, None, PLAIN)[0], (left + right) / 2, atol=1e-7)
    np.testing.assert_allclose(load.read(path, None, AudioSettings(mono="first"))[0], left, atol=1e-7)
    peaked = load.read(path, None, AudioSettings(peak=True))[0]
    assert np.abs(peaked).max() == 1.0 and np.corrcoef(peaked, left)[0, 1] > 0.9999


def test_peak_comes_before_resampling(tmp_path):
    import soxr

    wave = np.zeros(44100, np.float32)
    wave[20000:20003] = 0.25, -0.25, 0.25  # content above the new Nyquist: resampling lowers the peak
    soundfile.write(tmp_path / "a.wav", wave, 44100, subtype="FLOAT")
    got = load.read(tmp_path / "a.wav", 8000, AudioSettings(peak=True))[0]
    np.testing.assert_allclose(got, soxr.resample(wave / 0.25, 44100, 8000, quality="HQ"), atol=1e-6)
    assert np.abs(got).max() < 0.9


@pytest.mark.parametrize("top_db", [20, 60])
def test_trim_is_librosas(tmp_path, top_db):
    import librosa

    rng = np.random.default_rng(1)
    for samples in (700, 2048, 16000, 40001):
        loud = rng.standard_normal(samples) * 0.3
        wave = np.concatenate([rng.standard_normal(9000) * 1e-4, loud, rng.standard_normal(7000) * 2e-5])
        soundfile.write(tmp_path / "a.wav", wave.astype(np.float32), 16000, subtype="FLOAT")
        want, (start, end) = librosa.effects.trim(wave.astype(np.float32), top_db=top_db)
        got, rate, offset, *_ = load.read(tmp_path / "a.wav", 16000, AudioSettings(trim=top_db))
        assert 0 < start and end < len(wave), "the case has to trim at both ends"
        assert offset == pytest.approx(start / rate)
        np.testing.assert_array_equal(got, want)


@pytest.mark.skipif(not ESC10.is_dir(), reason="needs shared/esc10/audio")
def test_trim_is_librosas_on_real_clips():
    import librosa

    trimmed = 0
    for path in sorted(ESC10.glob("*.ogg"))[::25]:
        wave = load.read(path, 16000, PLAIN)[0]
        want = librosa.effects.trim(wave, top_db=40)[1]
        assert tuple(want) == load.find_trim_bounds(wave, 40)
        trimmed += tuple(want) != (0, len(wave))
    assert trimmed > 0


def test_bad_files_are_named(tmp_path):
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal(16000) * 0.1).astype(np.float32)

    def written(name: str, wave: np.ndarray, rate: int = 16000) -> Path:
        soundfile.write(tmp_path / name, wave, rate, subtype="FLOAT")
        return tmp_path / name

    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "garbage.wav").write_bytes(rng.bytes(5000))
    (tmp_path / "garbage.m4a").write_bytes(rng.bytes(5000))
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "dangling.wav").symlink_to(tmp_path / "nowhere.wav")
    assert reason(tmp_path / "missing.wav") == "no such file"
    assert reason(tmp_path / "dangling.wav") == "no such file"
    assert reason(tmp_path / "empty.wav") == "empty file"
    assert reason(tmp_path / "folder.wav") == "is a directory"
    assert reason(tmp_path / "garbage.wav") == "cannot be decoded: Format not recognised"
    assert reason(tmp_path / "garbage.m4a").startswith("cannot be decoded: no decoder for .m4a")
    assert reason(written("none.wav", noise[:0])) == "no samples"
    assert reason(written("short.wav", noise[:48])) == "too short (3 ms)"
    assert reason(written("silent.wav", noise * 0)) == "silent"
    assert reason(written("faint.wav", noise * 1e-5)) == "silent"
    assert reason(written("faint.wav", noise * 1e-5), AudioSettings(peak=True)) == "silent"
    assert reason(written("nan.wav", np.where(noise > 0.3, np.nan, noise))) == "NaN or infinite samples"
    assert reason(written("inf.wav", np.where(noise > 0.3, np.inf, noise))) == "NaN or infinite samples"
    np.testing.assert_array_equal(
        load.read(written("phase.wav", np.stack([noise, -noise], axis=1)), None, PLAIN).wave, noise
    )
    assert len(load.read(written("brief.wav", noise[:160]), None, PLAIN)[0]) == 160, "10 ms is enough"


def test_no_permission(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(0.1, 16000), 16000)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(source.io, "FileIO", refuse)  # root, as whom tests may run, is never refused
    assert reason(path) == "no permission"
    with pytest.raises(BadAudio, match="no permission"):
        load.read_info(path)


def test_damaged_and_truncated_files_either_decode_or_are_named(tmp_path):
    rng = np.random.default_rng(3)
    named = 0
    for suffix in ("wav", "flac", "ogg", "mp3", "au", "aiff"):
        good = tmp_path / f"good.{suffix}"
        soundfile.write(good, tone(1.0, 44100), 44100)
        content = good.read_bytes()
        middle = len(content) // 3
        damaged = [content[:44], content[: len(content) // 2]]
        damaged.append(content[:middle] + rng.bytes(2000) + content[middle + 2000 :])
        for data in damaged:
            path = tmp_path / f"bad.{suffix}"
            path.write_bytes(data)
            for function, *options in ((load.read_info,), (load.read, 16000, PLAIN)):
                try:
                    function(path, *options)
                except BadAudio as error:
                    named += 1
                    assert "\n" not in error.args[0] and str(tmp_path) not in error.args[0] and error.args[0]
    assert named >= 4


def test_info_names_bad_files(tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "garbage.flac").write_bytes(b"fLaC" + bytes(100))
    soundfile.write(tmp_path / "none.wav", np.zeros(0, np.float32), 16000)
    for name, text in (
        ("empty.wav", "empty file"),
        ("garbage.flac", "cannot be decoded"),
        ("none.wav", "no samples"),
    ):
        with pytest.raises(BadAudio, match=text):
            load.read_info(tmp_path / name)


def test_second_decoder_takes_what_soundfile_cannot(tmp_path, monkeypatch):
    path = tmp_path / "a.m4a"
    path.write_bytes(b"not for soundfile")
    pcm = (np.stack([tone(0.5, 16000), tone(0.5, 16000)], axis=1) * 32768).astype("<i2")

    class Opened(list):
        samplerate, channels = 16000, 2
        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *error: None  # noqa: E731

    opener = types.SimpleNamespace(
        audio_open=lambda name: Opened([pcm[:3000].tobytes(), pcm[3000:].tobytes()])
    )
    monkeypatch.setitem(sys.modules, "audioread", opener)
    np.testing.assert_allclose(load.read(path, None, PLAIN)[0], tone(0.5, 16000), atol=1e-4)
    assert load.read_info(path) == (0.5, 16000)


def test_nothing_on_stderr_and_nothing_heavy(tmp_path):
    (tmp_path / "garbage.wav").write_bytes(b"\1" * 500)
    soundfile.write(tmp_path / "good.mp3", tone(1.0, 44100), 44100)
    code = (
        "import sys; from earshot.audio import load\n"
        "assert len(load.read(sys.argv[2], 16000, load.AudioSettings(trim=60))[0])\n"
        "try: load.read(sys.argv[1], 16000, load.AudioSettings())\n"
        "except load.BadAudio as e: print(e)\n"
        "assert not {'torch', 'librosa', 'scipy'} & set(sys.modules)"
    )
    files = [str(tmp_path / "garbage.wav"), str(tmp_path / "good.mp3")]
    done = subprocess.run([sys.executable, "-c", code, *files], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "" and done.returncode == 0 and "cannot be decoded" in done.stdout


@pytest.mark.parametrize(
    "seconds, hop, most, want",
    [
        (3.0, None, None, [(0, 3)]),
        (5.0, None, None, [(0, 5)]),
        (5.009, None, None, [(0, 5)]),
        (5.02, None, None, [(0, 5), (0.02, 5)]),
        (10.0, None, None, [(0, 5), (5, 5)]),
        (12.0, None, None, [(0, 5), (5, 5), (7, 5)]),
        (10.0, 2.5, None, [(0, 5), (2.5, 5), (5, 5)]),
        (11.0, 2.5, None, [(0, 5), (2.5, 5), (5, 5), (6, 5)]),
        (12.0, None, 2, [(0, 5), (5, 5)]),
        (30.0, 1.0, 1, [(0, 5)]),
    ],
)
def test_cut(seconds, hop, most, want):
    assert windows.cut_windows(seconds, 5.0, hop, most) == [pytest.approx(pair) for pair in want]


def test_cut_covers_every_clip_and_stays_inside():
    rng = np.random.default_rng(0)
    for _ in range(500):
        seconds, window = rng.uniform(0.01, 40), rng.uniform(0.5, 10)
        hop = None if rng.random() < 0.3 else window * rng.uniform(0.1, 1)
        end = 0.0
        for start, length in windows.cut_windows(seconds, window, hop, None):
            assert 0 <= start <= end + 1e-6, "no gap"
            assert length <= window + 1e-9 and start + length <= seconds + 1e-6
            end = start + length
        assert end >= seconds - 0.0101


def test_windows_are_counted_without_being_made():
    rng = np.random.default_rng(1)
    for _ in range(500):
        seconds, window = rng.uniform(0.01, 40), rng.uniform(0.5, 10)
        hop = None if rng.random() < 0.3 else window * rng.uniform(0.1, 1)
        most = None if rng.random() < 0.5 else int(rng.integers(1, 30))
        assert windows.count_windows(seconds, window, hop, most) == len(
            windows.cut_windows(seconds, window, hop, most)
        )
    assert windows.count_windows(1e12, 1.0, 1e-3, None) > 10**14, "a list of these would end the process"
    assert len(windows.cut_windows(1e12, 1.0, 1e-3, 3)) == 3


def test_cut_in_exact_thirds_needs_no_window_for_rounding():
    assert len(windows.cut_windows(3 * 0.1 * 7, 0.7, None, None)) == 3
    assert len(windows.cut_windows(5.0, 1.0, 0.1, None)) == 41


@pytest.mark.parametrize(
    "window, hop, most", [(0, None, None), (5, 0, None), (5, 6, None), (5, None, 0), (5, -1, None)]
)
def test_cut_refuses_nonsense(window, hop, most):
    with pytest.raises(UserError):
        windows.cut_windows(10.0, window, hop, most)


def test_fill():
    wave = np.array([1, 2, 3], np.float32)
    assert windows.fill_window(wave, 7, "wrap").tolist() == [1, 2, 3, 1, 2, 3, 1]
    assert windows.fill_window(wave, 5, "silence").tolist() == [1, 2, 3, 0, 0]
    assert windows.fill_window(wave, 2, "wrap").tolist() == [1, 2]
    assert windows.fill_window(wave, 7, "wrap").dtype == np.float32
    with pytest.raises(UserError):
        windows.fill_window(wave, 5, "mirror")


@pytest.mark.parametrize(
    "durations, limit, want",
    [
        ([5.0] * 400, 10.0, 5.0),
        ([2.35] * 95 + [9.0] * 5, 10.0, 2.35),
        ([30.013] * 100, 10.0, 10.0),
        ([30.013] * 99 + [30.02], 40.0, 30.013),
        (list(np.linspace(0.3, 8.0, 200)), 10.0, 8.0),
        (list(np.linspace(0.3, 60.0, 200)), 10.0, 10.0),
        ([1.0] * 50 + [2.0] * 50, 10.0, 2.0),
        ([1.0] * 50 + [2.005] * 50, 10.0, 2.0),
        ([0.1] * 50 + [0.2] * 50, 10.0, 0.5),
        ([0.12], 10.0, 0.12),
    ],
)
def test_choose_seconds(durations, limit, want):
    assert windows.choose_seconds(durations, limit) == pytest.approx(want)


def test_choose_seconds_needs_data():
    with pytest.raises(ValueError):
        windows.choose_seconds([])


def test_one_header_does_not_rule_the_estimate_of_the_disk():
    one, small = Window(1.0, None, "silence", None, 16000), 32_044
    assert _estimate_windows([1.0] * 40, [small] * 40, one) == 1
    assert _estimate_windows([1.0] * 39 + [40_000.0], [small] * 40, one) < 1.3, (
        "a small file that claims eleven hours"
    )
    assert _estimate_windows([1.0] * 39 + [1000.0], [small] * 39 + [1000 * small], one) == pytest.approx(
        1039 / 40
    ), "one that has them"
