"""The whole line as a user runs it: get_features.py, train.py, predict.py on small real files."""

from __future__ import annotations

import shutil
from pathlib import Path

import joblib
import numpy as np
import pytest
import soundfile
import yaml
from conftest import make_competition, read_csv, refused, script, tone

SMALL = (
    "--head",
    "audio_cnn",
    "--head.channels",
    "[8, 16]",
    "--head.blocks",
    "[1, 1]",
    "--head.stem_kernel",
    "3",
    "--epochs",
    "3",
    "--folds",
    "2",
    "--lr",
    "5e-3",
)
AUGMENTED = (
    *SMALL,
    "--mixup",
    "0.2",
    "--time-mask",
    "8",
    "--frequency-mask",
    "8",
    "--time-shift",
    "0.3",
    "--gain",
    "3",
    "--name",
    "cnn",
)


def test_the_line_on_a_competition(tones: Path, tmp_path: Path) -> None:
    """Features, training with augmentation, a submission in the sample's order; the contracts of cache and
    run."""
    (tones / "audio_train" / "broken.wav").write_bytes(b"RIFFnothing")
    with open(tones / "train.csv", "a") as file:
        file.write("broken.wav,tone1,gx\r\nabsent.wav,tone2,gy\r\n")
    # silent: filled with the prior
    soundfile.write(tones / "audio_test" / "t000.wav", np.zeros(16000), 16000)

    said = script("get_features.py", "--competition", tones, "--extractor", "logmel", cwd=tmp_path).stdout
    folder = tmp_path / "data" / "tones" / "logmel"
    assert "window: 1 s" in said and "skipped: 3 clips, reasons in" in said
    assert {p.name for p in folder.iterdir()} == {
        ".lock",
        "manifest.json",
        "bad_audio.csv",
        "train.pkl",
        "subm.pkl",
        "unique_labels.pkl",
        "digests.pkl",
        "sample_submission.csv",
    }
    ledger = {row["id"]: (row["split"], row["reason"]) for row in read_csv(folder / "bad_audio.csv")}
    assert set(ledger) == {"broken.wav", "absent.wav", "t000.wav"} and ledger["t000.wav"] == (
        "subm",
        "silent",
    )

    train = joblib.load(folder / "train.pkl")
    assert train["ids"].shape == train["labels"].shape == (30,) and train["labels"].dtype.kind == "U"
    assert train["mel"].dtype == np.float16 and train["mel"].shape == (30, 1, 64, 51)
    assert train["clip"].tolist() == list(range(30)) and set(train["groups"]) >= {"g0-0", "g0-1"}
    assert np.allclose(train["length"], 1) and np.allclose(train["start"], 0)
    assert joblib.load(folder / "unique_labels.pkl")["unique_labels"].tolist() == ["tone0", "tone1", "tone2"]
    subm = joblib.load(folder / "subm.pkl")
    assert len(subm["ids"]) == 12 and len(subm["clip"]) == 11 and "t000.wav" in subm["ids"]
    assert str(tmp_path) not in (folder / "train.pkl").read_bytes().decode("latin1")

    said = script("train.py", *AUGMENTED, cwd=tmp_path).stdout
    assert (
        "submissions/submission.csv: 12 rows, 2 columns, validated against sample_submission.csv" in said
        and "last  f1_macro" in said
        and "best  f1_macro" in said
    )
    assert sum(line.startswith("fold ") and " epoch " in line for line in said.splitlines()) == 2
    sample, made = (
        read_csv(tones / "sample_submission.csv"),
        read_csv(tmp_path / "submissions" / "submission.csv"),
    )
    assert [row["fname"] for row in made] == [row["fname"] for row in sample]
    assert {row["label"] for row in made} <= {"tone0", "tone1", "tone2"}
    prior = np.unique(train["labels"], return_counts=True)
    assert next(row["label"] for row in made if row["fname"] == "t000.wav") == prior[0][prior[1].argmax()]

    run = tmp_path / "runs" / "cnn"
    for name in ("oof", "oof_last"):
        rows = read_csv(run / f"{name}.csv")
        assert [row["id"] for row in rows] == train["ids"].tolist()
        assert list(rows[0]) == ["id", "fold", "label", "tone0", "tone1", "tone2"]
        shares = np.array([[float(row[c]) for c in ("tone0", "tone1", "tone2")] for row in rows])
        assert np.allclose(shares.sum(1), 1, atol=1e-5)
        homes: dict[str, set] = {}
        for row, group in zip(rows, train["groups"], strict=True):
            homes.setdefault(group, set()).add(row["fold"])
        assert all(len(folds) == 1 for folds in homes.values()) and {row["fold"] for row in rows} == {
            "0",
            "1",
        }
    assert (
        "precision" in (run / "report_last.txt").read_text()
        and "confusion" in (run / "report_best.txt").read_text()
    )
    assert len(read_csv(run / "metrics.csv")) == 6 and (run / "training_log.txt").stat().st_size > 0
    assert not list(run.glob("fold_*/last/optimizer.safetensors"))

    # Again: nothing to do, and nothing changes.
    before = {
        p: p.read_bytes()
        for p in [*folder.glob("*.pkl"), run / "oof.csv", tmp_path / "submissions" / "submission.csv"]
    }
    assert (
        "nothing to do"
        in script("get_features.py", "--competition", tones, "--extractor", "logmel", cwd=tmp_path).stdout
    )
    said = script("train.py", *AUGMENTED, cwd=tmp_path).stdout
    assert "finished already: fold 0, 1" in said and " epoch " not in said
    assert all(path.read_bytes() == data for path, data in before.items())

    # Changed settings under the old name are refused with the difference.
    message = refused(
        script(
            "get_features.py",
            "--competition",
            tones,
            "--extractor",
            "logmel",
            "--n-mels",
            "32",
            cwd=tmp_path,
            ok=None,
        )
    )
    assert "64" in message and "32" in message and "n_mels" in message
    message = refused(script("train.py", *AUGMENTED, "--seed", "7", cwd=tmp_path, ok=None))
    assert "training.seed: 0 there, 7 here" in message
    assert all(path.read_bytes() == data for path, data in before.items())

    # Saved runs predict: the same submission, a second run blended in, new audio, loose files.
    script("predict.py", "--runs", "cnn", "--out", "again.csv", cwd=tmp_path)
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "submissions" / "submission.csv").read_bytes()
    script("train.py", "--recipe", "linear", "--epochs", "10", "--folds", "3", "--name", "lin", cwd=tmp_path)
    script("predict.py", "--runs", "cnn", "lin", "--out", "both.csv", cwd=tmp_path)
    assert [row["fname"] for row in read_csv(tmp_path / "both.csv")] == [row["fname"] for row in sample]

    script("predict.py", "--runs", "cnn", "--audio", tones / "audio_test", "--out", "new.csv", cwd=tmp_path)
    new = {row["fname"]: row["label"] for row in read_csv(tmp_path / "new.csv")}
    assert new == {row["fname"]: row["label"] for row in made}
    shown = script(
        "predict.py", "--runs", "cnn", tones / "audio_test" / "t001.wav", tones / "train.csv", cwd=tmp_path
    )
    assert new["t001.wav"] in shown.stdout and "warning: can't read this file: " in shown.stderr


