"""predict.py on loose files and folders: events of long recordings, files that can't be read, runs that can't
be blended."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import make_competition, read_csv, refused, script

import get_features
import train


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run called lin; long.wav is a clip of one class, another's, and the first again."""
    folder, before = tmp_path_factory.mktemp("files"), os.getcwd()
    os.chdir(folder)
    try:
        data = make_competition(folder / "tones", train=24, subm=2)
        cpu = ["--device", "cpu"]
        get_features.main(
            ["--competition", "tones", "--extractor", "logmel", "--n-mels", "16", "--seconds", "1", *cpu]
        )
        train.main(["--recipe", "linear", "--epochs", "30", "--folds", "2", "--name", "lin", *cpu])
    finally:
        os.chdir(before)
    rows = read_csv(data / "train.csv")
    names = [next(row["fname"] for row in rows if row["label"] == f"tone{n}") for n in (0, 1)]
    waves = [soundfile.read(data / "audio_train" / name) for name in names]
    rate = waves[0][1]
    one, other = (np.resize(wave, rate) for wave, _ in waves)
    soundfile.write(folder / "long.wav", np.concatenate([one, one, other, one]), rate)
    soundfile.write(folder / "short.wav", other, rate)
    (folder / "README.md").write_text("no audio\n")
    return folder


def test_a_long_recording_lists_its_events(made: Path) -> None:
    lines = script("predict.py", "--runs", "lin", "long.wav", "short.wav", cwd=made).stdout.splitlines()
    assert lines[0].startswith("long.wav: tone0 ") and lines[-1].startswith("short.wav: tone1 ")
    events = [line.split() for line in lines[1:-1]]
    assert all(line.startswith("  ") for line in lines[1:-1])
    assert [tuple(words[:5]) for words in events] == [
        ("tone0", "0.0", "to", "2.0", "s"),
        ("tone1", "2.0", "to", "3.0", "s"),
        ("tone0", "3.0", "to", "4.0", "s"),
    ]
    assert min(float(words[-1]) for words in events) >= 0.5


def test_the_events_of_a_folder_are_a_csv(made: Path, tmp_path: Path) -> None:
    for name in ("long.wav", "short.wav"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes((made / name).read_bytes())
    (tmp_path / "in" / "empty.wav").write_bytes(b"")
    out = tmp_path / "new.csv"
    command = ("predict.py", "--runs", "lin", "--audio", tmp_path / "in", "--out", out)
    text = script(*command, cwd=made).stdout
    assert "warning: can't read this file: empty.wav: " in text and "filled with the class prior" in text
    assert [row["fname"] for row in read_csv(out)] == ["empty.wav", "long.wav", "short.wav"]
    rows = read_csv(tmp_path / "new_events.csv")
    assert list(rows[0]) == ["fname", "class", "start", "end", "probability"]
    assert [(row["fname"], row["class"], row["start"], row["end"]) for row in rows] == [
        ("long.wav", "tone0", "0.00", "2.00"),
        ("long.wav", "tone1", "2.00", "3.00"),
        ("long.wav", "tone0", "3.00", "4.00"),
    ]
    (tmp_path / "in" / "long.wav").unlink()
    script(*command, cwd=made)
    assert not (tmp_path / "new_events.csv").exists(), "those of another folder"


def test_files_that_cannot_be_read(made: Path) -> None:
    done = script("predict.py", "--runs", "lin", "README.md", "short.wav", cwd=made)
    assert done.stdout.startswith("short.wav: tone1 ") and len(done.stdout.splitlines()) == 1
    assert "warning: can't read this file: README.md: " in done.stderr
    line = refused(script("predict.py", "--runs", "lin", "README.md", cwd=made, ok=None))
    assert "can't read this file: README.md: cannot be decoded: text, not audio" in line
    done = script("predict.py", "--runs", "lin", "README.md", "tones/train.csv", cwd=made, ok=None)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("warning: can't read this file: ") == 2
    assert done.stderr.splitlines()[-1] == "error: none of the 2 files can be read"


@pytest.mark.slow
def test_runs_of_different_tasks_or_classes_are_not_blended(made: Path) -> None:
    (made / "runs2").mkdir()
    for name, change in (("fewer", ["tone2"]), ("several", [])):
        folder = made / name
        data = make_competition(folder / "tones", train=24, subm=2)
        rows = [row for row in read_csv(data / "train.csv") if row["label"] not in change]
        text = "".join(
            f"{row['fname']},{row['label'] + ('' if change or n % 3 else ';tone1')}\n"
            for n, row in enumerate(rows)
        )
        (data / "train.csv").write_text("fname,labels\n" + text if not change else "fname,label\n" + text)
        (data / "sample_submission.csv").unlink()
        task = [] if change else ["--task", "multilabel"]
        cpu = ["--device", "cpu"]
        mels = ["--extractor", "logmel", "--n-mels", "16"]
        script("get_features.py", "--competition", "tones", *mels, *task, *cpu, cwd=folder)
        script(
            "train.py",
            "--recipe",
            "linear",
            "--epochs",
            "1",
            "--folds",
            "2",
            "--name",
            name,
            *cpu,
            cwd=folder,
        )
    for name, words in (
        ("fewer", "fewer/runs/fewer has 2 classes"),
        ("several", "can't blend runs/lin (single-label) with several/runs/several (multi-label)"),
    ):
        for blend in ("mean", "auto"):
            line = refused(
                script(
                    "predict.py", "--runs", "lin", f"{name}/runs/{name}", "--blend", blend, "short.wav",
                    cwd=made, ok=None,
                )
            )  # fmt: skip
            assert words in line and "can't blend runs/lin" in line
