"""What the tests share: a small competition of tones, the scripts run as a user runs them, the shared real
data."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import layout_files
import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
EFFICIENTAT = SHARED / "weights" / "efficientat" / "mn04_as_mAP_432.pt"


def script(name: str, *args: object, cwd: Path, ok: int | None = 0) -> subprocess.CompletedProcess:
    """Run one of the three scripts; its outputs land in `cwd`."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / name), *map(str, args)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert ok is None or done.returncode == ok, (
        f"{name} {args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    )
    return done


def refused(done: subprocess.CompletedProcess) -> str:
    """The one line of a refusal; fails unless it is one line, exit code 2 and no traceback."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    return lines[0]


def tone(kind: int, seed: int, rate: int = 16000, seconds: float = 1.0) -> np.ndarray:
    """(samples,) a noisy tone whose pitch says its class."""
    rng = np.random.default_rng([kind, seed])
    time = np.arange(int(rate * seconds)) / rate
    pitch = 300 * 2.2**kind * rng.uniform(0.9, 1.1)
    return (
        0.3 * np.sin(2 * np.pi * pitch * time + rng.uniform(0, 6)) + 0.1 * rng.standard_normal(len(time))
    ).astype(np.float32)


def make_competition(
    folder: Path, classes: int = 3, train: int = 10, subm: int = 4, seconds: float = 1.0
) -> Path:
    """A Kaggle layout: train.csv (fname,label,group), audio_train/, audio_test/, a shuffled
    sample_submission.csv."""
    names = [f"tone{kind}" for kind in range(classes)]
    for part in ("audio_train", "audio_test"):
        (folder / part).mkdir(parents=True)
    rows, ids = [], []
    for index in range(classes * train):
        kind, number = index % classes, index // classes
        soundfile.write(
            folder / "audio_train" / f"{index:03d}.wav", tone(kind, number, seconds=seconds), 16000
        )
        rows.append([f"{index:03d}.wav", names[kind], f"g{index // (2 * classes)}-{kind}"])
    for index in range(classes * subm):
        soundfile.write(
            folder / "audio_test" / f"t{index:03d}.wav",
            tone(index % classes, 1000 + index, seconds=seconds),
            16000,
        )
        ids.append(f"t{index:03d}.wav")
    with open(folder / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows([["fname", "label", "group"], *rows])
    shuffled = np.random.default_rng(0).permutation(ids)
    with open(folder / "sample_submission.csv", "w", newline="") as file:
        csv.writer(file).writerows([["fname", "label"], *([i, names[0]] for i in shuffled)])
    return folder


@pytest.fixture
def tones(tmp_path: Path) -> Path:
    """A small competition in tmp_path/tones."""
    return make_competition(tmp_path / "tones")


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    """Three training clips and two to submit, in tmp_path/birds, each csv in an order of its own."""
    root = tmp_path / "birds"
    layout_files.files(
        root,
        "audio_train/b.wav",
        "audio_train/a.wav",
        "audio_train/c.wav",
        "audio_test/y.wav",
        "audio_test/x.wav",
    )
    layout_files.csv(root / "train.csv", "fname,label b.wav,owl a.wav,jay c.wav,owl")
    layout_files.csv(root / "sample_submission.csv", "fname,label y.wav,jay x.wav,jay")
    return root


@pytest.fixture(scope="session")
def esc10() -> Path:
    """The real recordings, where they are at hand."""
    if not (SHARED / "esc10" / "meta").is_dir():
        pytest.skip(f"the shared ESC-10 recordings are not at {SHARED}")
    return SHARED / "esc10"


@pytest.fixture(scope="session")
def efficientat_weights() -> Path:
    """EfficientAT's real weights, where they are at hand."""
    if not EFFICIENTAT.is_file():
        pytest.skip(f"EfficientAT's weights are not at {EFFICIENTAT}")
    return EFFICIENTAT


def read_csv(path: Path) -> list[dict[str, str]]:
    """A csv's rows as dicts."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
