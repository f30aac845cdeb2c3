"""Augmented copies: what is done to a wave, which copies there are, and that a kill changes none of them."""

from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import make_competition
from test_restart import contents, kill_when

import get_features
from earshot.audio import augment, windows
from earshot.audio.load import AudioSettings
from earshot.competition.load import load
from earshot.core.config import AugmentFlags, Recipe
from earshot.core.errors import UserError
from earshot.features import augmented_copies, cache, decode_ahead, plan
from earshot.features.find_cache import list_mismatches
from earshot.features.shards import list_shards

RATE = 16000


def sine(hertz: float, seconds: float = 1.0, amplitude: float = 0.3) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(
        np.float32
    )


def peak(wave: np.ndarray) -> float:
    """The loudest frequency in Hz."""
    return float(np.abs(np.fft.rfft(wave * np.hanning(len(wave)))).argmax() * RATE / len(wave))


def features(
    folder: Path, data: Path, *args: object, out: str = "data", extractor: str = "logmel"
) -> cache.Cache:
    """get_features.py in this process; the cache that it made."""
    command = [
        "--competition",
        data,
        "--out",
        folder / out,
        "--extractor",
        extractor,
        "--device",
        "cpu",
        *args,
    ]
    get_features.main([str(argument) for argument in command])
    return cache.Cache(folder / out / data.name / extractor)


def test_each_effect_does_what_it_says():
    wave = sine(1000)
    for factor in (0.8, 1.25):
        faster = augment.change_speed(wave, factor)
        assert peak(faster) == pytest.approx(1000 * factor, abs=3) and len(faster) == pytest.approx(
            RATE / factor, abs=2
        )
        stretched = augment.stretch(wave, factor)
        assert peak(stretched) == pytest.approx(1000, abs=3) and len(stretched) == pytest.approx(
            RATE / factor, abs=2
        )
    for semitones in (-3.0, 0.5):
        moved = augment.shift_pitch(wave, RATE, semitones)
        assert peak(moved) == pytest.approx(1000 * 2 ** (semitones / 12), rel=0.005) and len(moved) == RATE
    assert np.abs(augment.change_gain(wave, -6.0206)).max() == pytest.approx(0.15, rel=1e-3)
    for ratio in (-5.0, 12.0):
        noisy = augment.add_noise(wave, ratio, np.random.default_rng(0))
        assert 10 * np.log10(np.mean(wave**2) / np.mean((noisy - wave) ** 2)) == pytest.approx(
            ratio, abs=0.01
        )
    silent = np.zeros(100, np.float32)
    assert not augment.add_noise(silent, 10.0, np.random.default_rng(0)).any()


def test_levels_are_a_weighted():
    loud, low = (augment.measure_level(sine(hertz), RATE) for hertz in (1000, 100))
    assert loud - low == pytest.approx(19.1, abs=0.3)  # IEC 61672's table
    assert loud - augment.measure_level(sine(1000, amplitude=0.03), RATE) == pytest.approx(20, abs=0.01)
    event = np.concatenate([np.zeros(3 * RATE, np.float32), sine(1000), np.zeros(5 * RATE, np.float32)])
    assert augment.measure_level(event, RATE) == pytest.approx(loud, abs=0.1), (
        "the loudest part counts, not the mean"
    )
    assert np.isfinite(augment.measure_level(np.zeros(10, np.float32), RATE))


@pytest.mark.parametrize("share", [0.5, 0.2, 1.0])
def test_a_mix_is_heard_in_its_share_whatever_the_levels(share):
    own, other = sine(1000, amplitude=0.5), sine(2000, amplitude=0.005)
    mixed = augment.mix(own, other, share, RATE)
    spectrum = np.abs(np.fft.rfft(mixed)) / (RATE / 2)
    weighted = 10 ** (
        (augment.measure_level(other, RATE) - 20 * np.log10(0.005 / 0.5) - augment.measure_level(own, RATE))
        / 20
    )
    heard = spectrum[1000], spectrum[2000] * weighted
    assert heard[0] / sum(heard) == pytest.approx(share, abs=1e-3)
    assert mixed.dtype == np.float32
    same = augment.mix(own, own, share, RATE)
    assert np.abs(same).max() == pytest.approx(0.5 / np.hypot(share, 1 - share), rel=1e-3)


