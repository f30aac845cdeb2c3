"""The inference notebook on hidden recordings that the sample submission does not name, offline."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT, make_competition, read_csv, tone
from kaggle_tree import Session, text

CLASSES = ("tone0", "tone1", "tone2")
LIMIT = 240  # seconds for 40 recordings on any machine; they take about 10 on two cores


def make_night(folder: Path) -> Path:
    """Tones to learn from, and a sample submission with two rows of a recording that is not there."""
    data = make_competition(folder / "night-tones", train=8, subm=1)
    for path in (data / "audio_test").iterdir():
        path.unlink()
    (data / "audio_test").rmdir()
    rows = [",".join(["row_id", *CLASSES]), "soundscape_1_5,0,0,0", "soundscape_1_10,0,0,0"]
    (data / "sample_submission.csv").write_text("\n".join(rows) + "\n")
    return data


def edit(notebook: Path, folder: Path, settings: Iterable[tuple[str, str]]) -> Path:
    """A copy of a notebook with other settings."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    code = next(cell for cell in content["cells"] if cell["cell_type"] == "code")
    lines = "".join(code["source"])
    for old, new in settings:
        assert lines.count(old) == 1, old
        lines = lines.replace(old, new)
    code["source"] = lines
    (folder / notebook.name).write_text(json.dumps(content), encoding="utf-8")
    return folder / notebook.name


@pytest.mark.slow
def test_forty_recordings_that_the_sample_does_not_name(tmp_path: Path) -> None:
    """First training and the public view, with a dry run for 600 recordings; then the hidden rerun: a row for
    every 5 s, by the class that sounds there."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    kaggle = Session(tmp_path / "kaggle", make_night)
    kaggle.attach_code()
    settings = (
        ("EXTRACTOR = None", 'EXTRACTOR = "logmel"'),
        ("IGNORE_DOCTOR = False", "IGNORE_DOCTOR = True"),
        ("FEATURE_FLAGS = []", 'FEATURE_FLAGS = ["--n-mels", "16", "--seconds", "1", "--device", "cpu"]'),
        ("EPOCHS = None", "EPOCHS = 12"),
        ("LEARNING_RATE = None", "LEARNING_RATE = 0.02"),
        ("TRAIN_FLAGS = []", 'TRAIN_FLAGS = ["--folds", "2", "--no-report", "--device", "cpu"]'),
    )
    printed = text(kaggle.execute(edit(ROOT / "notebooks" / "solution.ipynb", tmp_path, settings)))
    assert printed.count("recordings mixed from the folds' own clips") == 1, "how much neighbours count"
    run = next(kaggle.working.glob("runs/*/config.yaml")).parent
    assert json.loads((run / "stretches.json").read_text())["seconds"] == 5
    kaggle.attach_output()
    printed = text(kaggle.execute(ROOT / "notebooks" / "inference.ipynb"))
    assert (
        "dry run: 600 recordings of 60 s in stretches of 5 s" in printed
        and "noise, wav at 16000 Hz" in printed
    )
    assert re.search(r"^total: [\d.]+ min \([\d.]+ s\), budget 480.0 min: fits$", printed, re.M)
    public = read_csv(kaggle.working / "submission.csv")
    assert [row["row_id"] for row in public] == ["soundscape_1_5", "soundscape_1_10"]

    shutil.rmtree(kaggle.working)  # the rerun is a session of its own
    kaggle.working.mkdir()
    rng, loud = np.random.default_rng(0), {}
    for number in range(40):
        name = f"soundscape_{1000 + 37 * number}"
        kinds = [int(kind) for kind in rng.integers(0, 3, 2)]
        wave = np.concatenate([tone(kind, 100 * number + at, seconds=5.0) for at, kind in enumerate(kinds)])
        (kaggle.competition / "test_soundscapes").mkdir(exist_ok=True)
        soundfile.write(kaggle.competition / "test_soundscapes" / f"{name}.flac", wave, 16000)
        loud |= {f"{name}_{5 * at + 5}": kind for at, kind in enumerate(kinds)}
    before = kaggle.attached()
    kaggle.env["KAGGLE_IS_COMPETITION_RERUN"] = "1"
    began = time.monotonic()
    printed = text(kaggle.execute(ROOT / "notebooks" / "inference.ipynb"))
    assert time.monotonic() - began < LIMIT
    assert "dry run" not in printed and "subm: 80 clips, 400 windows" in printed
    assert kaggle.attached() == before, "something attached was written to"
    asked = set(kaggle.asked.read_text().split()) if kaggle.asked.exists() else set()
    assert asked <= {"www.kaggle.com"}, "only the doctor looks for the network"
    found = {
        row["row_id"]: [float(row[name]) for name in CLASSES]
        for row in read_csv(kaggle.working / "submission.csv")
    }
    assert found.keys() == loud.keys()
    right = sum(int(np.argmax(found[id])) == kind for id, kind in loud.items())
    assert right >= 0.9 * len(loud)