@pytest.mark.slow
def test_hold_out_long_clips_and_one_fold(tmp_path: Path) -> None:
    """Windows of long clips are pooled per clip, a hold-out is scored once, a single fold can be trained
    first."""
    data = make_competition(tmp_path / "long", train=8, subm=1, seconds=2.5)
    shutil.rmtree(data / "audio_test")
    (data / "sample_submission.csv").unlink()
    script(
        "get_features.py",
        "--competition",
        data,
        "--extractor",
        "logmel",
        "--seconds",
        "1",
        "--holdout",
        "0.25",
        cwd=tmp_path,
    )
    folder = tmp_path / "data" / "long" / "logmel"
    train, test = joblib.load(folder / "train.pkl"), joblib.load(folder / "test.pkl")
    assert not set(train["groups"]) & set(test["groups"]) and len(train["ids"]) + len(test["ids"]) == 24
    assert len(train["clip"]) == 3 * len(train["ids"]) and np.allclose(train["start"][:3], [0, 1, 1.5])

    said = script(
        "train.py",
        "--recipe",
        "linear",
        "--epochs",
        "8",
        "--folds",
        "2",
        "--fold",
        "1",
        "--name",
        "r",
        cwd=tmp_path,
    ).stdout
    assert "nothing to submit" in said and "hold-out" in said
    run = tmp_path / "runs" / "r"
    assert {row["fold"] for row in read_csv(run / "oof.csv")} == {"1"}
    script("train.py", "--recipe", "linear", "--epochs", "8", "--folds", "2", "--name", "r", cwd=tmp_path)
    assert len(read_csv(run / "oof.csv")) == len(train["ids"])
    assert "confusion" in (run / "test_report.txt").read_text()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["record"]["head"]["name"] == "linear" and config["record"]["classes"] == [
        "tone0",
        "tone1",
        "tone2",
    ]
    assert "there is no fold 9" in refused(
        script(
            "train.py", "--folds", "2", "--fold", "9", "--epochs", "8", "--name", "r", cwd=tmp_path, ok=None
        )
    )


def test_folder_per_class_without_anything_to_submit(tmp_path: Path) -> None:
    for kind in range(2):
        (tmp_path / "genres" / f"genre{kind}").mkdir(parents=True)
        for number in range(4):
            soundfile.write(
                tmp_path / "genres" / f"genre{kind}" / f"genre{kind}.{number:05d}.au",
                tone(kind, number),
                16000,
                format="AU",
                subtype="PCM_16",
            )
    script("get_features.py", "--competition", "genres", "--extractor", "logmel", cwd=tmp_path)
    said = script("train.py", "--recipe", "linear", "--epochs", "2", "--folds", "2", cwd=tmp_path).stdout
    assert "nothing to submit" in said and not (tmp_path / "submissions").exists()
    assert len(list((tmp_path / "runs").glob("linear-????????"))) == 1
