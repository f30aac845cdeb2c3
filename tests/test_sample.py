"""The built-in sample competition: whole, reproducible, restartable, and not too easy."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from earshot.competition import sample
from earshot.competition.load import load as load_competition


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    return sample.build_sample(tmp_path_factory.mktemp("out") / "sample")


def digests(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_same_bytes_in_another_process(built, tmp_path):
    code = "import sys; from earshot.competition import sample; sample.build_sample(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "elsewhere")], check=True, cwd=Path(__file__).parents[1]
    )
    first = digests(built)
    assert len(first) == 300 + 100 + 4
    assert first == digests(tmp_path / "elsewhere")


def test_files_agree(built):
    train, solution, submission = (
        pd.read_csv(built / f"{n}.csv") for n in ("train", "solution", "sample_submission")
    )
    assert list(train) == ["fname", "label", "group"] and list(solution) == list(submission) == [
        "fname",
        "label",
    ]
    assert sorted(p.name for p in (built / "audio_train").iterdir()) == sorted(train.fname)
    assert sorted(p.name for p in (built / "audio_test").iterdir()) == sorted(solution.fname)
    assert sorted(submission.fname) == sorted(solution.fname)
    assert not set(train.fname) & set(solution.fname)
    assert train.label.value_counts().to_dict() == {name: 30 for name in sample.SOUNDS}
    assert solution.label.value_counts().to_dict() == {name: 10 for name in sample.SOUNDS}
    assert list(submission.fname) != list(solution.fname) and submission.label.nunique() == 1
    assert (train.groupby("group").label.nunique() == 1).all()
    assert set(train.groupby("group").size()) == {2, 3, 4}


def test_audio_is_plain(built):
    seconds = []
    for path in sorted((built / "audio_train").iterdir())[::15]:
        wave, rate = soundfile.read(path, dtype="float32")
        info = soundfile.info(path)
        assert (rate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        assert 0.15 < np.abs(wave).max() < 0.95
        seconds.append(len(wave) / rate)
    assert 1.2 <= min(seconds) < 1.7 < max(seconds) <= 2.4


def test_no_clip_is_another(built):
    hashes = [h for name, h in digests(built).items() if name.endswith(".wav")]
    assert len(set(hashes)) == len(hashes) == 400


def test_difficulty(built):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def features(path):
        wave, _ = soundfile.read(path)
        frames = np.lib.stride_tricks.sliding_window_view(wave, 512)[::160] * np.hanning(512)
        power = np.abs(np.fft.rfft(frames)[:, 1:]) ** 2
        bands = np.log(
            np.add.reduceat(power, np.unique(np.geomspace(1, 255, 40).astype(int)) - 1, axis=1) + 1e-6
        )
        return np.r_[bands.mean(0), bands.std(0)]

    train = pd.read_csv(built / "train.csv")
    x = np.array([features(built / "audio_train" / f) for f in train.fname])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    guess = cross_val_predict(model, x, train.label, groups=train.group, cv=StratifiedGroupKFold(5))
    assert 0.5 < f1_score(train.label, guess, average="macro") < 0.95  # chance is 0.1


def test_load_sample(built):
    comp = load_competition("sample", out=built.parent)
    assert (comp.name, comp.layout, comp.root) == ("sample", "sample", built)
    assert comp.clips["split"].value_counts().to_dict() == {"train": 300, "subm": 100}
    assert comp.classes == sorted(sample.SOUNDS) and comp.missing == []
    assert (comp.id_column, comp.label_column) == ("fname", "label")
    assert (
        comp.solution == built / "solution.csv" and comp.sample_submission == built / "sample_submission.csv"
    )
    assert list(comp.clips["id"][300:]) == list(pd.read_csv(built / "sample_submission.csv").fname)
    assert comp.clips["label"][300:].map(lambda label: label is None).all()
    assert comp.clips["group"][:300].nunique() == 100 and (comp.clips["group"][300:] == "").all()
    for row in comp.clips.itertuples():
        folder = "audio_train" if row.split == "train" else "audio_test"
        assert row.path == str(built / folder / row.id)


def test_holdout_keeps_groups_whole(built):
    whole = load_competition("sample", out=built.parent)
    comp = load_competition("sample", out=built.parent, holdout="0.2")
    again = load_competition("sample", out=built.parent, holdout=0.2)
    other = load_competition("sample", out=built.parent, holdout="0.2", seed=1)
    pd.testing.assert_frame_equal(comp.clips, again.clips)
    train, test = (comp.clips[comp.clips["split"] == s] for s in ("train", "test"))
    assert set(test["id"]) != set(other.clips["id"][other.clips["split"] == "test"])
    assert not set(train["group"]) & set(test["group"])
    assert 50 <= len(test) <= 70 and len(train) + len(test) == 300
    assert test["label"].value_counts().between(4, 8).all() and test["label"].nunique() == 10
    assert list(comp.clips["split"].unique()) == ["train", "test", "subm"]
    order = {clip_id: i for i, clip_id in enumerate(whole.clips["id"])}
    assert [order[i] for i in test["id"]] == sorted(order[i] for i in test["id"])


def test_killed_build_is_redone_and_caches_stay(built, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "TRAIN_RECORDINGS", (2,))
    monkeypatch.setattr(sample, "TEST_RECORDINGS", (1,))
    folder = tmp_path / "sample"
    (folder / "logmel").mkdir(parents=True)
    (folder / "logmel" / "manifest.json").write_text(json.dumps({}))
    (folder / "audio_train").mkdir()
    (folder / "audio_train" / "half.wav").write_bytes(b"RIFF")
    (tmp_path / ".sample.partial").mkdir()

    calls = []

    def die(*key):
        calls.append(key)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return np.zeros(100, dtype=np.int16)

    with monkeypatch.context() as patch:
        patch.setattr(sample, "make_clip", die)
        with pytest.raises(KeyboardInterrupt):
            sample.build_sample(folder)
    assert not sample.is_complete(folder)
    sample.build_sample(folder)
    assert sample.is_complete(folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        ".complete",
        "audio_test",
        "audio_train",
        "logmel",
        "sample_submission.csv",
        "solution.csv",
        "train.csv",
    ]
    assert (
        len(list((folder / "audio_train").iterdir())) == 20 and (folder / "logmel" / "manifest.json").exists()
    )
    assert not (tmp_path / ".sample.partial").exists()

    monkeypatch.setattr(sample, "make_clip", None)  # would fail if it built again
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    sample.build_sample(folder)
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    monkeypatch.setattr(sample, "read_recipe", lambda: "another recipe")
    assert not sample.is_complete(folder)
