"""Audio as recorders, radios and downloads leave it: joined streams, unfinished headers, channels that
cancel, and what is no audio at all."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import make_competition, read_csv, script, tone

from earshot.audio import decode, load

RATE = 16000
PLAIN = load.AudioSettings()


def pitched(seconds: float, hertz: float, rate: int = RATE) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(wave: np.ndarray, rate: int = RATE, **form: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, **form)
    return file.getvalue()


def heard(path: Path, rate: int | None = None) -> np.ndarray:
    return load.read(path, rate, PLAIN).wave


def pitch(wave: np.ndarray, rate: int) -> float:
    return float(np.abs(np.fft.rfft(wave)).argmax() * rate / len(wave))


def tagged(data: bytes, size: int = 2000) -> bytes:
    length = bytes((size >> shift) & 127 for shift in (21, 14, 7, 0))
    return b"ID3\x03\x00\x00" + length + b"\0" * size + data


FORMS = {
    "vorbis": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "flac": {"format": "FLAC"},
    "mp3": {"format": "MP3"},
    "wav": {"format": "WAV"},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_all_joined_streams_are_decoded(tmp_path, form):
    rate = 48000 if form.get("subtype") == "OPUS" else RATE
    hertz = (500, 1200, 2600)
    path = tmp_path / "clip.bin"
    path.write_bytes(b"".join(encoded(pitched(1.0, one, rate), rate, **form) for one in hertz))
    wave = heard(path)
    assert len(wave) == pytest.approx(3 * rate, rel=0.03)
    assert load.read_info(path)[0] == pytest.approx(3.0, rel=0.03)
    third = len(wave) // 3
    for index, one in enumerate(hertz):
        middle = wave[index * third + third // 4 : index * third + 3 * third // 4]
        assert pitch(middle, rate) == pytest.approx(one, abs=20)


def test_joined_streams_of_other_rates_and_channels(tmp_path):
    path = tmp_path / "radio.ogg"
    stereo = np.repeat(pitched(1.0, 900, 44100)[:, None], 2, 1)
    parts = (pitched(1.0, 500, 16000), 16000), (stereo, 44100), (pitched(1.0, 2000, 8000), 8000)
    path.write_bytes(b"".join(encoded(wave, rate, **FORMS["vorbis"]) for wave, rate in parts))
    clip = load.read(path, None, PLAIN)
    assert clip.rate == 16000 and len(clip.wave) == pytest.approx(3 * 16000, rel=0.01) and not clip.cancelled
    for index, one in enumerate((500, 900, 2000)):
        assert pitch(clip.wave[index * 16000 + 4000 : index * 16000 + 12000], 16000) == pytest.approx(
            one, abs=20
        )


def test_joined_mp3s_with_tags_and_without_a_description(tmp_path):
    first, second = (encoded(pitched(1.0, one), **FORMS["mp3"]) for one in (500, 2000))
    bare = second[second.index(second[:2], 200) :]  # without the frame that describes it
    assert b"Xing" in second[:200] or b"Info" in second[:200]
    for name, data in (
        ("tagged", tagged(first) + tagged(second, 200_000)),
        ("bare", first + bare),
        ("end tag", first + b"TAG" + b"\0" * 125 + second),
    ):
        (tmp_path / f"{name}.mp3").write_bytes(data)
        wave = heard(tmp_path / f"{name}.mp3")
        assert len(wave) == pytest.approx(2 * RATE, rel=0.08), name
        assert pitch(wave[-RATE // 2 : -RATE // 8], RATE) == pytest.approx(2000, abs=30), name


def test_a_stream_that_broke_off_hides_no_other(tmp_path):
    """A recorder that connected again."""
    for name in ("vorbis", "opus"):
        rate = 48000 if name == "opus" else RATE
        first, second = (encoded(pitched(3.0, one, rate), rate, **FORMS[name]) for one in (500, 2000))
        for share in (0.3, 0.5, 0.8):
            (tmp_path / "a.ogg").write_bytes(first[: int(len(first) * share)] + second)
            rate, blocks = decode.read_blocks(tmp_path / "a.ogg")
            wave = np.concatenate(list(blocks))[:, 0]
            assert 2.99 < len(wave) / rate < 3.0 + 3.0 * share + 0.3
            assert pitch(wave[-2 * rate : -rate // 2], rate) == pytest.approx(2000, abs=20)


@pytest.mark.parametrize(
    "before",
    [b"x", b"\0" * 100, b"\0" * 5000, tagged(b"\0" * 300), tagged(b"")[:-10], b"\xff" * 9, b"APETAGEX" * 20],
)
@pytest.mark.parametrize("suffix", ["mp3", "wav"])
def test_an_mp3_behind_something_else(tmp_path, before, suffix):
    whole = encoded(pitched(2.0, 500), **FORMS["mp3"])
    path = tmp_path / f"a.{suffix}"
    for data in (before + whole, whole[700:]):
        path.write_bytes(data)
        wave = heard(path)
        assert len(wave) > 1.2 * RATE and pitch(wave[RATE // 4 : RATE], RATE) == pytest.approx(500, abs=20)


def test_an_mp3_of_varying_bit_rate_tells_its_length(tmp_path):
    """Without its description, as a part of a broadcast has none: loud first, then quiet, and the other
    way."""
    noise = (0.3 * np.random.default_rng(0).standard_normal(4 * RATE)).astype(np.float32)
    for wave in (
        np.concatenate([noise, 0 * noise + 1e-3]),
        np.concatenate([pitched(4.0, 300) * 1e-2, noise]),
    ):
        data = encoded(wave, **FORMS["mp3"])
        (tmp_path / "a.mp3").write_bytes(data[data.index(data[:2], 200) :])
        assert load.read_info(tmp_path / "a.mp3")[0] == pytest.approx(8.0, abs=0.3)
        assert len(heard(tmp_path / "a.mp3")) == pytest.approx(8 * RATE, abs=0.3 * RATE)


def test_an_ordinary_file_is_one_stream(tmp_path):
    """What libsndfile gives, which decodes MP3 to the last digit alike only in pieces of one size."""
    wave = np.random.default_rng(0).standard_normal((RATE * 3, 2)).astype(np.float32) * 0.1
    for form in FORMS.values():
        if form.get("subtype") == "OPUS":
            continue
        (tmp_path / "a").write_bytes(encoded(wave, **form))
        rate, blocks = decode.read_blocks(tmp_path / "a")
        want = soundfile.read(tmp_path / "a", dtype="float32", always_2d=True)[0]
        np.testing.assert_allclose(np.concatenate(list(blocks)), want, rtol=0, atol=1e-6)


WAVE = pitched(1.0, 440)
PCM = (WAVE * 32767).astype("<i2").tobytes()


def riff(*chunks: bytes, size: int | None = None, kind: bytes = b"RIFF") -> bytes:
    body = b"WAVE" + b"".join(chunks)
    order = ">" if kind == b"RIFX" else "<"
    return kind + struct.pack(f"{order}I", len(body) if size is None else size) + body


def form(subtype: int = 1, bits: int = 16, order: str = "<") -> bytes:
    width = bits // 8
    return b"fmt " + struct.pack(f"{order}IHHIIHH", 16, subtype, 1, RATE, RATE * width, width, bits)


def data(content: bytes, size: int | None = None, order: str = "<") -> bytes:
    return b"data" + struct.pack(f"{order}I", len(content) if size is None else size) + content


ODD = b"LIST" + struct.pack("<I", 11) + b"INFOISFT\0\0\0"  # without its byte of padding
HEADERS = {
    "no data size": riff(form(), data(PCM, 0), size=0),
    "no data size, size of the file": riff(form(), data(PCM, 0)),
    "all ones": riff(form(), data(PCM, 0xFFFFFFFF), size=0xFFFFFFFF),
    "largest signed": riff(form(), data(PCM, 0x7FFFFFFF), size=0x7FFFFFFF),
    "longer than the file": riff(form(), data(PCM, 10 * len(PCM))),
    "odd list before": riff(form(), ODD, data(PCM)),
    "odd list before format": riff(ODD, form(), data(PCM)),
    "odd list, no data size": riff(form(), ODD, data(PCM, 0), size=0),
    "an update missed": riff(form(), data(PCM, 4000)),
    "junk before": riff(b"JUNK" + struct.pack("<I", 28) + b"\0" * 28, form(), data(PCM, 0), size=0),
    "tag before": tagged(riff(form(), data(PCM))),
    "big endian, no data size": riff(
        form(order=">"), data(np.frombuffer(PCM, "<i2").astype(">i2").tobytes(), 0, ">"), kind=b"RIFX", size=0
    ),
    "rf64, nothing known": riff(
        b"ds64" + struct.pack("<I", 28) + b"\0" * 28,
        form(),
        data(PCM, 0xFFFFFFFF),
        size=0xFFFFFFFF,
        kind=b"RF64",
    ),
    "float, no data size": riff(form(3, 32), data(WAVE.astype("<f4").tobytes(), 0), size=0),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_unfinished_headers(tmp_path, content):
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    wave = heard(path)
    np.testing.assert_allclose(wave, WAVE, atol=1e-4)
    assert load.read_info(path) == (1.0, RATE)


@pytest.mark.parametrize(
    "chunks",
    [
        (form(), data(PCM), ODD + b"\0"),
        (form(), data(PCM + b"\1"), b"\0LIST" + struct.pack("<I", 4) + b"INFO"),
        (form(), data(PCM), b"id3 " + struct.pack("<I", 400) + b"\0" * 400),
    ],
)
def test_what_follows_the_samples_is_no_sound(tmp_path, chunks):
    path = tmp_path / "a.wav"
    for size in (None, 0):
        path.write_bytes(riff(*chunks, size=size))
        np.testing.assert_allclose(heard(path), WAVE, atol=1e-4)


def test_an_empty_recording_stays_empty(tmp_path):
    for name, content in (
        ("a.wav", riff(form(), data(b""))),
        ("b.wav", riff(form(), data(b""), ODD + b"\0")),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(load.BadAudio, match="no samples"):
            heard(tmp_path / name)


def cancelling(wave: np.ndarray, *gains: float) -> np.ndarray:
    return np.stack([gain * wave for gain in gains], 1)


NOISE = (0.1 * np.random.default_rng(3).standard_normal(RATE)).astype(np.float32) + pitched(1.0, 700)


@pytest.mark.parametrize(
    "wave, form, first",
    [
        (cancelling(NOISE, 1, -1), {"format": "WAV", "subtype": "PCM_16"}, 0),
        (cancelling(NOISE, 1, -0.9), {"format": "WAV", "subtype": "FLOAT"}, 0),
        (cancelling(NOISE, 1, -1) + 0.2, {"format": "WAV", "subtype": "PCM_24"}, 0),
        (cancelling(NOISE, 1, -1, 1, -1), {"format": "WAV", "subtype": "PCM_16"}, 0),
        (cancelling(NOISE, 0, 1, -1), {"format": "WAV", "subtype": "PCM_16"}, 1),
        (cancelling(NOISE, 1, -1), {"format": "FLAC"}, 0),
        (cancelling(NOISE, 1, -1), {"format": "MP3"}, 0),
        (cancelling(NOISE, 1, -1), {"format": "OGG", "subtype": "VORBIS"}, 0),
    ],
    ids=["pcm", "weaker", "offset", "four", "silent first", "flac", "mp3", "vorbis"],
)
def test_channels_that_cancel(tmp_path, wave, form, first):
    path = tmp_path / "a.bin"
    path.write_bytes(encoded(wave, **form))
    clip = load.read(path, None, PLAIN)
    assert clip.cancelled
    decoded = soundfile.read(path, dtype="float32", always_2d=True)[0]
    np.testing.assert_allclose(clip.wave, decoded[:, first], rtol=0, atol=1e-6)
    assert np.corrcoef(clip.wave, wave[:, first])[0, 1] > 0.9


def test_channels_that_do_not_cancel_are_mixed_as_ever(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "a.wav"
    one, other = rng.standard_normal((2, RATE)).astype(np.float32) * 0.1
    mostly = -0.5 * one + 0.87 * other  # correlated by -0.5, as microphones apart may be
    for left, right in ((one, one), (one, other), (one, mostly), (one, 0 * one)):
        soundfile.write(path, np.stack([left, right], 1), RATE, subtype="FLOAT")
        clip = load.read(path, None, PLAIN)
        assert not clip.cancelled
        np.testing.assert_allclose(clip.wave, (left + right) / 2, atol=1e-6)
    rng = np.random.default_rng(1)
    for many in (rng.standard_normal((RATE, 16)) * 0.1, np.stack([0 * one] * 2 + [one] + [0 * one] * 3, 1)):
        soundfile.write(path, many.astype(np.float32), RATE, subtype="FLOAT")
        clip = load.read(path, None, PLAIN)
        assert not clip.cancelled
        np.testing.assert_allclose(clip.wave, many.mean(1), atol=1e-6)
    soundfile.write(path, np.stack([one, -one], 1), RATE, subtype="FLOAT")
    assert not load.read(path, None, load.AudioSettings(mono="first")).cancelled, "nothing was mixed"


@pytest.mark.slow
def test_classes_in_cancelling_stereo_are_learnt(tmp_path):
    """Half of the clips with one channel turned over, in every class: said once, and no class is lost."""
    root = make_competition(tmp_path / "tones", train=10, subm=2)
    for index in range(30):
        if index % 2:
            wave = tone(index % 3, index // 3)
            soundfile.write(root / "audio_train" / f"{index:03d}.wav", np.stack([wave, -wave], 1), RATE)
    said = script("get_features.py", "--competition", root, "--extractor", "logmel", cwd=tmp_path).stdout
    lines = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 1 and "the channels of 15 clips cancel each other out (first: 001.wav)" in lines[0]
    assert read_csv(tmp_path / "data" / "tones" / "logmel" / "bad_audio.csv") == []
    again = script("get_features.py", "--competition", root, "--extractor", "logmel", cwd=tmp_path).stdout
    assert "nothing to do" in again and lines[0] in again
    trained = script("train.py", "--head", "linear", "--folds", "2", cwd=tmp_path).stdout
    score = next(line for line in trained.splitlines() if line.startswith("  last  f1_macro"))
    assert float(score.split()[2]) > 0.9


def test_clips_that_are_decoded_in_part_are_counted(tmp_path):
    """Cut off, damaged in the middle, or with a second stream that is none; whole ones are not among them."""
    root, folder = make_competition(tmp_path / "tones", train=4, subm=1), tmp_path / "tones" / "audio_train"
    noise = (0.1 * np.random.default_rng(0).standard_normal(4 * RATE)).astype(np.float32)
    flac, ogg, mp3 = (encoded(noise, **FORMS[name]) for name in ("flac", "vorbis", "mp3"))
    middle = len(flac) // 2
    made = {
        "cut.flac": flac[:middle],
        "hole.flac": flac[:middle] + b"\0" * 4000 + flac[middle + 4000 :],
        "cut.mp3": mp3[: len(mp3) // 2],
        "half.ogg": ogg + ogg[:58] + b"\0" * 500,
    }
    for name, content in {**made, "a.flac": flac, "b.ogg": ogg + ogg, "c.mp3": mp3}.items():
        (folder / name).write_bytes(content)
        clip = load.read(folder / name, 16000, PLAIN)
        assert clip.partial == (name in made), name
        with open(root / "train.csv", "a") as file:
            file.write(f"{name},tone0,\n")
    said = script("get_features.py", "--competition", root, "--extractor", "logmel", cwd=tmp_path).stdout
    lines = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert lines == [
        "warning: 4 clips are damaged or cut off (first: cut.flac): what could be decoded of them is used"
    ]


PAGES = {
    "lfs.wav": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 32044\n", "git lfs pull"),
    "annex.flac": (b"/annex/objects/MD5E-s32044--00.flac\n", "git annex get"),
    "page.mp3": (b"\n<!DOCTYPE html>\n<html><body>404</body></html>", "HTML page"),
    "film.wav": (b"\x1aE\xdf\xa3" + bytes(range(256)), "WebM"),
    "phone.wav": (b"\0\0\0\x20ftypM4A " + bytes(300), "M4A"),
    "text.ogg": (b"could not be found\n" * 9, "text, not audio"),
    "zipped.wav": (b"PK\x03\x04" + bytes(100), "zip archive"),
}


def test_what_is_no_audio_is_named(tmp_path):
    root = make_competition(tmp_path / "tones", train=4, subm=1, seconds=0.3)
    with open(root / "train.csv", "a") as file:
        for name, (content, _) in PAGES.items():
            (root / "audio_train" / name).write_bytes(content)
            file.write(f"{name},tone0,\n")
    script("get_features.py", "--competition", root, "--extractor", "logmel", cwd=tmp_path)
    bad = read_csv(tmp_path / "data" / "tones" / "logmel" / "bad_audio.csv")
    assert {row["id"] for row in bad} == set(PAGES)
    for row in bad:
        assert row["reason"].startswith("cannot be decoded: ") and PAGES[row["id"]][1] in row["reason"]