def test_a_varied_wave_is_never_longer_and_short_ones_pass():
    flags = AugmentFlags(augment=1, speed=1.5, stretch=1.3, pitch=2.0, shift=0.5, noise=10.0)
    lengths = set()
    for seed in range(6):
        for samples in (160, 3000):
            rng = np.random.default_rng(seed)
            wave = augment.finish(augment.vary(sine(500, 1.0)[:samples], RATE, flags, rng), flags, rng)
            assert 0 < len(wave) <= samples and np.isfinite(wave).all() and wave.dtype == np.float32
            lengths.add(len(wave))
    assert len(lengths) > 4
    off = AugmentFlags(augment=1, speed=1.0, shift=0.0, augment_gain=0.0)
    np.testing.assert_array_equal(augment.vary(sine(500), RATE, off, np.random.default_rng(0)), sine(500))


def table(folds: list[int], labels: list) -> pd.DataFrame:
    return pd.DataFrame(
        {"id": [f"{i}.wav" for i in range(len(labels))], "path": "", "label": labels, "fold": folds}
    )


def test_partners_are_of_another_class_and_the_same_fold():
    clips = table([1, 1, 1, 2, 2, 2, 3, 3, -1], list("aabaabaaa"))
    made = augmented_copies.Copies(clips, AugmentFlags(augment=1, bc_mix=1.0), np.array([2]))
    assert made.alone() == 5  # fold 1 without its bad clip, fold 3, and the one without a fold
    for clip in range(len(clips)):
        found = {made.partner(clip, made.random(clip, copy))[0] for copy in range(40)}
        assert found == {3: {5}, 4: {5}, 5: {3, 4}}.get(clip, {-1})
    several = [("a",), ("a", "b"), (), ("a",), ("b",), ("a", "b")]
    free = augmented_copies.Copies(table([-1] * 6, several), AugmentFlags(bc_mix=1.0), np.array([4]))
    assert {free.partner(1, free.random(1, copy))[0] for copy in range(60)} == {0, 2, 3}


def test_a_copy_is_a_function_of_seed_clip_and_number():
    flags = AugmentFlags(augment=3, bc_mix=0.5)
    made = augmented_copies.Copies(table([-1] * 4, list("abab")), flags, np.zeros(0, dtype=int))
    moved = augmented_copies.Copies(table([-1] * 4, list("abab")).iloc[::-1], flags, np.zeros(0, dtype=int))
    drawn = [made.random(clip, copy).random() for clip in range(4) for copy in range(3)]
    assert drawn == [moved.random(3 - clip, copy).random() for clip in range(4) for copy in range(3)]
    assert len(set(drawn)) == 12
    other = augmented_copies.Copies(
        table([-1] * 4, list("abab")), AugmentFlags(augment=3, augment_seed=1), np.zeros(0, dtype=int)
    )
    assert other.random(0, 0).random() != drawn[0]
    found = [made.partner(0, made.random(0, copy)) for copy in range(400)]
    shares = [share for partner, share in found if partner >= 0]
    assert 160 < len(shares) < 240 and all(share == 1 for partner, share in found if partner < 0)
    assert 0.45 < np.mean(shares) < 0.55 and 0 < min(shares) < 0.05 and 0.95 < max(shares) <= 1


