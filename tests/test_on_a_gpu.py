"""The stages on a real GPU: the same features and scores as on the CPU, resumed, in every precision, and with
too little memory. Skipped where torch sees no GPU."""

from __future__ import annotations

import json
import re
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from conftest import make_competition, script

GPU = torch.cuda.is_available()
pytestmark = pytest.mark.skipif(not GPU, reason="torch sees no GPU here")
CNN = (
    *("--head", "audio_cnn", "--head.channels", "[8, 16]", "--head.blocks", "[1, 1]"),
    *("--head.standardise", "true", "--epochs", "30", "--batch-size", "5", "--lr", "1e-2", "--folds", "2"),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with the tones and their log-mel, extracted on the CPU."""
    home = tmp_path_factory.mktemp("gpu")
    make_competition(home / "tones")
    script("get_features.py", "--competition", "tones", "--extractor", "logmel", "--device", "cpu", cwd=home)
    return home


def scores(home: Path, name: str) -> dict:
    return json.loads((home / "runs" / name / "scores.json").read_text())


def test_features_are_those_of_the_cpu(home):
    on_gpu = ("--extractor", "logmel", "--device", "cuda", "--out", "gpu")
    done = script("get_features.py", "--competition", "tones", *on_gpu, cwd=home)
    assert "cuda:0" in done.stdout or torch.cuda.get_device_name(0) in done.stdout, done.stdout
    a, b = (joblib.load(home / out / "tones" / "logmel" / "train.pkl")["mel"] for out in ("data", "gpu"))
    assert a.shape == b.shape and np.abs(a.astype(np.float32) - b.astype(np.float32)).max() < 0.05


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_training_learns_in_every_precision(home, precision):
    name = f"cnn-{precision}"
    script("train.py", *CNN, "--device", "cuda", "--precision", precision, "--name", name, cwd=home)
    assert scores(home, name)["last"]["f1_macro"] > 0.6
    assert (home / "submissions" / "submission.csv").is_file()


def test_training_resumes_where_it_was_stopped(home):
    for hours in ("0.000001", "0"):
        part = ("--max-hours", hours) if hours != "0" else ()
        done = script("train.py", *CNN, "--device", "cuda", "--name", "stopped", *part, cwd=home)
    assert "(continued)" in done.stdout, done.stdout
    assert scores(home, "stopped")["last"]["f1_macro"] > 0.6


def test_a_run_of_the_gpu_predicts_on_the_cpu(home):
    script("train.py", *CNN, "--device", "cuda", "--precision", "fp32", "--name", "moved", cwd=home)
    clips = sorted((home / "tones" / "audio_test").iterdir())
    found = {}
    for device in ("cuda", "cpu"):
        done = script("predict.py", "--runs", "moved", *clips, "--device", device, cwd=home)
        pairs = re.findall(r"(tone\d) (\d\.\d+)", done.stdout)
        found[device] = [float(value) for _, value in sorted(pairs[:3])]
        assert len(pairs) == 3 * len(clips), done.stdout
    assert np.allclose(found["cuda"], found["cpu"], atol=0.01)


def test_too_little_memory_halves_the_batch(home, tmp_path):
    """A real out-of-memory error of the allocator: the step ends with fewer rows a pass."""
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import noise

    from earshot.core.device import choose

    case = noise.case("small_cnn")
    total = torch.cuda.get_device_properties(0).total_memory
    fitter = noise.fitter(case, tmp_path, choose("cuda", "fp32"), 512, epochs=1)
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction(600e6 / total)
        loss = float(fitter.step(1, 0, fitter.rows.load_training_batch(np.arange(256))))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert np.isfinite(loss) and fitter.micro < 256
