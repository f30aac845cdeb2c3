"""Every kind of bad audio through the scripts: left out or answered by the prior, named in the ledger, in
bounded memory."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from bad_audio import USABLE, make_bad
from conftest import ROOT, make_competition, read_csv, script, tone

from earshot.audio import decode, load
from earshot.features import decode_ahead

PLAIN = load.AudioSettings()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The kinds, what both scripts said, the ledger and the submission."""
    here = tmp_path_factory.mktemp("bad")
    root = make_competition(here / "tones", classes=2, train=4, subm=1)
    kinds = make_bad(root / "audio_train")
    shutil.copytree(
        root / "audio_train",
        root / "audio_test",
        symlinks=True,
        dirs_exist_ok=True,
        ignore=lambda folder, names: [n for n in names if n == "pipe.wav" or n[:3].isdigit()],
    )
    os.mkfifo(root / "audio_test" / "pipe.wav")
    for name, columns in (("train.csv", ["tone0", ""]), ("sample_submission.csv", ["tone0"])):
        with open(root / name, "a", newline="") as file:
            csv.writer(file).writerows([[kind, *columns] for kind in kinds])
    features = script(
        "get_features.py",
        "--competition",
        root,
        "--extractor",
        "logmel",
        "--workers",
        1,
        "--seconds",
        1,
        "--max-windows",
        2,
        cwd=here,
    )
    trained = script("train.py", "--head", "linear", "--epochs", 1, "--folds", 2, cwd=here, ok=None)
    ledger = read_csv(here / "data" / "tones" / "logmel" / "bad_audio.csv")
    return here, root, kinds, features, trained, ledger


def test_the_ledger_names_exactly_the_bad_ones(done):
    _, _, kinds, features, _, ledger = done
    assert len(kinds) >= 40
    for split in ("train", "subm"):
        found = {row["id"]: row["reason"] for row in ledger if row["split"] == split}
        wrong = {
            kind: (end, found.get(kind))
            for kind, end in kinds.items()
            if (kind in found if end == USABLE else not re.search(end, found.get(kind, "")))
        }
        assert not wrong and set(found) <= set(kinds)
    assert not any("\n" in row["reason"] or "/" in row["reason"] for row in ledger)
    noise = [line for line in features.stderr.splitlines() if line.strip() and "features:" not in line]
    assert noise == []


def test_every_clip_is_answered_in_order(done):
    here, root, _, _, trained, _ = done
    assert trained.returncode == 0, trained.stderr
    assert "Traceback" not in trained.stderr
    wanted = [row["fname"] for row in read_csv(root / "sample_submission.csv")]
    assert [row["fname"] for row in read_csv(here / "submissions" / "submission.csv")] == wanted


def test_a_wave_is_gathered_from_pieces(tmp_path):
    wave = (0.1 * np.random.default_rng(0).standard_normal(300_000)).astype(np.float32)
    for size in (1, 7, 4096, 299_999, 300_000):
        whole = wave[:2000] if size == 1 else wave
        got = decode.gather(whole[first : first + size] for first in range(0, len(whole), size))
        np.testing.assert_array_equal(got, whole)
    assert len(decode.gather([])) == 0


def test_long_clips_are_taken_in_bites(tmp_path, monkeypatch):
    """As many at once as memory holds, and the cache is the same."""
    root = make_competition(tmp_path / "tones", train=4, subm=1)
    soundfile.write(root / "audio_train" / "000.wav", np.tile(tone(0, 0), 8), 16000)
    made = {}
    sys.path.insert(0, str(ROOT))
    import get_features

    for held in (decode_ahead.HELD, 20_000):
        monkeypatch.setattr(decode_ahead, "HELD", held)
        bites = []
        whole = decode_ahead.split_bites
        monkeypatch.setattr(
            decode_ahead,
            "split_bites",
            lambda items, whole=whole, bites=bites: (bites.append(1) or b for b in whole(items)),
        )
        out = tmp_path / f"out{held}"
        get_features.main(
            ["--competition", str(root), "--extractor", "logmel", "--seconds", "1", "--out", str(out)]
        )
        monkeypatch.setattr(decode_ahead, "split_bites", whole)
        made[held] = (out / "tones" / "logmel" / "train.pkl").read_bytes(), len(bites)
    (plain, one), (small, several) = made.values()
    assert plain == small and one == 2 and several > 6


def test_what_unfolds_to_days_is_refused(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", np.tile(np.float32([0.1, -0.1]), 1000), 1)
    monkeypatch.setattr(decode, "LONGEST", 1000)
    with pytest.raises(load.BadAudio, match="longer than"):
        load.read(tmp_path / "a.wav", 16000, PLAIN)


def test_what_unfolds_to_too_many_samples_is_a_line_of_the_ledger(tmp_path, monkeypatch):
    """Short enough in seconds, at a rate that no recording of that length has: the temporary file would fill
    the disk."""
    monkeypatch.setattr(decode, "LONGEST", 10)
    monkeypatch.setattr(decode, "USUAL", 1000, raising=False)
    wave = np.tile(np.float32([0.1, -0.1]), 5500)
    soundfile.write(tmp_path / "fast.wav", wave, 2000)
    soundfile.write(tmp_path / "usual.wav", wave[:9000], 1000)
    assert decode_ahead.decode(str(tmp_path / "fast.wav"), 16000, PLAIN) == "more than 10,000 samples"
    assert not isinstance(decode_ahead.decode(str(tmp_path / "usual.wav"), 16000, PLAIN), str)


def test_three_hours_in_little_memory(tmp_path: Path) -> None:
    """A wave of 691 MB at the rate asked for takes that, 60 MB for decoding, and an eighth to grow into; not
    the 345 MB that it has before."""
    path = tmp_path / "long.wav"
    second = (0.3 * np.sin(np.arange(8000) * 0.3)).astype(np.float32)
    with soundfile.SoundFile(path, "w", 8000, 1, "PCM_U8") as file:
        for _ in range(180):
            file.write(np.tile(second, 60))
    code = f"""
import resource, sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np, soundfile, soxr
from earshot.audio.load import AudioSettings, read
read({str(path)!r}.replace("long", "short"), 16000, AudioSettings())  # what is imported late
taken = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (taken + int(691e6 * 1.125) + (60 << 20),) * 2)
wave, rate, *_ = read({str(path)!r}, 16000, AudioSettings())
print(len(wave), rate, float(np.abs(wave[16000:32000]).max()), float(np.abs(wave[-32000:-16000]).max()))
"""
    soundfile.write(tmp_path / "short.wav", np.tile(second, 3), 8000, "PCM_U8")
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    length, rate, first, last = done.stdout.split()
    assert (
        (int(length), int(rate)) == (3 * 3600 * 16000, 16000)
        and 0.29 < float(first) < 0.32
        and 0.29 < float(last) < 0.32
    )
    assert not list(tmp_path.glob("tmp*")), "nothing stays behind"