@pytest.fixture
def folded(tmp_path: Path) -> Path:
    """24 tones in two folds, the fourth of them silent."""
    data = make_competition(tmp_path / "tones", train=8, subm=2, seconds=0.6)
    with open(data / "train.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(data / "train.csv", "w", newline="") as file:
        found = [[row["fname"], row["label"], 1 + index // 12] for index, row in enumerate(rows)]
        csv.writer(file).writerows([["fname", "label", "fold"], *found])
    soundfile.write(data / "audio_train" / "003.wav", np.zeros(9600), RATE)
    return data


def test_a_real_run(folded: Path, tmp_path: Path, capsys):
    args = ("--augment", "4", "--bc-mix", "0.5", "--noise", "20")
    made = features(tmp_path, folded, *args, "--workers", "3", extractor="waveform")
    assert "train: 23 clips, 23 windows; augmented: 4 copies, 92 windows" in capsys.readouterr().out
    assert made.manifest["augmented"] == {"copies": 4, "rows": 92}
    train, found = made.split("train"), made.augmented()
    assert found["clip"].tolist() == [clip for clip in range(23) for _ in range(4)]
    assert found["copy"].tolist() == list(range(4)) * 23
    assert found["share"].dtype == np.float32 and found["partner"].dtype == found["clip"].dtype == np.int32
    mixed = found["partner"] >= 0
    assert (
        30 < mixed.sum() < 62 and (found["share"][~mixed] == 1).all() and (found["share"][mixed] <= 1).all()
    )
    assert (train["labels"][found["clip"][mixed]] != train["labels"][found["partner"][mixed]]).all()
    assert (train["folds"][found["clip"][mixed]] == train["folds"][found["partner"][mixed]]).all()
    waves = found["wave"][:, 0, 0].astype(np.float32)
    assert len(np.unique(waves, axis=0)) == 92
    assert np.abs(waves - train["wave"][found["clip"], 0, 0]).mean(axis=1).min() > 0.01

    # a row is the wave that the effects make of the clip and its partner, cut and filled as any clip is
    clips = load(folded).clips
    drawn = augmented_copies.Copies(
        clips[clips.split == "train"], AugmentFlags(augment=4, bc_mix=0.5, noise=20.0), np.array([3])
    )
    with ThreadPoolExecutor(1) as pool:
        futures = drawn.submit(
            0, 24 * 4, pool, lambda path: decode_ahead.decode(path, RATE, AudioSettings()), RATE
        )
        for row in (0, int(np.flatnonzero(mixed)[-1])):
            one = futures[row].result()
            assert (one.copy, np.float32(one.share)) == (found["copy"][row], found["share"][row])
            np.testing.assert_array_equal(
                windows.fill_window(one.wave, 9600, "wrap").astype(np.float16), found["wave"][row, 0, 0]
            )
            assert found["length"][row] == pytest.approx(len(one.wave) / RATE)
    assert 0.48 <= found["length"].min() < 0.55 and found["length"].max() == np.float32(0.6)

    plain = features(tmp_path, folded, out="plain", extractor="waveform")
    assert plain.augmented() is None and "augment" not in plain.record and "augmented" not in plain.manifest
    assert not (plain.folder / "augmented.pkl").exists()
    for split in ("train", "subm"):
        for key, value in plain.split(split).items():
            assert key == "meta" or np.array_equal(value, made.split(split)[key])

    again = features(tmp_path, folded, *args, "--workers", "1", out="again", extractor="waveform")
    assert contents(made.folder, "*") == contents(again.folder, "*")
    other = features(
        tmp_path, folded, *args, "--augment-seed", "1", out="other", extractor="waveform"
    ).augmented()
    assert not np.array_equal(other["partner"], found["partner"]) and not np.array_equal(
        other["wave"], found["wave"]
    )


def test_a_long_clip_has_copies_of_all_its_windows(tmp_path: Path):
    data = make_competition(tmp_path / "tones", train=3, subm=1, seconds=1.0)
    made = features(tmp_path, data, "--seconds", "0.4", "--augment", "2", "--speed", "1", "--pitch", "2")
    found = made.augmented()
    assert len(made.split("train")["clip"]) == 27 and len(found["clip"]) == 54
    np.testing.assert_allclose(found["start"][:6], [0, 0.4, 0.6, 0, 0.4, 0.6], atol=1e-6)
    assert found["copy"][:6].tolist() == [0, 0, 0, 1, 1, 1]


def test_killed_among_the_copies(tmp_path: Path):
    data = make_competition(tmp_path / "tones", train=12, subm=4, seconds=0.5)
    soundfile.write(data / "audio_train" / "003.wav", np.zeros(8000), RATE)
    args = ("--augment", "14", "--bc-mix", "0.3", "--n-mels", "96", "--hop-length", "64")
    calm = features(tmp_path, data, *args, out="calm")
    shards = tmp_path / "data" / "tones" / "logmel" / "shards"
    kill_when(
        "get_features.py",
        "--competition",
        data,
        "--extractor",
        "logmel",
        "--device",
        "cpu",
        *args,
        cwd=tmp_path,
        ready=lambda: len(list(shards.glob("augmented-*.pkl"))) >= 3,
    )
    kept = {path: path.stat().st_mtime_ns for path in shards.glob("*.pkl")}
    assert 3 + 3 <= len(kept) < 3 + 16  # 2 to train on, 1 to submit, 16 of copies
    killed = features(tmp_path, data, *args)
    assert contents(calm.folder, "*") == contents(killed.folder, "*") and not shards.exists()


def test_shards_of_copies_are_not_made_twice(tones: Path, tmp_path: Path, monkeypatch):
    """Stopped at the first safe point and continued until it is done."""
    calm = features(tmp_path, tones, "--augment", "4", "--bc-mix", "1", out="calm")
    shards = tmp_path / "data" / "tones" / "logmel" / "shards"
    for number in range(6):
        before = {path: path.stat().st_mtime_ns for path in shards.glob("*.pkl")}
        try:
            features(tmp_path, tones, "--augment", "4", "--bc-mix", "1", "--max-hours", "0")
            break
        except SystemExit as stopped:
            assert stopped.code == 0 and len(list(shards.glob("*.pkl"))) == number + 1
            assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert number == 5  # 1 shard to train on, 1 to submit, 4 of copies
    assert contents(calm.folder, "*") == contents(tmp_path / "data" / "tones" / "logmel", "*")


def test_a_partner_that_vanishes_is_refused(tmp_path: Path):
    made = augmented_copies.Copies(
        table([-1] * 2, list("ab")), AugmentFlags(augment=2, bc_mix=1.0), np.zeros(0, dtype=int)
    )
    with ThreadPoolExecutor(1) as pool:
        futures = made.submit(0, 4, pool, lambda path: decode_ahead.decode(path, RATE, AudioSettings()), RATE)
        assert len(futures) == 4
        with pytest.raises(UserError, match="could be read before and cannot now"):
            futures[0].result()


def test_damage_and_other_settings_are_refused(tones: Path, tmp_path: Path):
    made = features(tmp_path, tones, "--augment", "1")
    with pytest.raises(UserError, match="augment.augment: 1 there, 2 here"):
        features(tmp_path, tones, "--augment", "2")
    with pytest.raises(UserError, match="augment.augment: 1 there, nothing here"):
        features(tmp_path, tones)
    path = made.folder / "augmented.pkl"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(UserError, match="augmented.pkl is missing or damaged"):
        cache.Cache(made.folder).augmented()
    path.unlink()
    features(tmp_path, tones, "--augment", "1")
    assert path.read_bytes() == good, "made anew"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--augment", "-1"), "--augment -1: has to be 0 to 1000"),
        (("--augment", "2", "--speed", "0.8"), "--speed 0.8: has to be 1 to 4"),
        (("--augment", "2", "--bc-mix", "1.5"), "--bc-mix 1.5: has to be 0 to 1"),
        (
            ("--augment", "2", "--speed", "1", "--shift", "0", "--augment-gain", "0"),
            "no augmentation is chosen",
        ),
    ],
)
def test_refusals(args: tuple, words: str, tones: Path, tmp_path: Path):
    with pytest.raises(UserError, match=words) as caught:
        features(tmp_path, tones, *args)
    assert "\n" not in str(caught.value) and not list((tmp_path / "data").glob("tones/*/*.pkl"))


def test_between_needs_another_class_in_the_fold():
    with pytest.raises(UserError, match="no clip has a clip of another class in its own fold"):
        augmented_copies.check_flags(table([1, 1, 2, 2], list("aabb")), AugmentFlags(augment=1, bc_mix=0.5))
    said = augmented_copies.check_flags(table([1, 1, 2, 2], list("abcc")), AugmentFlags(augment=1, bc_mix=1))
    assert len(said) == 1 and "2 clips have no clip of another class" in said[0]
    assert augmented_copies.check_flags(table([1, 1, 2, 2], list("aabb")), AugmentFlags(augment=1)) == []
    assert augmented_copies.check_flags(table([1, 1, 2, 2], list("aabb")), AugmentFlags(bc_mix=0.5)) == []


def test_a_recipe_knows_its_copies():
    record = {"extractor": "logmel", "settings": {}, "audio": {}, "window": {}}
    augmented = {**record, "augment": {"augment": 8, "speed": 1.25, "noise": None}}
    recipe = Recipe("r", features={"extractor": "logmel", "augment": 8, "speed": 1.25})
    assert list_mismatches(augmented, recipe) == []
    assert list_mismatches(record, recipe) == ["augment: 0, recipe 8", "speed: none, recipe 1.25"]
    assert list_mismatches(augmented, Recipe("r", features={"extractor": "logmel"})) == []
    assert list_mismatches(record, Recipe("r", features={"augment": 0})) == []


def test_shards_come_last_and_count_clips_times_copies(tmp_path: Path):
    clips = pd.DataFrame({"split": ["train"] * 20 + ["subm"] * 3})
    made = SimpleNamespace(
        competition=SimpleNamespace(clips=clips), folder=tmp_path, augment=AugmentFlags(augment=4)
    )
    found = [(part.split, part.first, part.last, part.path.name) for part in list_shards(made)]
    assert found[2:] == [
        ("augmented", 0, 32, "augmented-00000.pkl"),
        ("augmented", 32, 64, "augmented-00001.pkl"),
        ("augmented", 64, 80, "augmented-00002.pkl"),
    ]
    assert plan.Plan.__dataclass_fields__["augment"].default == AugmentFlags()
